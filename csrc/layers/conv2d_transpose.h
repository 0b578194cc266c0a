#pragma once

// Weights with input and output channels exchanged, for the input gradient: vectors of input channels in panels, a row
// per (tap, output channel). It is done at every call, because weights of a task change at every step.
#include "layers/conv2d_gather.h"

namespace mf {
inline namespace MF_ISA {
namespace conv {

// One step of a transpose: exchanges the off-diagonal blocks of kHalf lanes of two rows.
template <class T, int kHalf, int... kLane>
MF_INLINE void exchange(Vec<T>& a, Vec<T>& b, std::integer_sequence<int, kLane...>) {
  using Mask = typename Vec<T>::Mask;
  constexpr int kLanes = sizeof...(kLane);
  const typename Vec<T>::Native low =
      __builtin_shuffle(a.v, b.v, Mask{((kLane & kHalf) ? kLane - kHalf + kLanes : kLane)...});
  const typename Vec<T>::Native high =
      __builtin_shuffle(a.v, b.v, Mask{((kLane & kHalf) ? kLane + kLanes : kLane + kHalf)...});
  a.v = low;
  b.v = high;
}

template <class T, int kHalf>
MF_INLINE void transpose_from(Vec<T>* row) {
  constexpr int kLanes = static_cast<int>(Vec<T>::kLanes);
  if constexpr (kHalf > 0) {
#pragma GCC unroll 16
    for (int i = 0; i < kLanes; ++i)
      if (!(i & kHalf)) exchange<T, kHalf>(row[i], row[i + kHalf], std::make_integer_sequence<int, kLanes>());
    transpose_from<T, kHalf / 2>(row);
  }
}

// to[j][i] = from[i][j] for one square of vectors; rows beyond `valid_in` count as 0, rows beyond `valid_out` are not
// written.
template <class T>
void transpose_square(const T* from, int64_t from_stride, int64_t valid_in, T* to, int64_t to_stride,
                      int64_t valid_out) {
  constexpr int kLanes = static_cast<int>(Vec<T>::kLanes);
  Vec<T> row[kLanes];
  if (valid_in >= kLanes && valid_out >= kLanes) {
#pragma GCC unroll 16
    for (int i = 0; i < kLanes; ++i) row[i] = Vec<T>::load(from + i * from_stride);
    transpose_from<T, kLanes / 2>(row);
#pragma GCC unroll 16
    for (int i = 0; i < kLanes; ++i) row[i].store(to + i * to_stride);
    return;
  }
  for (int64_t j = 0; j < std::min<int64_t>(kLanes, valid_out); ++j)
    for (int64_t i = 0; i < kLanes; ++i) to[j * to_stride + i] = i < valid_in ? from[i * from_stride + j] : T(0);
}

// The rows (tap[k], co) of one group and class from its packed weights, which have rows (tap, ci).
template <class T>
void transpose_weights(const T* w, int64_t ci, int64_t co, int64_t taps, const std::vector<int32_t>& tap, T* to) {
  constexpr int64_t kLanes = Vec<T>::kLanes;
  const Tiles out = panels(co, kLanes), in = panels(ci, kLanes);
  const int64_t rows = taps * ci, to_rows = static_cast<int64_t>(tap.size()) * co;
  for (int64_t k = 0; k < static_cast<int64_t>(tap.size()); ++k)
    for (int64_t p = 0; p < out.count; ++p) {
      const int64_t begin = out.begin(p), width = (out.begin(p + 1) - begin) * kLanes;
      const T* from = w + rows * begin * kLanes + tap[static_cast<size_t>(k)] * ci * width;
      for (int64_t q = 0; q < in.count; ++q) {
        const int64_t in_begin = in.begin(q), in_width = (in.begin(q + 1) - in_begin) * kLanes;
        T* panel = to + to_rows * in_begin * kLanes + k * co * in_width;
        for (int64_t c = begin * kLanes; c < std::min(begin * kLanes + width, co); c += kLanes)
          for (int64_t v = 0; v < in_width; v += kLanes) {
            const int64_t channel = in_begin * kLanes + v;  // may begin beyond ci: a padded vector
            transpose_square(from + channel * width + (c - begin * kLanes), width, ci - channel,
                             panel + c * in_width + v, in_width, co - c);
          }
      }
    }
}

}  // namespace conv
}  // namespace MF_ISA
}  // namespace mf
