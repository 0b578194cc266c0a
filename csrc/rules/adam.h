// Adam (Kingma & Ba 2015, Algorithm 1), AdamW (Loshchilov & Hutter 2019, Algorithm 2), AMSGrad (Reddi et al. 2018).
//
// With b_i = 1 - beta_i^t and the bias corrections folded into two scalars, k = sqrt(b_2)/b_1 and e = eps sqrt(b_2):
//   u_t = (m_t/b_1) / (sqrt(v_t/b_2) + eps) = k m_t / (sqrt(v_t) + e),     p_t = (1 - lr wd) p_{t-1} - lr u_t.
// u_{t-1} comes from the old m and v inside the same pass: one division serves both quotients, through 1/(d_{t-1} d_t).
#pragma once

#include "rule.h"

namespace mf {

struct AdamHyper {
  float g_mul;  // clip / grad_scale, negative for maximize
  float l2;     // coupled weight decay; 0 in AdamW
  float decay;  // 1 - lr * weight_decay in AdamW; 1 otherwise
  float one_minus_beta1, beta2, one_minus_beta2;
  float k_new, e_new;  // direction scale and eps of this step
  float k_old, e_old;  // of the previous one; k_old = 0 and e_old = 1 before the first
  float lr;
};

// The scalars of step t (1-based). e is kept above 1e-18, so that the product of two denominators stays normal.
MF_HD void adam_bias(double t, double beta1, double beta2, double eps, float& k, float& e) {
  if (t < 1.0) {
    k = 0.0f;
    e = 1.0f;
    return;
  }
  const double root = sqrt(1.0 - pow(beta2, t));
  k = static_cast<float>(root / (1.0 - pow(beta1, t)));
  e = static_cast<float>(eps * root > 1e-18 ? eps * root : 1e-18);
}

template <bool kAmsgrad>
struct AdamMoments {
  // Moves the moments, and gives the previous and the new direction.
  MF_HD static void move(const AdamHyper& h, float g, float& u_old, float& u_new, float& m, float& v, float& vmax) {
    const float m_old = m;
    const float d_old = sqrt_(kAmsgrad ? vmax : v) + h.e_old;
    m = m_old + (g - m_old) * h.one_minus_beta1;
    v = v * h.beta2 + h.one_minus_beta2 * g * g;
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

}  // namespace mf
