#pragma once

// How one task's activations lie in memory: channels last, channels padded with zero lanes, images with a zero border,
// so that a convolution neither checks bounds nor masks lanes. Whoever allocates a map clears it once; layers write
// only the inner part, all lanes of it, and keep the lanes beyond c at 0.
#include <cstdint>

#include "core/simd.h"

namespace mf {
inline namespace MF_ISA {

constexpr int64_t kLanePad = 16;  // channels are padded to a multiple of this, for every type and instruction set

inline int64_t padded_channels(int64_t c) { return (c + kLanePad - 1) / kLanePad * kLanePad; }

struct Border {
  int64_t h = 0, w = 0;
};

struct Map {
  int64_t n = 0, h = 0, w = 0, c = 0;  // examples (the most that will come), height, width, channels
  int64_t cp = 0;                      // elements from one pixel to the next; c itself for the model's input
  int64_t bh = 0, bw = 0;              // zero rows above and below, zero columns left and right

  static Map padded(int64_t n, int64_t h, int64_t w, int64_t c, Border b = {}) {
    return {n, h, w, c, padded_channels(c), b.h, b.w};
  }
  int64_t row() const { return (w + 2 * bw) * cp; }
  int64_t image() const { return (h + 2 * bh) * row(); }
  int64_t size() const { return n * image(); }
  int64_t pixels() const { return n * h * w; }
  // Offset of pixel (y, x) of example i from the map's first border element; y and x may reach into the border.
  int64_t at(int64_t i, int64_t y, int64_t x) const { return i * image() + (y + bh) * row() + (x + bw) * cp; }
};

}  // namespace MF_ISA
}  // namespace mf
