// Max and average pooling: any window, stride and padding (floor mode), overlapping windows included.
//
// The maximum keeps one byte per output, the place in its window (kh * kw at most 256); its tangent passes gather and
// scatter by that byte. Ties go to the first place, as in torch. Average pooling is linear: its tangent passes are
// forward and backward themselves.
#pragma once

#include "map.h"
#include "team.h"

namespace mf {
inline namespace MF_ISA {

struct Window {
  int64_t kh = 2, kw = 2, sh = 2, sw = 2, ph = 0, pw = 0;
};

template <class T>
struct MaxPool {
  Window window;
  Map x, y, dy, dx;  // ẋ lies as x, ẏ as y, dẏ as dy, dẋ as dx

  static bool supports(const Window& w) { return w.kh * w.kw <= 256; }
  int64_t byte_size(int64_t n) const;

  void forward(const T* x, T* y, uint8_t* bytes, int64_t n, Team& team) const;
  void backward(const uint8_t* bytes, const T* dy, T* dx, bool add, int64_t n, Team& team) const;  // also dẏ -> dẋ
  void forward_tangent(const uint8_t* bytes, const T* xt, T* yt, int64_t n, Team& team) const;
};

template <class T>
struct AvgPool {
  Window window;
  bool count_include_pad = true;
  Map x, y, dy, dx;

  void forward(const T* x, T* y, int64_t n, Team& team) const;                // also ẋ -> ẏ
  void backward(const T* dy, T* dx, bool add, int64_t n, Team& team) const;   // also dẏ -> dẋ
};

}  // namespace MF_ISA
}  // namespace mf
