// Adam (Kingma & Ba 2015, Algorithm 1), AdamW (Loshchilov & Hutter 2019, Algorithm 2), AMSGrad (Reddi et al. 2018).
//
// With b_i = 1 - beta_i^t and the bias corrections folded into two scalars, k = sqrt(b_2)/b_1 and e = eps sqrt(b_2):
//   u_t = (m_t/b_1) / (sqrt(v_t/b_2) + eps) = k m_t / (sqrt(v_t) + e),     p_t = (1 - lr wd) p_{t-1} - lr u_t.
// u_{t-1} comes from the old m and v inside the same pass: one division serves both quotients, through 1/(d_{t-1} d_t).
#pragma once

#include "../core/dual.h"
#include "rule.h"

namespace mf {

template <class S>  // float, or a dual number over it
struct AdamHyperOf {
  float g_mul;  // clip / grad_scale, negative for maximize
  S l2;         // coupled weight decay; 0 in AdamW
  S decay;      // 1 - lr * weight_decay in AdamW; 1 otherwise
  S one_minus_beta1, beta2, one_minus_beta2;
  S k_new, e_new;  // direction scale and eps of this step
  S k_old, e_old;  // of the previous one; k_old = 0 and e_old = 1 before the first
  S lr;
};
using AdamHyper = AdamHyperOf<float>;

// The scalars of step t (1-based). e is kept above 1e-18, so that the product of two denominators stays normal.
template <class D, class S>
MF_HD void adam_bias(double t, const D& beta1, const D& beta2, const D& eps, S& k, S& e) {
  if (t < 1.0) {
    k = S{0.0f};
    e = S{1.0f};
    return;
  }
  const D corrected = root(1.0 - power(beta2, t));
  k = narrow(corrected / (1.0 - power(beta1, t)));
  e = narrow(at_least(eps * corrected, 1e-18));
}

template <class H, class T>
MF_HD void adam_moments(const H& h, const T& g, T& m, T& v) {
  m = m + (g - m) * h.one_minus_beta1;
  v = v * h.beta2 + h.one_minus_beta2 * g * g;
}

// v: the second moment, or its running maximum.
template <class H, class T>
MF_HD T adam_applied(const H& h, const T& p, const T& m, const T& v) {
  const T d = sqrt_(v) + h.e_new;
  return p * h.decay - h.lr * (h.k_new * m / d);
}

template <bool kAmsgrad>
struct AdamMoments {
  // Moves the moments, and gives the previous and the new direction.
  MF_HD static void move(const AdamHyper& h, float g, float& u_old, float& u_new, float& m, float& v, float& vmax) {
    const float m_old = m;
    const float d_old = sqrt_(kAmsgrad ? vmax : v) + h.e_old;
    adam_moments(h, g, m, v);
    if constexpr (kAmsgrad) vmax = max_(v, vmax);
    const float d_new = sqrt_(kAmsgrad ? vmax : v) + h.e_new;
    const float r = 1.0f / (d_old * d_new);
    u_old = h.k_old * m_old * (d_new * r);
    u_new = h.k_new * m * (d_old * r);
  }
};

template <bool kAmsgrad>
struct Adam {  // streams: m, v, and the running maximum of v
  using Hyper = AdamHyper;
  static constexpr unsigned kStates = kS0 | kS1 | (kAmsgrad ? kS2 : 0u);
  static constexpr unsigned kReads = kP | kG | kStates;
  static constexpr unsigned kWrites = kP | kStates;
  static constexpr bool kStats = true;

  MF_HD static void step(const Hyper& h, float& g, float& u, float& p, float& m, float& v, float& vmax, float&) {
    g = g * h.g_mul + h.l2 * p;
    float u_new;
    AdamMoments<kAmsgrad>::move(h, g, u, u_new, m, v, vmax);
    p = p * h.decay - h.lr * u_new;
  }
};

struct AdamTangents {  // Adam where nothing but the step is asked for, on dual numbers
  using Hyper = AdamHyperOf<DualFloat>;
  static constexpr int kStates = 2;
  template <class T>
  MF_HD static void step(const Hyper& h, const T& raw, T& p, T* s) {
    const T g = raw * h.g_mul + h.l2 * p;
    adam_moments(h, g, s[0], s[1]);
    p = adam_applied(h, p, s[0], s[1]);
  }
};

}  // namespace mf
