// What an update rule is. A rule is maths on one element in float; the drivers own dtypes, threads, tails and vectors.
//
//   struct Foo {
//     struct Hyper { ... };                                  // POD, the same for all elements of one tensor
//     static constexpr unsigned kReads, kWrites;             // which streams the pass touches
//     static constexpr bool kStats;                          // whether g and u below mean something
//     MF_HD static void step(const Hyper&, float& g, float& u, float& p, float& s0, float& s1, float& s2, float& s3);
//   };
//
// In: g is the raw gradient, u is 0, p and s0..s3 are the old parameter and states (streams that the rule does not read
// hold garbage). Out: g is the gradient that entered the update (scaled, sign, L2), u the PREVIOUS update direction,
// p and the states their new values. The driver sums g*g, g*u, u*u and old p*p. The body must be branch-free, because
// it is the body of a SIMD loop.
#pragma once

#include "../core/macros.h"

#include <cmath>

namespace mf {

enum Stream : unsigned { kP = 1, kG = 2, kS0 = 4, kS1 = 8, kS2 = 16, kS3 = 32 };

constexpr int kStatCount = 4;  // g·g, g·u, u·u, p·p
constexpr int kMaxStates = 4;
constexpr int kChunk = 16384;  // elements of one unit of work; fixed, so that sums do not depend on threads

MF_HD float sqrt_(float x) {
#if defined(__CUDACC__)
  return sqrtf(x);
#else
  return std::sqrt(x);
#endif
}
MF_HD float max_(float a, float b) { return a > b ? a : b; }
MF_HD float min_(float a, float b) { return a < b ? a : b; }
MF_HD float clamp_(float x, float lo, float hi) { return min_(max_(x, lo), hi); }

}  // namespace mf
