#pragma once

// 3x3 convolutions of stride 1 and padding 1 by Winograd's minimal filtering F(m x m, 3 x 3): with d a tile of m+2 x
// m+2 inputs, g a filter, ⊙ elementwise and sums over channels,
//   y = Aᵀ[(G g Gᵀ) ⊙ (Bᵀ d B)]A,     dg = Gᵀ[(Bᵀ d B) ⊙ (A dy Aᵀ)]G,
// and the input gradient is the first form for dy and the turned, transposed filter. Per pair of channels and output
// that is 4 products for m = 2 and 2.25 for m = 4 instead of 9. This header has the transforms; winograd_passes.h the
// passes. Lavin, Gray: Fast Algorithms for Convolutional Neural Networks (2016).
//
// Rounding error against double (root mean square, 32 to 160 channels), in parts of the direct kernels': 0.9 to 1.7 for
// m = 2, 2.7 to 3.8 for m = 4; time for m = 4 in parts of m = 2: 0.67 to 0.93. Left out: m = 4 on the usual points 0,
// ±1, ±2 (5.3 times the direct error in a trial against 2.4); passing columns on from tile to tile.
#include <algorithm>
#include <cstdint>

#include "layers/conv2d_kernel.h"
#include "layers/map.h"

namespace mf {
inline namespace MF_ISA {
namespace winograd {

using conv::Tiles;

// One-dimensional transforms over the points 0, 1, -1, ∞.
struct F2 {
  static constexpr int kTile = 2, kSize = 4;

  template <class V>
  static MF_INLINE void input(const V* d, V* out) {  // Bᵀ
    out[0] = d[0] - d[2];
    out[1] = d[1] + d[2];
    out[2] = d[2] - d[1];
    out[3] = d[1] - d[3];
  }
  template <class V>
  static MF_INLINE void output(const V* m, V* y) {  // Aᵀ
    y[0] = m[0] + m[1] + m[2];
    y[1] = m[1] - m[2] - m[3];
  }
  template <class V>
  static MF_INLINE void gradient(const V* y, V* out) {  // A
    out[0] = y[0];
    out[1] = y[0] + y[1];
    out[2] = y[0] - y[1];
    out[3] = -y[1];
  }
  template <class V>
  static MF_INLINE void filter(const V* g, V* u) {  // G
    const V half = V::broadcast(0.5f), even = (g[0] + g[2]) * half, odd = g[1] * half;
    u[0] = g[0];
    u[1] = even + odd;
    u[2] = even - odd;
    u[3] = g[2];
  }
  template <class V>
  static MF_INLINE void filter_gradient(const V* u, V* g) {  // Gᵀ
    const V half = V::broadcast(0.5f), even = (u[1] + u[2]) * half;
    g[0] = u[0] + even;
    g[1] = (u[1] - u[2]) * half;
    g[2] = even + u[3];
  }
};

// Over the points 0, a, -a, b, -b, ∞ with a = 3/4, b = 3/2: less than half the rounding error of the usual 1 and 2.
struct F4 {
  static constexpr int kTile = 4, kSize = 6;
  static constexpr float a = 0.75f, b = 1.5f, a2 = a * a, b2 = b * b;
  static constexpr float g0 = 1 / (a2 * b2), ga = 1 / (2 * a2 * (a2 - b2)), gb = 1 / (2 * b2 * (b2 - a2));

  template <class V>
  static MF_INLINE V scale(float s, V v) {
    return V::broadcast(s) * v;
  }
  template <class V>
  static MF_INLINE V add(V v, float s, V w) {  // v + s w
    return fma(V::broadcast(s), w, v);
  }
  template <class V>
  static MF_INLINE void input(const V* d, V* out) {
    const V even_a = add(d[4], -b2, d[2]), odd_a = scale(a, add(d[3], -b2, d[1]));
    const V even_b = add(d[4], -a2, d[2]), odd_b = scale(b, add(d[3], -a2, d[1]));
    out[0] = add(add(d[4], -(a2 + b2), d[2]), a2 * b2, d[0]);
    out[1] = even_a + odd_a;
    out[2] = even_a - odd_a;
    out[3] = even_b + odd_b;
    out[4] = even_b - odd_b;
    out[5] = add(add(d[5], -(a2 + b2), d[3]), a2 * b2, d[1]);
  }
  template <class V>
  static MF_INLINE void output(const V* m, V* y) {
    const V even_a = m[1] + m[2], odd_a = m[1] - m[2], even_b = m[3] + m[4], odd_b = m[3] - m[4];
    y[0] = m[0] + even_a + even_b;
    y[1] = add(scale(a, odd_a), b, odd_b);
    y[2] = add(scale(a2, even_a), b2, even_b);
    y[3] = add(add(m[5], a2 * a, odd_a), b2 * b, odd_b);
  }
  template <class V>
  static MF_INLINE void gradient(const V* y, V* out) {
    const V even_a = add(y[0], a2, y[2]), odd_a = scale(a, add(y[1], a2, y[3]));
    const V even_b = add(y[0], b2, y[2]), odd_b = scale(b, add(y[1], b2, y[3]));
    out[0] = y[0];
    out[1] = even_a + odd_a;
    out[2] = even_a - odd_a;
    out[3] = even_b + odd_b;
    out[4] = even_b - odd_b;
    out[5] = y[3];
  }
  template <class V>
  static MF_INLINE void filter(const V* g, V* u) {
    const V even_a = scale(ga, add(g[0], a2, g[2])), odd_a = scale(ga * a, g[1]);
    const V even_b = scale(gb, add(g[0], b2, g[2])), odd_b = scale(gb * b, g[1]);
    u[0] = scale(g0, g[0]);
    u[1] = even_a + odd_a;
    u[2] = even_a - odd_a;
    u[3] = even_b + odd_b;
    u[4] = even_b - odd_b;
    u[5] = g[2];
  }
  template <class V>
  static MF_INLINE void filter_gradient(const V* u, V* g) {
    const V even_a = scale(ga, u[1] + u[2]), odd_a = u[1] - u[2], even_b = scale(gb, u[3] + u[4]), odd_b = u[3] - u[4];
    g[0] = add(even_a + even_b, g0, u[0]);
    g[1] = add(scale(ga * a, odd_a), gb * b, odd_b);
    g[2] = add(add(u[5], a2, even_a), b2, even_b);
  }
};

// Tiles of an image, row by row, over all examples.
struct Grid {
  int64_t rows, columns;

  Grid(int64_t h, int64_t w, int64_t tile) : rows((h + tile - 1) / tile), columns((w + tile - 1) / tile) {}
  int64_t per_image() const { return rows * columns; }
  // Calls f(tile - first, image, tile row, tile column) for each tile in [first, last).
  template <class F>
  void each(int64_t first, int64_t last, const F& f) const {
    int64_t image = first / per_image(), row = first % per_image() / columns, column = first % columns;
    for (int64_t t = 0; t < last - first; ++t) {
      f(t, image, row, column);
      if (++column == columns) column = 0, ++row;
      if (row == rows) row = 0, ++image;
    }
  }
};

// Bᵀ d B of tiles, for some channels of a map: out[point * distance + tile * channels + channel]. Beyond the map lies
// its border, 0, of which one row and one column are used.
template <class F, class T>
void transform_input(const Map& map, const Grid& grid, const T* x, int64_t first, int64_t last, int64_t from_channel,
                     int64_t channels, int64_t distance, T* v) {
  constexpr int kSize = F::kSize;
  grid.each(first, last, [&](int64_t t, int64_t image, int64_t ty, int64_t tx) {
    const T* row[kSize];
    int64_t column[kSize];
    for (int i = 0; i < kSize; ++i) {
      row[i] = x + map.at(image, std::min(F::kTile * ty - 1 + i, map.h), -1) + from_channel;
      column[i] = std::min(F::kTile * tx + i, map.w + 1) * map.cp;
    }
    for (int64_t c = 0; c < channels; c += Vec<T>::kLanes) {
      Vec<T> half[kSize][kSize];
      for (int j = 0; j < kSize; ++j) {
        Vec<T> d[kSize];
#pragma GCC unroll 6
        for (int i = 0; i < kSize; ++i) d[i] = Vec<T>::load(row[i] + column[j] + c);
        F::input(d, half[j]);
      }
      T* out = v + t * channels + c;
      for (int i = 0; i < kSize; ++i) {
        Vec<T> d[kSize], whole[kSize];
#pragma GCC unroll 6
        for (int j = 0; j < kSize; ++j) d[j] = half[j][i];
        F::input(d, whole);
#pragma GCC unroll 6
        for (int j = 0; j < kSize; ++j) whole[j].store(out + (i * kSize + j) * distance);
      }
    }
  });
}

// Aᵀ m A (+ bias) of tiles into a map, from m[point * distance + tile * channels + channel].
template <class F, class T>
void transform_output(const Map& map, const Grid& grid, const T* m, int64_t first, int64_t last, int64_t distance,
                      const T* bias, bool accumulate, T* y) {
  constexpr int kSize = F::kSize, kTile = F::kTile;
  grid.each(first, last, [&](int64_t t, int64_t image, int64_t ty, int64_t tx) {
    const int64_t rows = std::min<int64_t>(kTile, map.h - kTile * ty);
    const int64_t columns = std::min<int64_t>(kTile, map.w - kTile * tx);
    T* out = y + map.at(image, kTile * ty, kTile * tx);
    for (int64_t c = 0; c < map.cp; c += Vec<T>::kLanes) {
      const T* in = m + t * map.cp + c;
      const Vec<T> start = bias ? Vec<T>::load(bias + c) : Vec<T>::zero();
      Vec<T> half[kTile][kSize];
      for (int j = 0; j < kSize; ++j) {
        Vec<T> d[kSize], folded[kTile];
#pragma GCC unroll 6
        for (int i = 0; i < kSize; ++i) d[i] = Vec<T>::load(in + (i * kSize + j) * distance);
        F::output(d, folded);
#pragma GCC unroll 4
        for (int i = 0; i < kTile; ++i) half[i][j] = folded[i];
      }
      for (int64_t i = 0; i < rows; ++i) {
        Vec<T> value[kTile];
        F::output(half[i], value);
        T* line = out + i * map.row() + c;
#pragma GCC unroll 4
        for (int j = 0; j < kTile; ++j) {
          if (j >= columns) break;
          T* at = line + j * map.cp;
          value[j] += start;
          (accumulate ? value[j] + Vec<T>::load(at) : value[j]).store(at);
        }
      }
    }
  });
}

// A dy Aᵀ of tiles: out[point * distance + panel + tile * width + lane], with `most` tiles to a panel.
template <class F, class T>
void transform_gradient(const Map& map, const Grid& grid, const T* dy, int64_t first, int64_t last, int64_t most,
                        int64_t distance, T* out) {
  constexpr int kSize = F::kSize, kTile = F::kTile;
  const Tiles panel = conv::panels(map.c, Vec<T>::kLanes);
  grid.each(first, last, [&](int64_t t, int64_t image, int64_t ty, int64_t tx) {
    const T* row[kTile];
    int64_t column[kTile];
    for (int i = 0; i < kTile; ++i) {
      row[i] = dy + map.at(image, std::min(kTile * ty + i, map.h), 0);
      column[i] = std::min(kTile * tx + i, map.w) * map.cp;
    }
    for (int64_t p = 0; p < panel.count; ++p) {
      const int64_t begin = panel.begin(p) * Vec<T>::kLanes, width = panel.begin(p + 1) * Vec<T>::kLanes - begin;
      for (int64_t c = 0; c < width; c += Vec<T>::kLanes) {
        Vec<T> half[kTile][kSize];
        for (int j = 0; j < kTile; ++j) {
          Vec<T> d[kTile];
#pragma GCC unroll 4
          for (int i = 0; i < kTile; ++i) d[i] = Vec<T>::load(row[i] + column[j] + begin + c);
          F::gradient(d, half[j]);
        }
        T* tile = out + begin * most + t * width + c;
        for (int i = 0; i < kSize; ++i) {
          Vec<T> d[kTile], whole[kSize];
#pragma GCC unroll 4
          for (int j = 0; j < kTile; ++j) d[j] = half[j][i];
          F::gradient(d, whole);
#pragma GCC unroll 6
          for (int j = 0; j < kSize; ++j) whole[j].store(tile + (i * kSize + j) * distance);
        }
      }
    }
  });
}

// G g Gᵀ: u[point][panel][row][lane] from weights packed as panels of rows (tap, channel). Each panel has `padded`
// rows, those beyond `rows` 0.
template <class F, class T>
void transform_filter(const T* w, int64_t rows, int64_t padded, int64_t columns, T* u) {
  constexpr int kSize = F::kSize;
  const Tiles panel = conv::panels(columns, Vec<T>::kLanes);
  const int64_t distance = padded * padded_channels(columns);
  for (int64_t p = 0; p < panel.count; ++p) {
    const int64_t begin = panel.begin(p) * Vec<T>::kLanes, width = panel.begin(p + 1) * Vec<T>::kLanes - begin;
    for (int64_t e = 0; e < padded * width; e += Vec<T>::kLanes) {
      const T* from = w + 9 * rows * begin + e;
      T* to = u + padded * begin + e;
      if (e >= rows * width) {
        for (int k = 0; k < kSize * kSize; ++k) Vec<T>::zero().store(to + k * distance);
        continue;
      }
      Vec<T> half[3][kSize];
      for (int j = 0; j < 3; ++j) {
        Vec<T> g[3];
#pragma GCC unroll 3
        for (int i = 0; i < 3; ++i) g[i] = Vec<T>::load(from + (3 * i + j) * rows * width);
        F::filter(g, half[j]);
      }
      for (int i = 0; i < kSize; ++i) {
        const Vec<T> g[3] = {half[0][i], half[1][i], half[2][i]};
        Vec<T> whole[kSize];
        F::filter(g, whole);
#pragma GCC unroll 6
        for (int j = 0; j < kSize; ++j) whole[j].store(to + (i * kSize + j) * distance);
      }
    }
  }
}

// Gᵀ du G: packed weights from du[point][panel][row][lane].
template <class F, class T>
void transform_filter_gradient(const T* du, int64_t rows, int64_t columns, bool accumulate, T* dw) {
  constexpr int kSize = F::kSize;
  const Tiles panel = conv::panels(columns, Vec<T>::kLanes);
  const int64_t distance = rows * padded_channels(columns);
  for (int64_t p = 0; p < panel.count; ++p) {
    const int64_t begin = panel.begin(p) * Vec<T>::kLanes, width = panel.begin(p + 1) * Vec<T>::kLanes - begin;
    for (int64_t e = 0; e < rows * width; e += Vec<T>::kLanes) {
      const T* from = du + rows * begin + e;
      Vec<T> half[3][kSize];
      for (int j = 0; j < kSize; ++j) {
        Vec<T> d[kSize], folded[3];
#pragma GCC unroll 6
        for (int i = 0; i < kSize; ++i) d[i] = Vec<T>::load(from + (i * kSize + j) * distance);
        F::filter_gradient(d, folded);
#pragma GCC unroll 3
        for (int i = 0; i < 3; ++i) half[i][j] = folded[i];
      }
      for (int i = 0; i < 3; ++i) {
        Vec<T> g[3];
        F::filter_gradient(half[i], g);
#pragma GCC unroll 3
        for (int j = 0; j < 3; ++j) {
          T* at = dw + 9 * rows * begin + (3 * i + j) * rows * width + e;
          (accumulate ? g[j] + Vec<T>::load(at) : g[j]).store(at);
        }
      }
    }
  }
}

}  // namespace winograd
}  // namespace MF_ISA
}  // namespace mf
