#pragma once

// A gather product: out[p] = Σ_r a[in_p + offset[r]] * w[r], for every position p of n images. It is the forward pass
// of a convolution, and, for each class of pixels that the stride reaches alike, its input gradient.
#include <vector>

#include "layers/conv2d_kernel.h"
#include "layers/map.h"
#include "layers/team.h"

namespace mf {
inline namespace MF_ISA {

template <class T>
struct ConvTerm {
  const T* a;  // the first border element of a map: x, ẋ (forward, backward_weight) or dy, dẏ (backward_input)
  const T* b;  // packed weights (forward, backward_input) or the first border element of dy's map (backward_weight)
};

namespace conv {

constexpr int kMaxTerms = 2;
constexpr int64_t kTablePositions = 384;  // a table covers as many images as have these
constexpr int64_t kBlockPositions = 192;  // what they read and write stays in the L2 cache for all panels
constexpr int64_t kRunBytes = 16384;      // of a panel, half of the smallest L1 cache

// Positions of as many images as fill a block; further images repeat them at a distance.
struct Positions {
  std::vector<Position> at;
  int64_t per_image = 0, images = 0;    // images that the table covers
  int64_t in_image = 0, out_image = 0;  // elements from one image to the next

  // The images of a call with n examples: chunks of at most `images`.
  Tiles chunks(int64_t n) const { return {per_image ? n : 0, images}; }
  static int64_t images_for(int64_t per_image, int64_t n) {
    return per_image ? std::min(std::max<int64_t>(n, 1), (kTablePositions + per_image - 1) / per_image) : 1;
  }
};

// Blocks of at most `most` positions: calls f(first image, first position, last position) for each.
template <class F>
void for_each_block(const Positions& p, int64_t n, int64_t most, Team& team, const F& f) {
  const Tiles chunks = p.chunks(n);
  const int64_t largest = (chunks.size + (chunks.larger > 0)) * p.per_image;
  const int64_t parts = (largest + most - 1) / most;
  team.run(chunks.count * parts, [&](int64_t block) {
    const int64_t chunk = block / parts, part = block % parts, image = chunks.begin(chunk);
    const int64_t positions = (chunks.begin(chunk + 1) - image) * p.per_image;
    f(image, positions * part / parts, positions * (part + 1) / parts);
  });
}

// One group of output channels that begin at `out_channel`, reading channels from `in_channel` on.
struct GatherShape {
  int64_t in_channel, out_channel, channels;
  bool exact;  // whole vectors belong to this group, padding included: tiles are written in place
};

// Rows [first, last) of the weights.
struct Range {
  int64_t first, last;
};

// Panel by panel, as many rows at a time as fit the L1 cache, the later ones added to y.
template <class T>
void gather_block(const Position* at, int64_t positions, const std::vector<Range>& ranges, const int32_t* offset,
                  int64_t rows, const ConvTerm<T>* term, int count, const GatherShape& s, const T* init,
                  bool accumulate, T* y) {
  constexpr int64_t kLanes = Vec<T>::kLanes;
  constexpr int kMaxRuns = 8;
  const Tiles panel = panels(s.channels, kLanes);
  for (int64_t p = 0; p < panel.count; ++p) {
    const int64_t begin = panel.begin(p), vecs = panel.begin(p + 1) - begin, width = vecs * kLanes;
    const int64_t most = kRunBytes / (width * static_cast<int64_t>(sizeof(T)));
    const Tiles tile(positions, tile_rows(static_cast<int>(vecs)));
    const GatherTile<T>* kernel = kernels<T>(static_cast<int>(vecs)).gather;
    const T* start = init ? init + s.out_channel + begin * kLanes : nullptr;
    T* out = y + s.out_channel + begin * kLanes;
    bool adds = accumulate;
    Run<T> run[kMaxRuns];
    int runs = 0;
    int64_t taken = 0;  // rows of the runs
    const auto flush = [&] {
      for (int64_t t = 0; t < tile.count; ++t) {
        const int64_t first = tile.begin(t), n = tile.begin(t + 1) - first;
        if (s.exact) {
          kernel[n](run, runs, at + first, out, start, adds);
          continue;
        }
        T buffer[kMaxTile * kMaxVecs * kLanes];
        Position to[kMaxTile];
        for (int64_t i = 0; i < n; ++i) to[i] = {at[first + i].in, static_cast<int32_t>(i * width)};
        kernel[n](run, runs, to, buffer, nullptr, false);
        const int64_t lanes = std::min(width, s.channels - begin * kLanes);
        for (int64_t i = 0; i < n; ++i)
          for (int64_t c = 0; c < lanes; ++c) {
            T& element = out[at[first + i].out + c];
            element = (adds ? element : T(0)) + (start ? start[c] : T(0)) + buffer[i * width + c];
          }
      }
      start = nullptr;
      adds = true;
      runs = 0;
      taken = 0;
    };
    for (int t = 0; t < count; ++t)
      for (const Range& range : ranges) {
        const Tiles part(range.last - range.first, most);
        for (int64_t q = 0; q < part.count; ++q) {
          const int64_t first = range.first + part.begin(q), n = part.begin(q + 1) - part.begin(q);
          if (runs > 0 && (runs == kMaxRuns || taken + n > most)) flush();
          run[runs++] = {term[t].a + s.in_channel, term[t].b + rows * begin * kLanes + first * width, offset + first,
                         n};
          taken += n;
        }
      }
    if (runs > 0 || start || !adds) flush();
  }
}

}  // namespace conv
}  // namespace MF_ISA
}  // namespace mf
