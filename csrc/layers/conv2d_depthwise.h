#pragma once

// One filter per channel: vectors run over channels, a row of weights per tap.
#include "layers/conv2d_gather.h"

namespace mf {
inline namespace MF_ISA {
namespace conv {

constexpr int kDepthwiseTile = 8;

// y[out_i] (+)= init + Σ_terms Σ_k a[in_i + offset[k]] * w[tap[k]]    for kRows positions and one vector of channels
template <class T, int kRows>
void depthwise_tile(const ConvTerm<T>* term, int count, const std::vector<int32_t>& offset,
                    const std::vector<int32_t>& tap, int64_t cp, int64_t c, const Position* at, const T* init,
                    bool accumulate, T* y) {
  Vec<T> sum[kRows];
#pragma GCC unroll 16
  for (int i = 0; i < kRows; ++i) sum[i] = init ? Vec<T>::load(init + c) : Vec<T>::zero();
  for (int t = 0; t < count; ++t)
    for (size_t k = 0; k < tap.size(); ++k) {
      const Vec<T> w = Vec<T>::load(term[t].b + tap[k] * cp + c);
      const T* a = term[t].a + offset[k] + c;
#pragma GCC unroll 16
      for (int i = 0; i < kRows; ++i) sum[i] = fma(Vec<T>::load(a + at[i].in), w, sum[i]);
    }
#pragma GCC unroll 16
  for (int i = 0; i < kRows; ++i) {
    T* to = y + at[i].out + c;
    (accumulate ? sum[i] + Vec<T>::load(to) : sum[i]).store(to);
  }
}

template <class T>
void depthwise_block(const ConvTerm<T>* term, int count, const std::vector<int32_t>& offset,
                     const std::vector<int32_t>& tap, int64_t cp, const Position* at, int64_t positions, const T* init,
                     bool accumulate, T* y) {
  for (int64_t c = 0; c < cp; c += Vec<T>::kLanes) {
    int64_t p = 0;
    for (; p + kDepthwiseTile <= positions; p += kDepthwiseTile)
      depthwise_tile<T, kDepthwiseTile>(term, count, offset, tap, cp, c, at + p, init, accumulate, y);
    for (; p < positions; ++p) depthwise_tile<T, 1>(term, count, offset, tap, cp, c, at + p, init, accumulate, y);
  }
}

// dw[k] (+)= Σ_terms Σ_p a[in_p + offset[k]] * b[out_p]    for kTaps taps and one vector of channels
template <class T, int kTaps>
void depthwise_outer(const ConvTerm<T>* term, int count, const int32_t* offset, int64_t cp, int64_t c,
                     const Position* at, int64_t positions, bool accumulate, T* dw) {
  Vec<T> sum[kTaps];
#pragma GCC unroll 16
  for (int k = 0; k < kTaps; ++k) sum[k] = Vec<T>::zero();
  for (int t = 0; t < count; ++t) {
    const T* a[kTaps];
#pragma GCC unroll 16
    for (int k = 0; k < kTaps; ++k) a[k] = term[t].a + offset[k] + c;
    for (int64_t p = 0; p < positions; ++p) {
      const Vec<T> b = Vec<T>::load(term[t].b + at[p].out + c);
#pragma GCC unroll 16
      for (int k = 0; k < kTaps; ++k) sum[k] = fma(Vec<T>::load(a[k] + at[p].in), b, sum[k]);
    }
  }
#pragma GCC unroll 16
  for (int k = 0; k < kTaps; ++k) {
    T* to = dw + k * cp + c;
    (accumulate ? sum[k] + Vec<T>::load(to) : sum[k]).store(to);
  }
}

template <class T>
void depthwise_outer_block(const ConvTerm<T>* term, int count, const std::vector<int32_t>& offset, int64_t cp,
                           int64_t c, const Position* at, int64_t positions, bool accumulate, T* dw) {
  constexpr int kTaps = 9;
  const int64_t taps = static_cast<int64_t>(offset.size());
  int64_t k = 0;
  for (; k + kTaps <= taps; k += kTaps)
    depthwise_outer<T, kTaps>(term, count, offset.data() + k, cp, c, at, positions, accumulate, dw + k * cp);
  for (; k < taps; ++k)
    depthwise_outer<T, 1>(term, count, offset.data() + k, cp, c, at, positions, accumulate, dw + k * cp);
}

}  // namespace conv
}  // namespace MF_ISA
}  // namespace mf
