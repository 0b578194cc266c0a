#pragma once

// BATCH_NORM -> RELU -> (MAX_POOL 2x2, stride 2, no padding) as one block, and BATCH_NORM alone (norm.h).
//
// Normalized values are recomputed from x and the statistics, never stored. ReLU and the maximum commute with an
// increasing affine map, so that the pool is taken of x itself (of -x where w < 0) in the sweep that gathers the
// statistics: x is read once, and what follows works on pooled maps. Kept are one byte of argmax and the chosen x per
// output. Since the gradient is 0 everywhere else, all sums of the backward passes come from pooled maps; one sweep
// over x then writes dx.
//
// Conventions as in norm.h. The passes come for whole maps, or, where an image is larger than a cache, in rows: a
// convolution hands over rows of x right after it wrote them, and takes rows of dx right before it uses them.
//   forward            forward_rows for all rows of all images, then forward_finish
//   backward           backward_sums, then backward_rows for whichever rows are wanted
//   forward tangent    forward_tangent_rows for all rows, then forward_tangent_finish
//   backward tangent   backward_tangent_sums, then backward_tangent_rows
// Rows [r0, r1) of image i: r0 is even; r1 is even or h. The rows of one chunk (image_chunk(i): one image, or several
// small ones) must be handed over in order by one thread; different chunks may run in parallel.
#include <cmath>

#include "layers/norm_rows.h"

namespace mf {
inline namespace MF_ISA {

template <class T>
struct NormPool {
  double eps = 1e-5;
  Map x, y, dy, dx;  // ẋ lies as x, ẏ as y, dẏ as dy, dẋ as dx
  bool pool = true;  // false: BATCH_NORM -> RELU
  bool fixed = false;
  bool relu = true;  // false: BATCH_NORM alone (without pool)

  // For up to x.n examples; without `tangents` only forward and backward may be called.
  int64_t aux_size(bool tangents = true) const {
    return kVectors * x.cp + chunks(x.n) * kSlots * x.cp + (tangents ? 2 : 1) * pooled_size();
  }
  int64_t byte_size() const { return pooled_size(); }

  // fixed_stats: (mean [cp], variance [cp]) when `fixed`.
  void forward(const T* x, const T* w, const T* b, const T* fixed_stats, T* y, T* aux, uint8_t* bytes, int64_t n,
               Team& team) const;
  void backward(const T* x, const T* w, T* aux, const uint8_t* bytes, const T* dy, T* dx, bool add, T* dw, T* db,
                bool add_params, int64_t n, Team& team) const;
  void forward_tangent(const T* x, const T* w, T* aux, const uint8_t* bytes, const T* xt, const T* wt, const T* bt,
                       T* yt, int64_t n, Team& team) const;
  // dx (null: not wanted) is written again beside dẋ, with the same `add`: one sweep gives both.
  void backward_tangent(const T* x, const T* w, T* aux, const uint8_t* bytes, const T* xt, const T* wt, const T* dy,
                        const T* dyt, T* dx, T* dxt, bool add, T* dwt, T* dbt, bool add_params, int64_t n,
                        Team& team) const;

  int64_t image_chunk(int64_t i) const { return i / chunk_images(); }
  void forward_rows(const T* x, const T* w, T* aux, uint8_t* bytes, int64_t i, int64_t r0, int64_t r1) const;
  void forward_finish(const T* x, const T* w, const T* b, const T* fixed_stats, T* y, T* aux, uint8_t* bytes, int64_t n,
                      Team& team) const;
  void backward_sums(const T* x, const T* w, T* aux, const uint8_t* bytes, const T* dy, T* dw, T* db, bool add_params,
                     int64_t n, Team& team) const;
  // out: channel 0 of column 0 of row r0, in any buffer with `row` elements from row to row.
  void backward_rows(const T* x, const T* w, const T* aux, const uint8_t* bytes, const T* dy, T* out, int64_t row,
                     bool add, int64_t i, int64_t r0, int64_t r1) const;
  void forward_tangent_rows(const T* x, T* aux, const uint8_t* bytes, const T* xt, int64_t i, int64_t r0,
                            int64_t r1) const;
  void forward_tangent_finish(const T* x, const T* w, T* aux, const uint8_t* bytes, const T* xt, const T* wt,
                              const T* bt, T* yt, int64_t n, Team& team) const;
  void backward_tangent_sums(const T* x, const T* w, T* aux, const uint8_t* bytes, const T* xt, const T* wt,
                             const T* dy, const T* dyt, T* dwt, T* dbt, bool add_params, int64_t n, Team& team) const;
  // out (null: not wanted) receives dx, out_t dẋ.
  void backward_tangent_rows(const T* x, const T* w, const T* aux, const uint8_t* bytes, const T* xt, const T* wt,
                             const T* dy, const T* dyt, T* out, T* out_t, int64_t row, bool add, int64_t i, int64_t r0,
                             int64_t r1) const;

  // The batch's mean and unbiased variance, [c] each.
  void batch_stats(const T* aux, int64_t n, double* mean, double* var) const {
    const double m = static_cast<double>(n * x.h * x.w);
    for (int64_t k = 0; k < x.c; ++k) {
      mean[k] = static_cast<double>(aux[kMean * x.cp + k]);
      var[k] = static_cast<double>(aux[kVar * x.cp + k]) * (m / (m - 1.0));
    }
  }

 private:
  using V = Vec<T>;
  // Vectors [cp] at the head of aux. Sums are over the batch, means are sums / (n h w); x̂ = c r, r = 1 / sqrt(var +
  // eps).
  enum : int64_t {
    kMean,
    kVar,
    kInverse,
    kScale,
    kBias,    // scale = w r: z = c scale + bias
    kHatSum,  // Σ dz x̂
    kMeanDz,
    kMeanDzHat,  // mean dz, mean dz x̂: 0 when the statistics are fixed
    kByX,
    kConstant,  // dx
    kMeanT,
    kHatT,  // mean ẋ, mean ẋ x̂: 0 when the statistics are fixed or ẋ is 0
    kYByX,
    kYByXt,
    kYConstant,  // ẏ
    kTByX,
    kTByXt,
    kTConstant,  // dẋ; its coefficient of dz is kYByX
    kVectors
  };
  enum : int64_t { kFirst, kSecond, kShift, kSign, kSlots };  // of a chunk

  int64_t chunk_images() const { return std::max<int64_t>(1, 4096 / std::max<int64_t>(1, x.h * x.w * x.cp)); }
  int64_t chunks(int64_t n) const { return blocks_of(n, chunk_images()); }
  int64_t pooled_size() const { return pool ? x.n * (x.h / 2) * (x.w / 2) * x.cp : 0; }
  T* slot(T* aux, int64_t chunk) const { return aux + (kVectors + chunk * kSlots) * x.cp; }
  // x and ẋ at the maxima, without borders.
  T* chosen(T* aux) const { return slot(aux, chunks(x.n)); }
  T* chosen_t(T* aux) const { return chosen(aux) + pooled_size(); }
  int64_t pooled_row(int64_t i, int64_t p) const { return (i * (x.h / 2) + p) * (x.w / 2) * x.cp; }
  // Pixels or windows of a strip: few, so that memory is read nearly in order although channels go by groups.
  int64_t strip() const { return std::max<int64_t>(8, 256 / x.cp); }

  template <class F>
  void each_chunk(int64_t n, Team& team, const F& f) const {
    team.run(chunks(n), [&](int64_t chunk) {
      for (int64_t i = chunk * chunk_images(); i < std::min(n, (chunk + 1) * chunk_images()); ++i) f(i, chunk);
    });
  }
  // f(offset, length) in pixels.
  template <class F>
  MF_INLINE void strips(int64_t pixels, const F& f) const {
    const int64_t step = strip();
    for (int64_t p = 0; p < pixels; p += step) f(p, std::min(step, pixels - p));
  }
  template <class F>
  void with_gate(const F& f) const {
    if (pool) f(std::integral_constant<rows::Gate, rows::Gate::byte>{});
    else if (relu) f(std::integral_constant<rows::Gate, rows::Gate::relu>{});
    else f(std::integral_constant<rows::Gate, rows::Gate::open>{});
  }
  void clear_slot(T* s) const { std::fill(s, s + 2 * x.cp, T(0)); }

  // total(k, Σ first, Σ second) for every channel, over all chunks in order, in double.
  template <class F>
  void totals(T* aux, int64_t n, const F& total) const {
    const int64_t cp = x.cp, count = chunks(n), step = kSlots * cp;
    const T* first = slot(aux, 0);
    for (int64_t k = 0; k < cp; k += kLanePad) {
      double a[kLanePad] = {}, b[kLanePad] = {};
      for (int64_t q = 0; q < count; ++q)
        for (int64_t l = 0; l < kLanePad; ++l) {
          a[l] += static_cast<double>(first[q * step + kFirst * cp + k + l]);
          b[l] += static_cast<double>(first[q * step + kSecond * cp + k + l]);
        }
      for (int64_t l = 0; l < kLanePad; ++l) total(k + l, a[l], b[l]);
    }
  }
  void statistics(T* aux, int64_t n) const;
};

// ---- forward

template <class T>
void NormPool<T>::forward_rows(const T* px, const T* w, T* aux, uint8_t* bytes, int64_t i, int64_t r0,
                               int64_t r1) const {
  const int64_t cp = x.cp, chunk = image_chunk(i), row = x.row(), windows = x.w / 2;
  T* s = slot(aux, chunk);
  T *first = s + kFirst * cp, *second = s + kSecond * cp, *shift = s + kShift * cp, *sign = s + kSign * cp;
  const T* top = px + x.at(i, r0, 0);
  if (r0 == 0 && i == chunk * chunk_images()) {
    // Sums are taken of x - shift, shift the mean of the chunk's first row. If that row is an odd one out at distance
    // d, it alone adds w d² to the sum of squares, so that what cancels stays a small part of the sum.
    clear_slot(s);
    std::fill(shift, shift + cp, T(0));
    for (int64_t q = 0; q < x.w; ++q)
      for (int64_t k = 0; k < cp; k += V::kLanes) (V::load(shift + k) + V::load(top + q * cp + k)).store(shift + k);
    const T part = T(1) / static_cast<T>(x.w);
    for (int64_t k = 0; k < cp; ++k) {
      shift[k] *= part;
      sign[k] = w == nullptr ? T(1) : static_cast<T>((w[k] > T(0)) - (w[k] < T(0)));
    }
  }
  const auto plain = [&](const T* from, int64_t pixels) {
    strips(pixels, [&](int64_t at, int64_t length) {
      rows::for_groups<T, 4>(cp, [&](auto width, int64_t k) {
        rows::deviation_sums<T, decltype(width)::value>(from + at * cp + k, length, cp, shift + k, first + k,
                                                        second + k);
      });
    });
  };
  if (!pool) {
    if (x.bw == 0) return plain(top, (r1 - r0) * x.w);
    for (int64_t r = r0; r < r1; ++r, top += row) plain(top, x.w);
    return;
  }
  for (int64_t r = r0; r + 2 <= r1; r += 2, top += 2 * row) {
    const int64_t pooled = pooled_row(i, r / 2);
    T* best = chosen(aux) + pooled;
    strips(windows, [&](int64_t at, int64_t length) {
      rows::for_groups<T, 4>(cp, [&](auto width, int64_t k) {
        const T* from = top + 2 * at * cp + k;
        rows::pool_sums<T, decltype(width)::value>(from, from + row, length, cp, shift + k, sign + k, first + k,
                                                   second + k, best + at * cp + k, bytes + pooled + at * cp + k);
      });
    });
    if (x.w % 2 != 0) plain(top + 2 * windows * cp, 1), plain(top + row + 2 * windows * cp, 1);
  }
  if ((r1 - r0) % 2 != 0) plain(top, x.w);
}

// Mean and variance from the chunks' sums, by Chan's formula in double.
template <class T>
void NormPool<T>::statistics(T* aux, int64_t n) const {
  const int64_t cp = x.cp, per_chunk = chunk_images();
  for (int64_t k = 0; k < cp; k += kLanePad) {
    double mean[kLanePad] = {}, square[kLanePad] = {}, count = 0.0;
    for (int64_t q = 0; q < chunks(n); ++q) {
      const T* s = slot(aux, q) + k;
      const double m = static_cast<double>((std::min(n, (q + 1) * per_chunk) - q * per_chunk) * x.h * x.w);
      const double inverse = 1.0 / m, share = m / (count + m), weight = count * share;
      for (int64_t l = 0; l < kLanePad; ++l) {
        const double first = static_cast<double>(s[kFirst * cp + l]), off = first * inverse;
        const double delta = static_cast<double>(s[kShift * cp + l]) + off - mean[l];
        mean[l] += delta * share;
        square[l] += static_cast<double>(s[kSecond * cp + l]) - first * off + delta * delta * weight;
      }
      count += m;
    }
    for (int64_t l = 0; l < kLanePad; ++l) {
      aux[kMean * cp + k + l] = static_cast<T>(mean[l]);
      aux[kVar * cp + k + l] = static_cast<T>(std::max(square[l], 0.0 * square[l]) / count);
    }
  }
}

template <class T>
void NormPool<T>::forward_finish(const T* px, const T* w, const T* b, const T* fixed_stats, T* py, T* aux,
                                 uint8_t* bytes, int64_t n, Team& team) const {
  const int64_t cp = x.cp;
  T *mean = aux + kMean * cp, *scale = aux + kScale * cp, *bias = aux + kBias * cp;
  if (fixed) std::copy(fixed_stats, fixed_stats + 2 * cp, mean);
  else statistics(aux, n);
  for (int64_t k = 0; k < cp; ++k) {
    const T inverse = static_cast<T>(1.0 / std::sqrt(static_cast<double>(aux[kVar * cp + k]) + eps));
    aux[kInverse * cp + k] = k < x.c ? inverse : T(0);
    scale[k] = k < x.c ? (w != nullptr ? w[k] * inverse : inverse) : T(0);
    bias[k] = b != nullptr && k < x.c ? b[k] : T(0);
  }
  each_chunk(n, team, [&](int64_t i, int64_t) {
    if (pool) {
      for (int64_t r = 0; r < y.h; ++r) {
        const int64_t at = pooled_row(i, r);
        rows::for_groups<T, 4>(cp, [&](auto width, int64_t k) {
          rows::normalize_pooled<T, decltype(width)::value>(chosen(aux) + at + k, py + y.at(i, r, 0) + k,
                                                            bytes + at + k, y.w, cp, mean + k, scale + k, bias + k);
        });
      }
      return;
    }
    for (int64_t r = 0; r < x.h; ++r)
      rows::for_groups<T, 4>(cp, [&](auto width, int64_t k) {
        const T* from = px + x.at(i, r, 0) + k;
        T* to = py + y.at(i, r, 0) + k;
        constexpr int N = decltype(width)::value;
        if (relu) rows::normalize<T, N, true>(from, to, x.w, cp, mean + k, scale + k, bias + k);
        else rows::normalize<T, N, false>(from, to, x.w, cp, mean + k, scale + k, bias + k);
      });
  });
}

template <class T>
void NormPool<T>::forward(const T* px, const T* w, const T* b, const T* fixed_stats, T* py, T* aux, uint8_t* bytes,
                          int64_t n, Team& team) const {
  if (pool || !fixed) each_chunk(n, team, [&](int64_t i, int64_t) { forward_rows(px, w, aux, bytes, i, 0, x.h); });
  forward_finish(px, w, b, fixed_stats, py, aux, bytes, n, team);
}

// ---- backward: dx = scale (dz - mean dz - x̂ mean(dz x̂))

template <class T>
void NormPool<T>::backward_sums(const T* px, const T* w, T* aux, const uint8_t* bytes, const T* pdy, T* dw, T* db,
                                bool add_params, int64_t n, Team& team) const {
  static_cast<void>(w);
  const int64_t cp = x.cp;
  with_gate([&](auto kind) {
    constexpr rows::Gate gate = decltype(kind)::value;
    each_chunk(n, team, [&](int64_t i, int64_t chunk) {
      T* s = slot(aux, chunk);
      if (i == chunk * chunk_images()) clear_slot(s);
      for (int64_t r = 0; r < dy.h; ++r) {
        const T* from = pool ? chosen(aux) + pooled_row(i, r) : px + x.at(i, r, 0);
        rows::for_groups<T, 4>(cp, [&](auto width, int64_t k) {
          rows::gradient_sums<T, decltype(width)::value, gate>(
              from + k, pdy + dy.at(i, r, 0) + k, pool ? bytes + pooled_row(i, r) + k : nullptr, dy.w, cp,
              aux + kMean * cp + k, aux + kScale * cp + k, aux + kBias * cp + k, s + kFirst * cp + k,
              s + kSecond * cp + k);
        });
      }
    });
  });
  const double share = fixed ? 0.0 : 1.0 / static_cast<double>(n * x.h * x.w);
  totals(aux, n, [&](int64_t k, double dz, double dz_c) {
    const T inverse = aux[kInverse * cp + k], scale = aux[kScale * cp + k];
    const double dz_hat = dz_c * static_cast<double>(inverse);
    aux[kHatSum * cp + k] = static_cast<T>(dz_hat);
    const T mean = aux[kMeanDz * cp + k] = static_cast<T>(dz * share);
    const T mean_hat = aux[kMeanDzHat * cp + k] = static_cast<T>(dz_hat * share);
    aux[kByX * cp + k] = -scale * inverse * mean_hat;
    aux[kConstant * cp + k] = -scale * mean;
    if (dw != nullptr) dw[k] = static_cast<T>(dz_hat) + (add_params ? dw[k] : T(0));
    if (db != nullptr) db[k] = static_cast<T>(dz) + (add_params ? db[k] : T(0));
  });
}

template <class T>
void NormPool<T>::backward_rows(const T* px, const T*, const T* aux, const uint8_t* bytes, const T* pdy, T* out,
                                int64_t row, bool add, int64_t i, int64_t r0, int64_t r1) const {
  const int64_t cp = x.cp, windows = x.w / 2;
  const T *mean = aux + kMean * cp, *scale = aux + kScale * cp, *bias = aux + kBias * cp;
  const T *by_x = aux + kByX * cp, *constant = aux + kConstant * cp;
  const T* from = px + x.at(i, r0, 0);
  const auto run = [&](auto adds) {
    constexpr bool kAdd = decltype(adds)::value;
    const auto uncovered = [&](const T* a, T* o, int64_t pixels) {
      rows::for_groups<T, 4>(cp, [&](auto width, int64_t k) {
        rows::gradient_uncovered<T, decltype(width)::value, kAdd>(a + k, o + k, pixels, cp, mean + k, by_x + k,
                                                                  constant + k);
      });
    };
    if (!pool) {
      for (int64_t r = r0; r < r1; ++r, from += x.row(), out += row)
        rows::for_groups<T, 4>(cp, [&](auto width, int64_t k) {
          constexpr int N = decltype(width)::value;
          const T* d = pdy + dy.at(i, r, 0) + k;
          if (relu)
            rows::gradient<T, N, rows::Gate::relu, kAdd>(from + k, d, out + k, x.w, cp, mean + k, scale + k, by_x + k,
                                                         constant + k, bias + k);
          else
            rows::gradient<T, N, rows::Gate::open, kAdd>(from + k, d, out + k, x.w, cp, mean + k, scale + k, by_x + k,
                                                         constant + k, bias + k);
        });
      return;
    }
    for (int64_t r = r0; r + 2 <= r1; r += 2, from += 2 * x.row(), out += 2 * row) {
      const T* d = pdy + dy.at(i, r / 2, 0);
      const uint8_t* place = bytes + pooled_row(i, r / 2);
      strips(windows, [&](int64_t at, int64_t length) {
        rows::for_groups<T, 4>(cp, [&](auto width, int64_t k) {
          rows::pool_gradient<T, decltype(width)::value, kAdd>(from + 2 * at * cp + k, x.row(), d + at * cp + k,
                                                               place + at * cp + k, out + 2 * at * cp + k, row, length,
                                                               cp, mean + k, scale + k, by_x + k, constant + k);
        });
      });
      if (x.w % 2 != 0) {
        const int64_t last = 2 * windows * cp;
        uncovered(from + last, out + last, 1);
        uncovered(from + x.row() + last, out + row + last, 1);
      }
    }
    if ((r1 - r0) % 2 != 0) uncovered(from, out, x.w);
  };
  if (add) run(std::true_type{});
  else run(std::false_type{});
}

template <class T>
void NormPool<T>::backward(const T* px, const T* w, T* aux, const uint8_t* bytes, const T* pdy, T* pdx, bool add, T* dw,
                           T* db, bool add_params, int64_t n, Team& team) const {
  backward_sums(px, w, aux, bytes, pdy, dw, db, add_params, n, team);
  if (pdx == nullptr) return;
  each_chunk(n, team, [&](int64_t i, int64_t) {
    backward_rows(px, w, aux, bytes, pdy, pdx + dx.at(i, 0, 0), dx.row(), add, i, 0, x.h);
  });
}

}  // namespace MF_ISA
}  // namespace mf
