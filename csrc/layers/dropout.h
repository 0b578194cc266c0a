#pragma once

// DROPOUT: y = x kept / (1 - p), kept a hash of (seed, task, step, instruction, element) as in
// metafast/ops/_dropout_hash.py. Linear in x: all four passes are this call between different maps.
#include <cmath>

#include "core/rounding.h"
#include "layers/spans.h"

namespace mf {
inline namespace MF_ISA {

struct DropoutKey {
  uint64_t seed = 0, task = 0, step = 0, instruction = 0;
};

// examples[i] is the position of example i in the task's data (null: i itself). y may be x where the maps lie alike.
template <class T>
void dropout(double p, const DropoutKey& id, const int64_t* examples, const Map& from, const T* x, const Map& to, T* y,
             bool add, int64_t n, Team& team) {
  const uint32_t key =
      mix32(rounding_key(id.seed, id.task, id.step) + (static_cast<uint32_t>(id.instruction) + 1u) * 0x9e3779b9u);
  const auto least = static_cast<uint32_t>(std::ceil(p * 16777216.0));
  const T factor = p < 1.0 ? static_cast<T>(1.0 / (1.0 - p)) : T(0);
  const int64_t plane = from.h * from.w, numel = from.c * plane;
  const int64_t per_block = std::max<int64_t>(1, kBlockElements / std::max<int64_t>(1, plane * from.cp));
  team.run(blocks_of(n, per_block), [&](int64_t b) {
    for (int64_t i = b * per_block; i < std::min(n, (b + 1) * per_block); ++i) {
      const uint64_t first = static_cast<uint64_t>(examples != nullptr ? examples[i] : i) * numel;
      for (int64_t r = 0; r < from.h; ++r)
        for (int64_t q = 0; q < from.w; ++q) {
          const T* source = x + from.at(i, r, q);
          T* target = y + to.at(i, r, q);
          const uint64_t place = first + r * from.w + q;
          for (int64_t k = 0; k < from.c; ++k) {
            const bool kept = rounding_word(key, place + k * plane) >> 8 >= least;
            const T v = (kept ? factor : T(0)) * source[k];
            target[k] = add ? target[k] + v : v;
          }
        }
    }
  });
}

}  // namespace MF_ISA
}  // namespace mf
