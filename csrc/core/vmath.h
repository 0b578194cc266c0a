#pragma once

// exp, tanh, the logistic and the normal distribution on SIMD vectors, a few units in the last place from the exact
// value, without branches. NaN goes in and comes out.
#include "core/simd.h"

namespace mf {
inline namespace MF_ISA {

namespace detail {

template <class T>
struct Exp;

template <>
struct Exp<float> {
  static constexpr float lowest = -87.3f, highest = 88.3f;  // 2^n stays a normal number
  static constexpr float ln2_high = 0.693359375f, ln2_low = -2.12194440e-4f;
  static constexpr float magic = 12582912.0f;  // 1.5 * 2^23: adding it rounds to an integer
  static constexpr int bias = 127, shift = 23;
  // (e^r - 1 - r) / r^2 on |r| <= ln2 / 2, highest power first (Cephes)
  static constexpr float tail[] = {1.9875691500e-4f, 1.3981999507e-3f, 8.3334519073e-3f,
                                   4.1665795894e-2f, 1.6666665459e-1f, 5.0000001201e-1f};
};

template <>
struct Exp<double> {
  static constexpr double lowest = -708.0, highest = 709.0;
  static constexpr double ln2_high = 6.93145751953125e-1, ln2_low = 1.42860682030941723212e-6;
  static constexpr double magic = 6755399441055744.0;  // 1.5 * 2^52
  static constexpr int bias = 1023, shift = 52;
  static constexpr double tail[] = {1.0 / 6227020800.0, 1.0 / 479001600.0, 1.0 / 39916800.0, 1.0 / 3628800.0,
                                    1.0 / 362880.0,     1.0 / 40320.0,     1.0 / 5040.0,     1.0 / 720.0,
                                    1.0 / 120.0,        1.0 / 24.0,        1.0 / 6.0,        0.5};
};

// e^x = power * (1 + rest), power a power of two and |rest| < 0.42.
template <class T>
MF_INLINE void split_exp(Vec<T> x, Vec<T>& power, Vec<T>& rest) {
  using E = Exp<T>;
  using V = Vec<T>;
  x = min(V::broadcast(E::highest), max(V::broadcast(E::lowest), x));
  const V shifted = fma(x, V::broadcast(static_cast<T>(1.4426950408889634)), V::broadcast(E::magic));
  const V n = shifted - V::broadcast(E::magic);
  const V r = fma(n, V::broadcast(-E::ln2_low), fma(n, V::broadcast(-E::ln2_high), x));
  V p = V::broadcast(E::tail[0]);
  for (int i = 1; i < static_cast<int>(sizeof(E::tail) / sizeof(T)); ++i) p = fma(p, r, V::broadcast(E::tail[i]));
  rest = fma(p, r * r, r);
  // The low bits of `shifted` are n in two's complement: they become the exponent.
  typename V::Mask bits;
  std::memcpy(&bits, &shifted.v, sizeof bits);
  bits = (bits + static_cast<typename V::Int>(E::bias)) << E::shift;
  std::memcpy(&power.v, &bits, sizeof bits);
}

template <class T>
struct Erfc;

// (1 + 2u) e^(u²) erfc(u) as a polynomial in (u - k) / (u + k), lowest power first (Shepherd and Laframboise 1981).
template <>
struct Erfc<float> {
  static constexpr float k = 2.0f, highest = 11.0f;
  static constexpr float poly[] = {1.276978382f,     -0.09276381352f,   -0.1660304774f,   0.1640508436f,
                                   -0.05421856297f,  -0.00802953634f,   0.008713559545f,  0.001250119847f,
                                   -0.001432145482f, -0.0004019996748f, 0.0001796296024f, 8.477311897e-5f};
};

template <>
struct Erfc<double> {
  static constexpr double k = 3.0, highest = 28.0;
  static constexpr double poly[] = {
      1.25300805826972981,    -0.135621106124577266,     -0.0475622943534981571,   0.129645158702356356,
      -0.119273663413047197,  0.0683080273565505574,     -0.0237705149596933869,   0.00252939163351894413,
      0.00188869072724645077, -0.000779830792106939347,  -0.000105161608683719442, 0.000125092041148434904,
      4.9543998351052042e-6,  -0.0000200776527031521364, -7.37759318318652056e-7,  3.42649971901273358e-6,
      3.55604439741347654e-7, -5.59337847817535578e-7,   -1.26829832871772199e-7,  6.06221173773518944e-8,
      2.3552000078386437e-8,  6.81001876976702052e-10};
};

}  // namespace detail

template <class T>
MF_INLINE Vec<T> exp(Vec<T> x) {
  Vec<T> power, rest;
  detail::split_exp(x, power, rest);
  return fma(power, rest, power);
}

// tanh x = m / (m + 2) with m = e^(2x) - 1, which keeps its relative accuracy at 0.
template <class T>
MF_INLINE Vec<T> tanh(Vec<T> x) {
  Vec<T> power, rest;
  detail::split_exp(x + x, power, rest);
  const Vec<T> m = fma(power, rest, power - Vec<T>::broadcast(T(1)));
  const Vec<T> y = m / (m + T(2));
  return select(x > Vec<T>::broadcast(T(40)), Vec<T>::broadcast(T(1)), y);  // m + 2 rounds there, or overflows
}

// 1 / (1 + e^-x)
template <class T>
MF_INLINE Vec<T> logistic(Vec<T> x) {
  return Vec<T>::broadcast(T(1)) / (exp(-x) + T(1));
}

// Density and distribution function of the standard normal; both keep their relative accuracy in the lower tail.
template <class T>
MF_INLINE void normal(Vec<T> x, Vec<T>& density, Vec<T>& distribution) {
  using E = detail::Erfc<T>;
  using V = Vec<T>;
  const V one = V::broadcast(T(1)), magnitude = max(-x, x);
  const V half_square = x * x * T(0.5);
  const V e = exp(-half_square);
  density = e * static_cast<T>(0.39894228040143267794);
  const V u = min(V::broadcast(E::highest), magnitude * static_cast<T>(0.70710678118654752440));
  const V t = (u - E::k) / (u + E::k);
  constexpr int count = static_cast<int>(sizeof(E::poly) / sizeof(T));
  V p = V::broadcast(E::poly[count - 1]);
  for (int i = count - 2; i >= 0; --i) p = fma(p, t, V::broadcast(E::poly[i]));
  const V upper = e * p * T(0.5) / fma(u, V::broadcast(T(2)), one);  // mass beyond |x|
  distribution = select(x < V::zero(), upper, one - upper);
}

}  // namespace MF_ISA
}  // namespace mf
