#pragma once

// Sums and copies of maps and flat vectors.
//
// In all layers: a map's pointer stands at its first border element; borders and the lanes c..cp-1 are 0 and stay 0; n
// is the number of valid examples, the first n of the map; `add` says += instead of =.
#include "layers/spans.h"

namespace mf {
inline namespace MF_ISA {

// y += a x, on flat vectors.
template <class T>
void axpy(T a, const T* x, T* y, int64_t size) {
  using V = Vec<T>;
  const V factor = V::broadcast(a);
  int64_t j = 0;
  for (; j + V::kLanes <= size; j += V::kLanes) fma(factor, V::load(x + j), V::load(y + j)).store(y + j);
  for (; j < size; ++j) y[j] += a * x[j];
}

// y (+)= x between maps of the same n, h, w, c; borders and lane counts may differ (a model's input has cp == c).
template <class T>
void copy_map(const Map& from, const T* x, const Map& to, T* y, bool add, int64_t n, Team& team) {
  using V = Vec<T>;
  if (from.cp == to.cp && to.cp % V::kLanes == 0) {
    for_spans(
        n, team,
        [&](int64_t length, int64_t a, int64_t b) {
          if (add)
            for (int64_t j = 0; j < length; j += V::kLanes) (V::load(x + a + j) + V::load(y + b + j)).store(y + b + j);
          else
            for (int64_t j = 0; j < length; j += V::kLanes) V::load(x + a + j).store(y + b + j);
        },
        from, to);
    return;
  }
  team.run(n, [&](int64_t i) {
    for (int64_t r = 0; r < from.h; ++r)
      for (int64_t q = 0; q < from.w; ++q) {
        const T* source = x + from.at(i, r, q);
        T* target = y + to.at(i, r, q);
        for (int64_t k = 0; k < from.c; ++k) target[k] = add ? target[k] + source[k] : source[k];
      }
  });
}

// ADD: y = a + b. Its backward is copy_map(dy -> da) and copy_map(dy -> db); its tangent passes are the same calls.
template <class T>
void add_maps(const Map& ma, const T* a, const Map& mb, const T* b, const Map& my, T* y, int64_t n, Team& team) {
  using V = Vec<T>;
  for_spans(
      n, team,
      [&](int64_t length, int64_t at_a, int64_t at_b, int64_t at_y) {
        for (int64_t j = 0; j < length; j += V::kLanes)
          (V::load(a + at_a + j) + V::load(b + at_b + j)).store(y + at_y + j);
      },
      ma, mb, my);
}

// Sets the inner part of the first n examples to 0.
template <class T>
void clear_map(const Map& map, T* x, int64_t n, Team& team) {
  for_spans(n, team, [&](int64_t length, int64_t at) { std::memset(x + at, 0, length * sizeof(T)); }, map);
}

}  // namespace MF_ISA
}  // namespace mf
