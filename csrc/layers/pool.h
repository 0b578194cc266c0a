#pragma once

// Max and average pooling: any window, stride and padding (floor mode), overlapping windows included.
//
// The maximum keeps one byte per output, the place in its window (kh kw at most 256); the other passes gather and
// scatter by that byte. Ties go to the first place and NaN wins, as in torch. Average pooling is linear: its tangent
// passes are forward and backward themselves.
#include "layers/elementwise.h"

namespace mf {
inline namespace MF_ISA {

struct Window {
  int64_t kh = 2, kw = 2, sh = 2, sw = 2, ph = 0, pw = 0;

  // Calls f(place, y, x) for what the window of output (r, q) covers of an h x w image.
  template <class F>
  MF_INLINE void each(int64_t h, int64_t w, int64_t r, int64_t q, const F& f) const {
    const int64_t top = r * sh - ph, left = q * sw - pw;
    for (int64_t i = std::max<int64_t>(0, -top); i < kh && top + i < h; ++i)
      for (int64_t j = std::max<int64_t>(0, -left); j < kw && left + j < w; ++j) f(i * kw + j, top + i, left + j);
  }
};

template <class T>
struct MaxPool {
  Window window;
  Map x, y, dy, dx;  // ẋ lies as x, ẏ as y, dẏ as dy, dẋ as dx

  static bool supports(const Window& w) { return w.kh * w.kw <= 256; }
  int64_t byte_size() const { return y.n * y.h * y.w * y.cp; }  // for up to x.n examples

  void forward(const T* px, T* py, uint8_t* bytes, int64_t n, Team& team) const {
    each_output(y, n, team, [&](int64_t i, int64_t r, int64_t q, int64_t at) {
      for (int64_t k = 0; k < y.cp; k += V::kLanes) {
        V best = V::zero();
        typename V::Mask chosen = typename V::Mask{} - 1;
        window.each(x.h, x.w, r, q, [&](int64_t place, int64_t a, int64_t b) {
          const V v = V::load(px + x.at(i, a, b) + k);
          const auto better = (v > best) | (v.v != v.v) | (chosen < 0);
          best = select(better, v, best);
          chosen = better ? typename V::Mask{} + static_cast<typename V::Int>(place) : chosen;
        });
        best.store(py + y.at(i, r, q) + k);
        store_bytes<T>(chosen, bytes + at + k);
      }
    });
  }

  // dy -> dx and dẏ -> dẋ.
  void backward(const uint8_t* bytes, const T* pdy, T* pdx, bool add, int64_t n, Team& team) const {
    if (!add) clear_map(dx, pdx, n, team);
    each_output(y, n, team, [&](int64_t i, int64_t r, int64_t q, int64_t at) {
      for (int64_t k = 0; k < y.cp; k += V::kLanes) {
        const V d = V::load(pdy + dy.at(i, r, q) + k);
        const auto chosen = load_bytes<T>(bytes + at + k);
        window.each(dx.h, dx.w, r, q, [&](int64_t place, int64_t a, int64_t b) {
          T* to = pdx + dx.at(i, a, b) + k;
          (V::load(to) + select(chosen == static_cast<typename V::Int>(place), d, V::zero())).store(to);
        });
      }
    });
  }

  void forward_tangent(const uint8_t* bytes, const T* pxt, T* pyt, int64_t n, Team& team) const {
    each_output(y, n, team, [&](int64_t i, int64_t r, int64_t q, int64_t at) {
      for (int64_t k = 0; k < y.cp; k += V::kLanes) {
        const auto chosen = load_bytes<T>(bytes + at + k);
        V v = V::zero();
        window.each(x.h, x.w, r, q, [&](int64_t place, int64_t a, int64_t b) {
          v = select(chosen == static_cast<typename V::Int>(place), V::load(pxt + x.at(i, a, b) + k), v);
        });
        v.store(pyt + y.at(i, r, q) + k);
      }
    });
  }

 private:
  using V = Vec<T>;

  // f(i, row, column, place of channel 0 in bytes); one example is one block, so that windows may overlap.
  template <class F>
  static void each_output(const Map& y, int64_t n, Team& team, const F& f) {
    team.run(n, [&](int64_t i) {
      for (int64_t r = 0; r < y.h; ++r)
        for (int64_t q = 0; q < y.w; ++q) f(i, r, q, ((i * y.h + r) * y.w + q) * y.cp);
    });
  }
};

template <class T>
struct AvgPool {
  Window window;
  bool count_include_pad = true;
  Map x, y, dy, dx;

  // x -> y and ẋ -> ẏ.
  void forward(const T* px, T* py, int64_t n, Team& team) const {
    team.run(n, [&](int64_t i) {
      for (int64_t r = 0; r < y.h; ++r)
        for (int64_t q = 0; q < y.w; ++q) {
          const T share = weight(r, q);
          for (int64_t k = 0; k < y.cp; k += V::kLanes) {
            V s = V::zero();
            window.each(x.h, x.w, r, q, [&](int64_t, int64_t a, int64_t b) { s += V::load(px + x.at(i, a, b) + k); });
            (s * share).store(py + y.at(i, r, q) + k);
          }
        }
    });
  }

  // dy -> dx and dẏ -> dẋ.
  void backward(const T* pdy, T* pdx, bool add, int64_t n, Team& team) const {
    if (!add) clear_map(dx, pdx, n, team);
    team.run(n, [&](int64_t i) {
      for (int64_t r = 0; r < dy.h; ++r)
        for (int64_t q = 0; q < dy.w; ++q) {
          const T share = weight(r, q);
          for (int64_t k = 0; k < dy.cp; k += V::kLanes) {
            const V d = V::load(pdy + dy.at(i, r, q) + k) * share;
            window.each(dx.h, dx.w, r, q, [&](int64_t, int64_t a, int64_t b) {
              T* to = pdx + dx.at(i, a, b) + k;
              (V::load(to) + d).store(to);
            });
          }
        }
    });
  }

 private:
  using V = Vec<T>;

  T weight(int64_t r, int64_t q) const {
    int64_t count = window.kh * window.kw;
    if (!count_include_pad) {
      count = 0;
      window.each(x.h, x.w, r, q, [&](int64_t, int64_t, int64_t) { ++count; });
    }
    return T(1) / static_cast<T>(count);
  }
};

}  // namespace MF_ISA
}  // namespace mf
