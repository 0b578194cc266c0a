// The hypergradient rules for one element's own rate. With a single product the cosine is a sign, so that
// "normalized" and "sign" agree: r <- r exp(±hyper_lr); "multiplicative": r (1 ± hyper_lr); "additive": r + hyper_lr g u.
#pragma once

#include "rule.h"

namespace mf {

struct ElementRate {
  float additive, up, down;  // hyper_lr or 0; factor for g u > 0; factor for g u < 0
  float lo, hi;
};

MF_HD float element_rate(const ElementRate& h, float rate, float gu) {
  const float finite = gu - gu == 0.0f ? gu : 0.0f;  // a NaN or infinite gradient leaves the rate alone
  const float factor = finite > 0.0f ? h.up : (finite < 0.0f ? h.down : 1.0f);
  return clamp_(rate * factor + h.additive * finite, h.lo, h.hi);
}

enum HyperRule : int { kAdditive = 0, kMultiplicative = 1, kNormalized = 2, kSign = 3 };

MF_HD ElementRate make_element_rate(int rule, double hyper_lr, double lo, double hi) {
  const bool additive = rule == kAdditive, linear = rule == kMultiplicative;
  ElementRate r;
  r.additive = additive ? static_cast<float>(hyper_lr) : 0.0f;
  r.up = additive ? 1.0f : static_cast<float>(linear ? 1.0 + hyper_lr : exp(hyper_lr));
  r.down = additive ? 1.0f : static_cast<float>(linear ? 1.0 - hyper_lr : exp(-hyper_lr));
  r.lo = static_cast<float>(lo);
  r.hi = static_cast<float>(hi);
  return r;
}

}  // namespace mf
