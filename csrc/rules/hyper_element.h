// The hypergradient rules for one element's own rate. With a single product the cosine is a sign, so that
// "normalized" and "sign" agree: r <- r exp(±hyper_lr); "multiplicative": r (1 ± hyper_lr); "additive": r + hyper_lr g
// u.
#pragma once

#include "../core/rounding.h"
#include "rule.h"

namespace mf {

struct ElementRate {
  float additive;     // hyper_lr or 0
  float slope, bend;  // the factor is 1 + slope s + bend s² with s = sign(g u)
  float lo, hi;
};

// Integer arithmetic below, because comparisons would bring AVX-512 masks into the main loop.

// x, or 0 where x is NaN or infinite: such a gradient leaves the rate alone.
MF_HD float finite_or_zero(float x) {
  return bits_float(float_bits(x) & ((((float_bits(x) >> 23 & 0xffu) + 1u) >> 8) - 1u));
}

MF_HD float sign_of(float x) {
  const uint32_t nonzero = ((float_bits(x) & 0x7fffffffu) + 0x7fffffffu) >> 31;
  return bits_float((float_bits(x) & 0x80000000u) | (nonzero * 0x3f800000u));
}

// `like_gu` has the sign of g u, and may be known earlier than g u itself.
template <bool kAdditive>
MF_HD float element_rate(const ElementRate& h, float rate, float like_gu, float gu) {
  if constexpr (kAdditive) return clamp_(rate + h.additive * finite_or_zero(gu), h.lo, h.hi);
  const float s = sign_of(finite_or_zero(like_gu));
  return clamp_(rate * (1.0f + s * (h.slope + h.bend * s)), h.lo, h.hi);
}

enum HyperRule : int { kAdditive = 0, kMultiplicative = 1, kNormalized = 2, kSign = 3 };

MF_HD ElementRate make_element_rate(int rule, double hyper_lr, double lo, double hi) {
  const bool additive = rule == kAdditive, linear = rule == kMultiplicative;
  const double up = additive ? 1.0 : (linear ? 1.0 + hyper_lr : exp(hyper_lr));
  const double down = additive ? 1.0 : (linear ? 1.0 - hyper_lr : exp(-hyper_lr));
  ElementRate r;
  r.additive = additive ? static_cast<float>(hyper_lr) : 0.0f;
  r.slope = static_cast<float>(0.5 * (up - down));
  r.bend = static_cast<float>(0.5 * (up + down) - 1.0);
  r.lo = static_cast<float>(lo);
  r.hi = static_cast<float>(hi);
  return r;
}

}  // namespace mf
