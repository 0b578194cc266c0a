// An independent reference of a layer's four passes: the layer's plain definition on hyper-dual numbers. These carry
// two derivatives and their mixed one exactly, so that one evaluation per input gives that input's gradient and the
// directional derivative of its gradient.
#pragma once

#include <cmath>
#include <cstdint>
#include <functional>
#include <random>
#include <vector>

#include "check.h"
#include "layers/map.h"

namespace reference {

// v + a ε₁ + b ε₂ + ab ε₁ε₂
struct Number {
  double v = 0.0, a = 0.0, b = 0.0, ab = 0.0;
  Number() = default;
  Number(double value) : v(value) {}  // NOLINT: constants mix with numbers
  Number(double value, double da, double db, double dab) : v(value), a(da), b(db), ab(dab) {}
};

inline Number lift(Number x, double f, double d1, double d2) {
  return {f, d1 * x.a, d1 * x.b, d1 * x.ab + d2 * x.a * x.b};
}
inline Number operator+(Number x, Number y) { return {x.v + y.v, x.a + y.a, x.b + y.b, x.ab + y.ab}; }
inline Number operator-(Number x, Number y) { return {x.v - y.v, x.a - y.a, x.b - y.b, x.ab - y.ab}; }
inline Number operator*(Number x, Number y) {
  return {x.v * y.v, x.v * y.a + x.a * y.v, x.v * y.b + x.b * y.v, x.v * y.ab + x.a * y.b + x.b * y.a + x.ab * y.v};
}
inline Number operator/(Number x, Number y) {
  const double i = 1.0 / y.v;
  return x * lift(y, i, -i * i, 2.0 * i * i * i);
}
inline Number exp(Number x) { return lift(x, std::exp(x.v), std::exp(x.v), std::exp(x.v)); }
inline Number log(Number x) { return lift(x, std::log(x.v), 1.0 / x.v, -1.0 / (x.v * x.v)); }
inline Number sqrt(Number x) {
  const double s = std::sqrt(x.v);
  return lift(x, s, 0.5 / s, -0.25 / (s * x.v));
}
inline Number erf(Number x) {
  const double d = 1.12837916709551257390 * std::exp(-x.v * x.v);
  return lift(x, std::erf(x.v), d, -2.0 * x.v * d);
}
inline Number tanh(Number x) {
  const double t = std::tanh(x.v), s = 1.0 - t * t;
  return lift(x, t, s, -2.0 * t * s);
}

// Examples and parameters in plain order [n][c][h][w]; the layer is y = f(x, params).
struct Shape {
  int64_t n, c, h, w;
  int64_t size() const { return n * c * h * w; }
  int64_t at(int64_t i, int64_t k, int64_t r, int64_t q) const { return ((i * c + k) * h + r) * w + q; }
};
using Numbers = std::vector<Number>;
using Values = std::vector<double>;
using Layer = std::function<Numbers(const Numbers& x, const Numbers& params)>;

struct Passes {
  Values y, yt, dx, dxt, dp, dpt;
};

// ẏ along (ẋ, ṗ), the gradient of <dy, y> and its derivative along (ẋ, ṗ, dẏ).
inline Passes passes(const Layer& layer, const Values& x, const Values& xt, const Values& p, const Values& pt,
                     const Values& dy, const Values& dyt) {
  Passes out;
  Numbers nx(x.size()), np(p.size());
  for (size_t j = 0; j < x.size(); ++j) nx[j] = {x[j], 0.0, xt[j], 0.0};
  for (size_t j = 0; j < p.size(); ++j) np[j] = {p[j], 0.0, pt[j], 0.0};
  for (const Number& y : layer(nx, np)) out.y.push_back(y.v), out.yt.push_back(y.b);
  const auto one = [&](Number& seed, Values& d, Values& dt) {
    seed.a = 1.0;
    const Numbers y = layer(nx, np);
    seed.a = 0.0;
    double g = 0.0, gt = 0.0;
    for (size_t j = 0; j < y.size(); ++j) g += dy[j] * y[j].a, gt += dy[j] * y[j].ab + dyt[j] * y[j].a;
    d.push_back(g), dt.push_back(gt);
  };
  for (Number& s : nx) one(s, out.dx, out.dxt);
  for (Number& s : np) one(s, out.dp, out.dpt);
  return out;
}

inline Values normal(int64_t size, std::mt19937& random, double mean = 0.0, double deviation = 1.0) {
  std::normal_distribution<double> draw(mean, deviation);
  Values v(static_cast<size_t>(size));
  for (double& e : v) e = draw(random);
  return v;
}

// A map with its values, in plain order on the outside. Memory that a layer must not rely on is NaN.
template <class T>
struct Buffer {
  mf::Map map;
  std::vector<T> data;

  Buffer() = default;
  Buffer(const Shape& s, mf::Border border)
      : map(mf::Map::padded(s.n, s.h, s.w, s.c, border)), data(static_cast<size_t>(map.size()), T(0)) {}
  T* p() { return data.data(); }

  template <class F>
  void each(const F& f) const {
    for (int64_t i = 0, j = 0; i < map.n; ++i)
      for (int64_t k = 0; k < map.c; ++k)
        for (int64_t r = 0; r < map.h; ++r)
          for (int64_t q = 0; q < map.w; ++q, ++j) f(j, map.at(i, r, q) + k);
  }
  Buffer& set(const Values& v) {
    each([&](int64_t j, int64_t at) { data[at] = static_cast<T>(v[j]); });
    return *this;
  }
  Values get() const {
    Values v(static_cast<size_t>(map.n * map.c * map.h * map.w));
    each([&](int64_t j, int64_t at) { v[j] = static_cast<double>(data[at]); });
    return v;
  }
  // Borders and padded lanes are 0.
  bool clean() const {
    std::vector<T> rest = data;
    each([&](int64_t, int64_t at) { rest[at] = T(0); });
    for (T e : rest)
      if (!(e == T(0))) return false;
    return true;
  }
};

// The largest error, relative to the largest value (at least 1e-3).
inline double distance(const Values& got, const Values& want) {
  if (got.size() != want.size()) return HUGE_VAL;
  double error = 0.0, scale = 1e-3;
  for (size_t j = 0; j < got.size(); ++j) {
    const double e = std::fabs(got[j] - want[j]);
    error = e <= error ? error : e;  // keeps NaN
    scale = std::fmax(scale, std::fabs(want[j]));
  }
  return error / scale;
}

}  // namespace reference

#define CHECK_CLOSE(got, want, tolerance, ...)                                                 \
  do {                                                                                         \
    const double distance_ = reference::distance(got, want);                                   \
    CHECK(distance_ <= (tolerance), "%s against %s differ by %.3g: ", #got, #want, distance_); \
    if (!(distance_ <= (tolerance))) std::printf(__VA_ARGS__), std::printf("\n");              \
  } while (false)
