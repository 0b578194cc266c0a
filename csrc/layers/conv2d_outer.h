#pragma once

// The weight gradient: dw[r] = Σ_p a[in_p + offset[r]] ⊗ b[out_p] over the positions of n images.
#include <algorithm>
#include <cstring>

#include "layers/conv2d_gather.h"

namespace mf {
inline namespace MF_ISA {
namespace conv {

// What is copied next to each other, because pixels lie a power of two apart and would share the few places that the L1
// cache has for them: of b, kGroup channels of a block of kOuterPositions, which stay in the L2 cache; of a, kChunk
// channels of a part of kOuterPart positions, which stay in the L1 cache.
constexpr int64_t kOuterPositions = 384, kOuterPart = 128, kGroup = 64, kChunk = 32;
constexpr int64_t kRowsTogether = 288;  // of a unit that copies nothing
constexpr int64_t kFewPositions = 32,
                  kPackedRows = 24;  // below, copying does not pay

// `lanes` elements at from[out] (or from[in]) of every position, in rows of `width`; the rest of a row becomes 0.
template <class T>
void copy_rows(const T* from, const Position* at, int32_t Position::* offset, int64_t n, int64_t lanes, int64_t width,
               T* to) {
  constexpr int64_t kLanes = Vec<T>::kLanes;
  for (int64_t i = 0; i < n; ++i, to += width) {
    const T* source = from + at[i].*offset;
    if (lanes == width) {
      for (int64_t v = 0; v < width; v += kLanes) Vec<T>::load(source + v).store(to + v);
    } else {
      std::memcpy(to, source, static_cast<size_t>(lanes) * sizeof(T));
      std::memset(to + lanes, 0, static_cast<size_t>(width - lanes) * sizeof(T));
    }
  }
}

// The rows of a group in chunks of one tap, and its panels in groups of at most kGroup channels: a unit is one of each,
// and units are what threads share.
struct OuterShape {
  GatherShape group;
  int64_t rows, row_length;  // row_length rows, the group's input channels, lie next to each other in a
  bool copies_a, copies_b;

  Tiles panels_in(int64_t lanes) const { return panels(group.channels, lanes); }
  int64_t panels_per_group(int64_t lanes) const { return std::max<int64_t>(1, kGroup / (kMaxVecs * lanes)); }
  Tiles panel_groups(int64_t lanes) const { return {panels_in(lanes).count, panels_per_group(lanes)}; }
  Tiles chunks_of_tap() const { return copies_a ? Tiles(row_length, kChunk) : Tiles(rows, kRowsTogether); }
  int64_t chunks() const { return chunks_of_tap().count * (copies_a ? rows / row_length : 1); }
  int64_t first_row(int64_t chunk) const {
    const Tiles c = chunks_of_tap();
    return chunk / c.count * (copies_a ? row_length : rows) + c.begin(chunk % c.count);
  }
  int64_t units(int64_t lanes) const { return chunks() * panel_groups(lanes).count; }
};

// The units [first_unit, last_unit) of one group, for one block of positions. Bit k of valid[i], if given, says that
// tap k of position i lies in the map, not in its border.
template <class T>
void outer_block(const Position* at, const uint32_t* valid, int64_t positions, const std::vector<int32_t>& offset,
                 const ConvTerm<T>* term, int count, const OuterShape& s, bool accumulate, T* dw, int64_t first_unit,
                 int64_t last_unit) {
  constexpr int64_t kLanes = Vec<T>::kLanes;
  alignas(64) T b_rows[kOuterPositions * kGroup], a_rows[kOuterPart * kChunk];
  Position to[kOuterPart], taken[kOuterPart];
  int32_t index[kOuterPart];
  int32_t counted[kChunk];
  for (int32_t i = 0; i < kChunk; ++i) counted[i] = i;
  const Tiles panel = s.panels_in(kLanes), group = s.panel_groups(kLanes), part(positions, kOuterPart);
  const int64_t chunks = s.chunks();
  const bool copies = s.copies_a || s.copies_b;
  for (int64_t u = first_unit; u < last_unit;) {
    const int64_t g = u / chunks, end = std::min(last_unit, (g + 1) * chunks);
    const int64_t first_lane = panel.begin(group.begin(g)) * kLanes;
    // Terms together where nothing is copied, else one by one.
    for (int t = 0; t < (copies ? count : 1); ++t) {
      const int terms = copies ? 1 : count;
      const T *a = term[t].a + s.group.in_channel, *b = term[t].b + s.group.out_channel;
      if (s.copies_b)
        for (int64_t p = group.begin(g); p < group.begin(g + 1); ++p) {
          const int64_t lane = panel.begin(p) * kLanes, width = panel.begin(p + 1) * kLanes - lane;
          const int64_t lanes = s.group.exact ? width : std::clamp<int64_t>(s.group.channels - lane, 0, width);
          copy_rows(b + lane, at, &Position::out, positions, lanes, width, b_rows + (lane - first_lane) * positions);
        }
      for (int64_t unit = u; unit < end; ++unit) {
        const int64_t row = s.first_row(unit % chunks), length = s.first_row(unit % chunks + 1) - row;
        for (int64_t q = 0; q < part.count; ++q) {
          const Position* from = at + part.begin(q);
          int64_t n = part.begin(q + 1) - part.begin(q);
          if (s.copies_a && valid) {
            const uint32_t* bits = valid + part.begin(q);
            const int64_t tap = row / s.row_length;
            int64_t kept = 0;
            for (int64_t i = 0; i < n; ++i) {
              taken[kept] = from[i];
              index[kept] = static_cast<int32_t>(i);
              kept += bits[i] >> tap & 1;
            }
            from = taken;
            n = kept;
          }
          if (s.copies_a)
            copy_rows(a + offset[static_cast<size_t>(row)], from, &Position::in, n, kChunk, kChunk, a_rows);
          int64_t width_of_to = 0;
          for (int64_t p = group.begin(g); p < group.begin(g + 1); ++p) {
            const int64_t begin = panel.begin(p), vecs = panel.begin(p + 1) - begin, width = vecs * kLanes;
            Pair<T> pair[kMaxTerms];
            for (int k = 0; k < terms; ++k)
              pair[k] = {term[t + k].a + s.group.in_channel, term[t + k].b + s.group.out_channel + begin * kLanes};
            if (s.copies_a) pair[0].a = a_rows;
            if (s.copies_b) pair[0].b = b_rows + (begin * kLanes - first_lane) * positions + part.begin(q) * width;
            if (copies && width != width_of_to) {
              width_of_to = width;
              for (int64_t i = 0; i < n; ++i)
                to[i] = {s.copies_a ? static_cast<int32_t>(i * kChunk) : from[i].in,
                         !s.copies_b           ? from[i].out
                         : s.copies_a && valid ? static_cast<int32_t>(index[i] * width)
                                               : static_cast<int32_t>(i * width)};
            }
            const OuterTile<T>* kernel = kernels<T>(static_cast<int>(vecs)).outer;
            const Tiles tile(length, tile_rows(static_cast<int>(vecs)));
            T* panel_dw = dw + s.rows * begin * kLanes + row * width;
            for (int64_t i = 0; i < tile.count; ++i) {
              const int64_t r = tile.begin(i);
              kernel[tile.begin(i + 1) - r](pair, terms, copies ? to : from, n,
                                            (s.copies_a ? counted : offset.data() + row) + r, panel_dw + r * width,
                                            accumulate || t > 0 || q > 0);
            }
          }
        }
      }
    }
    u = end;
  }
}

}  // namespace conv
}  // namespace MF_ISA
}  // namespace mf
