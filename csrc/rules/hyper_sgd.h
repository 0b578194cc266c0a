// SGD with a hypergradient (SGD-HD, Baydin et al. 2018, Algorithms 4 and 6), where one pass of sgd.h is not enough:
//   exact: `Observe` only gives g·u of the stored direction; the rate is updated; then sgd.h's pass runs;
//   element: one rate per element, used in the same pass.
#pragma once

#include "hyper_element.h"
#include "sgd.h"

namespace mf {

template <bool kPrevious, bool kL2>
struct HyperSgdObserve {
  using Hyper = SgdHyper;
  static constexpr unsigned kReads = kG | (kPrevious ? kS1 : kS0) | (kL2 ? kP : 0u);
  static constexpr unsigned kWrites = 0;
  static constexpr bool kStats = true;

  MF_HD static void step(const Hyper& h, float& g, float& u, float& p, float& buf, float& previous, float&, float&) {
    g = g * h.g_mul;
    if constexpr (kL2) g += h.l2 * p;
    u = kPrevious ? previous : buf;
  }
};

struct HyperSgdElementHyper : SgdHyper {
  ElementRate rate;
};

template <bool kMomentum, bool kPrevious, bool kAdditive>
struct HyperSgdElement {  // streams: momentum buffer, previous direction, -, rate
  using Hyper = HyperSgdElementHyper;
  static constexpr unsigned kStates = Sgd<kMomentum, kPrevious>::kStates | kS3;
  static constexpr unsigned kReads = kP | kG | kStates;
  static constexpr unsigned kWrites = kP | kStates;
  static constexpr bool kStats = true;

  MF_HD static void step(const Hyper& h, float& g, float& u, float& p, float& buf, float& previous, float&,
                         float& rate) {
    g = g * h.g_mul + h.l2 * p;
    float u_new;
    SgdDirection<kMomentum, kPrevious>::move(h, g, u, u_new, buf, previous);
    rate = element_rate<kAdditive>(h.rate, rate, g * u, g * u);
    p = p - rate * h.lr * u_new;  // lr holds the schedule's factor here
  }
};

}  // namespace mf
