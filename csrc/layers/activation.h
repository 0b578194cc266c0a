#pragma once

// Elementwise activations: y = f(x), dx = f'(x) dy, and their directional derivatives
//   ẏ = f'(x) ẋ,   dẋ = f'(x) dẏ + f''(x) ẋ dy.
//
// relu and leaky_relu (slope > 0) read only the sign of x, so that y may be x (in place) and their other passes may be
// given y for x. In place is also allowed for gradients and tangents where the two maps lie alike.
#include "core/vmath.h"
#include "layers/scalar.h"
#include "layers/spans.h"

namespace mf {
inline namespace MF_ISA {

// f, f', f'' on vectors, as layers/scalar.h has them on scalars. NaN stays NaN.
template <class T, Activation kind>
struct CurveOf {
  using V = Vec<T>;
  static constexpr bool curved = kind != Activation::relu && kind != Activation::leaky_relu;
  V slope;

  static MF_INLINE V value(T s) { return V::broadcast(s); }

  MF_INLINE V f(V x) const {
    if constexpr (kind == Activation::relu) return max(V::zero(), x);
    if constexpr (kind == Activation::leaky_relu) return select(x > V::zero(), x, x * slope);
    if constexpr (kind == Activation::tanh) return tanh(x);
    if constexpr (kind == Activation::sigmoid) return logistic(x);
    if constexpr (kind == Activation::silu) return x * logistic(x);
    if constexpr (kind == Activation::gelu) {
      V density, distribution;
      normal(x, density, distribution);
      return x * distribution;
    }
    if constexpr (kind == Activation::gelu_tanh) return x * logistic(twice_inner(x));
  }

  MF_INLINE void derivatives(V x, V& d1, V& d2) const {
    const V one = value(1), zero = V::zero();
    if constexpr (kind == Activation::relu) d1 = select(x > zero, one, zero), d2 = zero;
    if constexpr (kind == Activation::leaky_relu) d1 = select(x > zero, one, slope), d2 = zero;
    if constexpr (kind == Activation::tanh) {
      const V t = tanh(x);
      d1 = one - t * t;
      d2 = value(-2) * t * d1;
    }
    if constexpr (kind == Activation::sigmoid || kind == Activation::silu) {
      const V s = logistic(x), p = s * (one - s), q = one - (s + s);
      d1 = kind == Activation::silu ? fma(x, p, s) : p;
      d2 = kind == Activation::silu ? p * fma(x, q, value(2)) : p * q;
    }
    if constexpr (kind == Activation::gelu) {
      V density, distribution;
      normal(x, density, distribution);
      d1 = fma(x, density, distribution);
      d2 = density * (value(2) - x * x);
    }
    if constexpr (kind == Activation::gelu_tanh) {  // x s(v) with s the logistic function, v = 2k (x + a x³)
      const V s = logistic(twice_inner(x)), p = s * (one - s), q = one - (s + s);
      const V v1 = fma(x * x, value(T(6) * kScale * kCubic), value(T(2) * kScale));
      const V v2 = x * value(T(12) * kScale * kCubic);
      d1 = fma(x * v1, p, s);
      d2 = p * fma(x, fma(q * v1, v1, v2), v1 + v1);
    }
  }

 private:
  static constexpr T kScale = T(0.79788456080286535588), kCubic = T(0.044715);
  static MF_INLINE V twice_inner(V x) { return x * fma(x * x, value(T(2) * kScale * kCubic), value(T(2) * kScale)); }
};

template <class T>
struct Pointwise {
  Activation kind = Activation::relu;
  double slope = 0.0;  // leaky_relu
  Map x, y, dy, dx;    // ẋ lies as x, ẏ as y, dẏ as dy, dẋ as dx

  void forward(const T* x, T* y, int64_t n, Team& team) const;
  void backward(const T* x, const T* dy, T* dx, bool add, int64_t n, Team& team) const;
  void forward_tangent(const T* x, const T* xt, T* yt, int64_t n, Team& team) const;
  // dyt null: 0.
  void backward_tangent(const T* x, const T* xt, const T* dy, const T* dyt, T* dxt, bool add, int64_t n,
                        Team& team) const;

 private:
  using V = Vec<T>;

  template <class F>
  void with_curve(const F& f) const {
    const V s = V::broadcast(static_cast<T>(slope));
    switch (kind) {
      case Activation::relu:
        return f(CurveOf<T, Activation::relu>{s});
      case Activation::gelu:
        return f(CurveOf<T, Activation::gelu>{s});
      case Activation::gelu_tanh:
        return f(CurveOf<T, Activation::gelu_tanh>{s});
      case Activation::tanh:
        return f(CurveOf<T, Activation::tanh>{s});
      case Activation::sigmoid:
        return f(CurveOf<T, Activation::sigmoid>{s});
      case Activation::silu:
        return f(CurveOf<T, Activation::silu>{s});
      case Activation::leaky_relu:
        return f(CurveOf<T, Activation::leaky_relu>{s});
    }
  }
};

template <class T>
void Pointwise<T>::forward(const T* px, T* py, int64_t n, Team& team) const {
  with_curve([&](const auto curve) {
    for_spans(
        n, team,
        [&](int64_t length, int64_t a, int64_t b) {
          for (int64_t j = 0; j < length; j += V::kLanes) curve.f(V::load(px + a + j)).store(py + b + j);
          if (kind != Activation::sigmoid || y.c == y.cp) return;
          for (int64_t p = 0; p < length; p += y.cp)  // σ(0) is not 0
            for (int64_t k = y.c; k < y.cp; ++k) py[b + p + k] = T(0);
        },
        x, y);
  });
}

template <class T>
void Pointwise<T>::backward(const T* px, const T* pdy, T* pdx, bool add, int64_t n, Team& team) const {
  with_curve([&](const auto curve) {
    for_spans(
        n, team,
        [&](int64_t length, int64_t at, int64_t from, int64_t to) {
          V d1, d2;
          if (add)
            for (int64_t j = 0; j < length; j += V::kLanes) {
              curve.derivatives(V::load(px + at + j), d1, d2);
              fma(d1, V::load(pdy + from + j), V::load(pdx + to + j)).store(pdx + to + j);
            }
          else
            for (int64_t j = 0; j < length; j += V::kLanes) {
              curve.derivatives(V::load(px + at + j), d1, d2);
              (d1 * V::load(pdy + from + j)).store(pdx + to + j);
            }
        },
        x, dy, dx);
  });
}

template <class T>
void Pointwise<T>::forward_tangent(const T* px, const T* pxt, T* pyt, int64_t n, Team& team) const {
  with_curve([&](const auto curve) {
    for_spans(
        n, team,
        [&](int64_t length, int64_t a, int64_t b) {
          V d1, d2;
          for (int64_t j = 0; j < length; j += V::kLanes) {
            curve.derivatives(V::load(px + a + j), d1, d2);
            (d1 * V::load(pxt + a + j)).store(pyt + b + j);
          }
        },
        x, y);
  });
}

template <class T>
void Pointwise<T>::backward_tangent(const T* px, const T* pxt, const T* pdy, const T* pdyt, T* pdxt, bool add,
                                    int64_t n, Team& team) const {
  with_curve([&](const auto curve) {
    if (!curve.curved) {
      if (pdyt != nullptr) return backward(px, pdyt, pdxt, add, n, team);
      if (!add)
        for_spans(n, team, [&](int64_t length, int64_t at) { std::memset(pdxt + at, 0, length * sizeof(T)); }, dx);
      return;
    }
    for_spans(
        n, team,
        [&](int64_t length, int64_t at, int64_t from, int64_t to) {
          for (int64_t j = 0; j < length; j += V::kLanes) {
            V d1, d2;
            curve.derivatives(V::load(px + at + j), d1, d2);
            V g = d2 * V::load(pxt + at + j) * V::load(pdy + from + j);
            if (pdyt != nullptr) g = fma(d1, V::load(pdyt + from + j), g);
            if (add) g += V::load(pdxt + to + j);
            g.store(pdxt + to + j);
          }
        },
        x, dy, dx);
  });
}

}  // namespace MF_ISA
}  // namespace mf
