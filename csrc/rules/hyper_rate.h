// The learned rate of one segment (a tensor, a group, or all tensors) from its summed statistics.
//
//   cos = g·u / (|g| |u|)          hypergradient of the loss with respect to the rate: -g·u (Baydin et al. 2018, eq. 5)
//   additive: r + h g·u   multiplicative: r (1 + h cos)   normalized: r exp(h cos)   sign: r exp(h sign(g·u))
//
// Sums over tensors are exact integers of a common power of two, so that their order cannot matter.
#pragma once

#include <cstdint>

#include "hyper_element.h"

namespace mf {

struct HyperRate {
  int rule;
  double hyper_lr, lo, hi;
};

// Bits left for one of `count` summands, so that the sum of the integers cannot overflow.
MF_HD int summand_bits(int64_t count) {
  int bits = 62;
  for (int64_t c = count; c > 1; c = (c + 1) / 2) --bits;
  return bits;
}

MF_HD int exponent_of(double x) {  // |x| < 2^exponent; very low for 0
  if (x == 0.0) return -4096;
  int e;
  frexp(x, &e);
  return e;
}

MF_HD int64_t summand(double x, int exponent, int bits) {
  return x == 0.0 ? 0 : static_cast<int64_t>(rint(ldexp(x, bits - exponent)));
}

MF_HD double summed(int64_t total, int exponent, int bits) {
  return total == 0 ? 0.0 : ldexp(static_cast<double>(total), exponent - bits);
}

MF_HD double hyper_rate(double rate, const HyperRate& h, double gg, double gu, double uu) {
  const double norm = sqrt(gg) * sqrt(uu);
  const double cosine = norm > 0.0 ? gu / norm : 0.0;
  double next = rate;
  if (h.rule == kAdditive) next = rate + h.hyper_lr * gu;
  if (h.rule == kMultiplicative) next = rate * (1.0 + h.hyper_lr * cosine);
  if (h.rule == kNormalized) next = rate * exp(h.hyper_lr * cosine);
  if (h.rule == kSign) next = rate * exp(h.hyper_lr * (gu > 0.0 ? 1.0 : (gu < 0.0 ? -1.0 : 0.0)));
  if (!(next - next == 0.0)) return rate;  // statistics that are not finite leave the rate alone
  return next < h.lo ? h.lo : (next > h.hi ? h.hi : next);
}

constexpr int kMoments = kStatCount - 1;  // p·p has no part in a rate

// What one rate gathers from its slots: in the first look the scale of each sum, then the sums as integers, whose order
// cannot matter.
struct RateSum {
  int exponent[kMoments];
  bool finite = true;
  int64_t count = 0, total[kMoments] = {};

  MF_HD RateSum() {
    for (int k = 0; k < kMoments; ++k) exponent[k] = exponent_of(0.0);
  }

  MF_HD void look(const double* row) {
    ++count;
    for (int k = 0; k < kMoments; ++k) {
      const double x = row[k];
      if (x - x != 0.0) finite = false;
      const int e = x - x == 0.0 ? exponent_of(x) : exponent[k];
      exponent[k] = e > exponent[k] ? e : exponent[k];
    }
  }

  MF_HD void add(const double* row, int bits) {
    for (int k = 0; k < kMoments; ++k) total[k] += summand(row[k], exponent[k], bits);
  }

  MF_HD double next(double rate, const HyperRate& rule, int bits) const {
    if (!finite || count == 0) return rate;
    return hyper_rate(rate, rule, summed(total[0], exponent[0], bits), summed(total[1], exponent[1], bits),
                      summed(total[2], exponent[2], bits));
  }
};

}  // namespace mf
