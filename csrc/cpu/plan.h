// The chunks of a bucket, checked, and how they are spread over torch's thread pool.
#pragma once

#include <algorithm>

#include "../core/check.h"

namespace mf::cpu {

constexpr int64_t kGrain = 32768;  // elements that are worth waking a thread for

// Runs fn(chunk index) for all chunks. A thread gets a contiguous range of elements, not of chunks, because chunks of
// small tensors are short. `backwards` starts with what a pass before this one has left in the cache.
template <class Fn>
void for_chunks(const ChunkRow* chunks, int64_t count, int64_t elements, bool backwards, const Fn& fn) {
  torch::stable::parallel_for(0, elements, kGrain, [&](int64_t begin, int64_t end) {
    const auto at = [&](int64_t element) {
      return std::lower_bound(chunks, chunks + count, element,
                              [](const ChunkRow& c, int64_t e) { return c.before < e; }) -
             chunks;
    };
    const int64_t first = at(begin), last = at(end);
    if (backwards) {
      for (int64_t c = last; c-- > first;) fn(c);
    } else {
      for (int64_t c = first; c < last; ++c) fn(c);
    }
  });
}

struct Plan {
  const Item* items;
  const ChunkRow* chunks;
  int64_t item_count, chunk_count, elements;
};

// items and chunks come from Python; a wrong row must be an error here, not a write to someone else's memory.
inline Plan checked_plan(const View& items, const View& chunks, const char* op) {
  Plan plan{items.as<const Item>(), chunks.as<const ChunkRow>(), items.numel / 3, chunks.numel / 3, 0};
  for (int64_t c = 0; c < plan.chunk_count; ++c) {
    const ChunkRow& row = plan.chunks[c];
    STD_TORCH_CHECK(row.item >= 0 && row.item < plan.item_count && row.before == plan.elements && row.start >= 0 &&
                        row.start < plan.items[row.item].numel,
                    op, ": chunks row ", c, " does not fit items; build both with metafast.ops.make_layout");
    plan.elements += std::min<int64_t>(kChunk, plan.items[row.item].numel - row.start);
  }
  return plan;
}

}  // namespace mf::cpu
