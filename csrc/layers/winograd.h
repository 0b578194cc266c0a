#pragma once

// 3x3 convolutions of stride 1 and padding 1 by Winograd's F(2x2, 3x3): a tile of 2x2 outputs takes 16 products per
// pair of channels instead of 36. With d a 4x4 tile of the input, g a filter, ⊙ elementwise and sums over channels,
//   y = Aᵀ[(G g Gᵀ) ⊙ (Bᵀ d B)]A,     dg = Gᵀ[(Bᵀ d B) ⊙ (A dy Aᵀ)]G,
// and the input gradient is the first form for dy and the turned, transposed filter. The products over channels, one
// matrix product for each of the 16 points, are the register tiles of the direct kernels.
// Lavin, Gray: Fast Algorithms for Convolutional Neural Networks (2016).
#include <algorithm>
#include <cstdint>
#include <vector>

#include "layers/conv2d_gather.h"
#include "layers/conv2d_outer.h"

namespace mf {
inline namespace MF_ISA {
namespace winograd {

using conv::Position;
using conv::Tiles;

constexpr int64_t kPoints = 16;
constexpr int64_t kMostTiles = 96;          // in a block
constexpr int64_t kBlockBytes = 256 << 10;  // transformed tiles of a block, half of an L2 cache

// Fewer channels leave the transforms to dominate; a larger transformed filter does not stay in the last-level cache.
inline bool pays(int64_t in, int64_t out) {
  return in >= kLanePad && out >= kLanePad && kPoints * in * out * 4 <= (8 << 20);
}

// Memory that a thread keeps: its own transforms, and the filter's transform that it shares with its team.
enum Room { kFilter, kInput, kOther, kRooms };
template <class T>
T* room(Room which, int64_t size) {
  static thread_local std::vector<T> memory[kRooms];
  std::vector<T>& m = memory[which];
  constexpr int64_t kSlack = 64 / static_cast<int64_t>(sizeof(T));
  if (static_cast<int64_t>(m.size()) < size + kSlack) m.resize(static_cast<size_t>(size + kSlack));
  const auto at = reinterpret_cast<uintptr_t>(m.data());
  return m.data() + ((64 - at % 64) % 64) / sizeof(T);
}

// Tiles of an image, row by row, over all examples.
struct Grid {
  int64_t rows = 0, columns = 0;

  Grid() = default;
  Grid(int64_t h, int64_t w) : rows((h + 1) / 2), columns((w + 1) / 2) {}
  int64_t per_image() const { return rows * columns; }
  bool pays(int64_t n) const { return n * per_image() >= 48; }  // else the filter's transform dominates
  // Calls f(first tile of the run counted from `first`, image, tile row, tile column, tiles) for runs within a row.
  template <class F>
  void each_run(int64_t first, int64_t last, const F& f) const {
    for (int64_t t = first; t < last;) {
      const int64_t image = t / per_image(), in_image = t % per_image();
      const int64_t row = in_image / columns, column = in_image % columns, n = std::min(columns - column, last - t);
      f(t - first, image, row, column, n);
      t += n;
    }
  }
};

// Tiles in a block, and elements from one point to the next: not a power of two, or all points would share a cache set.
struct Block {
  int64_t tiles, in_channels, out_channels;

  static Block of(int64_t in_channels, int64_t out_channels, int64_t inputs) {
    const int64_t most = kBlockBytes / (kPoints * 4 * (inputs * in_channels + out_channels));
    return {std::clamp<int64_t>(most / 6 * 6, 12, kMostTiles), in_channels, out_channels};
  }
  Block with_inputs(int64_t channels) const { return {tiles, channels, out_channels}; }
  int64_t in_point() const { return tiles * in_channels + kLanePad; }
  int64_t out_point() const { return tiles * out_channels + kLanePad; }
};

// Bᵀ d for one column.
template <class T>
MF_INLINE void input_column(const T* const* row, int64_t offset, Vec<T>* out) {
  const Vec<T> d0 = Vec<T>::load(row[0] + offset), d1 = Vec<T>::load(row[1] + offset),
               d2 = Vec<T>::load(row[2] + offset), d3 = Vec<T>::load(row[3] + offset);
  out[0] = d0 - d2;
  out[1] = d1 + d2;
  out[2] = d2 - d1;
  out[3] = d1 - d3;
}

// Bᵀ d B of the tiles [first, last) of a map: v[point][tile][channel].
template <class T>
void transform_input(const Map& map, const Grid& grid, const T* x, int64_t first, int64_t last, const Block& block,
                     int64_t first_channel, int64_t last_channel, T* v) {
  const int64_t point = block.in_point(), bottom = map.h, right = map.w;  // last row and column of the border used
  grid.each_run(first, last, [&](int64_t to, int64_t image, int64_t ty, int64_t tx, int64_t n) {
    const T* row[4];
    // With an odd size the last row and column of the last tiles lie outside the map, and only reach outputs that are
    // not kept: any value will do there.
    for (int64_t j = 0; j < 4; ++j) row[j] = x + map.at(image, std::min(2 * ty - 1 + j, bottom), 2 * tx - 1);
    const int64_t most = (right - (2 * tx - 1)) * map.cp;
    for (int64_t c = first_channel; c < last_channel; c += Vec<T>::kLanes) {
      Vec<T> d[4][4];  // by column
      input_column(row, c, d[0]);
      input_column(row, c + map.cp, d[1]);
      for (int64_t t = 0; t < n; ++t) {
        input_column(row, c + (2 * t + 2) * map.cp, d[2]);
        input_column(row, c + std::min((2 * t + 3) * map.cp, most), d[3]);
        T* out = v + (to + t) * block.in_channels + c - first_channel;
#pragma GCC unroll 4
        for (int i = 0; i < 4; ++i) {
          (d[0][i] - d[2][i]).store(out + (4 * i) * point);
          (d[1][i] + d[2][i]).store(out + (4 * i + 1) * point);
          (d[2][i] - d[1][i]).store(out + (4 * i + 2) * point);
          (d[1][i] - d[3][i]).store(out + (4 * i + 3) * point);
          d[0][i] = d[2][i];
          d[1][i] = d[3][i];
        }
      }
    }
  });
}

// Aᵀ m A (+ bias) of the tiles [first, last) into a map.
template <class T>
void transform_output(const Map& map, const Grid& grid, const T* m, int64_t first, int64_t last, const Block& block,
                      const T* bias, bool accumulate, T* y) {
  const int64_t point = block.out_point();
  grid.each_run(first, last, [&](int64_t from, int64_t image, int64_t ty, int64_t tx, int64_t n) {
    const bool both_rows = 2 * ty + 1 < map.h;
    for (int64_t t = 0; t < n; ++t) {
      const bool both_columns = 2 * (tx + t) + 1 < map.w;
      T* out = y + map.at(image, 2 * ty, 2 * (tx + t));
      for (int64_t c = 0; c < map.cp; c += Vec<T>::kLanes) {
        const T* in = m + (from + t) * block.out_channels + c;
        const Vec<T> start = bias ? Vec<T>::load(bias + c) : Vec<T>::zero();
        Vec<T> top[4], low[4];
#pragma GCC unroll 4
        for (int j = 0; j < 4; ++j) {
          const Vec<T> m1 = Vec<T>::load(in + (4 + j) * point), m2 = Vec<T>::load(in + (8 + j) * point);
          top[j] = Vec<T>::load(in + j * point) + m1 + m2;
          low[j] = m1 - m2 - Vec<T>::load(in + (12 + j) * point);
        }
        const auto put = [&](T* at, Vec<T> value) {
          value += start;
          (accumulate ? value + Vec<T>::load(at) : value).store(at);
        };
        put(out + c, top[0] + top[1] + top[2]);
        if (both_columns) put(out + map.cp + c, top[1] - top[2] - top[3]);
        if (both_rows) {
          put(out + map.row() + c, low[0] + low[1] + low[2]);
          if (both_columns) put(out + map.row() + map.cp + c, low[1] - low[2] - low[3]);
        }
      }
    }
  });
}

// A dy Aᵀ of the tiles [first, last): n[point][panel][tile][lane]. A row or column beyond the map is its border, 0.
template <class T>
void transform_gradient(const Map& map, const Grid& grid, const T* dy, int64_t first, int64_t last, const Block& block,
                        T* out) {
  const int64_t point = block.out_point();
  const Tiles panel = conv::panels(map.c, Vec<T>::kLanes);
  grid.each_run(first, last, [&](int64_t to, int64_t image, int64_t ty, int64_t tx, int64_t n) {
    for (int64_t p = 0; p < panel.count; ++p) {
      const int64_t begin = panel.begin(p) * Vec<T>::kLanes, width = panel.begin(p + 1) * Vec<T>::kLanes - begin;
      for (int64_t t = 0; t < n; ++t) {
        const T* in = dy + map.at(image, 2 * ty, 2 * (tx + t)) + begin;
        T* tile = out + begin * block.tiles + (to + t) * width;
        for (int64_t c = 0; c < width; c += Vec<T>::kLanes) {
          const Vec<T> a = Vec<T>::load(in + c), b = Vec<T>::load(in + map.cp + c);
          const Vec<T> e = Vec<T>::load(in + map.row() + c), f = Vec<T>::load(in + map.row() + map.cp + c);
          const Vec<T> left[4] = {a, a + e, a - e, -e}, right[4] = {b, b + f, b - f, -f};
#pragma GCC unroll 4
          for (int i = 0; i < 4; ++i) {
            left[i].store(tile + c + (4 * i) * point);
            (left[i] + right[i]).store(tile + c + (4 * i + 1) * point);
            (left[i] - right[i]).store(tile + c + (4 * i + 2) * point);
            (-right[i]).store(tile + c + (4 * i + 3) * point);
          }
        }
      }
    }
  });
}

// G g Gᵀ: u[point][panel][channel][lane] from weights packed as panels of rows (tap, channel).
template <class T>
void transform_filter(const T* w, int64_t rows, int64_t columns, T* u) {
  const Tiles panel = conv::panels(columns, Vec<T>::kLanes);
  const int64_t point = rows * padded_channels(columns);
  const Vec<T> half = Vec<T>::broadcast(T(0.5));
  for (int64_t p = 0; p < panel.count; ++p) {
    const int64_t begin = panel.begin(p) * Vec<T>::kLanes, width = panel.begin(p + 1) * Vec<T>::kLanes - begin;
    const T* from = w + 9 * rows * begin;
    T* to = u + rows * begin;
    for (int64_t i = 0; i < rows * width; i += Vec<T>::kLanes) {
      Vec<T> g[4][3];
#pragma GCC unroll 3
      for (int k = 0; k < 3; ++k) {
        const Vec<T> g0 = Vec<T>::load(from + i + k * rows * width),
                     g1 = Vec<T>::load(from + i + (3 + k) * rows * width),
                     g2 = Vec<T>::load(from + i + (6 + k) * rows * width);
        g[0][k] = g0;
        g[1][k] = (g0 + g1 + g2) * half;
        g[2][k] = (g0 - g1 + g2) * half;
        g[3][k] = g2;
      }
#pragma GCC unroll 4
      for (int k = 0; k < 4; ++k) {
        g[k][0].store(to + i + (4 * k) * point);
        ((g[k][0] + g[k][1] + g[k][2]) * half).store(to + i + (4 * k + 1) * point);
        ((g[k][0] - g[k][1] + g[k][2]) * half).store(to + i + (4 * k + 2) * point);
        g[k][2].store(to + i + (4 * k + 3) * point);
      }
    }
  }
}

// Gᵀ du G, the transpose of the above.
template <class T>
void transform_filter_gradient(const T* du, int64_t rows, int64_t columns, bool accumulate, T* dw) {
  const Tiles panel = conv::panels(columns, Vec<T>::kLanes);
  const int64_t point = rows * padded_channels(columns);
  const Vec<T> half = Vec<T>::broadcast(T(0.5));
  const auto fold = [&](Vec<T> a, Vec<T> b, Vec<T> c, Vec<T> d, Vec<T>* out) {
    const Vec<T> plus = (b + c) * half;
    out[0] = a + plus;
    out[1] = (b - c) * half;
    out[2] = plus + d;
  };
  for (int64_t p = 0; p < panel.count; ++p) {
    const int64_t begin = panel.begin(p) * Vec<T>::kLanes, width = panel.begin(p + 1) * Vec<T>::kLanes - begin;
    const T* from = du + rows * begin;
    T* to = dw + 9 * rows * begin;
    for (int64_t i = 0; i < rows * width; i += Vec<T>::kLanes) {
      Vec<T> g[4][3];
#pragma GCC unroll 4
      for (int k = 0; k < 4; ++k)
        fold(Vec<T>::load(from + i + (4 * k) * point), Vec<T>::load(from + i + (4 * k + 1) * point),
             Vec<T>::load(from + i + (4 * k + 2) * point), Vec<T>::load(from + i + (4 * k + 3) * point), g[k]);
#pragma GCC unroll 3
      for (int k = 0; k < 3; ++k) {
        Vec<T> column[3];
        fold(g[0][k], g[1][k], g[2][k], g[3][k], column);
#pragma GCC unroll 3
        for (int j = 0; j < 3; ++j) {
          T* at = to + i + (3 * j + k) * rows * width;
          (accumulate ? column[j] + Vec<T>::load(at) : column[j]).store(at);
        }
      }
    }
  }
}

}  // namespace winograd
}  // namespace MF_ISA
}  // namespace mf
