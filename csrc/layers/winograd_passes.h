#pragma once

// The three passes of a convolution by Winograd's transforms, block of tiles by block of tiles.
#include "layers/winograd.h"

namespace mf {
inline namespace MF_ISA {
namespace winograd {

// y (+)= Σ_terms a ⋆ b + bias, with b packed as panels of rows (tap, channel of a): forward, and, with turned and
// transposed weights, the input gradient.
template <class T>
void gather(const Map& in, const Map& out, const std::vector<int32_t>& channels, const ConvTerm<T>* term, int count,
            const T* bias, bool accumulate, T* y, int64_t n, Team& team) {
  const Grid grid(out.h, out.w);
  const int64_t tiles = n * grid.per_image(), filter = kPoints * in.c * padded_channels(out.c);
  const Block block = Block::of(in.cp, out.cp, count);
  T* u = room<T>(kFilter, count * filter);
  for (int t = 0; t < count; ++t) transform_filter(term[t].b, in.c, out.c, u + t * filter);
  team.run((tiles + block.tiles - 1) / block.tiles, [&](int64_t b) {
    const int64_t first = b * block.tiles, last = std::min(first + block.tiles, tiles);
    T* v = room<T>(kInput, count * kPoints * block.in_point());
    T* m = room<T>(kOther, kPoints * block.out_point());
    Position at[kMostTiles];
    for (int64_t i = 0; i < last - first; ++i)
      at[i] = {static_cast<int32_t>(i * in.cp), static_cast<int32_t>(i * out.cp)};
    for (int t = 0; t < count; ++t)
      transform_input(in, grid, term[t].a, first, last, block, 0, in.cp, v + t * kPoints * block.in_point());
    for (int64_t point = 0; point < kPoints; ++point) {
      ConvTerm<T> part[conv::kMaxTerms];
      for (int t = 0; t < count; ++t)
        part[t] = {v + (t * kPoints + point) * block.in_point(),
                   u + t * filter + point * in.c * padded_channels(out.c)};
      const T* none = nullptr;
      conv::gather_block(at, last - first, channels.data(), in.c, part, count, {0, 0, out.c, true}, none, false,
                         m + point * block.out_point());
    }
    transform_output(out, grid, m, first, last, block, bias, accumulate, y);
  });
}

// dw (+)= Σ_terms a ⊗ b. Threads share the channels of a; tiles come in order whoever adds them.
template <class T>
void outer(const Map& in, const Map& out, const std::vector<int32_t>& count_up, const ConvTerm<T>* term, int count,
           bool accumulate, T* dw, int64_t n, Team& team) {
  const Grid grid(out.h, out.w);
  const int64_t tiles = n * grid.per_image(), filter = in.c * padded_channels(out.c);
  const Block whole = Block::of(in.cp, out.cp, 1);
  const Tiles panel = conv::panels(out.c, Vec<T>::kLanes);
  T* du = room<T>(kFilter, kPoints * filter);
  const int64_t lanes = in.cp / kLanePad, parts = team.threads() > 1 ? std::min<int64_t>(lanes, 2 * team.threads()) : 1;
  team.run(parts, [&](int64_t number) {
    const int64_t from = lanes * number / parts * kLanePad, to = lanes * (number + 1) / parts * kLanePad;
    const int64_t rows = std::min(to, in.c) - from;
    const Block block = whole.with_inputs(to - from);
    T* v = room<T>(kInput, kPoints * block.in_point());
    T* g = room<T>(kOther, kPoints * block.out_point());
    Position at[kMostTiles];
    bool adds = false;
    for (int t = 0; t < count; ++t)
      for (int64_t first = 0; first < tiles; first += block.tiles, adds = true) {
        const int64_t last = std::min(first + block.tiles, tiles);
        transform_input(in, grid, term[t].a, first, last, block, from, to, v);
        transform_gradient(out, grid, term[t].b, first, last, block, g);
        for (int64_t p = 0; p < panel.count; ++p) {
          const int64_t begin = panel.begin(p) * Vec<T>::kLanes, vecs = panel.begin(p + 1) - panel.begin(p);
          const int64_t width = vecs * Vec<T>::kLanes;
          for (int64_t i = 0; i < last - first; ++i)
            at[i] = {static_cast<int32_t>(i * block.in_channels), static_cast<int32_t>(i * width)};
          const Tiles tile(rows, conv::tile_rows(static_cast<int>(vecs)));
          const conv::OuterTile<T>* kernel = conv::kernels<T>(static_cast<int>(vecs)).outer;
          for (int64_t point = 0; point < kPoints; ++point) {
            const conv::Pair<T> pair = {v + point * block.in_point(),
                                        g + point * block.out_point() + begin * block.tiles};
            T* panel_du = du + point * filter + in.c * begin + from * width;
            for (int64_t i = 0; i < tile.count; ++i) {
              const int64_t row = tile.begin(i);
              kernel[tile.begin(i + 1) - row](&pair, 1, at, last - first, count_up.data() + row, panel_du + row * width,
                                              adds);
            }
          }
        }
      }
  });
  transform_filter_gradient(du, in.c, out.c, accumulate, dw);
}

}  // namespace winograd
}  // namespace MF_ISA
}  // namespace mf
