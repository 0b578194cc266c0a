#pragma once

// The three passes of a convolution by Winograd's transforms, block of tiles by block of tiles.
#include <vector>

#include "layers/conv2d_gather.h"
#include "layers/winograd.h"
#include "layers/winograd_product.h"

namespace mf {
inline namespace MF_ISA {
namespace winograd {

constexpr int64_t kBlockBytes = 256 << 10;  // transformed tiles of a block: half of an L2 cache
constexpr int64_t kFilterBytes = 8 << 20;   // a larger transformed filter does not stay in the last-level cache
constexpr int64_t kLeastTiles = 48;         // with fewer, the filter's transform dominates
constexpr int64_t kMostTiles = 96;
constexpr int64_t kDepth = 64;  // channels in one sum; sums of sums lose less to rounding

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

// The tile that a map of h x w and n examples takes, 0 for none: 4 unless too much of its last tiles is outside the
// map.
inline int tile_for(int64_t n, int64_t h, int64_t w, int64_t in, int64_t out) {
  const int64_t small = 16 * Grid(h, w, 2).per_image(), large = 36 * Grid(h, w, 4).per_image();
  const int tile = large * 9 < small * 8 ? 4 : 2;
  const int64_t tiles = n * Grid(h, w, tile).per_image(), points = (tile + 2) * (tile + 2);
  return tiles * tile * tile >= 4 * kLeastTiles && in >= kLanePad && out >= kLanePad &&
                 points * in * out * 4 <= kFilterBytes
             ? tile
             : 0;
}

// Tiles in a block, and elements from one point to the next: not a power of two, or all points would share a cache set.
template <class F>
struct Block {
  static constexpr int64_t kPoints = F::kSize * F::kSize;
  int64_t tiles;

  Block(int64_t inputs, int64_t outputs)
      : tiles(std::clamp<int64_t>(kBlockBytes / (kPoints * 4 * (inputs + outputs)) / 12 * 12, 12, kMostTiles)) {}
  int64_t distance(int64_t channels) const { return tiles * channels + kLanePad; }
};

// y (+)= Σ_terms a ⋆ b + bias, with b packed as panels of rows (tap, channel of a): forward, and, with turned and
// transposed weights, the input gradient.
template <class F, class T>
void gather(const Map& in, const Map& out, const ConvTerm<T>* term, int count, const T* bias, bool accumulate, T* y,
            int64_t n, Team& team) {
  const Grid grid(out.h, out.w, F::kTile);
  const Block<F> block(count * in.cp, out.cp);
  constexpr int64_t kPoints = Block<F>::kPoints;
  const int64_t tiles = n * grid.per_image(), filter = in.cp * out.cp;
  const int64_t v_distance = block.distance(in.cp), m_distance = block.distance(out.cp);
  const Tiles panel = conv::panels(out.c, Vec<T>::kLanes);
  T* u = room<T>(kFilter, count * kPoints * filter);
  for (int t = 0; t < count; ++t) transform_filter<F>(term[t].b, in.c, in.cp, out.c, u + t * kPoints * filter);
  team.run((tiles + block.tiles - 1) / block.tiles, [&](int64_t number) {
    const int64_t first = number * block.tiles, last = std::min(first + block.tiles, tiles);
    T* v = room<T>(kInput, count * kPoints * v_distance);
    T* m = room<T>(kOther, kPoints * m_distance);
    for (int t = 0; t < count; ++t)
      transform_input<F>(in, grid, term[t].a, first, last, 0, in.cp, v_distance, v + t * kPoints * v_distance);
    for (int64_t point = 0; point < kPoints; ++point)
      for (int64_t p = 0; p < panel.count; ++p) {
        const int64_t vecs = panel.begin(p + 1) - panel.begin(p), begin = panel.begin(p) * Vec<T>::kLanes;
        const Tiles tile(last - first, conv::tile_rows(static_cast<int>(vecs)));
        const RowsTile<T>* kernel = products<T>(vecs).rows;
        for (int64_t k = 0; k < in.cp; k += kDepth)
          for (int64_t i = 0; i < tile.count; ++i) {
            const int64_t row = tile.begin(i);
            Factor<T> factor[conv::kMaxTerms];
            for (int t = 0; t < count; ++t)
              factor[t] = {v + (t * kPoints + point) * v_distance + row * in.cp + k,
                           u + (t * kPoints + point) * filter + in.cp * begin + k * vecs * Vec<T>::kLanes};
            kernel[tile.begin(i + 1) - row](factor, count, in.cp, std::min(kDepth, in.cp - k),
                                            m + point * m_distance + row * out.cp + begin, out.cp, k > 0);
          }
      }
    transform_output<F>(out, grid, m, first, last, m_distance, bias, accumulate, y);
  });
}

// dw (+)= Σ_terms a ⊗ b. Threads share the channels of a; tiles come in order whoever adds them.
template <class F, class T>
void outer(const Map& in, const Map& out, const ConvTerm<T>* term, int count, bool accumulate, T* dw, int64_t n,
           Team& team) {
  const Grid grid(out.h, out.w, F::kTile);
  const Block<F> block(in.cp, out.cp);
  constexpr int64_t kPoints = Block<F>::kPoints;
  const int64_t tiles = n * grid.per_image(), filter = in.c * out.cp, g_distance = block.distance(out.cp);
  const Tiles panel = conv::panels(out.c, Vec<T>::kLanes);
  T* du = room<T>(kFilter, kPoints * filter);
  const int64_t lanes = in.cp / kLanePad, parts = team.threads() > 1 ? std::min<int64_t>(lanes, 2 * team.threads()) : 1;
  team.run(parts, [&](int64_t number) {
    const int64_t from = lanes * number / parts * kLanePad, to = lanes * (number + 1) / parts * kLanePad;
    const int64_t channels = to - from, rows = std::min(to, in.c) - from, v_distance = block.distance(channels);
    T* v = room<T>(kInput, kPoints * v_distance);
    T* g = room<T>(kOther, kPoints * g_distance);
    bool adds = false;
    for (int t = 0; t < count; ++t)
      for (int64_t first = 0; first < tiles; first += block.tiles, adds = true) {
        const int64_t last = std::min(first + block.tiles, tiles), taken = last - first;
        const int64_t depth = (taken + kUnroll - 1) / kUnroll * kUnroll;
        transform_input<F>(in, grid, term[t].a, first, last, from, channels, v_distance, v);
        transform_gradient<F>(out, grid, term[t].b, first, last, block.tiles, g_distance, g);
        for (int64_t p = 0; p < panel.count; ++p) {
          const int64_t begin = panel.begin(p) * Vec<T>::kLanes, vecs = panel.begin(p + 1) - panel.begin(p);
          const int64_t width = vecs * Vec<T>::kLanes;
          const Tiles tile(rows, conv::tile_rows(static_cast<int>(vecs)));
          const ColumnsTile<T>* kernel = products<T>(vecs).columns;
          for (int64_t point = 0; point < kPoints; ++point) {
            T *a = v + point * v_distance, *b = g + point * g_distance + begin * block.tiles;
            std::fill(a + taken * channels, a + depth * channels, T(0));
            std::fill(b + taken * width, b + depth * width, T(0));
            T* panel_du = du + point * filter + in.c * begin + from * width;
            for (int64_t i = 0; i < tile.count; ++i) {
              const int64_t row = tile.begin(i);
              kernel[tile.begin(i + 1) - row](a + row, channels, b, depth, panel_du + row * width, adds);
            }
          }
        }
      }
  });
  transform_filter_gradient<F>(du, in.c, out.c, accumulate, dw);
}

}  // namespace winograd
}  // namespace MF_ISA
}  // namespace mf
