#pragma once

// The tangent passes of norm_pool.h. With r = 1 / sqrt(var + eps), c = x - mean, x̂ = c r:
//   ṙ = -r² mean(ẋ x̂),   x̂˙ = r (ẋ - mean ẋ) - r mean(ẋ x̂) x̂
//   ẏ = ẇ x̂ + w x̂˙ + ḃ, where y passes
//   dẋ = r (ẇ - w r mean(ẋ x̂)) (dz - mean dz - x̂ mean(dz x̂))
//      + w r (dż - mean dż - x̂˙ mean(dz x̂) - x̂ (mean(dz x̂))˙)
// which are linear in c, ẋ - mean ẋ, dz and dż, with coefficients per channel.
#include "layers/norm_pool.h"

namespace mf {
inline namespace MF_ISA {

template <class T>
void NormPool<T>::forward_tangent_rows(const T* px, T* aux, const uint8_t* bytes, const T* pxt, int64_t i, int64_t r0,
                                       int64_t r1) const {
  const int64_t cp = x.cp, chunk = image_chunk(i), windows = x.w / 2;
  const T* mean = aux + kMean * cp;
  T* s = slot(aux, chunk);
  T *first = s + kFirst * cp, *second = s + kSecond * cp;
  if (r0 == 0 && i == chunk * chunk_images()) clear_slot(s);
  int64_t at = x.at(i, r0, 0);
  const auto plain = [&](int64_t start, int64_t pixels) {
    strips(pixels, [&](int64_t p, int64_t length) {
      rows::for_groups<T, 4>(cp, [&](auto width, int64_t k) {
        const int64_t from = start + p * cp + k;
        rows::tangent_sums<T, decltype(width)::value>(px + from, pxt + from, length, cp, mean + k, first + k,
                                                      second + k);
      });
    });
  };
  if (!pool) {
    if (x.bw == 0) return plain(at, (r1 - r0) * x.w);
    for (int64_t r = r0; r < r1; ++r, at += x.row()) plain(at, x.w);
    return;
  }
  for (int64_t r = r0; r + 2 <= r1; r += 2, at += 2 * x.row()) {
    const int64_t pooled = pooled_row(i, r / 2);
    strips(windows, [&](int64_t p, int64_t length) {
      rows::for_groups<T, 4>(cp, [&](auto width, int64_t k) {
        const int64_t from = at + 2 * p * cp + k, to = pooled + p * cp + k;
        rows::pool_tangent_sums<T, decltype(width)::value>(px + from, pxt + from, x.row(), x.row(), bytes + to, length,
                                                           cp, mean + k, first + k, second + k, chosen_t(aux) + to);
      });
    });
    if (x.w % 2 != 0) plain(at + 2 * windows * cp, 1), plain(at + x.row() + 2 * windows * cp, 1);
  }
  if ((r1 - r0) % 2 != 0) plain(at, x.w);
}

template <class T>
void NormPool<T>::forward_tangent_finish(const T* px, const T* w, T* aux, const uint8_t* bytes, const T* pxt,
                                         const T* wt, const T* bt, T* pyt, int64_t n, Team& team) const {
  const int64_t cp = x.cp;
  const double share = fixed || pxt == nullptr ? 0.0 : 1.0 / static_cast<double>(n * x.h * x.w);
  const auto coefficients = [&](int64_t k, double t, double t_c) {
    const T r = aux[kInverse * cp + k];
    aux[kMeanT * cp + k] = static_cast<T>(t * share);
    const T hat = aux[kHatT * cp + k] = static_cast<T>(t_c * share * static_cast<double>(r));
    const T w_t = wt != nullptr ? wt[k] : T(0);
    aux[kYByX * cp + k] = r * (w_t - aux[kScale * cp + k] * hat);
    aux[kYByXt * cp + k] = pxt != nullptr ? aux[kScale * cp + k] : T(0);
    aux[kYConstant * cp + k] = bt != nullptr ? bt[k] : T(0);
  };
  static_cast<void>(w);
  if (share != 0.0) totals(aux, n, coefficients);
  else
    for (int64_t k = 0; k < cp; ++k) coefficients(k, 0.0, 0.0);
  const T* tangents = pxt != nullptr ? pxt : px;  // without ẋ its coefficient is 0
  with_gate([&](auto kind) {
    constexpr rows::Gate gate = decltype(kind)::value;
    each_chunk(n, team, [&](int64_t i, int64_t) {
      for (int64_t r = 0; r < y.h; ++r) {
        const int64_t pooled = pool ? pooled_row(i, r) : 0;
        const T* from = pool ? chosen(aux) + pooled : px + x.at(i, r, 0);
        const T* from_t = pool ? (pxt != nullptr ? chosen_t(aux) : chosen(aux)) + pooled : tangents + x.at(i, r, 0);
        rows::for_groups<T, 4>(cp, [&](auto width, int64_t k) {
          rows::tangent<T, decltype(width)::value, gate>(
              from + k, from_t + k, pyt + y.at(i, r, 0) + k, pool ? bytes + pooled + k : nullptr, y.w, cp,
              aux + kMean * cp + k, aux + kMeanT * cp + k, aux + kYByX * cp + k, aux + kYByXt * cp + k,
              aux + kYConstant * cp + k, aux + kScale * cp + k, aux + kBias * cp + k);
        });
      }
    });
  });
}

template <class T>
void NormPool<T>::forward_tangent(const T* px, const T* w, T* aux, const uint8_t* bytes, const T* pxt, const T* wt,
                                  const T* bt, T* pyt, int64_t n, Team& team) const {
  if (pxt != nullptr && (pool || !fixed))
    each_chunk(n, team, [&](int64_t i, int64_t) { forward_tangent_rows(px, aux, bytes, pxt, i, 0, x.h); });
  forward_tangent_finish(px, w, aux, bytes, pxt, wt, bt, pyt, n, team);
}

template <class T>
void NormPool<T>::backward_tangent_sums(const T* px, const T* w, T* aux, const uint8_t* bytes, const T* pxt,
                                        const T* wt, const T* pdy, const T* pdyt, T* dwt, T* dbt, bool add_params,
                                        int64_t n, Team& team) const {
  static_cast<void>(w), static_cast<void>(wt);
  const int64_t cp = x.cp;
  const auto sums = [&](auto kind, auto with_xt) {
    constexpr rows::Gate gate = decltype(kind)::value;
    constexpr bool has_xt = decltype(with_xt)::value;
    each_chunk(n, team, [&](int64_t i, int64_t chunk) {
      T* s = slot(aux, chunk);
      if (i == chunk * chunk_images()) clear_slot(s);
      for (int64_t r = 0; r < dy.h; ++r) {
        const int64_t pooled = pool ? pooled_row(i, r) : 0, at = x.at(i, r, 0), at_dy = dy.at(i, r, 0);
        const T* from = pool ? chosen(aux) + pooled : px + at;
        const T* from_t = !has_xt ? from : (pool ? chosen_t(aux) + pooled : pxt + at);
        rows::for_groups<T, 4>(cp, [&](auto width, int64_t k) {
          rows::gradient_tangent_sums<T, decltype(width)::value, gate, has_xt>(
              from + k, from_t + k, pdy + at_dy + k, pdyt + at_dy + k, pool ? bytes + pooled + k : nullptr, dy.w, cp,
              aux + kMean * cp + k, aux + kMeanT * cp + k, aux + kScale * cp + k, aux + kBias * cp + k,
              s + kFirst * cp + k, s + kSecond * cp + k);
        });
      }
    });
  };
  with_gate([&](auto kind) {
    if (pxt != nullptr) sums(kind, std::true_type{});
    else sums(kind, std::false_type{});
  });
  const double share = fixed ? 0.0 : 1.0 / static_cast<double>(n * x.h * x.w);
  totals(aux, n, [&](int64_t k, double dzt, double products) {
    const T r = aux[kInverse * cp + k], scale = aux[kScale * cp + k], by_dz = aux[kYByX * cp + k];
    const T hat_t = aux[kHatT * cp + k], mean_hat = aux[kMeanDzHat * cp + k];
    const double sum = static_cast<double>(r) * (products - static_cast<double>(hat_t * aux[kHatSum * cp + k]));
    const T mean_t = static_cast<T>(dzt * share), mean_hat_t = static_cast<T>(sum * share);
    aux[kTByX * cp + k] = r * (scale * (r * hat_t * mean_hat - mean_hat_t) - by_dz * mean_hat);
    aux[kTByXt * cp + k] = pxt != nullptr ? -scale * r * mean_hat : T(0);
    aux[kTConstant * cp + k] = -by_dz * aux[kMeanDz * cp + k] - scale * mean_t;
    if (dwt != nullptr) dwt[k] = static_cast<T>(sum) + (add_params ? dwt[k] : T(0));
    if (dbt != nullptr) dbt[k] = static_cast<T>(dzt) + (add_params ? dbt[k] : T(0));
  });
}

template <class T>
void NormPool<T>::backward_tangent_rows(const T* px, const T*, const T* aux, const uint8_t* bytes, const T* pxt,
                                        const T*, const T* pdy, const T* pdyt, T* out, T* out_t, int64_t row, bool add,
                                        int64_t i, int64_t r0, int64_t r1) const {
  const int64_t cp = x.cp, windows = x.w / 2;
  const auto vector = [&](int64_t k) { return aux + k * cp; };
  const rows::Coefficients<T> q = {vector(kMean),  vector(kMeanT),    vector(kScale), vector(kBias),
                                   vector(kByX),   vector(kConstant), vector(kYByX),  vector(kTByX),
                                   vector(kTByXt), vector(kTConstant)};
  const T *from = px + x.at(i, r0, 0), *from_t = (pxt != nullptr ? pxt : px) + x.at(i, r0, 0);
  T* o = out != nullptr ? out : out_t;
  const auto run = [&](auto with_dx, auto adds) {
    constexpr bool both = decltype(with_dx)::value, kAdd = decltype(adds)::value;
    const auto uncovered = [&](int64_t at, int64_t to, int64_t pixels) {
      rows::gradient_tangent<T, rows::Gate::open, both, kAdd, false>(from + at, from_t + at, nullptr, nullptr, o + to,
                                                                     out_t + to, pixels, cp, q);
    };
    if (!pool) {
      for (int64_t r = r0; r < r1; ++r, from += x.row(), from_t += x.row(), o += row, out_t += row) {
        const T *d = pdy + dy.at(i, r, 0), *dt = pdyt + dy.at(i, r, 0);
        if (relu) rows::gradient_tangent<T, rows::Gate::relu, both, kAdd>(from, from_t, d, dt, o, out_t, x.w, cp, q);
        else rows::gradient_tangent<T, rows::Gate::open, both, kAdd>(from, from_t, d, dt, o, out_t, x.w, cp, q);
      }
      return;
    }
    for (int64_t r = r0; r + 2 <= r1; r += 2) {
      const int64_t at = dy.at(i, r / 2, 0), last = 2 * windows * cp;
      rows::pool_gradient_tangent<T, both, kAdd>(from, from_t, x.row(), pdy + at, pdyt + at,
                                                 bytes + pooled_row(i, r / 2), o, out_t, row, windows, cp, q);
      if (x.w % 2 != 0) uncovered(last, last, 1), uncovered(x.row() + last, row + last, 1);
      from += 2 * x.row(), from_t += 2 * x.row(), o += 2 * row, out_t += 2 * row;
    }
    if ((r1 - r0) % 2 != 0) uncovered(0, 0, x.w);
  };
  if (out != nullptr) add ? run(std::true_type{}, std::true_type{}) : run(std::true_type{}, std::false_type{});
  else add ? run(std::false_type{}, std::true_type{}) : run(std::false_type{}, std::false_type{});
}

template <class T>
void NormPool<T>::backward_tangent(const T* px, const T* w, T* aux, const uint8_t* bytes, const T* pxt, const T* wt,
                                   const T* pdy, const T* pdyt, T* pdx, T* pdxt, bool add, T* dwt, T* dbt,
                                   bool add_params, int64_t n, Team& team) const {
  backward_tangent_sums(px, w, aux, bytes, pxt, wt, pdy, pdyt, dwt, dbt, add_params, n, team);
  if (pdxt == nullptr) return;
  each_chunk(n, team, [&](int64_t i, int64_t) {
    const int64_t at = dx.at(i, 0, 0);
    backward_tangent_rows(px, w, aux, bytes, pxt, wt, pdy, pdyt, pdx != nullptr ? pdx + at : nullptr, pdxt + at,
                          dx.row(), add, i, 0, x.h);
  });
}

}  // namespace MF_ISA
}  // namespace mf
