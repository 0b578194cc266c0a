// The step ops up to the driver: reads a call's boxed arguments in the order of the schemas in metafast/ops, picks the
// rule, and hands both to `Driver::step<Hyper>(request, make)`. One parser for all devices.
#pragma once

#include "bucket.h"
#include "hyper.h"

namespace mf {

// What a driver has to know of a rule without its type.
struct Pass {
  RuleId rule;
  unsigned reads, writes;
  bool stats, counts_step, backwards;  // backwards starts with what the pass before this one has left in the cache
};

template <class R>
constexpr Pass pass_of(RuleId id) {
  return {id, R::kReads, R::kWrites, R::kStats, false, false};
}

inline Pass make_pass(RuleId id, Mode mode, bool counts_step) {
  static constexpr Pass table[] = {
#define X(name, ...) pass_of<__VA_ARGS__>(RuleId::name),
      MF_RULES(X)
#undef X
  };
  Pass pass = table[static_cast<int>(id)];
  pass.counts_step = counts_step;
  pass.backwards = mode == Mode::apply;
  return pass;
}

// make(step, lr, g_mul) gives the rule's hyperparameters for one tensor.
template <class Hyper, class Options>
struct MakeHyper {
  Options options;
  ElementRate element{};

  Hyper operator()(double step, double lr, double g_mul) const {
    if constexpr (requires(Hyper h) { h.rate; }) return options.at(step, lr, g_mul, element);
    else return options.at(step, lr, g_mul);
  }
};

struct StepRequest {
  Bucket bucket;
  Pass pass{};
  bool maximize = false;
  int64_t seed = -1;
  const char* op = "";
  int32_t device = 0;
};

// Lists that keep their memory between steps: nothing is allocated in the hot path.
inline std::vector<View>& scratch(int which) {
  static thread_local std::vector<View> lists[2];
  return lists[which];
}

struct HyperArgs {
  Mode mode = Mode::one_pass;
  int rule = 0;
  double lr = 0, lo = 0, hi = 0;

  void read(Args& args) {
    mode = static_cast<Mode>(args.integer());
    rule = static_cast<int>(args.integer());
    lr = args.number();
    lo = args.number();
    hi = args.number();
  }
  ElementRate element() const { return make_element_rate(rule, lr, lo, hi); }
};

template <class Driver, bool kHyper>
void adam_op(StableIValue* stack, uint64_t count, uint64_t) {
  Args args(stack, count, kHyper ? "metafast::hyper_adam" : "metafast::adam");
  StepRequest request{Bucket(scratch(0), scratch(1))};
  Bucket& b = request.bucket;
  args.tensors(b.params);
  args.tensors(b.grads);
  b.state[0] = args.tensor();
  b.state[1] = args.tensor();
  b.state[2] = args.optional_tensor();
  b.master = args.optional_tensor();
  b.read_tail(args);
  HyperArgs hyper;
  if constexpr (kHyper) {
    b.state[3] = args.optional_tensor();
    hyper.read(args);
  }
  AdamOptions o;
  o.lr_scale = args.number();
  o.beta1 = args.number();
  o.beta2 = args.number();
  o.eps = args.number();
  o.weight_decay = args.number();
  o.decoupled = args.flag();
  request.maximize = args.flag();
  request.seed = args.integer();
  request.op = args.op();
  request.device = args.device_index();

  const bool l2 = !o.decoupled && o.weight_decay != 0.0;
  request.pass = make_pass(adam_rule(hyper.mode, static_cast<bool>(b.state[2]), l2, hyper.rule == kAdditive),
                           hyper.mode, hyper.mode != Mode::apply);
  if (hyper.mode == Mode::element)
    Driver::template step<HyperAdamElementHyper>(request,
                                                 MakeHyper<HyperAdamElementHyper, AdamOptions>{o, hyper.element()});
  else Driver::template step<AdamHyper>(request, MakeHyper<AdamHyper, AdamOptions>{o});
}

template <class Driver, bool kHyper>
void sgd_op(StableIValue* stack, uint64_t count, uint64_t) {
  Args args(stack, count, kHyper ? "metafast::hyper_sgd" : "metafast::sgd");
  StepRequest request{Bucket(scratch(0), scratch(1))};
  Bucket& b = request.bucket;
  args.tensors(b.params);
  args.tensors(b.grads);
  b.state[0] = args.optional_tensor();
  b.state[1] = args.optional_tensor();
  b.master = args.optional_tensor();
  b.read_tail(args);
  HyperArgs hyper;
  if constexpr (kHyper) {
    b.state[3] = args.optional_tensor();
    hyper.read(args);
  }
  SgdOptions o;
  o.lr_scale = args.number();
  o.momentum = args.number();
  o.dampening = args.number();
  o.weight_decay = args.number();
  o.nesterov = args.flag();
  o.has_buffer = static_cast<bool>(b.state[0]);
  request.maximize = args.flag();
  request.seed = args.integer();
  request.op = args.op();
  request.device = args.device_index();
  STD_TORCH_CHECK(!kHyper || b.state[0] || b.state[1], args.op(), ": momentum_buffer or previous must be given");

  request.pass = make_pass(
      sgd_rule(hyper.mode, o.has_buffer, static_cast<bool>(b.state[1]), o.weight_decay != 0.0, hyper.rule == kAdditive),
      hyper.mode, hyper.mode != Mode::observe);
  if (hyper.mode == Mode::element)
    Driver::template step<HyperSgdElementHyper>(request,
                                                MakeHyper<HyperSgdElementHyper, SgdOptions>{o, hyper.element()});
  else Driver::template step<SgdHyper>(request, MakeHyper<SgdHyper, SgdOptions>{o});
}

}  // namespace mf
