// Elementwise activations: y = f(x), dx = f'(x) dy, and their directional derivatives
//   ẏ = f'(x) ẋ,   dẋ = f'(x) dẏ + f''(x) ẋ dy.
//
// Null ẋ or dẏ means zero. relu and leaky_relu read only the sign of x, so that y may be x (in place) and their other
// passes may be given y for x (leaky_relu: slope > 0).
#pragma once

#include "map.h"
#include "team.h"

namespace mf {
inline namespace MF_ISA {

enum class Curve : int { relu, gelu_erf, gelu_tanh, tanh, sigmoid, silu, leaky_relu };

template <class T>
struct Activation {
  Curve curve = Curve::relu;
  double slope = 0.0;  // leaky_relu
  Map x, y, dy, dx;    // ẋ lies as x, ẏ as y, dẏ as dy, dẋ as dx

  void forward(const T* x, T* y, int64_t n, Team& team) const;
  void backward(const T* x, const T* dy, T* dx, bool add, int64_t n, Team& team) const;
  void forward_tangent(const T* x, const T* xt, T* yt, int64_t n, Team& team) const;
  void backward_tangent(const T* x, const T* xt, const T* dy, const T* dyt, T* dxt, bool add, int64_t n,
                        Team& team) const;
};

}  // namespace MF_ISA
}  // namespace mf
