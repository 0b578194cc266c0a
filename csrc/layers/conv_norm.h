#pragma once

// CONV2D -> BATCH_NORM -> RELU -> (MAX_POOL 2x2) for large images: z = x * w + bias, y = pool(relu(norm(z))).
//
// z and ż are kept, because statistics need all of z before any of y. Their cotangents never exist as maps: the norm's
// backward pass writes a few images of them (or, where the input wants no gradient, a few rows) into a buffer that
// stays in cache, and the convolution's takes them from there. Statistics are gathered from z while it is in cache,
// too.
#include <optional>

#include "layers/conv2d.h"
#include "layers/norm.h"

namespace mf {
inline namespace MF_ISA {

template <class T>
class ConvNorm {
 public:
  // norm's x is z's map, its dx the map of z's cotangent with the border that the convolution needs (its n does not
  // matter). dx with n = 0: no gradient for the input is ever wanted.
  ConvNorm(const Map& x, const Geometry& g, const NormPool<T>& norm, const Map& dx)
      : norm(norm), conv(x, norm.x, g, norm.dx, dx), x_(x), dx_(dx) {
    const Map& z = norm.x;
    const int64_t image = z.image() * static_cast<int64_t>(sizeof(T)), row = z.row() * static_cast<int64_t>(sizeof(T));
    group_ = std::max<int64_t>(1, kGroupBytes / image);
    if (dx.n != 0 || g.sh != 1 || image < 2 * kStripBytes) return;
    strip_rows_ = std::max<int64_t>(4, kStripBytes / row / 4 * 4);
    for (int64_t r = strip_rows_; r > strip_rows_ / 2; r -= 2)  // the same number of rows each time, if there is one
      if (z.h % r == 0) {
        strip_rows_ = r;
        break;
      }
    strip_.emplace(strip_conv(g, strip_rows_));
    if (z.h % strip_rows_ != 0) rest_.emplace(strip_conv(g, z.h % strip_rows_));
  }

  NormPool<T> norm;
  Conv2d<T> conv;

  int64_t aux_size(bool tangents = true) const { return norm.aux_size(tangents); }
  int64_t byte_size() const { return norm.byte_size(); }
  int64_t scratch_size() const { return conv.scratch_size() + 2 * buffer_size(); }

  // z and zt are written here and read by the later passes; bias may be null. `fixed_stats` as in norm.h.
  void forward(const T* x, const T* w, const T* bias, const T* gamma, const T* beta, const T* fixed_stats, T* z, T* y,
               T* aux, uint8_t* bytes, int64_t n, Team& team) const {
    const ConvTerm<T> term{x, w};
    produce(&term, 1, bias, z, n, team,
            [&](int64_t i, int64_t r0, int64_t r1) { norm.forward_rows(z, gamma, aux, bytes, i, r0, r1); });
    norm.forward_finish(z, gamma, beta, fixed_stats, y, aux, bytes, n, team);
  }

  // Null dx, dw, dgamma, dbeta are not wanted. The gradient of the bias is 0 with statistics of the batch; it is not
  // computed here.
  void backward(const T* x, const T* w, const T* gamma, T* aux, const uint8_t* bytes, const T* z, const T* dy, T* dx,
                bool add, T* dw, bool add_w, T* dgamma, T* dbeta, bool add_params, int64_t n, Team& team,
                T* scratch) const {
    norm.backward_sums(z, gamma, aux, bytes, dy, dgamma, dbeta, add_params, n, team);
    if (dx == nullptr && dw == nullptr) return;
    T* dz = scratch + conv.scratch_size();
    consume(x, nullptr, w, nullptr, dx, add, dw, add_w, n, team, scratch, nullptr, dz,
            [&](T*, T* out, int64_t row, int64_t i, int64_t r0, int64_t r1) {
              norm.backward_rows(z, gamma, aux, bytes, dy, out, row, false, i, r0, r1);
            });
  }

  // Null xt, wt, gammat, betat are 0. Null zt: x and w have no tangents at all.
  void forward_tangent(const T* x, const T* xt, const T* w, const T* wt, const T* biast, const T* gamma,
                       const T* gammat, const T* betat, T* aux, const uint8_t* bytes, const T* z, T* zt, T* yt,
                       int64_t n, Team& team) const {
    if (zt != nullptr) {
      const ConvTerm<T> terms[] = {{xt, w}, {x, wt}};
      produce(terms, 2, biast, zt, n, team,
              [&](int64_t i, int64_t r0, int64_t r1) { norm.forward_tangent_rows(z, aux, bytes, zt, i, r0, r1); });
    }
    norm.forward_tangent_finish(z, gamma, aux, bytes, zt, gammat, betat, yt, n, team);
  }

  void backward_tangent(const T* x, const T* xt, const T* w, const T* wt, const T* gamma, const T* gammat, T* aux,
                        const uint8_t* bytes, const T* z, const T* zt, const T* dy, const T* dyt, T* dxt, bool add,
                        T* dwt, bool add_w, T* dgammat, T* dbetat, bool add_params, int64_t n, Team& team,
                        T* scratch) const {
    norm.backward_tangent_sums(z, gamma, aux, bytes, zt, gammat, dy, dyt, dgammat, dbetat, add_params, n, team);
    if (dxt == nullptr && dwt == nullptr) return;
    const bool both = (xt != nullptr && dwt != nullptr) || (wt != nullptr && dxt != nullptr);
    T* dzt = scratch + conv.scratch_size();
    T* dz = both ? dzt + buffer_size() : nullptr;
    consume(x, xt, w, wt, dxt, add, dwt, add_w, n, team, scratch, dz, dzt,
            [&](T* out, T* out_t, int64_t row, int64_t i, int64_t r0, int64_t r1) {
              norm.backward_tangent_rows(z, gamma, aux, bytes, zt, gammat, dy, dyt, out, out_t, row, false, i, r0, r1);
            });
  }

 private:
  static constexpr int64_t kGroupBytes = 1 << 20, kStripBytes = 128 << 10;

  Map strip_map(Map m, int64_t rows, Border b) const {
    m.n = 1, m.h = rows, m.bh = b.h, m.bw = b.w;
    return m;
  }
  Conv2d<T> strip_conv(const Geometry& g, int64_t rows) const {
    const Map out = strip_map(norm.x, rows, {0, norm.x.bw}), d = strip_map(norm.x, rows, {});
    return {strip_map(x_, rows, {x_.bh, x_.bw}), out, g, d, Map{}};
  }
  int64_t buffer_size() const { return strip_ ? strip_rows_ * norm.x.w * norm.x.cp : group_ * norm.dx.image(); }
  const Conv2d<T>& strip(int64_t rows) const { return rows == strip_rows_ ? *strip_ : *rest_; }

  // Convolves a few images or rows and hands them to f(image, first row, last row) at once.
  template <class F>
  void produce(const ConvTerm<T>* terms, int count, const T* bias, T* z, int64_t n, Team& team, const F& f) const {
    const Map& out = norm.x;
    const auto shifted = [&](int t, int64_t by) {
      return ConvTerm<T>{terms[t].a != nullptr ? terms[t].a + by : nullptr, terms[t].b};
    };
    if (strip_) {
      team.run(n, [&](int64_t i) {
        Team alone;
        for (int64_t r = 0; r < out.h; r += strip_rows_) {
          const int64_t rows = std::min(strip_rows_, out.h - r), by = i * x_.image() + r * x_.row();
          const ConvTerm<T> here[] = {shifted(0, by), shifted(count - 1, by)};
          strip(rows).forward(here, count, bias, z + i * out.image() + (out.bh + r) * out.row(), 1, alone);
          f(i, r, r + rows);
        }
      });
      return;
    }
    for (int64_t first = 0; first < n; first += group_) {
      const int64_t images = std::min(group_, n - first), by = first * x_.image();
      const ConvTerm<T> here[] = {shifted(0, by), shifted(count - 1, by)};
      conv.forward(here, count, bias, z + first * out.image(), images, team);
      each_chunk(first, images, team, [&](int64_t i) { f(i, 0, out.h); });
    }
  }

  // Has f(dz, dż, row, image, first row, last row) write a few images or rows, and gives them to the convolution.
  // Without ẋ and ẇ, what is called dż here is dz, and dz is null.
  template <class F>
  void consume(const T* x, const T* xt, const T* w, const T* wt, T* dx, bool add, T* dw, bool add_w, int64_t n,
               Team& team, T* scratch, T* dz, T* dzt, const F& f) const {
    const Map& map = norm.dx;
    const auto from = [](const T* p, int64_t by) { return p != nullptr ? p + by : nullptr; };
    if (strip_) {
      const int64_t row = norm.x.w * norm.x.cp;
      for (int64_t i = 0; i < n; ++i)
        for (int64_t r = 0; r < norm.x.h; r += strip_rows_) {
          const int64_t rows = std::min(strip_rows_, norm.x.h - r), by = i * x_.image() + r * x_.row();
          f(dz, dzt, row, i, r, r + rows);
          const ConvTerm<T> terms[] = {{from(xt, by), dz}, {x + by, dzt}};
          strip(rows).backward_weight(terms, 2, dw, add_w || i + r > 0, 1, team);
        }
      return;
    }
    for (T* buffer : {dz, dzt})
      if (buffer != nullptr && map.bh + map.bw > 0) std::fill(buffer, buffer + group_ * map.image(), T(0));
    for (int64_t first = 0; first < n; first += group_) {
      const int64_t images = std::min(group_, n - first), by = first * x_.image();
      each_chunk(first, images, team, [&](int64_t i) {
        const int64_t at = map.at(i - first, 0, 0);
        f(dz != nullptr ? dz + at : nullptr, dzt + at, map.row(), i, 0, map.h);
      });
      if (dw != nullptr) {
        const ConvTerm<T> terms[] = {{from(xt, by), dz}, {x + by, dzt}};
        conv.backward_weight(terms, 2, dw, add_w || first > 0, images, team);
      }
      if (dx != nullptr) {
        const ConvTerm<T> terms[] = {{dzt, w}, {dz, wt}};
        conv.backward_input(terms, 2, dx + first * dx_.image(), add, images, team, scratch);
      }
    }
  }

  // f(image) for images [first, first + count); images of one chunk of the norm on one thread, in order.
  template <class F>
  void each_chunk(int64_t first, int64_t count, Team& team, const F& f) const {
    const int64_t chunk = norm.image_chunk(first), chunks = norm.image_chunk(first + count - 1) - chunk + 1;
    team.run(chunks, [&](int64_t c) {
      for (int64_t i = first; i < first + count; ++i)
        if (norm.image_chunk(i) == chunk + c) f(i);
    });
  }

  Map x_, dx_;
  int64_t group_ = 1, strip_rows_ = 0;
  std::optional<Conv2d<T>> strip_, rest_;  // of strip_rows_ rows, and of what the last strip has
};

}  // namespace MF_ISA
}  // namespace mf
