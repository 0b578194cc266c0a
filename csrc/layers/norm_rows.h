#pragma once

// The inner loops of norm_pool.h, on strips: runs of pixels (or of 2x2 windows) of one row, for a group of N vectors of
// channels whose sums and coefficients stay in registers. Pointers stand at the group's first channel; cp is the step
// from pixel to pixel.
//
// c = x - mean is always subtracted before it is scaled, so that a large mean costs no accuracy.
#include <type_traits>

#include "layers/spans.h"

namespace mf {
inline namespace MF_ISA {
namespace rows {

constexpr int kDead = 4;  // the byte of a pooled output that ReLU cut off; 0..3 is the place of its maximum

// Calls f(integral_constant N, first channel) for groups of at most `Most` vectors.
template <class T, int Most, class F>
MF_INLINE void for_groups(int64_t cp, const F& f) {
  constexpr int64_t lanes = Vec<T>::kLanes;
  int64_t k = 0;
  for (; k + Most * lanes <= cp; k += Most * lanes) f(std::integral_constant<int, Most>{}, k);
  if constexpr (Most > 2)
    for (; k + 2 * lanes <= cp; k += 2 * lanes) f(std::integral_constant<int, 2>{}, k);
  if constexpr (Most > 1)
    for (; k < cp; k += lanes) f(std::integral_constant<int, 1>{}, k);
}

template <class T, int N>
struct Group {
  Vec<T> v[N];

  static MF_INLINE Group load(const T* p) {
    Group g;
    for (int j = 0; j < N; ++j) g.v[j] = Vec<T>::load(p + j * Vec<T>::kLanes);
    return g;
  }
  static MF_INLINE Group zero() {
    Group g;
    for (int j = 0; j < N; ++j) g.v[j] = Vec<T>::zero();
    return g;
  }
  MF_INLINE void add_to(T* p) const {
    for (int j = 0; j < N; ++j) (v[j] + Vec<T>::load(p + j * Vec<T>::kLanes)).store(p + j * Vec<T>::kLanes);
  }
};

// What of dy passes ReLU: all, where z = c scale + bias > 0, or where the byte is not kDead.
enum class Gate { open, relu, byte };

template <class T, Gate gate>
MF_INLINE typename Vec<T>::Mask passes(Vec<T> c, Vec<T> scale, Vec<T> bias, const uint8_t* bytes, int64_t at) {
  if constexpr (gate == Gate::relu) return fma(c, scale, bias) > Vec<T>::zero();
  else if constexpr (gate == Gate::byte) return load_bytes<T>(bytes + at) < kDead;
  else return Vec<T>::zero() == Vec<T>::zero();
}

// ---- sums

// first += Σ d, second += Σ d², d = x - shift.
template <class T, int N>
MF_INLINE void deviation_sums(const T* x, int64_t pixels, int64_t cp, const T* shift, T* first, T* second) {
  using V = Vec<T>;
  constexpr int L = V::kLanes, U = N < 4 ? 4 / N : 1;
  const auto s = Group<T, N>::load(shift);
  Group<T, N * U> a = Group<T, N * U>::zero(), b = a;
  int64_t p = 0;
  for (; p + U <= pixels; p += U, x += U * cp)
    for (int u = 0; u < U; ++u)
      for (int j = 0; j < N; ++j) {
        const V d = V::load(x + u * cp + j * L) - s.v[j];
        a.v[u * N + j] += d;
        b.v[u * N + j] = fma(d, d, b.v[u * N + j]);
      }
  for (; p < pixels; ++p, x += cp)
    for (int j = 0; j < N; ++j) {
      const V d = V::load(x + j * L) - s.v[j];
      a.v[j] += d;
      b.v[j] = fma(d, d, b.v[j]);
    }
  for (int j = N; j < N * U; ++j) a.v[j % N] += a.v[j], b.v[j % N] += b.v[j];
  for (int j = 0; j < N; ++j) {
    (V::load(first + j * L) + a.v[j]).store(first + j * L);
    (V::load(second + j * L) + b.v[j]).store(second + j * L);
  }
}

// The same over 2x2 windows, with the window's extreme in the direction of `sign`: its x and its place. Where sign is 0
// all places are equal, and the first is kept.
template <class T, int N>
MF_INLINE void pool_sums(const T* top, const T* bottom, int64_t windows, int64_t cp, const T* shift, const T* sign,
                         T* first, T* second, T* best, uint8_t* bytes) {
  using V = Vec<T>;
  constexpr int L = V::kLanes;
  const auto s = Group<T, N>::load(shift), g = Group<T, N>::load(sign);
  Group<T, N> a = Group<T, N>::zero(), b = a;
  for (int64_t p = 0; p < windows; ++p, top += 2 * cp, bottom += 2 * cp, best += cp, bytes += cp)
    for (int j = 0; j < N; ++j) {
      const V x0 = V::load(top + j * L), x1 = V::load(top + cp + j * L);
      const V x2 = V::load(bottom + j * L), x3 = V::load(bottom + cp + j * L);
      const V d0 = x0 - s.v[j], d1 = x1 - s.v[j], d2 = x2 - s.v[j], d3 = x3 - s.v[j];
      a.v[j] += (d0 + d1) + (d2 + d3);
      b.v[j] += fma(d0, d0, d1 * d1) + fma(d2, d2, d3 * d3);
      const V v0 = x0 * g.v[j], v1 = x1 * g.v[j], v2 = x2 * g.v[j], v3 = x3 * g.v[j];
      const V m = max(max(v0, v1), max(v2, v3));
      typename V::Mask place = typename V::Mask{} + 3;
      place = v2 == m ? typename V::Mask{} + 2 : place;
      place = v1 == m ? typename V::Mask{} + 1 : place;
      place = v0 == m ? typename V::Mask{} : place;
      select(v0 == m, x0, m * g.v[j]).store(best + j * L);
      store_bytes<T>(place, bytes + j * L);
    }
  a.add_to(first);
  b.add_to(second);
}

// first += Σ dz, second += Σ dz c, dz the part of dy that passes.
template <class T, int N, Gate gate>
MF_INLINE void gradient_sums(const T* x, const T* dy, const uint8_t* bytes, int64_t pixels, int64_t cp, const T* mean,
                             const T* scale, const T* bias, T* first, T* second) {
  using V = Vec<T>;
  constexpr int L = V::kLanes;
  const auto m = Group<T, N>::load(mean), s = Group<T, N>::load(scale), t = Group<T, N>::load(bias);
  Group<T, N> a = Group<T, N>::zero(), b = a;
  for (int64_t p = 0; p < pixels; ++p, x += cp, dy += cp, bytes += gate == Gate::byte ? cp : 0)
    for (int j = 0; j < N; ++j) {
      const V c = V::load(x + j * L) - m.v[j];
      const V dz = select(passes<T, gate>(c, s.v[j], t.v[j], bytes, j * L), V::load(dy + j * L), V::zero());
      a.v[j] += dz;
      b.v[j] = fma(dz, c, b.v[j]);
    }
  a.add_to(first);
  b.add_to(second);
}

// first += Σ ẋ, second += Σ ẋ c.
template <class T, int N>
MF_INLINE void tangent_sums(const T* x, const T* xt, int64_t pixels, int64_t cp, const T* mean, T* first, T* second) {
  using V = Vec<T>;
  constexpr int L = V::kLanes;
  const auto m = Group<T, N>::load(mean);
  Group<T, N> a = Group<T, N>::zero(), b = a;
  for (int64_t p = 0; p < pixels; ++p, x += cp, xt += cp)
    for (int j = 0; j < N; ++j) {
      const V t = V::load(xt + j * L);
      a.v[j] += t;
      b.v[j] = fma(t, V::load(x + j * L) - m.v[j], b.v[j]);
    }
  a.add_to(first);
  b.add_to(second);
}

// The same over 2x2 windows, and ẋ of each window's place.
template <class T, int N>
MF_INLINE void pool_tangent_sums(const T* x, const T* xt, int64_t row, int64_t row_t, const uint8_t* bytes,
                                 int64_t windows, int64_t cp, const T* mean, T* first, T* second, T* best) {
  using V = Vec<T>;
  constexpr int L = V::kLanes;
  const auto m = Group<T, N>::load(mean);
  Group<T, N> a = Group<T, N>::zero(), b = a;
  for (int64_t p = 0; p < windows; ++p, x += 2 * cp, xt += 2 * cp, best += cp, bytes += cp)
    for (int j = 0; j < N; ++j) {
      const V t0 = V::load(xt + j * L), t1 = V::load(xt + cp + j * L);
      const V t2 = V::load(xt + row_t + j * L), t3 = V::load(xt + row_t + cp + j * L);
      const V c0 = V::load(x + j * L) - m.v[j], c1 = V::load(x + cp + j * L) - m.v[j];
      const V c2 = V::load(x + row + j * L) - m.v[j], c3 = V::load(x + row + cp + j * L) - m.v[j];
      a.v[j] += (t0 + t1) + (t2 + t3);
      b.v[j] += fma(t0, c0, t1 * c1) + fma(t2, c2, t3 * c3);
      const typename V::Mask place = load_bytes<T>(bytes + j * L);
      select(place == 0, t0, select(place == 1, t1, select(place == 2, t2, t3))).store(best + j * L);
    }
  a.add_to(first);
  b.add_to(second);
}

// first += Σ dż, second += Σ (dż c + dz (ẋ - ṁ)).
template <class T, int N, Gate gate, bool has_xt>
MF_INLINE void gradient_tangent_sums(const T* x, const T* xt, const T* dy, const T* dyt, const uint8_t* bytes,
                                     int64_t pixels, int64_t cp, const T* mean, const T* mean_t, const T* scale,
                                     const T* bias, T* first, T* second) {
  using V = Vec<T>;
  constexpr int L = V::kLanes;
  const auto m = Group<T, N>::load(mean), mt = Group<T, N>::load(mean_t);
  const auto s = Group<T, N>::load(scale), t = Group<T, N>::load(bias);
  Group<T, N> a = Group<T, N>::zero(), b = a;
  for (int64_t p = 0; p < pixels; ++p, x += cp, xt += cp, dy += cp, dyt += cp, bytes += gate == Gate::byte ? cp : 0)
    for (int j = 0; j < N; ++j) {
      const V c = V::load(x + j * L) - m.v[j];
      const auto on = passes<T, gate>(c, s.v[j], t.v[j], bytes, j * L);
      const V dz = select(on, V::load(dy + j * L), V::zero()), dzt = select(on, V::load(dyt + j * L), V::zero());
      a.v[j] += dzt;
      if constexpr (has_xt) b.v[j] = fma(dz, V::load(xt + j * L) - mt.v[j], b.v[j]);
      b.v[j] = fma(dzt, c, b.v[j]);
    }
  a.add_to(first);
  b.add_to(second);
}

// ---- values

// y = c scale + bias, cut off at 0 by ReLU (NaN passes).
template <class T, int N, bool relu>
MF_INLINE void normalize(const T* x, T* y, int64_t pixels, int64_t cp, const T* mean, const T* scale, const T* bias) {
  using V = Vec<T>;
  constexpr int L = V::kLanes;
  const auto m = Group<T, N>::load(mean), s = Group<T, N>::load(scale), t = Group<T, N>::load(bias);
  for (int64_t p = 0; p < pixels; ++p, x += cp, y += cp)
    for (int j = 0; j < N; ++j) {
      const V z = fma(V::load(x + j * L) - m.v[j], s.v[j], t.v[j]);
      (relu ? max(V::zero(), z) : z).store(y + j * L);
    }
}

// The same for the chosen x of a pool; outputs that ReLU cuts off lose their place.
template <class T, int N>
MF_INLINE void normalize_pooled(const T* best, T* y, uint8_t* bytes, int64_t pixels, int64_t cp, const T* mean,
                                const T* scale, const T* bias) {
  using V = Vec<T>;
  constexpr int L = V::kLanes;
  const auto m = Group<T, N>::load(mean), s = Group<T, N>::load(scale), t = Group<T, N>::load(bias);
  for (int64_t p = 0; p < pixels; ++p, best += cp, y += cp, bytes += cp)
    for (int j = 0; j < N; ++j) {
      const V z = fma(V::load(best + j * L) - m.v[j], s.v[j], t.v[j]);
      max(V::zero(), z).store(y + j * L);
      const typename V::Mask place = load_bytes<T>(bytes + j * L);
      store_bytes<T>(z > V::zero() ? place : typename V::Mask{} + kDead, bytes + j * L);
    }
}

// ẏ = by_x c + by_xt (ẋ - ṁ) + constant, where y passes.
template <class T, int N, Gate gate>
MF_INLINE void tangent(const T* x, const T* xt, T* yt, const uint8_t* bytes, int64_t pixels, int64_t cp, const T* mean,
                       const T* mean_t, const T* by_x, const T* by_xt, const T* constant, const T* scale,
                       const T* bias) {
  using V = Vec<T>;
  constexpr int L = V::kLanes;
  for (int64_t p = 0; p < pixels; ++p, x += cp, xt += cp, yt += cp, bytes += gate == Gate::byte ? cp : 0)
    for (int j = 0; j < N; ++j) {
      const V c = V::load(x + j * L) - V::load(mean + j * L), ct = V::load(xt + j * L) - V::load(mean_t + j * L);
      const V t = fma(c, V::load(by_x + j * L), fma(ct, V::load(by_xt + j * L), V::load(constant + j * L)));
      const auto on = passes<T, gate>(c, V::load(scale + j * L), V::load(bias + j * L), bytes, j * L);
      (gate == Gate::open ? t : select(on, t, V::zero())).store(yt + j * L);
    }
}

template <class T, bool add>
MF_INLINE void put(Vec<T> v, T* out) {
  if constexpr (add) (v + Vec<T>::load(out)).store(out);
  else v.store(out);
}

// dx = by_dz dz + by_x c + constant.
template <class T, int N, Gate gate, bool add>
MF_INLINE void gradient(const T* x, const T* dy, T* dx, int64_t pixels, int64_t cp, const T* mean, const T* by_dz,
                        const T* by_x, const T* constant, const T* bias) {
  using V = Vec<T>;
  constexpr int L = V::kLanes;
  const auto m = Group<T, N>::load(mean), g = Group<T, N>::load(by_x), k = Group<T, N>::load(constant);
  const auto s = Group<T, N>::load(by_dz);  // by_dz is also the scale of z
  for (int64_t p = 0; p < pixels; ++p, x += cp, dy += cp, dx += cp)
    for (int j = 0; j < N; ++j) {
      const V c = V::load(x + j * L) - m.v[j];
      const auto on = passes<T, gate>(c, s.v[j], V::load(bias + j * L), nullptr, 0);
      const V d = V::load(dy + j * L), dz = gate == Gate::open ? d : select(on, d, V::zero());
      put<T, add>(fma(c, g.v[j], fma(dz, s.v[j], k.v[j])), dx + j * L);
    }
}

// For pixels that no window covers.
template <class T, int N, bool add>
MF_INLINE void gradient_uncovered(const T* x, T* dx, int64_t pixels, int64_t cp, const T* mean, const T* by_x,
                                  const T* constant) {
  using V = Vec<T>;
  constexpr int L = V::kLanes;
  const auto m = Group<T, N>::load(mean), g = Group<T, N>::load(by_x), k = Group<T, N>::load(constant);
  for (int64_t p = 0; p < pixels; ++p, x += cp, dx += cp)
    for (int j = 0; j < N; ++j) put<T, add>(fma(V::load(x + j * L) - m.v[j], g.v[j], k.v[j]), dx + j * L);
}

// 2x2 windows: dz is dy at the window's place and 0 elsewhere. row: from one row to the next.
template <class T, int N, bool add>
MF_INLINE void pool_gradient(const T* x, int64_t row, const T* dy, const uint8_t* bytes, T* dx, int64_t row_out,
                             int64_t windows, int64_t cp, const T* mean, const T* by_dz, const T* by_x,
                             const T* constant) {
  using V = Vec<T>;
  constexpr int L = V::kLanes;
  const auto m = Group<T, N>::load(mean), g = Group<T, N>::load(by_x), k = Group<T, N>::load(constant);
  const auto s = Group<T, N>::load(by_dz);
  for (int64_t p = 0; p < windows; ++p, x += 2 * cp, dx += 2 * cp, dy += cp, bytes += cp)
    for (int j = 0; j < N; ++j) {
      const V d = V::load(dy + j * L) * s.v[j];
      const typename V::Mask place = load_bytes<T>(bytes + j * L);
      const auto at = [&](int64_t from, int64_t to, int number) {
        const V rest = fma(V::load(x + from + j * L) - m.v[j], g.v[j], k.v[j]);
        put<T, add>(rest + select(place == number, d, V::zero()), dx + to + j * L);
      };
      at(0, 0, 0);
      at(cp, cp, 1);
      at(row, row_out, 2);
      at(row + cp, row_out + cp, 3);
    }
}

// The coefficients of dx and dẋ, each an array over the channels of a group:
//   dx = dz_dx dz + x_dx c + constant_dx
//   dẋ = dz_dxt dz + dzt_dxt dż + x_dxt c + xt_dxt (ẋ - ṁ) + constant_dxt,  dzt_dxt = dz_dx = scale of z
template <class T>
struct Coefficients {
  const T *mean, *mean_t, *scale, *bias, *x_dx, *constant_dx, *dz_dxt, *x_dxt, *xt_dxt, *constant_dxt;

  MF_INLINE Coefficients at(int64_t k) const {
    return {mean + k,        mean_t + k, scale + k, bias + k,   x_dx + k,
            constant_dx + k, dz_dxt + k, x_dxt + k, xt_dxt + k, constant_dxt + k};
  }
};

template <class T, bool both, bool add>
MF_INLINE void put_both(Vec<T> c, Vec<T> ct, Vec<T> dz, Vec<T> dzt, const Coefficients<T>& q, T* dx, T* dxt) {
  using V = Vec<T>;
  const V s = V::load(q.scale);
  if constexpr (both) put<T, add>(fma(c, V::load(q.x_dx), fma(dz, s, V::load(q.constant_dx))), dx);
  const V rest = fma(c, V::load(q.x_dxt), fma(ct, V::load(q.xt_dxt), V::load(q.constant_dxt)));
  put<T, add>(fma(dzt, s, fma(dz, V::load(q.dz_dxt), rest)), dxt);
}

template <class T, Gate gate, bool both, bool add, bool covered = true>
MF_INLINE void gradient_tangent(const T* x, const T* xt, const T* dy, const T* dyt, T* dx, T* dxt, int64_t pixels,
                                int64_t cp, const Coefficients<T>& q) {
  using V = Vec<T>;
  for (int64_t p = 0; p < pixels; ++p)
    for (int64_t k = 0; k < cp; k += V::kLanes) {
      const Coefficients<T> r = q.at(k);
      const int64_t j = p * cp + k;
      const V c = V::load(x + j) - V::load(r.mean), ct = V::load(xt + j) - V::load(r.mean_t);
      V dz = V::zero(), dzt = V::zero();
      if constexpr (covered) {
        const auto on = passes<T, gate>(c, V::load(r.scale), V::load(r.bias), nullptr, 0);
        dz = V::load(dy + j), dzt = V::load(dyt + j);
        if constexpr (gate == Gate::relu) dz = select(on, dz, V::zero()), dzt = select(on, dzt, V::zero());
      }
      put_both<T, both, add>(c, ct, dz, dzt, r, both ? dx + j : nullptr, dxt + j);
    }
}

template <class T, bool both, bool add>
MF_INLINE void pool_gradient_tangent(const T* x, const T* xt, int64_t row, const T* dy, const T* dyt,
                                     const uint8_t* bytes, T* dx, T* dxt, int64_t row_out, int64_t windows, int64_t cp,
                                     const Coefficients<T>& q) {
  using V = Vec<T>;
  for (int64_t p = 0; p < windows; ++p)
    for (int64_t k = 0; k < cp; k += V::kLanes) {
      const Coefficients<T> r = q.at(k);
      const int64_t pooled = p * cp + k, j = 2 * p * cp + k;
      const V d = V::load(dy + pooled), dt = V::load(dyt + pooled), m = V::load(r.mean), mt = V::load(r.mean_t);
      const typename V::Mask place = load_bytes<T>(bytes + pooled);
      const auto at = [&](int64_t from, int64_t to, int number) {
        const auto here = place == number;
        put_both<T, both, add>(V::load(x + from) - m, V::load(xt + from) - mt, select(here, d, V::zero()),
                               select(here, dt, V::zero()), r, both ? dx + to : nullptr, dxt + to);
      };
      at(j, j, 0);
      at(j + cp, j + cp, 1);
      at(j + row, j + row_out, 2);
      at(j + row + cp, j + row_out + cp, 3);
    }
}

}  // namespace rows
}  // namespace MF_ISA
}  // namespace mf
