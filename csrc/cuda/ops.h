// The CUDA driver up to the launches: checks a call, fills kernel parameters, cuts a thousand tensors into launches.
// No CUDA runtime here, so that a host test runs it too.
#pragma once

#include "../core/step_ops.h"
#include "launch.h"

namespace mf::cuda {

Stream current_stream(int device);  // torch's

inline void check_launch(const char* error, const char* op) {
  STD_TORCH_CHECK(error == nullptr, op, ": the kernel did not launch: ", error);
}

// The one storage type of a list: a launch has one, so that its kernel has no branch for each tensor.
inline DType common_dtype(const std::vector<View>& views, const char* op, const char* name) {
  for (const View& v : views)
    STD_TORCH_CHECK(v.dtype == views.front().dtype, op, ": ", name,
                    " must share one dtype; make a call for each dtype");
  return views.empty() ? DType::f32 : storage_dtype(views.front(), op, name);
}

// Rows of `items` and `chunks` lie on the device; their number is what the host can check.
inline void check_chunks(const std::vector<View>& views, int64_t chunk_count, const char* op) {
  int64_t needed = 0;
  for (const View& v : views) needed += (v.numel + kChunk - 1) / kChunk;
  STD_TORCH_CHECK(needed == chunk_count, op, ": chunks has ", chunk_count, " rows, the tensors need ", needed,
                  "; build items and chunks with metafast.ops.make_layout");
}

inline Types types_of(const StepArgs& a, unsigned touched) {
  bool all_float = true, all_bfloat = true;
  for (int k = 0; k < kMaxStates; ++k) {
    if (!(touched & (kS0 << k))) continue;
    all_float = all_float && a.state[k].dtype == DType::f32;
    all_bfloat = all_bfloat && a.state[k].dtype == DType::bf16;
  }
  if (a.master.data || a.param_dtype != a.grad_dtype) return Types::any;
  if (a.param_dtype == DType::f32) return all_float ? Types::all_float : Types::any;
  if (a.param_dtype == DType::bf16 && all_bfloat) return Types::all_bfloat;
  return a.param_dtype == DType::bf16 && all_float ? Types::bfloat_param : Types::any;
}

// Adds the chunks' sums into the rows of `args.sums`, tensor by tensor.
inline void finish(const FinishArgs& args, const std::vector<View>& views, const char* op, Stream stream) {
  static thread_local FinishLaunch launch;
  launch.args = args;
  const auto numel = [&](int64_t i) { return views[i].numel; };
  for_batches(args.tables.item_count, kFinishTensors, numel, [&](int64_t first, int64_t count, int64_t chunk, int64_t) {
    launch.args.first_item = first;
    launch.args.items = count;
    for (int64_t i = 0; i < count; ++i) {
      launch.first_chunk[i] = static_cast<int32_t>(chunk);
      chunk += (numel(first + i) + kChunk - 1) / kChunk;
    }
    launch.first_chunk[count] = static_cast<int32_t>(chunk);
    check_launch(launch_finish(launch, stream), op);
  });
}

struct Driver {
  template <class Hyper, class Make>
  static void step(const StepRequest& r, const Make& make) {
    const Bucket& b = r.bucket;
    b.check(r.op);
    check_chunks(b.params, b.chunk_count(), r.op);
    if (b.item_count() == 0) return;

    static thread_local StepLaunch launch;
    StepArgs& a = launch.args;
    a.tables = {b.items.as<const Item>(),
                b.chunks.as<const ChunkRow>(),
                b.partials.as<double>(),
                b.item_count(),
                b.chunk_count(),
                b.step.numel,
                b.found_inf.as<const float>()};
    const unsigned touched = r.pass.reads | r.pass.writes;
    a.arena_size = INT64_MAX;
    for (int k = 0; k < kMaxStates; ++k) {
      const bool used = touched & (kS0 << k);
      STD_TORCH_CHECK(b.state[k] || !used, r.op, ": state ", k, " is missing");
      a.state[k] = used ? stream(b.state[k], r.op, "a state arena") : StreamRef{};
      STD_TORCH_CHECK(a.state[k].dtype != DType::f16, r.op, ": a state arena must be float32 or bfloat16");
      if (used && b.state[k].numel < a.arena_size) a.arena_size = b.state[k].numel;
    }
    a.master = stream(b.master, r.op, "master");
    STD_TORCH_CHECK(a.master.dtype == DType::f32, r.op, ": master must be float32");
    if (b.master && b.master.numel < a.arena_size) a.arena_size = b.master.numel;
    a.param_dtype = common_dtype(b.params, r.op, "params");
    a.grad_dtype = common_dtype(b.grads, r.op, "grads");
    a.step = b.step.as<const float>();
    a.lr = b.lr.as<const double>();
    a.lr_per_slot = b.lr.numel > 1;
    a.grad_scale = b.grad_scale.as<const float>();
    a.clip = b.clip.as<const float>();
    a.options.set(make.options);
    a.options.element = make.element;
    a.seed = r.seed;
    a.maximize = r.maximize;
    a.counts_step = r.pass.counts_step;
    a.backwards = r.pass.backwards;
    const Types types = types_of(a, touched);

    const OnDevice guard(r.device);
    const Stream stream = current_stream(r.device);
    const auto numel = [&](int64_t i) { return b.params[i].numel; };
    for_batches(b.item_count(), kTensors, numel, [&](int64_t first, int64_t count, int64_t chunk, int64_t chunks) {
      a.first_item = first;
      a.first_chunk = chunk;
      a.chunks = chunks;
      for (int64_t i = 0; i < count; ++i) {
        launch.param[i] = b.params[first + i].data;
        launch.grad[i] = b.grads[first + i].data;
      }
      check_launch(launch_step(r.pass.rule, types, launch, stream), r.op);
    });
    finish({a.tables, b.stats.as<double>(), r.pass.counts_step ? b.step.as<float>() : nullptr, kStatCount,
            r.pass.stats ? 0 : 3, r.pass.reads & kP ? 4 : 3, 0, 0},
           b.params, r.op, stream);
  }
};

inline void grad_squares(StableIValue* stack, uint64_t count, uint64_t) {
  Args args(stack, count, "metafast::grad_squares");
  std::vector<View>& grads = scratch(0);
  args.tensors(grads);
  const View squares = args.tensor(), partials = args.tensor(), items = args.tensor(), chunks = args.tensor();
  const int32_t device = args.device_index();
  const DTypeCodes& d = dtype_codes();
  require(items, d.i64, static_cast<int64_t>(grads.size()) * 3, args.op(), "items");
  require(chunks, d.i64, 0, args.op(), "chunks");
  require(partials, d.f64, chunks.numel / 3, args.op(), "partials");
  require(squares, d.f64, 0, args.op(), "squares");
  check_chunks(grads, chunks.numel / 3, args.op());
  if (grads.empty()) return;

  static thread_local SquaresLaunch launch;
  SquaresArgs& a = launch.args;
  a.tables = {items.as<const Item>(),
              chunks.as<const ChunkRow>(),
              partials.as<double>(),
              static_cast<int64_t>(grads.size()),
              chunks.numel / 3,
              squares.numel,
              nullptr};
  a.grad_dtype = common_dtype(grads, args.op(), "grads");
  const OnDevice guard(device);
  const Stream stream = current_stream(device);
  const auto numel = [&](int64_t i) { return grads[i].numel; };
  for_batches(a.tables.item_count, kSquaresTensors, numel,
              [&](int64_t first, int64_t tensors, int64_t chunk, int64_t chunk_count) {
                a.first_item = first;
                a.first_chunk = chunk;
                a.chunks = chunk_count;
                for (int64_t i = 0; i < tensors; ++i) launch.grad[i] = grads[first + i].data;
                check_launch(launch_squares(launch, stream), args.op());
              });
  finish({a.tables, squares.as<double>(), nullptr, 1, 0, 1, 0, 0}, grads, args.op(), stream);
}

inline void hyper_rate_op(StableIValue* stack, uint64_t count, uint64_t) {
  Args args(stack, count, "metafast::hyper_rate");
  const View rate = args.tensor(), stats = args.tensor(), segments = args.tensor();
  const View found_inf = args.optional_tensor();
  RateArgs a;
  a.rule.rule = static_cast<int>(args.integer());
  a.rule.hyper_lr = args.number();
  a.rule.lo = args.number();
  a.rule.hi = args.number();
  const int32_t device = args.device_index();
  const DTypeCodes& d = dtype_codes();
  require(rate, d.f64, 0, args.op(), "rate");
  require(stats, d.f64, segments.numel * kStatCount, args.op(), "stats");
  require(segments, d.i64, 0, args.op(), "segments");
  if (found_inf) require(found_inf, d.f32, 1, args.op(), "found_inf");
  a.rate = rate.as<double>();
  a.stats = stats.as<const double>();
  a.segments = segments.as<const int64_t>();
  a.rates = rate.numel;
  a.slots = segments.numel;
  a.found_inf = found_inf.as<const float>();
  const OnDevice guard(device);
  check_launch(launch_rate(a, current_stream(device)), args.op());
}

inline void register_ops(torch::stable::detail::StableLibrary& m) {
  m.impl("adam", &adam_op<Driver, false>);
  m.impl("hyper_adam", &adam_op<Driver, true>);
  m.impl("sgd", &sgd_op<Driver, false>);
  m.impl("hyper_sgd", &sgd_op<Driver, true>);
  m.impl("grad_squares", &grad_squares);
  m.impl("hyper_rate", &hyper_rate_op);
}

}  // namespace mf::cuda
