// What the threads of one call share: sums in the order of the tasks.
#pragma once

#include <condition_variable>
#include <cstdint>
#include <map>
#include <mutex>
#include <vector>

#include "core/simd.h"

namespace mf {
inline namespace MF_ISA {

// Adds vectors of tasks in the order of the tasks. A task that is early leaves its vector here.
template <class T>
class OrderedSum {
 public:
  void begin(int64_t size, int64_t doubles, int64_t first) {
    total.assign(size, T(0));
    total_doubles.assign(doubles, 0.0);
    next_ = first;
    waiting_.clear();
    stopped_ = false;
  }

  // Null vectors stand for zeros.
  void add(int64_t task, const T* values, const double* doubles) {
    std::unique_lock lock(mutex_);
    if (task != next_) {
      // The task that everybody waits for is in some thread's hands, so this ends; kMost bounds the memory.
      turn_.wait(lock, [&] { return task == next_ || waiting_.size() < kMost || stopped_; });
      if (task != next_) {
        Early& early = waiting_[task];
        if (values) early.values.assign(values, values + total.size());
        early.doubles.assign(doubles, doubles + total_doubles.size());
        return;
      }
    }
    accumulate(values, doubles);
    for (auto it = waiting_.begin(); it != waiting_.end() && it->first == next_; it = waiting_.erase(it))
      accumulate(it->second.values.empty() ? nullptr : it->second.values.data(), it->second.doubles.data());
    turn_.notify_all();
  }

  void stop() {
    const std::lock_guard lock(mutex_);
    stopped_ = true;
    turn_.notify_all();
  }

  std::vector<T> total;
  std::vector<double> total_doubles;

 private:
  static constexpr size_t kMost = 64;
  struct Early {
    std::vector<T> values;
    std::vector<double> doubles;
  };

  void accumulate(const T* values, const double* doubles) {
    T* to = total.data();
    if (values) {
#pragma omp simd
      for (size_t i = 0; i < total.size(); ++i) to[i] += values[i];
    }
    for (size_t i = 0; i < total_doubles.size(); ++i) total_doubles[i] += doubles[i];
    ++next_;
  }

  std::mutex mutex_;
  std::condition_variable turn_;
  std::map<int64_t, Early> waiting_;
  int64_t next_ = 0;
  bool stopped_ = false;
};

}  // namespace MF_ISA
}  // namespace mf
