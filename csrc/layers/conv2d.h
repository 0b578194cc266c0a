#pragma once

// Convolution and linear layers of one task: y = x * w + b, both gradients, and sums of two such terms, which is what
// the directional derivative of each of them is.
//
//   forward          y  = Σ a ⋆ b (+ bias)     terms (x, w)      tangent: (ẋ, w), (x, ẇ)
//   backward_input   dx = Σ a ⋆ᵀ b             terms (dy, w)     tangent: (dẏ, w), (dy, ẇ)
//   backward_weight  dw = Σ a ⊗ b              terms (x, dy)     tangent: (ẋ, dy), (x, dẏ)
//
// A term with a null pointer is left out; with no term left the result is the bias, or 0.
#include <cstdint>
#include <vector>

#include "layers/map.h"
#include "layers/team.h"

namespace mf {
inline namespace MF_ISA {

struct Geometry {
  int64_t kh = 1, kw = 1, sh = 1, sw = 1, ph = 0, pw = 0, groups = 1;

  // A linear layer over a map of h x w pixels.
  static Geometry linear(int64_t h, int64_t w) { return {h, w, h, w, 0, 0, 1}; }
  int64_t out_h(int64_t h) const { return (h + 2 * ph - kh) / sh + 1; }
  int64_t out_w(int64_t w) const { return (w + 2 * pw - kw) / sw + 1; }
};

template <class T>
struct ConvTerm {
  const T* a;  // the first border element of a map: x, ẋ (forward, backward_weight) or dy, dẏ (backward_input)
  const T* b;  // packed weights (forward, backward_input) or the first border element of dy's map (backward_weight)
};

// The offset tables are built once for the largest number of examples; x.n, y.n are that number, and any n up to it may
// be passed to a call. Maps of one kind share their layout: ẋ lies as x does. dx needs padded channels (dx.cp is a
// multiple of kLanePad).
template <class T>
class Conv2d {
 public:
  using Term = ConvTerm<T>;

  // dx with n = 0: no gradient for the input is ever wanted.
  Conv2d(const Map& x, const Map& y, const Geometry& g, const Map& dy, const Map& dx);

  // The least zero borders that x and dy need; h and w are the size of x.
  static Border border_for_x(const Geometry& g) { return {g.ph, g.pw}; }
  static Border border_for_dy(const Geometry& g, int64_t h, int64_t w);

  int64_t packed_size() const;                   // elements of w, dw; a multiple of kLanePad
  void pack(const T* torch, T* packed) const;    // OIHW to packed; lanes beyond the last channel become 0
  void unpack(const T* packed, T* torch) const;  // packed to OIHW
  int64_t scratch_size() const;                  // elements of T that backward_input needs

  void forward(const Term* terms, int count, const T* bias, T* y, int64_t n, Team& team) const;
  void backward_input(const Term* terms, int count, T* dx, bool accumulate, int64_t n, Team& team, T* scratch) const;
  void backward_weight(const Term* terms, int count, T* dw, bool accumulate, int64_t n, Team& team) const;
};

// db[c] = Σ dy over examples and pixels, padded lanes 0: the gradient of the bias.
template <class T>
void sum_channels(const Map& map, const T* dy, T* db, bool accumulate, int64_t n);

}  // namespace MF_ISA
}  // namespace mf
