#pragma once

// Convolution and linear layers of one task: y = x * w + b, both gradients, and sums of two such terms, which is what
// the directional derivative of each of them is.
//
//   forward          y  = Σ a ⋆ b (+ bias)     terms (x, w)      tangent: (ẋ, w), (x, ẇ)
//   backward_input   dx = Σ a ⋆ᵀ b             terms (dy, w)     tangent: (dẏ, w), (dy, ẇ)
//   backward_weight  dw = Σ a ⊗ b              terms (x, dy)     tangent: (ẋ, dy), (x, dẏ)
//
// A term with a null pointer is left out; with no term left the result is the bias, or 0. At most two terms. Float
// convolutions of 3x3, stride 1 and padding 1 go by Winograd's transforms where that pays (winograd.h).
//
// Measured on one AVX2 core (Zen 3, 102 GFLOP/s of fused multiply-adds in registers), in parts of that peak, counting
// all products of a 3x3 filter: 64 channels, stride 2, 14x14 to 4x4, 5 and 75 examples: forward 0.88 to 1.3, input
// gradient 0.85 to 1.3, weight gradient 0.81 to 1.2 (above 1 where products with the border are skipped). 32 channels,
// stride 1, 42x42 to 10x10, by Winograd: 1.5 to 2.1. Three input channels at 84x84: 0.7 and 0.5. Tried and left out:
// prefetching the next block of a weight gradient (nothing); blocks of 48, 64 and 192 positions there (2 to 10 % slower
// than 128); copying inputs whose pixels lie less than four lines apart (5 % slower).
#include <algorithm>
#include <array>
#include <cstdint>
#include <limits>
#include <stdexcept>
#include <vector>

#include "layers/conv2d_depthwise.h"
#include "layers/conv2d_gather.h"
#include "layers/conv2d_outer.h"
#include "layers/conv2d_transpose.h"
#include "layers/map.h"
#include "layers/team.h"
#include "layers/winograd_passes.h"

namespace mf {
inline namespace MF_ISA {

struct Geometry {
  int64_t kh = 1, kw = 1, sh = 1, sw = 1, ph = 0, pw = 0, groups = 1;

  // A linear layer over a map of h x w pixels.
  static Geometry linear(int64_t h, int64_t w) { return {h, w, h, w, 0, 0, 1}; }
  int64_t out_h(int64_t h) const { return (h + 2 * ph - kh) / sh + 1; }
  int64_t out_w(int64_t w) const { return (w + 2 * pw - kw) / sw + 1; }
};

// The offset tables are built once, for the largest number of examples; any n up to x.n may be passed to a call. Maps
// of one kind share their layout: ẋ lies as x does. dx has padded channels (dx.cp is a multiple of kLanePad).
//
// Packed weights: for each group, panels of up to kMaxVecs vectors of output channels, each with a row per (kh, kw,
// input channel of the group). Depthwise: a row of channels per (kh, kw).
template <class T>
class Conv2d {
 public:
  using Term = ConvTerm<T>;

  Conv2d() = default;
  // dx with n = 0: no gradient for the input is ever wanted.
  Conv2d(const Map& x, const Map& y, const Geometry& g, const Map& dy, const Map& dx);

  // The least zero borders that x and dy need; h and w are the size of x.
  static Border border_for_x(const Geometry& g) { return {g.ph, g.pw}; }
  static Border border_for_dy(const Geometry& g, int64_t h, int64_t w);

  int64_t packed_size() const { return packed_size_; }  // elements of w and of dw; a multiple of kLanePad
  void pack(const T* torch, T* packed) const;           // OIHW to packed; lanes beyond the last channel become 0
  void unpack(const T* packed, T* torch) const;         // packed to OIHW
  // Elements of T that backward_input needs: transposed weights of two terms.
  int64_t scratch_size() const { return depthwise_ ? 0 : conv::kMaxTerms * transposed_size_; }

  void forward(const Term* terms, int count, const T* bias, T* y, int64_t n, Team& team) const;
  void backward_input(const Term* terms, int count, T* dx, bool accumulate, int64_t n, Team& team, T* scratch) const;
  void backward_weight(const Term* terms, int count, T* dw, bool accumulate, int64_t n, Team& team) const;

 private:
  // Outputs whose taps in the map are the same, and the rows of those taps.
  struct Area {
    conv::Positions positions;
    std::vector<conv::Range> ranges;
  };
  // Pixels of dx that the stride reaches through the same taps.
  struct Class {
    std::vector<Area> areas;
    std::vector<int32_t> tap;     // kh * g.kw + kw of each tap
    std::vector<int32_t> offset;  // of each (tap, output channel of the group) in dy
    int64_t rows_before;          // rows of the classes before
  };

  int64_t taps() const { return g_.kh * g_.kw; }
  int64_t rows() const { return taps() * ci_; }
  conv::GatherShape forward_shape(int64_t group) const {
    return {group * ci_, group * co_, co_, g_.groups == 1 || co_ % kLanePad == 0};
  }
  conv::GatherShape input_shape(int64_t group) const {
    return {group * co_, group * ci_, ci_, g_.groups == 1 || ci_ % kLanePad == 0};
  }
  // Rows of outputs in a Winograd tile, 0 for the direct kernels.
  int winograd_tile(int64_t n) const { return winograd_ ? winograd::tile_for(n, y_.h, y_.w, x_.c, y_.c) : 0; }
  static int compact(const Term* terms, int count, std::array<Term, conv::kMaxTerms>* kept);
  template <class F>
  void for_each_weight(const F& f) const;  // f(torch index, packed index)

  Map x_, y_, dy_, dx_;
  Geometry g_;
  int64_t ci_ = 0, co_ = 0;  // of a group
  bool depthwise_ = false, winograd_ = false;
  int64_t group_size_ = 0, packed_size_ = 0, group_transposed_ = 0, transposed_size_ = 0;
  std::vector<Area> forward_;
  conv::Positions weight_;  // (x, dy)
  // Of each position, the taps in the map; empty: all of them, or not worth a look.
  std::vector<uint32_t> weight_valid_;
  std::vector<int32_t> offset_;  // of each row, or of each tap when depthwise, in x
  std::vector<int32_t> tap_;     // 0, 1, ...
  std::vector<Class> classes_;
};

// db[c] = Σ dy over examples and pixels, padded lanes 0: the gradient of the bias. A batch norm behind the convolution
// makes it 0.
template <class T>
void sum_channels(const Map& map, const T* dy, T* db, bool accumulate, int64_t n) {
  constexpr int64_t kLanes = Vec<T>::kLanes, kVecs = std::min<int64_t>(4, kLanePad / kLanes);
  for (int64_t c = 0; c < map.cp; c += kVecs * kLanes) {
    Vec<T> total[kVecs];
    for (int64_t v = 0; v < kVecs; ++v) total[v] = accumulate ? Vec<T>::load(db + c + v * kLanes) : Vec<T>::zero();
    for (int64_t i = 0; i < n; ++i)
      for (int64_t y = 0; y < map.h; ++y) {
        const T* p = dy + map.at(i, y, 0) + c;
        Vec<T> even[kVecs] = {}, odd[kVecs] = {};
        int64_t x = 0;
        for (; x + 1 < map.w; x += 2, p += 2 * map.cp)
#pragma GCC unroll 4
          for (int64_t v = 0; v < kVecs; ++v) {
            even[v] += Vec<T>::load(p + v * kLanes);
            odd[v] += Vec<T>::load(p + map.cp + v * kLanes);
          }
        for (int64_t v = 0; v < kVecs; ++v) {
          if (x < map.w) even[v] += Vec<T>::load(p + v * kLanes);
          total[v] += even[v] + odd[v];
        }
      }
    for (int64_t v = 0; v < kVecs; ++v) total[v].store(db + c + v * kLanes);
  }
}

}  // namespace MF_ISA
}  // namespace mf

#include "layers/conv2d_plan.h"
