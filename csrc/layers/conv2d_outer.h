#pragma once

// The weight gradient: dw[r] = Σ_p a[in_p + offset[r]] ⊗ b[out_p] over the positions of n images.
#include <cstring>

#include "layers/conv2d_gather.h"

namespace mf {
inline namespace MF_ISA {
namespace conv {

constexpr int64_t kPackedRows = 24;  // from here on copying a block of b next to each other pays

// One group of one block of positions: the tiles [first_tile, last_tile), counted panel by panel.
template <class T>
void outer_block(const Position* at, int64_t positions, const std::vector<int32_t>& offset, const ConvTerm<T>* term,
                 int count, const GatherShape& s, bool accumulate, T* dw, int64_t first_tile, int64_t last_tile) {
  constexpr int64_t kLanes = Vec<T>::kLanes;
  constexpr int64_t kBuffer = kBlockPositions * std::min<int64_t>(kMaxVecs, 2) * kLanes;
  const int64_t rows = static_cast<int64_t>(offset.size());
  const bool packs = !s.exact || rows >= kPackedRows;
  const Tiles panel = panels(s.channels, kLanes);
  alignas(64) T buffer[kMaxTerms][kBuffer];
  Position to[kBlockPositions];
  for (int64_t p = 0, before = 0; p < panel.count; ++p) {
    const int64_t begin = panel.begin(p), vecs = panel.begin(p + 1) - begin, width = vecs * kLanes;
    const Tiles tile(rows, tile_rows(static_cast<int>(vecs)));
    const int64_t from_tile = std::max<int64_t>(first_tile - before, 0);
    const int64_t to_tile = std::min(last_tile - before, tile.count);
    before += tile.count;
    if (from_tile >= to_tile) continue;
    const OuterTile<T>* kernel = kernels<T>(static_cast<int>(vecs)).outer;
    const int64_t lanes = s.exact ? width : std::clamp<int64_t>(s.channels - begin * kLanes, 0, width);
    const Tiles part(positions, std::min(kBlockPositions, kBuffer / width));
    for (int64_t b = 0; b < part.count; ++b) {
      const Position* from = at + part.begin(b);
      const int64_t n = part.begin(b + 1) - part.begin(b);
      Pair<T> pair[kMaxTerms];
      for (int t = 0; t < count; ++t) {
        const T* source = term[t].b + s.out_channel + begin * kLanes;
        pair[t] = {term[t].a + s.in_channel, packs ? buffer[t] : source};
        if (!packs) continue;
        for (int64_t i = 0; i < n; ++i) {
          T* line = buffer[t] + i * width;
          if (lanes == width) {
            for (int64_t v = 0; v < width; v += kLanes) Vec<T>::load(source + from[i].out + v).store(line + v);
          } else {
            std::memcpy(line, source + from[i].out, static_cast<size_t>(lanes) * sizeof(T));
            std::memset(line + lanes, 0, static_cast<size_t>(width - lanes) * sizeof(T));
          }
        }
      }
      if (packs)
        for (int64_t i = 0; i < n; ++i) to[i] = {from[i].in, static_cast<int32_t>(i * width)};
      for (int64_t t = from_tile; t < to_tile; ++t) {
        const int64_t row = tile.begin(t);
        kernel[tile.begin(t + 1) - row](pair, count, packs ? to : from, n, offset.data() + row,
                                        dw + rows * begin * kLanes + row * width, accumulate || b > 0);
      }
    }
  }
}

template <class T>
int64_t outer_tiles(int64_t channels, int64_t rows) {
  const Tiles panel = panels(channels, Vec<T>::kLanes);
  int64_t tiles = 0;
  for (int64_t p = 0; p < panel.count; ++p)
    tiles += Tiles(rows, tile_rows(static_cast<int>(panel.begin(p + 1) - panel.begin(p)))).count;
  return tiles;
}

}  // namespace conv
}  // namespace MF_ISA
}  // namespace mf
