// The one list of rules. Every driver instantiates each line; ops pick one by its name.
#pragma once

#include "adam.h"
#include "hyper_adam.h"
#include "hyper_sgd.h"
#include "sgd.h"

// X(name, type)
#define MF_RULES(X)                                                          \
  X(adam, Adam<false>)                                                       \
  X(adam_amsgrad, Adam<true>)                                                \
  X(hyper_adam_observe, HyperAdamObserve<false, false>)                      \
  X(hyper_adam_observe_l2, HyperAdamObserve<false, true>)                    \
  X(hyper_adam_observe_amsgrad, HyperAdamObserve<true, false>)               \
  X(hyper_adam_observe_amsgrad_l2, HyperAdamObserve<true, true>)             \
  X(hyper_adam_apply, HyperAdamApply<false>)                                 \
  X(hyper_adam_apply_amsgrad, HyperAdamApply<true>)                          \
  X(hyper_adam_element, HyperAdamElement<false, false>)                      \
  X(hyper_adam_element_additive, HyperAdamElement<false, true>)              \
  X(hyper_adam_element_amsgrad, HyperAdamElement<true, false>)               \
  X(hyper_adam_element_amsgrad_additive, HyperAdamElement<true, true>)       \
  X(sgd, Sgd<false, false>)                                                  \
  X(sgd_momentum, Sgd<true, false>)                                          \
  X(sgd_previous, Sgd<false, true>)                                          \
  X(sgd_momentum_previous, Sgd<true, true>)                                  \
  X(hyper_sgd_observe, HyperSgdObserve<false, false>)                        \
  X(hyper_sgd_observe_l2, HyperSgdObserve<false, true>)                      \
  X(hyper_sgd_observe_previous, HyperSgdObserve<true, false>)                \
  X(hyper_sgd_observe_previous_l2, HyperSgdObserve<true, true>)              \
  X(hyper_sgd_element, HyperSgdElement<true, false, false>)                  \
  X(hyper_sgd_element_additive, HyperSgdElement<true, false, true>)          \
  X(hyper_sgd_element_previous, HyperSgdElement<false, true, false>)         \
  X(hyper_sgd_element_previous_additive, HyperSgdElement<false, true, true>) \
  X(hyper_sgd_element_momentum_previous, HyperSgdElement<true, true, false>) \
  X(hyper_sgd_element_momentum_previous_additive, HyperSgdElement<true, true, true>)

namespace mf {

enum class RuleId : int {
#define X(name, ...) name,
  MF_RULES(X)
#undef X
      count
};

}  // namespace mf
