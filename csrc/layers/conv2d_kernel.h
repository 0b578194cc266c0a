#pragma once

// The two micro-kernels of every convolution: a register tile of kRows x kVecs vectors of sums. Addresses come from
// offset tables, so that any kernel size, stride and border is the same loop.
#include <algorithm>
#include <cstdint>
#include <utility>

#include "core/simd.h"
#include "layers/map.h"

namespace mf {
inline namespace MF_ISA {
namespace conv {

// One run of the reduction of a gather: Σ_r a[position + offset[r]] * w[r].
template <class T>
struct Run {
  const T* a;
  const T* w;  // rows of one panel, one after the other
  const int32_t* offset;
  int64_t rows;
};

// Where the positions of a tile lie in the map that is read and in the map that is written.
struct Position {
  int32_t in, out;
};

constexpr int kMaxVecs = kVecRegisters >= 32 ? 4 : 2;  // vectors in a panel
constexpr int kMaxTile = 8;
// Sums, one row of the panel, and one broadcast value live in registers; base pointers must, too, hence 8.
constexpr int tile_rows(int vecs) { return std::min(kMaxTile, (kVecRegisters - 1 - vecs) / vecs); }

// y[out_i] (+)= init + Σ_runs Σ_r a[in_i + offset[r]] * w[r]     for kRows positions i
// The sum starts at 0 and is added to y at the end: partial sums of partial sums lose less to rounding.
template <class T, int kRows, int kVecs>
void gather_tile(const Run<T>* run, int runs, const Position* at, T* y, const T* init, bool accumulate) {
  constexpr int64_t kLanes = Vec<T>::kLanes;
  Vec<T> sum[kRows][kVecs];
#pragma GCC unroll 16
  for (int i = 0; i < kRows; ++i)
#pragma GCC unroll 16
    for (int v = 0; v < kVecs; ++v) sum[i][v] = Vec<T>::zero();
  for (; runs > 0; --runs, ++run) {
    const T* a[kRows];
#pragma GCC unroll 16
    for (int i = 0; i < kRows; ++i) a[i] = run->a + at[i].in;
    const T* w = run->w;
    const int32_t* offset = run->offset;
    for (const int32_t* end = offset + run->rows; offset != end; ++offset, w += kVecs * kLanes) {
      const int64_t o = *offset;
      Vec<T> row[kVecs];
#pragma GCC unroll 16
      for (int v = 0; v < kVecs; ++v) row[v] = Vec<T>::load(w + v * kLanes);
#pragma GCC unroll 16
      for (int i = 0; i < kRows; ++i) {
        const Vec<T> value = Vec<T>::broadcast(a[i][o]);
#pragma GCC unroll 16
        for (int v = 0; v < kVecs; ++v) sum[i][v] = fma(value, row[v], sum[i][v]);
      }
    }
  }
  if (init)
#pragma GCC unroll 16
    for (int v = 0; v < kVecs; ++v) {
      const Vec<T> first = Vec<T>::load(init + v * kLanes);
#pragma GCC unroll 16
      for (int i = 0; i < kRows; ++i) sum[i][v] += first;
    }
  if (accumulate)
#pragma GCC unroll 16
    for (int i = 0; i < kRows; ++i)
#pragma GCC unroll 16
      for (int v = 0; v < kVecs; ++v) sum[i][v] += Vec<T>::load(y + at[i].out + v * kLanes);
#pragma GCC unroll 16
  for (int i = 0; i < kRows; ++i)
#pragma GCC unroll 16
    for (int v = 0; v < kVecs; ++v) sum[i][v].store(y + at[i].out + v * kLanes);
}

// Two maps whose outer product is summed over positions; b is the panel's part of it.
template <class T>
struct Pair {
  const T* a;
  const T* b;
};

// dw[i] (+)= Σ_pairs Σ_p a[in_p + offset[i]] * b[out_p]     for kRows rows i of the panel
template <class T, int kRows, int kVecs>
void outer_tile(const Pair<T>* pair, int pairs, const Position* at, int64_t positions, const int32_t* offset, T* dw,
                bool accumulate) {
  constexpr int64_t kLanes = Vec<T>::kLanes;
  Vec<T> sum[kRows][kVecs];
#pragma GCC unroll 16
  for (int i = 0; i < kRows; ++i)
#pragma GCC unroll 16
    for (int v = 0; v < kVecs; ++v) sum[i][v] = Vec<T>::zero();
  for (; pairs > 0; --pairs, ++pair) {
    const T* a[kRows];
#pragma GCC unroll 16
    for (int i = 0; i < kRows; ++i) a[i] = pair->a + offset[i];
    const T* b = pair->b;
    for (const Position *p = at, *end = at + positions; p != end; ++p) {
      const int64_t in = p->in, out = p->out;
      Vec<T> row[kVecs];
#pragma GCC unroll 16
      for (int v = 0; v < kVecs; ++v) row[v] = Vec<T>::load(b + out + v * kLanes);
#pragma GCC unroll 16
      for (int i = 0; i < kRows; ++i) {
        const Vec<T> value = Vec<T>::broadcast(a[i][in]);
#pragma GCC unroll 16
        for (int v = 0; v < kVecs; ++v) sum[i][v] = fma(value, row[v], sum[i][v]);
      }
    }
  }
#pragma GCC unroll 16
  for (int i = 0; i < kRows; ++i)
#pragma GCC unroll 16
    for (int v = 0; v < kVecs; ++v) {
      T* to = dw + (i * kVecs + v) * kLanes;
      (accumulate ? sum[i][v] + Vec<T>::load(to) : sum[i][v]).store(to);
    }
}

template <class T>
using GatherTile = void (*)(const Run<T>*, int, const Position*, T*, const T*, bool);
template <class T>
using OuterTile = void (*)(const Pair<T>*, int, const Position*, int64_t, const int32_t*, T*, bool);

// The kernels of one panel width, by number of rows.
template <class T>
struct Kernels {
  GatherTile<T> gather[kMaxTile + 1] = {};
  OuterTile<T> outer[kMaxTile + 1] = {};
};

template <class T, int kVecs, int... kRow>
constexpr Kernels<T> make_kernels(std::integer_sequence<int, kRow...>) {
  Kernels<T> k;
  ((k.gather[kRow + 1] = gather_tile<T, kRow + 1, kVecs>), ...);
  ((k.outer[kRow + 1] = outer_tile<T, kRow + 1, kVecs>), ...);
  return k;
}

template <class T, int... kVec>
const Kernels<T>& kernels(int vecs, std::integer_sequence<int, kVec...>) {
  static constexpr Kernels<T> table[] = {
      make_kernels<T, kVec + 1>(std::make_integer_sequence<int, tile_rows(kVec + 1)>())...};
  return table[vecs - 1];
}

template <class T>
const Kernels<T>& kernels(int vecs) {
  return kernels<T>(vecs, std::make_integer_sequence<int, kMaxVecs>());
}

// `items` in as few tiles of at most `most` as possible, whose sizes differ by at most one.
struct Tiles {
  int64_t count, size, larger;  // the first `larger` tiles have size + 1

  Tiles(int64_t items, int64_t most)
      : count((items + most - 1) / most), size(count ? items / count : 0), larger(count ? items % count : 0) {}
  int64_t begin(int64_t t) const { return t * size + std::min(t, larger); }
};

// Vectors of `channels` (padded) split into panels; panel p of a matrix of `rows` rows starts at rows * begin(p)
// vectors.
inline Tiles panels(int64_t channels, int64_t lanes) { return {padded_channels(channels) / lanes, kMaxVecs}; }

}  // namespace conv
}  // namespace MF_ISA
}  // namespace mf
