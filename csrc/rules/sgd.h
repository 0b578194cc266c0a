// SGD with momentum (Sutskever et al. 2013, in torch.optim's form) and Nesterov momentum:
//   b_t = mu b_{t-1} + (1 - damping) g_t  (b_1 = g_1),   u_t = g_t + mu b_t (Nesterov), b_t (momentum) or g_t,   p -=
//   lr u_t.
// The previous direction is the old buffer where there is plain momentum; elsewhere it has to be kept (kPrevious).
#pragma once

#include "rule.h"

namespace mf {

struct SgdHyper {
  float g_mul, l2;
  float buf_old, buf_g;  // mu and 1 - damping; 0 and 1 at a tensor's first step
  float dir_g, dir_buf;  // the direction is dir_g * g + dir_buf * b
  float lr;
};

template <bool kMomentum, bool kPrevious>
struct SgdDirection {
  MF_HD static void move(const SgdHyper& h, float g, float& u_old, float& u_new, float& buf, float& previous) {
    u_old = kPrevious ? previous : (kMomentum ? buf : 0.0f);
    if constexpr (kMomentum) {
      buf = h.buf_old * buf + h.buf_g * g;
      u_new = h.dir_g * g + h.dir_buf * buf;
    } else {
      u_new = g;
    }
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

}  // namespace mf
