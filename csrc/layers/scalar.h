// The layers' maths on scalars, for every backend: values, first and second derivatives. No torch, no vectors.
//
// Notation: a dot is a directional derivative (Pearlmutter's R-operator), d a derivative of the loss; so dẋ is the
// directional derivative of the loss' gradient with respect to x.
#pragma once

#include <cmath>
#include <cstdint>

#include "../core/macros.h"
#include "../core/rounding.h"

namespace mf {
inline namespace MF_ISA {

// f(x), f'(x), f''(x): ẏ = d1 ẋ, dx = d1 dy, dẋ = d1 dẏ + d2 ẋ dy.
template <class T>
struct Derivatives {
  T f, d1, d2;
};

enum class Activation : int { relu, gelu, gelu_tanh, tanh, sigmoid, silu, leaky_relu };

// NaN stays NaN, and the slope at 0 is that of the negative side, as in torch.
template <class T>
MF_HD Derivatives<T> leaky_relu(T x, T slope) {
  const bool negative = x <= T(0);
  return {negative ? x * slope : x, negative ? slope : T(1), T(0)};
}

template <class T>
MF_HD Derivatives<T> relu(T x) {
  const bool negative = x <= T(0);
  return {negative ? T(0) : x, negative ? T(0) : T(1), T(0)};
}

template <class T>
MF_HD Derivatives<T> gelu(T x) {
  const T cdf = T(0.5) * (T(1) + std::erf(x * T(0.70710678118654752440)));
  const T pdf = T(0.39894228040143267794) * std::exp(T(-0.5) * x * x);
  return {x * cdf, cdf + x * pdf, pdf * (T(2) - x * x)};
}

template <class T>
MF_HD Derivatives<T> gelu_tanh(T x) {
  constexpr T k = T(0.79788456080286535588), a = T(0.044715);
  const T t = std::tanh(k * (x + a * x * x * x)), s = T(1) - t * t;
  const T u1 = k * (T(1) + T(3) * a * x * x), u2 = T(6) * k * a * x;
  return {T(0.5) * x * (T(1) + t), T(0.5) * (T(1) + t + x * s * u1),
          s * u1 + T(0.5) * x * (s * u2 - T(2) * t * s * u1 * u1)};
}

template <class T>
MF_HD Derivatives<T> tanh_of(T x) {
  const T t = std::tanh(x), s = T(1) - t * t;
  return {t, s, T(-2) * t * s};
}

// Finite for every finite x: exp is only taken of negative numbers.
template <class T>
MF_HD T logistic(T x) {
  const T e = std::exp(x < T(0) ? x : -x);
  return (x < T(0) ? e : T(1)) / (T(1) + e);
}

template <class T>
MF_HD Derivatives<T> sigmoid(T x) {
  const T s = logistic(x), d = s * (T(1) - s);
  return {s, d, d * (T(1) - T(2) * s)};
}

template <class T>
MF_HD Derivatives<T> silu(T x) {
  const T s = logistic(x), d = s * (T(1) - s);
  return {x * s, s + x * d, d * (T(2) + x * (T(1) - T(2) * s))};
}

template <class T>
MF_HD Derivatives<T> activate(Activation kind, T x, T slope) {
  switch (kind) {
    case Activation::relu:
      return relu(x);
    case Activation::gelu:
      return gelu(x);
    case Activation::gelu_tanh:
      return gelu_tanh(x);
    case Activation::tanh:
      return tanh_of(x);
    case Activation::sigmoid:
      return sigmoid(x);
    case Activation::silu:
      return silu(x);
    default:
      return leaky_relu(x, slope);
  }
}

// Normalization of one set of elements with mean μ and r = 1/√(variance + ε); x̂ = (x − μ) r, y = γ x̂ + β.
// Means over the set: a = mean(γ dy), b = mean(γ dy x̂); ȧ and ḃ are their directional derivatives;
// m = mean(ẋ), c = mean(ẋ x̂), hence ṙ = −r² c. Fixed statistics are the same with all five means 0.
template <class T>
struct Norm {
  T mean, r, a, b, m, c;

  MF_HD T hat(T x) const { return (x - mean) * r; }
  MF_HD T hat_dot(T hat, T x_dot) const { return r * (x_dot - m - hat * c); }
  MF_HD T dx(T hat, T g) const { return r * (g - a - hat * b); }            // g = γ dy
  MF_HD T dx_dot(T hat, T hat_dot, T g, T g_dot, T a_dot, T b_dot) const {  // g_dot = γ̇ dy + γ dẏ
    return r * (g_dot - a_dot - hat_dot * b - hat * b_dot) - r * c * dx(hat, g);
  }
};

// Cross-entropy with label smoothing s over C classes: the target of class j is q = (1 − s) [j = label] + s / C.
template <class T>
MF_HD T smooth_target(bool is_label, T smoothing, int64_t classes) {
  return (is_label ? T(1) - smoothing : T(0)) + smoothing / static_cast<T>(classes);
}

// p = softmax(z): ṗ = p (ż − Σ p ż).
template <class T>
MF_HD T softmax_dot(T p, T z_dot, T mean_dot) {
  return p * (z_dot - mean_dot);
}

}  // namespace MF_ISA
}  // namespace mf
