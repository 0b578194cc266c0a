// Dual numbers: a value and its derivatives along K directions. A rule that is written over its number type moves
// tangents by the same lines that move the parameter.
//
// V is double where options become scalars (hyper.h), a SIMD vector where these meet the elements. There the scalars
// are duals over float, of kTangents directions or more than the elements have.
#pragma once

#include <cmath>

#include "macros.h"

namespace mf {

constexpr int kTangents = 4;  // directions that one pass over a block moves

template <class V, int K>
struct Dual {
  V v;
  V d[K > 0 ? K : 1];
};

// ---- scalars: what hyper.h does with options

using DualDouble = Dual<double, kTangents>;
using DualFloat = Dual<float, kTangents>;

MF_HD double at_least(double x, double lowest) { return x > lowest ? x : lowest; }
MF_HD DualDouble at_least(const DualDouble& x, double lowest) { return x.v > lowest ? x : DualDouble{lowest, {}}; }

MF_HD float narrow(double x) { return static_cast<float>(x); }
MF_HD DualFloat narrow(const DualDouble& x) {
  DualFloat r{static_cast<float>(x.v), {}};
  for (int k = 0; k < kTangents; ++k) r.d[k] = static_cast<float>(x.d[k]);
  return r;
}

// f(x) where the derivative of f at x is `slope`.
MF_HD DualDouble along(double value, double slope, const DualDouble& x) {
  DualDouble r{value, {}};
  for (int k = 0; k < kTangents; ++k) r.d[k] = slope * x.d[k];
  return r;
}
MF_HD double root(double x) { return sqrt(x); }
MF_HD DualDouble root(const DualDouble& x) { return along(sqrt(x.v), x.v > 0.0 ? 0.5 / sqrt(x.v) : 0.0, x); }
MF_HD double power(double x, double n) { return pow(x, n); }
MF_HD DualDouble power(const DualDouble& x, double n) { return along(pow(x.v, n), n * pow(x.v, n - 1.0), x); }

MF_HD DualDouble operator-(double a, const DualDouble& b) { return along(a - b.v, -1.0, b); }
MF_HD DualDouble operator/(const DualDouble& a, const DualDouble& b) {
  DualDouble r{a.v / b.v, {}};
  for (int k = 0; k < kTangents; ++k) r.d[k] = (a.d[k] - r.v * b.d[k]) / b.v;
  return r;
}

// ---- elements with elements

template <class V, int K>
MF_HD Dual<V, K> operator+(const Dual<V, K>& a, const Dual<V, K>& b) {
  Dual<V, K> r;
  r.v = a.v + b.v;
  for (int k = 0; k < K; ++k) r.d[k] = a.d[k] + b.d[k];
  return r;
}

template <class V, int K>
MF_HD Dual<V, K> operator-(const Dual<V, K>& a, const Dual<V, K>& b) {
  Dual<V, K> r;
  r.v = a.v - b.v;
  for (int k = 0; k < K; ++k) r.d[k] = a.d[k] - b.d[k];
  return r;
}

template <class V, int K>
MF_HD Dual<V, K> operator*(const Dual<V, K>& a, const Dual<V, K>& b) {
  Dual<V, K> r;
  r.v = a.v * b.v;
  for (int k = 0; k < K; ++k) r.d[k] = a.d[k] * b.v + a.v * b.d[k];
  return r;
}

template <class V, int K>
MF_HD Dual<V, K> operator/(const Dual<V, K>& a, const Dual<V, K>& b) {
  const V over = inverse(b.v);
  Dual<V, K> r;
  r.v = a.v * over;
  for (int k = 0; k < K; ++k) r.d[k] = (a.d[k] - r.v * b.d[k]) * over;
  return r;
}

// Derivative 0 at 0, as in metafast/tune/_updates.py: an element that has never had a gradient has no say.
template <class V, int K>
MF_HD Dual<V, K> sqrt_(const Dual<V, K>& a) {
  Dual<V, K> r;
  r.v = sqrt_(a.v);
  const V slope = half_inverse_or_zero(r.v);
  for (int k = 0; k < K; ++k) r.d[k] = a.d[k] * slope;
  return r;
}

// ---- elements with scalars

template <class V, int K>
MF_HD Dual<V, K> operator*(const Dual<V, K>& a, float s) {
  Dual<V, K> r;
  r.v = a.v * s;
  for (int k = 0; k < K; ++k) r.d[k] = a.d[k] * s;
  return r;
}

template <class V, int K>
MF_HD Dual<V, K> operator*(const Dual<V, K>& a, const DualFloat& s) {
  static_assert(K <= kTangents);
  Dual<V, K> r;
  r.v = a.v * s.v;
  for (int k = 0; k < K; ++k) r.d[k] = a.d[k] * s.v + a.v * s.d[k];
  return r;
}

template <class V, int K>
MF_HD Dual<V, K> operator*(const DualFloat& s, const Dual<V, K>& a) {
  return a * s;
}

template <class V, int K>
MF_HD Dual<V, K> operator+(const Dual<V, K>& a, const DualFloat& s) {
  Dual<V, K> r;
  r.v = a.v + s.v;
  for (int k = 0; k < K; ++k) r.d[k] = a.d[k] + s.d[k];
  return r;
}

}  // namespace mf
