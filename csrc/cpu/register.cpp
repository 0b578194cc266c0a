// The CPU driver: spreads the chunks of a bucket over torch's thread pool, and registers the ops.
#include <algorithm>

#include "../core/step_ops.h"
#include "../rules/hyper_rate.h"
#include "kernels.h"
#include "plan.h"

namespace mf::cpu {
namespace {

StreamRef at(StreamRef s, int64_t element) {
  if (s.data) s.data = static_cast<char*>(s.data) + element * (s.dtype == DType::f32 ? 4 : 2);
  return s;
}

// make(step, lr, g_mul) gives the rule's hyperparameters for one tensor.
template <class Hyper, class Make>
void run(const Bucket& b, const Pass& pass, bool maximize, int64_t seed, const char* op, const Make& make) {
  b.check(op);
  if (b.found_inf && *b.found_inf.as<const float>() != 0.0f) return;
  const Plan plan = checked_plan(b.items, b.chunks, op);
  float* step = b.step.as<float>();
  double* stats = b.stats.as<double>();
  double* partials = b.partials.as<double>();
  const double* lr = b.lr.as<const double>();
  const double g_mul = (maximize ? -1.0 : 1.0) * (b.clip ? *b.clip.as<const float>() : 1.0) /
                       (b.grad_scale ? *b.grad_scale.as<const float>() : 1.0);

  const StreamRef master = stream(b.master, op, "master");
  StreamRef state[kMaxStates];
  for (int k = 0; k < kMaxStates; ++k) {
    state[k] = stream(b.state[k], op, "a state arena");
    STD_TORCH_CHECK(state[k].dtype != DType::f16, op, ": a state arena must be float32 or bfloat16");
    STD_TORCH_CHECK(b.state[k] || !((pass.reads | pass.writes) & (kS0 << k)), op, ": state ", k, " is missing");
  }

  static thread_local std::vector<Hyper> hypers;  // kept between steps: nothing is allocated in the hot path
  hypers.resize(plan.item_count);
  for (int64_t i = 0; i < plan.item_count; ++i) {
    const Item& item = plan.items[i];
    STD_TORCH_CHECK(item.slot >= 0 && item.slot < b.step.numel && item.offset >= 0, op, ": items row ", i,
                    " names slot ", item.slot, " of ", b.step.numel);
    STD_TORCH_CHECK(b.params[i].numel == item.numel, op, ": params[", i, "] has ", b.params[i].numel,
                    " elements, items say ", item.numel);
    for (const View* v : {&b.state[0], &b.state[1], &b.state[2], &b.state[3], &b.master})
      STD_TORCH_CHECK(!*v || item.offset + item.numel <= v->numel, op, ": an arena of ", v->numel,
                      " elements is too small for items row ", i);
  }
  for (int64_t i = 0; i < plan.item_count; ++i) {
    const int64_t slot = plan.items[i].slot, before = i ? plan.items[i - 1].slot : -1;
    if (pass.counts_step) step[slot] += 1.0f;
    const double rate = lr[b.lr.numel > 1 ? slot : 0];
    if (before >= 0 && step[slot] == step[before] && rate == lr[b.lr.numel > 1 ? before : 0])
      hypers[i] = hypers[i - 1];  // pow() for each of a thousand tensors would cost more than a tiny tensor's pass
    else hypers[i] = make(static_cast<double>(step[slot]), rate, g_mul);
  }

  const ChunkFn kernel = kernels().chunk[static_cast<int>(pass.rule)];
  const Hyper* hyper = hypers.data();  // a worker's own thread-local vector is another one
  for_chunks(plan.chunks, plan.chunk_count, plan.elements, pass.backwards, [&](int64_t c) {
    const ChunkRow& row = plan.chunks[c];
    const Item& item = plan.items[row.item];
    const StreamRef param = at(stream(b.params[row.item], op, "params"), row.start);
    Chunk chunk;
    chunk.p = b.master ? at(master, item.offset + row.start) : param;
    chunk.copy = b.master ? param : StreamRef{};
    chunk.g = at(stream(b.grads[row.item], op, "grads"), row.start);
    for (int k = 0; k < kMaxStates; ++k) chunk.s[k] = at(state[k], item.offset + row.start);
    chunk.n = std::min<int64_t>(kChunk, item.numel - row.start);
    chunk.first = row.start;
    chunk.stochastic = seed >= 0;
    chunk.key = seed >= 0 ? rounding_key(static_cast<uint64_t>(seed), static_cast<uint64_t>(item.slot),
                                         static_cast<uint64_t>(step[item.slot]))
                          : 0;
    kernel(chunk, hyper + row.item, partials + c * kStatCount);
  });

  // In the order of the chunks, whichever thread ran them.
  const int from = pass.stats ? 0 : 3, to = pass.reads & kP ? 4 : 3;
  for (int64_t i = 0; i < plan.item_count; ++i)
    std::fill(stats + plan.items[i].slot * kStatCount + from, stats + plan.items[i].slot * kStatCount + to, 0.0);
  for (int64_t c = 0; c < plan.chunk_count; ++c) {
    double* row = stats + plan.items[plan.chunks[c].item].slot * kStatCount;
    for (int k = from; k < to; ++k) row[k] += partials[c * kStatCount + k];
  }
}

struct Driver {
  template <class Hyper, class Make>
  static void step(const StepRequest& r, const Make& make) {
    run<Hyper>(r.bucket, r.pass, r.maximize, r.seed, r.op, make);
  }
};

void grad_squares(StableIValue* stack, uint64_t count, uint64_t) {
  Args args(stack, count, "metafast::grad_squares");
  std::vector<View>& grads = scratch(0);
  args.tensors(grads);
  const View squares = args.tensor(), partials = args.tensor(), items = args.tensor(), chunks = args.tensor();
  const DTypeCodes& d = dtype_codes();
  require(items, d.i64, static_cast<int64_t>(grads.size()) * 3, args.op(), "items");
  require(chunks, d.i64, 0, args.op(), "chunks");
  const Plan plan = checked_plan(items, chunks, args.op());
  require(partials, d.f64, plan.chunk_count, args.op(), "partials");
  require(squares, d.f64, 0, args.op(), "squares");
  for (int64_t i = 0; i < plan.item_count; ++i)
    STD_TORCH_CHECK(
        grads[i].numel == plan.items[i].numel && plan.items[i].slot >= 0 && plan.items[i].slot < squares.numel,
        args.op(), ": grads[", i, "] has ", grads[i].numel, " elements, items say ", plan.items[i].numel);
  for (const View& g : grads) {
    storage_dtype(g, args.op(), "grads");
    STD_TORCH_CHECK(g.dense, args.op(), ": a gradient has gaps in memory; pass a contiguous copy");
  }
  double* partial = partials.as<double>();
  double* total = squares.as<double>();
  const SquaresFn kernel = kernels().squares;
  for_chunks(plan.chunks, plan.chunk_count, plan.elements, false, [&](int64_t c) {
    const ChunkRow& row = plan.chunks[c];
    const StreamRef g = at(stream(grads[row.item], "metafast::grad_squares", "grads"), row.start);
    partial[c] = kernel(g, std::min<int64_t>(kChunk, plan.items[row.item].numel - row.start));
  });
  for (int64_t i = 0; i < plan.item_count; ++i) total[plan.items[i].slot] = 0.0;
  for (int64_t c = 0; c < plan.chunk_count; ++c) total[plan.items[plan.chunks[c].item].slot] += partial[c];
}

void hyper_rate_op(StableIValue* stack, uint64_t count, uint64_t) {
  Args args(stack, count, "metafast::hyper_rate");
  const View rate = args.tensor(), stats = args.tensor(), segments = args.tensor();
  const View found_inf = args.optional_tensor();
  HyperRate h;
  h.rule = static_cast<int>(args.integer());
  h.hyper_lr = args.number();
  h.lo = args.number();
  h.hi = args.number();
  const DTypeCodes& d = dtype_codes();
  const int64_t slots = segments.numel, rates = rate.numel;
  require(rate, d.f64, 0, args.op(), "rate");
  require(stats, d.f64, slots * kStatCount, args.op(), "stats");
  require(segments, d.i64, 0, args.op(), "segments");
  if (found_inf && *found_inf.as<const float>() != 0.0f) return;

  static thread_local std::vector<RateSum> sums;
  sums.assign(rates, RateSum{});
  const auto* segment = segments.as<const int64_t>();
  const auto* rows = stats.as<const double>();
  for (int64_t i = 0; i < slots; ++i) {
    STD_TORCH_CHECK(segment[i] >= -1 && segment[i] < rates, args.op(), ": segments[", i, "] is ", segment[i],
                    ", must be -1 or less than ", rates);
    if (segment[i] >= 0) sums[segment[i]].look(rows + i * kStatCount);
  }
  for (int64_t i = 0; i < slots; ++i) {
    if (segment[i] < 0 || !sums[segment[i]].finite) continue;
    sums[segment[i]].add(rows + i * kStatCount, summand_bits(sums[segment[i]].count));
  }
  double* out = rate.as<double>();
  for (int64_t r = 0; r < rates; ++r) out[r] = sums[r].next(out[r], h, summand_bits(sums[r].count));
}

}  // namespace
}  // namespace mf::cpu

STABLE_TORCH_LIBRARY_IMPL(metafast, CPU, m) {
  m.impl("adam", &mf::adam_op<mf::cpu::Driver, false>);
  m.impl("hyper_adam", &mf::adam_op<mf::cpu::Driver, true>);
  m.impl("sgd", &mf::sgd_op<mf::cpu::Driver, false>);
  m.impl("hyper_sgd", &mf::sgd_op<mf::cpu::Driver, true>);
  m.impl("grad_squares", &mf::cpu::grad_squares);
  m.impl("hyper_rate", &mf::cpu::hyper_rate_op);
}
