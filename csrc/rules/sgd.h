// SGD with momentum (Sutskever et al. 2013, in torch.optim's form) and Nesterov momentum:
//   b_t = mu b_{t-1} + (1 - damping) g_t  (b_1 = g_1),   u_t = g_t + mu b_t (Nesterov), b_t (momentum) or g_t,   p -=
//   lr u_t.
// The previous direction is the old buffer where there is plain momentum; elsewhere it has to be kept (kPrevious).
#pragma once

#include "../core/dual.h"
#include "rule.h"

namespace mf {

template <class S>  // float, or a dual number over it
struct SgdHyperOf {
  float g_mul;
  S l2;
  S buf_old, buf_g;  // mu and 1 - damping; 0 and 1 at a tensor's first step
  S dir_g, dir_buf;  // the direction is dir_g * g + dir_buf * b
  S lr;
};
using SgdHyper = SgdHyperOf<float>;

// Moves the buffer, and gives the direction.
template <bool kMomentum, class H, class T>
MF_HD T sgd_direction(const H& h, const T& g, T& buf) {
  if constexpr (!kMomentum) return g;
  buf = h.buf_old * buf + h.buf_g * g;
  return h.dir_g * g + h.dir_buf * buf;
}

template <bool kMomentum, bool kPrevious>
struct SgdDirection {
  MF_HD static void move(const SgdHyper& h, float g, float& u_old, float& u_new, float& buf, float& previous) {
    u_old = kPrevious ? previous : (kMomentum ? buf : 0.0f);
    u_new = sgd_direction<kMomentum>(h, g, buf);
    if constexpr (kPrevious) previous = u_new;
  }
};

template <bool kMomentum, bool kPrevious>
struct Sgd {  // streams: momentum buffer, previous direction
  using Hyper = SgdHyper;
  static constexpr unsigned kStates = (kMomentum ? kS0 : 0u) | (kPrevious ? kS1 : 0u);
  static constexpr unsigned kReads = kP | kG | kStates;
  static constexpr unsigned kWrites = kP | kStates;
  static constexpr bool kStats = true;

  MF_HD static void step(const Hyper& h, float& g, float& u, float& p, float& buf, float& previous, float&, float&) {
    g = g * h.g_mul + h.l2 * p;
    float u_new;
    SgdDirection<kMomentum, kPrevious>::move(h, g, u, u_new, buf, previous);
    p = p - h.lr * u_new;
  }
};

template <bool kMomentum>
struct SgdTangents {  // SGD where nothing but the step is asked for, on dual numbers
  using Hyper = SgdHyperOf<DualFloat>;
  static constexpr int kStates = kMomentum ? 1 : 0;
  template <class T>
  MF_HD static void step(const Hyper& h, const T& raw, T& p, T* s) {
    const T g = raw * h.g_mul + h.l2 * p;
    p = p - h.lr * sgd_direction<kMomentum>(h, g, *s);
  }
};

}  // namespace mf
