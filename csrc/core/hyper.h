// From an op's options to a rule's POD hyperparameters for one tensor: in double, once per tensor and step.
#pragma once

#include "../rules/all.h"

namespace mf {

struct AdamOptions {
  double lr_scale, beta1, beta2, eps, weight_decay;
  bool decoupled;

  // step counts from 1; g_mul is ± clip / grad_scale.
  MF_HD AdamHyper at(double step, double lr, double g_mul) const {
    AdamHyper h;
    const double scheduled = lr * lr_scale;
    h.g_mul = static_cast<float>(g_mul);
    h.l2 = decoupled ? 0.0f : static_cast<float>(weight_decay);
    h.decay = decoupled ? static_cast<float>(1.0 - scheduled * weight_decay) : 1.0f;
    h.one_minus_beta1 = static_cast<float>(1.0 - beta1);
    h.beta2 = static_cast<float>(beta2);
    h.one_minus_beta2 = static_cast<float>(1.0 - beta2);
    adam_bias(step, beta1, beta2, eps, h.k_new, h.e_new);
    adam_bias(step - 1.0, beta1, beta2, eps, h.k_old, h.e_old);
    h.lr = static_cast<float>(scheduled);
    return h;
  }

  MF_HD HyperAdamElementHyper at(double step, double lr, double g_mul, const ElementRate& rate) const {
    HyperAdamElementHyper h;
    static_cast<AdamHyper&>(h) = at(step, lr, g_mul);
    h.rate = rate;
    h.weight_decay = decoupled ? static_cast<float>(weight_decay) : 0.0f;
    return h;
  }
};

struct SgdOptions {
  double lr_scale, momentum, dampening, weight_decay;
  bool nesterov, has_buffer;

  MF_HD SgdHyper at(double step, double lr, double g_mul) const {
    SgdHyper h;
    const bool first = step <= 1.0;
    h.g_mul = static_cast<float>(g_mul);
    h.l2 = static_cast<float>(weight_decay);
    h.buf_old = first ? 0.0f : static_cast<float>(momentum);
    h.buf_g = first ? 1.0f : static_cast<float>(1.0 - dampening);
    h.dir_g = !has_buffer || nesterov ? 1.0f : 0.0f;
    h.dir_buf = !has_buffer ? 0.0f : (nesterov ? static_cast<float>(momentum) : 1.0f);
    h.lr = static_cast<float>(lr * lr_scale);
    return h;
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
