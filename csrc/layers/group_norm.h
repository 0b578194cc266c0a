#pragma once

// GROUP_NORM (affine per channel) and LAYER_NORM over the whole example (affine per element, [h][w][cp]):
//   y = w x̂ + b,  x̂ = (x - μ) r,  r = 1 / sqrt(var + eps),  statistics per example and group
//   dx = r (g - mean g - x̂ mean(g x̂)),  g = w dy
//   x̂˙ = r (ẋ - mean ẋ - x̂ mean(ẋ x̂)),  ṙ = -r² mean(ẋ x̂)
//   dẋ = r (ġ - mean ġ - x̂˙ mean(g x̂) - x̂ (mean(g x̂))˙) - r mean(ẋ x̂) dx,  ġ = ẇ dy + w dẏ
//
// Conventions as in norm.h. Null w is 1, null b, wt, bt, xt are 0.
#include <cmath>

#include "layers/spans.h"

namespace mf {
inline namespace MF_ISA {

template <class T>
struct GroupNorm {
  double eps = 1e-5;
  Map x, y, dy, dx;  // ẋ lies as x, ẏ as y, dẏ as dy, dẋ as dx
  int64_t groups = 1;
  bool per_element = false;  // LAYER_NORM: w, b, dw, db and their tangents are [h][w][cp], and groups is 1

  int64_t param_size() const { return per_element ? x.h * x.w * x.cp : x.cp; }
  int64_t aux_size() const { return x.n * kVectors * x.cp; }  // for up to x.n examples

  void forward(const T* px, const T* w, const T* b, T* py, T* aux, int64_t n, Team& team) const;
  void backward(const T* px, const T* w, T* aux, const T* pdy, T* pdx, bool add, T* dw, T* db, bool add_params,
                int64_t n, Team& team) const;
  void forward_tangent(const T* px, const T* w, T* aux, const T* pxt, const T* wt, const T* bt, T* pyt, int64_t n,
                       Team& team) const;
  void backward_tangent(const T* px, const T* w, T* aux, const T* pxt, const T* wt, const T* pdy, const T* pdyt,
                        T* pdxt, bool add, T* dwt, T* dbt, bool add_params, int64_t n, Team& team) const;

 private:
  using V = Vec<T>;
  // Vectors [cp] per example: a group's value stands at each of its channels, 0 in padded lanes.
  enum : int64_t { kMean, kInverse, kMeanG, kMeanGHat, kMeanT, kHatT, kFirst, kSecond, kVectors };

  T* vectors(T* aux, int64_t i) const { return aux + i * kVectors * x.cp; }
  // Of w: the pixel's vector (LAYER_NORM) or the only one.
  int64_t place(int64_t pixel) const { return per_element ? pixel * x.cp : 0; }

  // f(pixel, row, column) for every pixel of an image.
  template <class F>
  MF_INLINE void pixels(const F& f) const {
    for (int64_t r = 0, p = 0; r < x.h; ++r)
      for (int64_t q = 0; q < x.w; ++q, ++p) f(p, r, q);
  }
  static MF_INLINE V scaled(const T* w, int64_t at, V v) { return w != nullptr ? V::load(w + at) * v : v; }

  // first += a, second += b
  static MF_INLINE void gather(V a, V b, T* first, T* second) {
    (V::load(first) + a).store(first);
    (V::load(second) + b).store(second);
  }

  // finish(mean of first, mean of second) over each group; its two results replace the sums at all its channels.
  template <class F>
  void over_groups(const T* first, const T* second, T* a, T* b, const F& finish) const {
    const int64_t width = x.c / groups;
    const double share = 1.0 / static_cast<double>(width * x.h * x.w);
    for (int64_t g = 0; g < groups; ++g) {
      double s = 0.0, t = 0.0;
      for (int64_t k = g * width; k < (g + 1) * width; ++k)
        s += static_cast<double>(first[k]), t += static_cast<double>(second[k]);
      s *= share, t *= share;
      finish(s, t);
      for (int64_t k = g * width; k < (g + 1) * width; ++k) a[k] = static_cast<T>(s), b[k] = static_cast<T>(t);
    }
    for (int64_t k = x.c; k < x.cp; ++k) a[k] = b[k] = T(0);
  }

  // dw (+)= Σ a, db (+)= Σ b over examples, and pixels unless per element; value(i, pixel, row, column, k, a, b).
  template <class F>
  void param_sums(T* aux, T* dw, T* db, bool add, int64_t n, Team& team, const F& value) const {
    if (dw == nullptr && db == nullptr) return;
    if (per_element) {
      team.run(x.h, [&](int64_t r) {
        for (int64_t q = 0; q < x.w; ++q)
          for (int64_t k = 0; k < x.cp; k += V::kLanes) {
            const int64_t pixel = r * x.w + q, at = place(pixel) + k;
            V sa = V::zero(), sb = V::zero(), a, b;
            for (int64_t i = 0; i < n; ++i) {
              value(i, pixel, r, q, k, a, b);
              sa += a, sb += b;
            }
            if (dw != nullptr) (add ? sa + V::load(dw + at) : sa).store(dw + at);
            if (db != nullptr) (add ? sb + V::load(db + at) : sb).store(db + at);
          }
      });
      return;
    }
    team.run(n, [&](int64_t i) {
      T *first = vectors(aux, i) + kFirst * x.cp, *second = vectors(aux, i) + kSecond * x.cp;
      std::fill(first, first + 2 * x.cp, T(0));
      pixels([&](int64_t pixel, int64_t r, int64_t q) {
        for (int64_t k = 0; k < x.cp; k += V::kLanes) {
          V a, b;
          value(i, pixel, r, q, k, a, b);
          gather(a, b, first + k, second + k);
        }
      });
    });
    for (int64_t k = 0; k < x.cp; ++k) {
      double a = 0.0, b = 0.0;
      for (int64_t i = 0; i < n; ++i) {
        a += static_cast<double>(vectors(aux, i)[kFirst * x.cp + k]);
        b += static_cast<double>(vectors(aux, i)[kSecond * x.cp + k]);
      }
      if (dw != nullptr) dw[k] = static_cast<T>(a) + (add ? dw[k] : T(0));
      if (db != nullptr) db[k] = static_cast<T>(b) + (add ? db[k] : T(0));
    }
  }
};

template <class T>
void GroupNorm<T>::forward(const T* px, const T* w, const T* b, T* py, T* aux, int64_t n, Team& team) const {
  team.run(n, [&](int64_t i) {
    T* s = vectors(aux, i);
    T *mean = s + kMean * x.cp, *inverse = s + kInverse * x.cp, *first = s + kFirst * x.cp;
    const int64_t cp = x.cp;
    std::fill(first, first + 2 * cp, T(0));
    std::fill(s + kMeanT * cp, s + kFirst * cp, T(0));
    pixels([&](int64_t, int64_t r, int64_t q) {
      const T* from = px + x.at(i, r, q);
      for (int64_t k = 0; k < cp; k += V::kLanes) (V::load(first + k) + V::load(from + k)).store(first + k);
    });
    over_groups(first, first, mean, inverse, [](double&, double&) {});
    std::fill(first, first + cp, T(0));
    // Deviations from the rounded mean: what rounding left of their sum is taken out of the sum of squares.
    T* square = s + kSecond * cp;
    pixels([&](int64_t, int64_t r, int64_t q) {
      const T* from = px + x.at(i, r, q);
      for (int64_t k = 0; k < cp; k += V::kLanes) {
        const V c = V::load(from + k) - V::load(mean + k);
        gather(c, c * c, first + k, square + k);
      }
    });
    over_groups(first, square, first, inverse,
                [&](double& off, double& var) { var = 1.0 / std::sqrt(std::max(var - off * off, 0.0 * var) + eps); });
    pixels([&](int64_t pixel, int64_t r, int64_t q) {
      const T* from = px + x.at(i, r, q);
      T* to = py + y.at(i, r, q);
      const int64_t at = place(pixel);
      for (int64_t k = 0; k < cp; k += V::kLanes) {
        const V hat = (V::load(from + k) - V::load(mean + k)) * V::load(inverse + k);
        const V v = scaled(w, at + k, hat);
        (b != nullptr ? v + V::load(b + at + k) : v).store(to + k);
      }
    });
  });
}

template <class T>
void GroupNorm<T>::backward(const T* px, const T* w, T* aux, const T* pdy, T* pdx, bool add, T* dw, T* db,
                            bool add_params, int64_t n, Team& team) const {
  const int64_t cp = x.cp;
  team.run(n, [&](int64_t i) {
    T* s = vectors(aux, i);
    const T *mean = s + kMean * cp, *inverse = s + kInverse * cp;
    T *first = s + kFirst * cp, *second = s + kSecond * cp, *mean_g = s + kMeanG * cp, *mean_hat = s + kMeanGHat * cp;
    std::fill(first, first + 2 * cp, T(0));
    pixels([&](int64_t pixel, int64_t r, int64_t q) {
      const T *from = px + x.at(i, r, q), *d = pdy + dy.at(i, r, q);
      for (int64_t k = 0; k < cp; k += V::kLanes) {
        const V hat = (V::load(from + k) - V::load(mean + k)) * V::load(inverse + k);
        const V g = scaled(w, place(pixel) + k, V::load(d + k));
        gather(g, g * hat, first + k, second + k);
      }
    });
    over_groups(first, second, mean_g, mean_hat, [](double&, double&) {});
    if (pdx == nullptr) return;
    pixels([&](int64_t pixel, int64_t r, int64_t q) {
      const T *from = px + x.at(i, r, q), *d = pdy + dy.at(i, r, q);
      T* to = pdx + dx.at(i, r, q);
      for (int64_t k = 0; k < cp; k += V::kLanes) {
        const V inv = V::load(inverse + k), hat = (V::load(from + k) - V::load(mean + k)) * inv;
        const V g = scaled(w, place(pixel) + k, V::load(d + k));
        const V v = inv * (g - V::load(mean_g + k) - hat * V::load(mean_hat + k));
        (add ? v + V::load(to + k) : v).store(to + k);
      }
    });
  });
  param_sums(aux, dw, db, add_params, n, team, [&](int64_t i, int64_t, int64_t r, int64_t q, int64_t k, V& a, V& b) {
    const T* s = vectors(aux, i) + k;
    b = V::load(pdy + dy.at(i, r, q) + k);
    a = b * (V::load(px + x.at(i, r, q) + k) - V::load(s + kMean * cp)) * V::load(s + kInverse * cp);
  });
}

template <class T>
void GroupNorm<T>::forward_tangent(const T* px, const T* w, T* aux, const T* pxt, const T* wt, const T* bt, T* pyt,
                                   int64_t n, Team& team) const {
  const int64_t cp = x.cp;
  team.run(n, [&](int64_t i) {
    T* s = vectors(aux, i);
    const T *mean = s + kMean * cp, *inverse = s + kInverse * cp;
    T *first = s + kFirst * cp, *second = s + kSecond * cp, *mean_t = s + kMeanT * cp, *hat_t = s + kHatT * cp;
    std::fill(first, first + 2 * cp, T(0));
    std::fill(mean_t, mean_t + 2 * cp, T(0));
    if (pxt != nullptr) {
      pixels([&](int64_t, int64_t r, int64_t q) {
        const T *from = px + x.at(i, r, q), *t = pxt + x.at(i, r, q);
        for (int64_t k = 0; k < cp; k += V::kLanes) {
          const V hat = (V::load(from + k) - V::load(mean + k)) * V::load(inverse + k), v = V::load(t + k);
          gather(v, v * hat, first + k, second + k);
        }
      });
      over_groups(first, second, mean_t, hat_t, [](double&, double&) {});
    }
    pixels([&](int64_t pixel, int64_t r, int64_t q) {
      const int64_t at = place(pixel), from = x.at(i, r, q);
      T* to = pyt + y.at(i, r, q);
      for (int64_t k = 0; k < cp; k += V::kLanes) {
        const V inv = V::load(inverse + k), hat = (V::load(px + from + k) - V::load(mean + k)) * inv;
        V v = V::zero();
        if (pxt != nullptr)
          v = scaled(w, at + k, inv * (V::load(pxt + from + k) - V::load(mean_t + k) - hat * V::load(hat_t + k)));
        if (wt != nullptr) v = fma(V::load(wt + at + k), hat, v);
        if (bt != nullptr) v += V::load(bt + at + k);
        v.store(to + k);
      }
    });
  });
}

template <class T>
void GroupNorm<T>::backward_tangent(const T* px, const T* w, T* aux, const T* pxt, const T* wt, const T* pdy,
                                    const T* pdyt, T* pdxt, bool add, T* dwt, T* dbt, bool add_params, int64_t n,
                                    Team& team) const {
  const int64_t cp = x.cp;
  // x̂ and x̂˙ of one vector of channels.
  const auto hats = [&](const T* s, int64_t from, int64_t k, V& hat, V& hat_t) {
    const V inv = V::load(s + kInverse * cp + k);
    hat = (V::load(px + from + k) - V::load(s + kMean * cp + k)) * inv;
    hat_t = V::zero();
    if (pxt != nullptr)
      hat_t = inv * (V::load(pxt + from + k) - V::load(s + kMeanT * cp + k) - hat * V::load(s + kHatT * cp + k));
  };
  const auto gradients = [&](int64_t at, int64_t from, int64_t k, V& g, V& gt) {
    const V d = V::load(pdy + from + k);
    g = scaled(w, at + k, d);
    gt = scaled(w, at + k, V::load(pdyt + from + k));
    if (wt != nullptr) gt = fma(V::load(wt + at + k), d, gt);
  };
  team.run(n, [&](int64_t i) {
    T* s = vectors(aux, i);
    T *first = s + kFirst * cp, *second = s + kSecond * cp;
    std::fill(first, first + 2 * cp, T(0));
    pixels([&](int64_t pixel, int64_t r, int64_t q) {
      for (int64_t k = 0; k < cp; k += V::kLanes) {
        V hat, hat_t, g, gt;
        hats(s, x.at(i, r, q), k, hat, hat_t);
        gradients(place(pixel), dy.at(i, r, q), k, g, gt);
        gather(gt, fma(gt, hat, g * hat_t), first + k, second + k);
      }
    });
    over_groups(first, second, first, second, [](double&, double&) {});
    if (pdxt == nullptr) return;
    pixels([&](int64_t pixel, int64_t r, int64_t q) {
      T* to = pdxt + dx.at(i, r, q);
      for (int64_t k = 0; k < cp; k += V::kLanes) {
        const V inv = V::load(s + kInverse * cp + k), mean_hat = V::load(s + kMeanGHat * cp + k);
        V hat, hat_t, g, gt;
        hats(s, x.at(i, r, q), k, hat, hat_t);
        gradients(place(pixel), dy.at(i, r, q), k, g, gt);
        const V direct = gt - V::load(first + k) - hat_t * mean_hat - hat * V::load(second + k);
        const V by_inverse = V::load(s + kHatT * cp + k) * inv * (g - V::load(s + kMeanG * cp + k) - hat * mean_hat);
        const V v = inv * (direct - by_inverse);
        (add ? v + V::load(to + k) : v).store(to + k);
      }
    });
  });
  param_sums(aux, dwt, dbt, add_params, n, team, [&](int64_t i, int64_t, int64_t r, int64_t q, int64_t k, V& a, V& b) {
    V hat, hat_t;
    hats(vectors(aux, i), x.at(i, r, q), k, hat, hat_t);
    b = V::load(pdyt + dy.at(i, r, q) + k);
    a = fma(b, hat, V::load(pdy + dy.at(i, r, q) + k) * hat_t);
  });
}

}  // namespace MF_ISA
}  // namespace mf
