// The CPU driver of adam_tangents and sgd_tangents: an optimizer's step that moves tangents in the same pass.
#include <cstring>

#include "../core/hyper.h"
#include "kernels.h"
#include "plan.h"

namespace mf::cpu {
namespace {

// Lists that keep their memory between steps: nothing is allocated in the hot path.
struct Lists {
  std::vector<View> params, grads, states[kMaxStates], grad_tangents;
  std::vector<const float*> moving;
};

// A call's arguments, in the order of the schemas in metafast/ops.
struct TangentCall {
  TangentCall(Args& args, int states) : op(args.op()), lists(scratch()) {
    args.tensors(lists.params);
    args.tensors(lists.grads);
    for (int j = 0; j < states; ++j) args.tensors(lists.states[j]);
    tangents = args.tensor();
    args.tensors(lists.grad_tangents);
    items = args.tensor();
    chunks = args.tensor();
    step = args.tensor();
    options = args.tensor();
    seeds = args.tensor();
    values = args.integer();
    decay = args.number();
    fresh = args.flag();
  }

  static Lists& scratch() {
    static thread_local Lists lists;
    return lists;
  }

  // `states`: those that this call really has.
  Plan check(int states, int64_t options_count) const {
    const DTypeCodes& d = dtype_codes();
    const auto count = static_cast<int64_t>(lists.params.size());
    require(items, d.i64, 0, op, "items");
    require(chunks, d.i64, 0, op, "chunks");
    STD_TORCH_CHECK(static_cast<int64_t>(lists.grads.size()) == count && items.numel / 3 == count, op, ": ", count,
                    " params, ", lists.grads.size(), " grads and ", items.numel / 3, " items must agree");
    STD_TORCH_CHECK(values >= 0, op, ": values is ", values, ", must be at least 0");
    STD_TORCH_CHECK(lists.grad_tangents.empty() || static_cast<int64_t>(lists.grad_tangents.size()) == values * count,
                    op, ": grad_tangents has ", lists.grad_tangents.size(), " tensors, needs none or ", values * count);
    const Plan plan = checked_plan(items, chunks, op);
    for (int64_t i = 0; i < count; ++i) {
      const View& p = lists.params[i];
      const int64_t numel = plan.items[i].numel, offset = plan.items[i].offset;
      STD_TORCH_CHECK(p.numel == numel, op, ": params[", i, "] has ", p.numel, " elements, items say ", numel);
      STD_TORCH_CHECK(p.dense, op, ": params[", i, "] has gaps in memory; pass a contiguous copy");
      alike(p, p, "params", i);
      alike(lists.grads[i], p, "grads", i);
      for (int j = 0; j < states; ++j) {
        STD_TORCH_CHECK(static_cast<int64_t>(lists.states[j].size()) == count, op, ": ", count, " params and ",
                        lists.states[j].size(), " states must agree");
        alike(lists.states[j][i], p, "a state", i);
      }
      for (size_t k = i; k < lists.grad_tangents.size(); k += count)
        alike(lists.grad_tangents[k], p, "grad_tangents", static_cast<int64_t>(k));
      STD_TORCH_CHECK(values == 0 || (offset >= 0 && offset + numel <= row(states)), op, ": a row of tangents has ",
                      row(states), " elements, which are too few for items row ", i);
    }
    require(tangents, d.f32, 0, op, "tangents");
    require(step, d.f64, count, op, "step");
    require(options, d.f64, count * options_count, op, "options");
    require(seeds, d.f64, values * count * options_count, op, "seeds");
    return plan;
  }

  int64_t row(int states) const { return values == 0 ? 0 : tangents.numel / (values * (1 + states)); }

  void alike(const View& v, const View& p, const char* name, int64_t index) const {
    STD_TORCH_CHECK(v.dtype == dtype_codes().f32, op, ": ", name, "[", index, "] must be a float32 tensor here",
                    " (float64 has the reference)");
    STD_TORCH_CHECK(v.numel == p.numel, op, ": ", name, "[", index, "] has ", v.numel, " elements, its parameter ",
                    p.numel);
    STD_TORCH_CHECK(v.numel == 0 || (v.dense && v.strides == p.strides), op, ": ", name, "[", index,
                    "] lies in memory in another order than its parameter; give it the same strides");
  }

  // Option `index` of a tensor, with its derivatives by kTangents of the values.
  DualDouble option(int64_t item, int64_t group, int64_t index, int64_t count) const {
    const int64_t at = item * count + index, all = static_cast<int64_t>(lists.params.size()) * count;
    DualDouble x{options.as<const double>()[at], {}};
    for (int64_t k = 0; k < kTangents && group * kTangents + k < values; ++k)
      x.d[k] = seeds.as<const double>()[(group * kTangents + k) * all + at];
    return x;
  }

  // option(index) of one tensor and group of values, as make(option, step) takes it.
  template <class Hyper, class Make>
  void run(TangentRuleId rule, int states, int64_t options_count, const Make& make) const {
    const Plan plan = check(states, options_count);
    const int64_t count = plan.item_count, groups = values == 0 ? 1 : (values + kTangents - 1) / kTangents;
    static thread_local std::vector<Hyper> hypers;
    hypers.resize(count * groups);
    const double* steps = step.as<const double>();
    const auto same = [&](int64_t i) {  // as the tensor before: pow() for each of a thousand tensors is not free
      const auto row_alike = [&](const double* rows) {
        return std::memcmp(rows + i * options_count, rows + (i - 1) * options_count,
                           sizeof(double) * static_cast<size_t>(options_count)) == 0;
      };
      bool alike = i > 0 && steps[i] == steps[i - 1] && row_alike(options.as<const double>());
      for (int64_t k = 0; alike && k < values; ++k)
        alike = row_alike(seeds.as<const double>() + k * count * options_count);
      return alike;
    };
    for (int64_t i = 0; i < count; ++i) {
      const bool again = same(i);
      for (int64_t group = 0; group < groups; ++group)
        hypers[i * groups + group] =
            again ? hypers[(i - 1) * groups + group]
                  : make([&](int64_t index) { return option(i, group, index, options_count); }, steps[i]);
    }

    std::vector<const float*>& moving = lists.moving;
    moving.resize(lists.grad_tangents.empty() ? 0 : plan.chunk_count * values);
    for (int64_t c = 0; c < plan.chunk_count && !moving.empty(); ++c)
      for (int64_t k = 0; k < values; ++k)
        moving[c * values + k] =
            lists.grad_tangents[k * count + plan.chunks[c].item].as<const float>() + plan.chunks[c].start;

    const TangentFn kernel = kernels().tangents[static_cast<int>(rule)];
    const Hyper* hyper = hypers.data();  // a worker's own thread-local vectors are others
    const Lists& mine = lists;
    for_chunks(plan.chunks, plan.chunk_count, plan.elements, false, [&](int64_t c) {
      const ChunkRow& at = plan.chunks[c];
      const Item& item = plan.items[at.item];
      TangentChunk chunk;
      chunk.p = mine.params[at.item].as<float>() + at.start;
      chunk.g = mine.grads[at.item].as<const float>() + at.start;
      for (int j = 0; j < states; ++j) chunk.s[j] = mine.states[j][at.item].as<float>() + at.start;
      chunk.tangents = values == 0 ? nullptr : tangents.as<float>() + item.offset + at.start;
      chunk.grad_tangents = moving.empty() ? nullptr : moving.data() + c * values;
      chunk.row = row(states);
      chunk.n = std::min<int64_t>(kChunk, item.numel - at.start);
      chunk.values = static_cast<int>(values);
      chunk.decay = static_cast<float>(decay);
      chunk.fresh = fresh;
      kernel(chunk, hyper + at.item * groups);
    });
  }

  const char* op;
  Lists& lists;
  View tangents, items, chunks, step, options, seeds;
  int64_t values;
  double decay;
  bool fresh;
};

void adam_tangents(StableIValue* stack, uint64_t count, uint64_t) {
  Args args(stack, count, "metafast::adam_tangents");
  const TangentCall call(args, 2);
  const bool decoupled = args.flag();
  const double sign = args.flag() ? -1.0 : 1.0;
  call.run<AdamHyperOf<DualFloat>>(TangentRuleId::adam, 2, 5, [&](const auto& option, double step) {
    return AdamOptionsOf<DualDouble>{option(1), option(2), option(3), option(4), decoupled}.at(step, option(0), sign);
  });
}

void sgd_tangents(StableIValue* stack, uint64_t count, uint64_t) {
  Args args(stack, count, "metafast::sgd_tangents");
  const TangentCall call(args, 1);
  const bool nesterov = args.flag(), buffer = !call.lists.states[0].empty();
  const double sign = args.flag() ? -1.0 : 1.0;
  call.run<SgdHyperOf<DualFloat>>(
      buffer ? TangentRuleId::sgd_momentum : TangentRuleId::sgd, buffer ? 1 : 0, 4,
      [&](const auto& option, double step) {
        return SgdOptionsOf<DualDouble>{option(1), option(2), option(3), nesterov, buffer}.at(step, option(0), sign);
      });
}

}  // namespace
}  // namespace mf::cpu

STABLE_TORCH_LIBRARY_IMPL(metafast, CPU, m) {
  m.impl("adam_tangents", &mf::cpu::adam_tangents);
  m.impl("sgd_tangents", &mf::cpu::sgd_tangents);
}
