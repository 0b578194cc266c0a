// From an op's options to a rule's POD hyperparameters for one tensor: in double, once per tensor and step.
#pragma once

#include "../rules/all.h"

namespace mf {

// D is double, or a dual number over it; S the float or dual that a rule reads.
template <class D>
using Narrow = decltype(narrow(D{}));

template <class D>
struct AdamOptionsOf {
  D beta1, beta2, eps, weight_decay;
  bool decoupled;

  // step counts from 1; g_mul is ± clip / grad_scale.
  MF_HD AdamHyperOf<Narrow<D>> at(double step, const D& lr, double g_mul) const {
    using S = Narrow<D>;
    AdamHyperOf<S> h;
    h.g_mul = static_cast<float>(g_mul);
    h.l2 = decoupled ? S{0.0f} : narrow(weight_decay);
    h.decay = decoupled ? narrow(1.0 - lr * weight_decay) : S{1.0f};
    h.one_minus_beta1 = narrow(1.0 - beta1);
    h.beta2 = narrow(beta2);
    h.one_minus_beta2 = narrow(1.0 - beta2);
    adam_bias(step, beta1, beta2, eps, h.k_new, h.e_new);
    adam_bias(step - 1.0, beta1, beta2, eps, h.k_old, h.e_old);
    h.lr = narrow(lr);
    return h;
  }
};

struct AdamOptions : AdamOptionsOf<double> {
  double lr_scale;

  MF_HD AdamHyper at(double step, double lr, double g_mul) const {
    return AdamOptionsOf<double>::at(step, lr * lr_scale, g_mul);
  }

  MF_HD HyperAdamElementHyper at(double step, double lr, double g_mul, const ElementRate& rate) const {
    HyperAdamElementHyper h;
    static_cast<AdamHyper&>(h) = at(step, lr, g_mul);
    h.rate = rate;
    h.weight_decay = decoupled ? static_cast<float>(weight_decay) : 0.0f;
    return h;
  }
};

template <class D>
struct SgdOptionsOf {
  D momentum, dampening, weight_decay;
  bool nesterov, has_buffer;

  MF_HD SgdHyperOf<Narrow<D>> at(double step, const D& lr, double g_mul) const {
    using S = Narrow<D>;
    SgdHyperOf<S> h;
    const bool first = step <= 1.0;
    h.g_mul = static_cast<float>(g_mul);
    h.l2 = narrow(weight_decay);
    h.buf_old = first ? S{0.0f} : narrow(momentum);
    h.buf_g = first ? S{1.0f} : narrow(1.0 - dampening);
    h.dir_g = !has_buffer || nesterov ? S{1.0f} : S{0.0f};
    h.dir_buf = !has_buffer ? S{0.0f} : (nesterov ? narrow(momentum) : S{1.0f});
    h.lr = narrow(lr);
    return h;
  }
};

struct SgdOptions : SgdOptionsOf<double> {
  double lr_scale;

  MF_HD SgdHyper at(double step, double lr, double g_mul) const {
    return SgdOptionsOf<double>::at(step, lr * lr_scale, g_mul);
  }

  MF_HD HyperSgdElementHyper at(double step, double lr, double g_mul, const ElementRate& rate) const {
    HyperSgdElementHyper h;
    static_cast<SgdHyper&>(h) = at(step, lr, g_mul);
    h.rate = rate;
    return h;
  }
};

// Modes of the hypergradient ops, and the rule that serves each; metafast/ops/hyper_adam.py has the same numbers.
enum class Mode : int { observe = 0, apply = 1, element = 2, one_pass = 3 };

// An additive element rule stands right behind its sign-only twin in rules/all.h.
inline RuleId additive_twin(RuleId rule, bool additive) {
  return static_cast<RuleId>(static_cast<int>(rule) + (additive ? 1 : 0));
}

inline RuleId adam_rule(Mode mode, bool amsgrad, bool l2, bool additive) {
  switch (mode) {
    case Mode::observe:
      return amsgrad ? (l2 ? RuleId::hyper_adam_observe_amsgrad_l2 : RuleId::hyper_adam_observe_amsgrad)
                     : (l2 ? RuleId::hyper_adam_observe_l2 : RuleId::hyper_adam_observe);
    case Mode::apply:
      return amsgrad ? RuleId::hyper_adam_apply_amsgrad : RuleId::hyper_adam_apply;
    case Mode::element:
      return additive_twin(amsgrad ? RuleId::hyper_adam_element_amsgrad : RuleId::hyper_adam_element, additive);
    default:
      return amsgrad ? RuleId::adam_amsgrad : RuleId::adam;
  }
}

inline RuleId sgd_rule(Mode mode, bool buffer, bool previous, bool l2, bool additive) {
  switch (mode) {
    case Mode::observe:
      return previous ? (l2 ? RuleId::hyper_sgd_observe_previous_l2 : RuleId::hyper_sgd_observe_previous)
                      : (l2 ? RuleId::hyper_sgd_observe_l2 : RuleId::hyper_sgd_observe);
    case Mode::element:
      return additive_twin(
          previous ? (buffer ? RuleId::hyper_sgd_element_momentum_previous : RuleId::hyper_sgd_element_previous)
                   : RuleId::hyper_sgd_element,
          additive);
    default:
      return previous ? (buffer ? RuleId::sgd_momentum_previous : RuleId::sgd_previous)
                      : (buffer ? RuleId::sgd_momentum : RuleId::sgd);
  }
}

}  // namespace mf
