// Where buffers of one pass lie: lifetimes to offsets, and the memory itself.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <new>
#include <vector>
#if defined(__linux__)
#include <sys/mman.h>
#endif

#include "core/simd.h"

namespace mf {
inline namespace MF_ISA {

constexpr int64_t kAlign = 64;
inline int64_t aligned(int64_t bytes) { return (bytes + kAlign - 1) / kAlign * kAlign; }

// Gives each buffer an offset, so that buffers whose lifetimes meet never overlap. Large ones choose first.
class Lifetimes {
 public:
  // Alive from time `first` to `last`, both included. Returns the buffer's number.
  int add(int64_t bytes, int64_t first, int64_t last) {
    items_.push_back({aligned(bytes), first, last, 0});
    return static_cast<int>(items_.size()) - 1;
  }

  // reuse: false gives every buffer memory of its own.
  void place(bool reuse) {
    total_ = 0;
    if (!reuse) {
      for (Item& item : items_) item.at = total_, total_ += item.bytes;
      return;
    }
    std::vector<Item*> order;
    for (Item& item : items_) order.push_back(&item);
    std::stable_sort(order.begin(), order.end(), [](const Item* a, const Item* b) { return a->bytes > b->bytes; });
    std::vector<const Item*> placed, meeting;
    for (Item* item : order) {
      meeting.clear();
      for (const Item* other : placed)
        if (item->first <= other->last && other->first <= item->last) meeting.push_back(other);
      std::sort(meeting.begin(), meeting.end(), [](const Item* a, const Item* b) { return a->at < b->at; });
      int64_t at = 0;
      for (const Item* other : meeting) {
        if (at + item->bytes <= other->at) break;
        at = std::max(at, other->at + other->bytes);
      }
      item->at = at;
      placed.push_back(item);
      total_ = std::max(total_, at + item->bytes);
    }
  }

  int64_t at(int number) const { return items_[number].at; }
  int64_t total() const { return total_; }

 private:
  struct Item {
    int64_t bytes, first, last, at;
  };
  std::vector<Item> items_;
  int64_t total_ = 0;
};

// Zeroed memory that lives as long as this; huge pages where they pay.
class Arena {
 public:
  Arena() = default;
  Arena(const Arena&) = delete;
  Arena& operator=(const Arena&) = delete;
  ~Arena() { release(); }

  void allocate(int64_t bytes) {
    release();
    bytes_ = aligned(bytes) + kAlign;
#if defined(__linux__)
    constexpr int64_t kHuge = int64_t{2} << 20;
    if (bytes_ >= 2 * kHuge) bytes_ = (bytes_ + kHuge - 1) / kHuge * kHuge;
    void* memory = mmap(nullptr, bytes_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED) {
      bytes_ = 0;
      throw std::bad_alloc();
    }
    if (bytes_ >= 2 * kHuge) madvise(memory, bytes_, MADV_HUGEPAGE);
    data_ = static_cast<char*>(memory);
#else
    data_ = static_cast<char*>(::operator new(bytes_, std::align_val_t(kAlign)));
    std::memset(data_, 0, bytes_);
#endif
  }

  char* data() const { return data_; }
  int64_t bytes() const { return bytes_; }

 private:
  void release() {
    if (!data_) return;
#if defined(__linux__)
    munmap(data_, bytes_);
#else
    ::operator delete(data_, std::align_val_t(kAlign));
#endif
    data_ = nullptr;
  }

  char* data_ = nullptr;
  int64_t bytes_ = 0;
};

}  // namespace MF_ISA
}  // namespace mf
