#pragma once

// The matrix products of Winograd's points: the register tiles of conv2d_kernel.h for even distances, without tables
// and unrolled, because 32 products deep a call is short.
#include "layers/conv2d_kernel.h"

namespace mf {
inline namespace MF_ISA {
namespace winograd {

constexpr int64_t kUnroll = 4;  // depths are multiples of this

template <class T>
struct Factor {
  const T* a;
  const T* b;
};

// y[i] (+)= Σ_factors Σ_k a[i * a_step + k] * b[k]     for kRows rows i
template <class T, int kRows, int kVecs>
void rows_tile(const Factor<T>* factor, int factors, int64_t a_step, int64_t depth, T* y, int64_t y_step,
               bool accumulate) {
  constexpr int64_t kLanes = Vec<T>::kLanes;
  Vec<T> sum[kRows][kVecs];
#pragma GCC unroll 16
  for (int i = 0; i < kRows; ++i)
#pragma GCC unroll 16
    for (int v = 0; v < kVecs; ++v) sum[i][v] = Vec<T>::zero();
  for (; factors > 0; --factors, ++factor) {
    const T* a[kRows];
#pragma GCC unroll 16
    for (int i = 0; i < kRows; ++i) a[i] = factor->a + i * a_step;
    const T* b = factor->b;
    for (int64_t k = 0; k < depth; k += kUnroll, b += kUnroll * kVecs * kLanes) {
#pragma GCC unroll 16
      for (int u = 0; u < kUnroll; ++u) {
        Vec<T> row[kVecs];
#pragma GCC unroll 16
        for (int v = 0; v < kVecs; ++v) row[v] = Vec<T>::load(b + (u * kVecs + v) * kLanes);
#pragma GCC unroll 16
        for (int i = 0; i < kRows; ++i) {
          const Vec<T> value = Vec<T>::broadcast(a[i][k + u]);
#pragma GCC unroll 16
          for (int v = 0; v < kVecs; ++v) sum[i][v] = fma(value, row[v], sum[i][v]);
        }
      }
    }
  }
#pragma GCC unroll 16
  for (int i = 0; i < kRows; ++i)
#pragma GCC unroll 16
    for (int v = 0; v < kVecs; ++v) {
      T* to = y + i * y_step + v * kLanes;
      (accumulate ? sum[i][v] + Vec<T>::load(to) : sum[i][v]).store(to);
    }
}

// y[i] (+)= Σ_k a[k * a_step + i] * b[k]     for kRows rows i of a panel
template <class T, int kRows, int kVecs>
void columns_tile(const T* a, int64_t a_step, const T* b, int64_t depth, T* y, bool accumulate) {
  constexpr int64_t kLanes = Vec<T>::kLanes;
  Vec<T> sum[kRows][kVecs];
#pragma GCC unroll 16
  for (int i = 0; i < kRows; ++i)
#pragma GCC unroll 16
    for (int v = 0; v < kVecs; ++v) sum[i][v] = Vec<T>::zero();
  for (int64_t k = 0; k < depth; k += kUnroll, b += kUnroll * kVecs * kLanes) {
#pragma GCC unroll 16
    for (int u = 0; u < kUnroll; ++u, a += a_step) {
      Vec<T> row[kVecs];
#pragma GCC unroll 16
      for (int v = 0; v < kVecs; ++v) row[v] = Vec<T>::load(b + (u * kVecs + v) * kLanes);
#pragma GCC unroll 16
      for (int i = 0; i < kRows; ++i) {
        const Vec<T> value = Vec<T>::broadcast(a[i]);
#pragma GCC unroll 16
        for (int v = 0; v < kVecs; ++v) sum[i][v] = fma(value, row[v], sum[i][v]);
      }
    }
  }
#pragma GCC unroll 16
  for (int i = 0; i < kRows; ++i)
#pragma GCC unroll 16
    for (int v = 0; v < kVecs; ++v) {
      T* to = y + (i * kVecs + v) * kLanes;
      (accumulate ? sum[i][v] + Vec<T>::load(to) : sum[i][v]).store(to);
    }
}

template <class T>
using RowsTile = void (*)(const Factor<T>*, int, int64_t, int64_t, T*, int64_t, bool);
template <class T>
using ColumnsTile = void (*)(const T*, int64_t, const T*, int64_t, T*, bool);

template <class T>
struct Products {
  RowsTile<T> rows[conv::kMaxTile + 1] = {};
  ColumnsTile<T> columns[conv::kMaxTile + 1] = {};
};

template <class T, int kVecs, int... kRow>
constexpr Products<T> make_products(std::integer_sequence<int, kRow...>) {
  Products<T> p;
  ((p.rows[kRow + 1] = rows_tile<T, kRow + 1, kVecs>), ...);
  ((p.columns[kRow + 1] = columns_tile<T, kRow + 1, kVecs>), ...);
  return p;
}

template <class T, int... kVec>
const Products<T>& products(int64_t vecs, std::integer_sequence<int, kVec...>) {
  static constexpr Products<T> table[] = {
      make_products<T, kVec + 1>(std::make_integer_sequence<int, conv::tile_rows(kVec + 1)>())...};
  return table[vecs - 1];
}

// The kernels for panels of `vecs` vectors, by number of rows.
template <class T>
const Products<T>& products(int64_t vecs) {
  return products<T>(vecs, std::make_integer_sequence<int, conv::kMaxVecs>());
}

}  // namespace winograd
}  // namespace MF_ISA
}  // namespace mf
