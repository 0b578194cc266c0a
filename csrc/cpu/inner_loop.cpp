// The inner-loop ops on the CPU: reads and checks the arguments, keeps plans for the programs that come again, and
// hands each call to the engine of this machine's instruction set.
#include <algorithm>
#include <cstring>
#include <list>
#include <mutex>

#include "../core/check.h"
#include "../layers/engine_request.h"
#include "kernels.h"

namespace mf::cpu {
namespace {

constexpr size_t kPlans = 16;                     // kept for reuse, the oldest unused one goes first
constexpr int64_t kHeldBytes = int64_t{4} << 30;  // of the workspaces of plans that are not in use

// Programs by their content, most recently used first.
class Programs {
 public:
  std::shared_ptr<const Program> get(const ShapedView& program, const ShapedView& attributes) {
    const auto* ints = program.as<const int64_t>();
    const auto* floats = attributes.as<const double>();
    const std::lock_guard lock(mutex_);
    for (auto it = kept_.begin(); it != kept_.end(); ++it) {
      if (static_cast<int64_t>(it->ints.size()) != program.numel ||
          static_cast<int64_t>(it->floats.size()) != attributes.numel ||
          std::memcmp(it->ints.data(), ints, program.numel * 8) != 0 ||
          std::memcmp(it->floats.data(), floats, attributes.numel * 8) != 0)
        continue;
      kept_.splice(kept_.begin(), kept_, it);
      return it->program;
    }
    auto parsed = std::make_shared<const Program>(parse_program(ints, program.numel, floats, attributes.numel));
    kept_.push_front({{ints, ints + program.numel}, {floats, floats + attributes.numel}, parsed});
    if (kept_.size() > kPlans) kept_.pop_back();
    return parsed;
  }

 private:
  struct Kept {
    std::vector<int64_t> ints;
    std::vector<double> floats;
    std::shared_ptr<const Program> program;
  };
  std::mutex mutex_;
  std::list<Kept> kept_;
};

// Engines by what they were planned for, most recently used first.
class Engines {
 public:
  std::shared_ptr<AnyEngine> get(const std::shared_ptr<const Program>& program, const EngineSettings& settings,
                                 bool f64) {
    const std::lock_guard lock(mutex_);
    for (auto it = kept_.begin(); it != kept_.end(); ++it) {
      if (it->program != program || it->f64 != f64 || !(it->settings == settings)) continue;
      kept_.splice(kept_.begin(), kept_, it);
      return it->engine;
    }
    shrink();
    const MakeEngine make = f64 ? kernels().engine_f64 : kernels().engine_f32;
    kept_.push_front({program, settings, f64, make(*program, settings)});
    return kept_.front().engine;
  }

 private:
  struct Kept {
    std::shared_ptr<const Program> program;
    EngineSettings settings;
    bool f64;
    std::shared_ptr<AnyEngine> engine;
  };

  void shrink() {
    int64_t bytes = 0;
    size_t count = 0;
    for (auto it = kept_.begin(); it != kept_.end(); ++it) {
      bytes += it->engine->bytes();
      if (bytes <= kHeldBytes && ++count < kPlans) continue;
      kept_.erase(it, kept_.end());
      return;
    }
  }

  std::mutex mutex_;
  std::list<Kept> kept_;
};

Programs& programs() {
  static Programs all;
  return all;
}

Engines& engines() {
  static Engines all;
  return all;
}

thread_local int64_t last_bytes = 0;  // that the engine of this thread's last call holds

Parallel torch_threads() {
  Parallel p;
  p.threads = torch::stable::get_num_threads();
  p.run = [](int64_t count, void (*fn)(const void*, int64_t), const void* context) {
    torch::stable::parallel_for(0, count, 1, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) fn(context, i);
    });
  };
  return p;
}

// One op's arguments: every check names what it looks at.
class Call {
 public:
  Call(StableIValue* stack, uint64_t count, const char* op) : args_(stack, count, op), op_(op) {}

  void read_program() {
    program_ = args_.shaped();
    attributes_ = args_.shaped();
    const DTypeCodes& d = dtype_codes();
    has(program_, d.i64, "program");
    has(attributes_, d.f64, "attributes");
    cached_ = programs().get(program_, attributes_);
  }
  const Program& program() const { return *cached_; }

  void read_weights(ShapedView weights) {
    const DTypeCodes& d = dtype_codes();
    STD_TORCH_CHECK(weights.dtype == d.f32 || weights.dtype == d.f64, op_, ": weights must be float32 or float64");
    real = weights.dtype;
    has(weights, real, "weights");
    request.own_weights = weights.dims == 2;
    STD_TORCH_CHECK(weights.dims >= 1 && weights.dims <= 2 && weights.sizes[weights.dims - 1] == program().param_total,
                    op_, ": weights must be [P] or [T, P] with the program's P = ", program().param_total);
    request.weights = weights.data;
    if (request.own_weights) own_rows_ = weights.sizes[0];
  }

  // x, y, mask of one side. Fixes T with the first one.
  ShapedView read_examples(ExampleSet& set, const char* side) {
    const ShapedView x = args_.shaped(), y = args_.shaped(), mask = args_.optional_shaped();
    const DTypeCodes& d = dtype_codes();
    const std::string name = side;
    has(x, program().tokens ? d.i64 : real, (name + "x").c_str());
    STD_TORCH_CHECK(x.dims >= 3, op_, ": ", side, "x must be [tasks, examples, ...]");
    if (!counted_) {
      counted_ = true;
      request.tasks = x.sizes[0];
      STD_TORCH_CHECK(!request.own_weights || own_rows_ == request.tasks, op_, ": weights have ", own_rows_,
                      " rows, there are ", request.tasks, " tasks");
    }
    const int64_t T = request.tasks, N = x.sizes[1];
    STD_TORCH_CHECK(x.sizes[0] == T, op_, ": ", side, "x has ", x.sizes[0], " tasks, support_x has ", T);
    if (program().tokens) {
      STD_TORCH_CHECK(x.dims == 3 && x.sizes[2] == program().values[0].h, op_, ": ", side, "x must be [T, N, ",
                      program().values[0].h, "] as the program's input");
      settings.token_length = program().values[0].h;
    } else {
      const ValueInfo& in = program().values[0];
      STD_TORCH_CHECK((x.dims == 3 && in.h == 1 && in.w == 1 && x.sizes[2] == in.c) ||
                          (x.dims == 5 && x.sizes[2] == in.c && x.sizes[3] == in.h && x.sizes[4] == in.w),
                      op_, ": examples of ", side, "x must have the program's shape [", in.c, ", ", in.h, ", ", in.w,
                      "]");
    }
    const bool classes = program().loss == LossKind::cross_entropy;
    has(y, classes ? d.i64 : real, (name + "y").c_str());
    STD_TORCH_CHECK(y.dims == (classes ? 2 : 3) && y.sizes[0] == T && y.sizes[1] == N &&
                        (classes || y.sizes[2] == program().classes()),
                    op_, ": ", side, "y must be [T, N]", classes ? "" : " and one number for each output",
                    " with T = ", T, ", N = ", N);
    if (mask) {
      has(mask, d.boolean, (name + "mask").c_str());
      STD_TORCH_CHECK(mask.dims == 2 && mask.sizes[0] == T && mask.sizes[1] == N, op_, ": ", side,
                      "mask must be [T, N] with T = ", T, ", N = ", N);
    }
    set.count = N;
    set.x = x.data;
    set.y = y.data;
    set.mask = mask.as<const bool>();
    return x;
  }

  void read_classes() {
    const ShapedView classes = args_.optional_shaped();
    if (!classes) return;
    has(classes, dtype_codes().i64, "classes");
    STD_TORCH_CHECK(classes.dims == 1 && classes.sizes[0] == request.tasks, op_, ": classes must be [T]");
    request.classes = classes.as<const int64_t>();
    for (int64_t t = 0; t < request.tasks; ++t)
      STD_TORCH_CHECK(request.classes[t] >= 1 && request.classes[t] <= program().classes(), op_, ": classes[", t,
                      "] is ", request.classes[t], ", the model has ", program().classes(), " outputs");
  }

  void use_stats(const ShapedView& stats, int64_t steps) {
    bool needed = false;
    for (const Instruction& i : program().instructions)
      needed = needed || (i.op == Opcode::batch_norm && i.ints[0] == 1);
    STD_TORCH_CHECK(!needed || stats, op_, ": the program has batch norms with fixed statistics, stats is None");
    if (!stats || !needed) return;
    has(stats, real, "stats");
    STD_TORCH_CHECK(stats.dims == 2 && (stats.sizes[0] == 1 || stats.sizes[0] == steps + 1) &&
                        stats.sizes[1] == program().stats_total,
                    op_, ": stats must be [1 or ", steps + 1, ", ", program().stats_total, "]");
    request.stats = stats.data;
    settings.stats_rows = stats.sizes[0];
  }

  // Labels and tokens of valid examples, whose values index memory.
  void check_values(const ExampleSet& set, const char* side) const {
    const auto valid = [&](int64_t t, int64_t i) { return !set.mask || set.mask[t * set.count + i]; };
    for (int64_t t = 0; t < request.tasks; ++t)
      for (int64_t i = 0; i < set.count; ++i) {
        if (!valid(t, i)) continue;
        if (program().loss == LossKind::cross_entropy) {
          const int64_t y = static_cast<const int64_t*>(set.y)[t * set.count + i];
          const int64_t classes = request.classes ? request.classes[t] : program().classes();
          STD_TORCH_CHECK(y >= 0 && y < classes, op_, ": ", side, "y[", t, ", ", i, "] is ", y, ", task ", t, " has ",
                          classes, " classes");
        }
        if (!program().tokens) continue;
        const int64_t L = settings.token_length;
        for (const Instruction& ins : program().instructions) {
          if (ins.op != Opcode::embed_mean) continue;
          const int64_t words = program().params[ins.weight].dims[0];
          const auto* text = static_cast<const int64_t*>(set.x) + (t * set.count + i) * L;
          for (int64_t l = 0; l < L; ++l)
            STD_TORCH_CHECK(text[l] >= 0 && text[l] < words, op_, ": ", side, "x[", t, ", ", i, ", ", l, "] is ",
                            text[l], ", the table has ", words, " rows");
        }
      }
  }

  void has(const ShapedView& v, int32_t dtype, const char* name) const {
    const DTypeCodes& d = dtype_codes();
    const char* wanted = dtype == d.f64 ? "float64" : dtype == d.f32 ? "float32" : dtype == d.i64 ? "int64" : "bool";
    STD_TORCH_CHECK(v.dtype == dtype, op_, ": ", name, " must be ", wanted);
    STD_TORCH_CHECK(v.contiguous, op_, ": ", name, " must be contiguous");
  }

  // An output of the weights' type with exactly these sizes.
  void* output(const ShapedView& v, std::initializer_list<int64_t> sizes, const char* name) const {
    if (!v) return nullptr;
    has(v, real, name);
    bool fits = v.dims == static_cast<int64_t>(sizes.size());
    int64_t d = 0;
    for (const int64_t size : sizes) fits = fits && v.sizes[d++] == size;
    STD_TORCH_CHECK(fits, op_, ": ", name, " has the wrong shape");
    return v.data;
  }
  void* output_as(const ShapedView& v, const ShapedView& x, const char* name) const {
    if (!v) return nullptr;
    STD_TORCH_CHECK(!program().tokens, op_, ": tokens have no gradient, ", name, " must be None");
    has(v, real, name);
    bool fits = v.dims == x.dims;
    for (int64_t d = 0; fits && d < v.dims; ++d) fits = v.sizes[d] == x.sizes[d];
    STD_TORCH_CHECK(fits, op_, ": ", name, " must have the shape of its examples");
    return v.data;
  }

  void run() {
    const Parallel parallel = torch_threads();
    settings.threads = std::min(parallel.threads, std::max<int64_t>(1, request.tasks));
    const auto engine = engines().get(cached_, settings, real == dtype_codes().f64);
    engine->run(request, parallel);
    last_bytes = engine->bytes();
  }

  Args& args() { return args_; }
  const char* op() const { return op_; }

  EngineSettings settings;
  EngineRequest request;
  int32_t real = 0;

 private:
  Args args_;
  const char* op_;
  ShapedView program_, attributes_;
  std::shared_ptr<const Program> cached_;
  int64_t own_rows_ = 0;
  bool counted_ = false;  // the number of tasks is known
};

void inner_loop(StableIValue* stack, uint64_t count, uint64_t) {
  Call call(stack, count, "metafast::inner_loop");
  Args& args = call.args();
  const char* op = call.op();
  EngineSettings& s = call.settings;
  EngineRequest& r = call.request;
  const DTypeCodes& d = dtype_codes();
  call.read_program();
  const Program& p = call.program();
  call.read_weights(args.shaped());
  const ShapedView rates = args.shaped();
  call.has(rates, call.real, "rates");
  const ShapedView support_x = call.read_examples(r.support, "support_");
  const ShapedView query_x = call.read_examples(r.query, "query_");
  call.read_classes();
  const ShapedView batches = args.optional_shaped();
  // The step count comes after the tensors whose shapes it explains.
  const ShapedView stats_later = args.optional_shaped();
  const ShapedView query_weights = args.shaped(), task_weights = args.optional_shaped();
  const int64_t K = args.integer();
  STD_TORCH_CHECK(K >= 0 && K <= (1 << 24), op, ": steps must not be negative, not ", K);
  call.use_stats(stats_later, K);
  s.steps = K;
  s.order = args.integer();
  s.rule = args.integer();
  STD_TORCH_CHECK(s.order >= 0 && s.order <= 2, op, ": order must be 0, 1 or 2, not ", s.order);
  STD_TORCH_CHECK(s.rule >= 0 && s.rule <= 2, op, ": rule must be 0 (SGD), 1 (momentum) or 2 (Adam), not ", s.rule);
  r.momentum = args.number();
  r.beta2 = args.number();
  r.eps = args.number();
  r.weight_decay = args.number();
  r.prox = args.number();
  r.seed = args.integer();
  r.first_task = args.integer();
  s.budget = args.integer();
  s.anchored = r.prox != 0;

  const int64_t T = r.tasks, S = r.support.count, Q = r.query.count, P = p.param_total;
  const int64_t N = static_cast<int64_t>(p.params.size());
  STD_TORCH_CHECK(rates.dims == 2 && (rates.sizes[0] == 1 || rates.sizes[0] == K) &&
                      (rates.sizes[1] == 1 || rates.sizes[1] == N || rates.sizes[1] == P),
                  op, ": rates must be [1 or ", K, ", 1 or ", N, " or ", P, "]");
  s.rate_rows = rates.sizes[0];
  s.rate_columns = rates.sizes[1];
  r.rates = rates.data;
  s.support = S;
  s.query = Q;
  if (batches) {
    call.has(batches, d.i64, "batches");
    r.own_batches = batches.dims == 3;
    STD_TORCH_CHECK((batches.dims == 2 || batches.dims == 3) && batches.sizes[batches.dims - 2] == K &&
                        (!r.own_batches || batches.sizes[0] == T),
                    op, ": batches must be [K, B] or [T, K, B] with K = ", K);
    r.batches = batches.as<const int64_t>();
    for (int64_t i = 0; i < batches.numel; ++i)
      STD_TORCH_CHECK(r.batches[i] >= 0 && r.batches[i] < S, op, ": batches names example ", r.batches[i], " of ", S);
    s.batches = 1;
    s.support = batches.sizes[batches.dims - 1];
  }
  call.has(query_weights, d.f64, "query_weights");
  STD_TORCH_CHECK(query_weights.numel == K + 1, op, ": query_weights must be [", K + 1, "]");
  r.query_weights = query_weights.as<const double>();
  for (int64_t k = 0; k < K; ++k)
    if (r.query_weights[k] != 0) s.middle_queries = 1;
  if (task_weights) {
    call.has(task_weights, d.f64, "task_weights");
    STD_TORCH_CHECK(task_weights.numel == T, op, ": task_weights must be [", T, "]");
    r.task_weights = task_weights.as<const double>();
  }
  call.check_values(r.support, "support_");
  call.check_values(r.query, "query_");

  r.task_losses = call.output(args.shaped(), {T}, "task_losses");
  r.support_losses = call.output(args.optional_shaped(), {T, K}, "support_losses");
  r.query_losses = call.output(args.optional_shaped(), {T, K + 1}, "query_losses");
  r.logits = call.output(args.optional_shaped(), {T, Q, p.classes()}, "logits");
  const ShapedView grad_weights = args.optional_shaped();
  r.grad_weights = r.own_weights ? call.output(grad_weights, {T, P}, "grad_weights")
                                 : call.output(grad_weights, {P}, "grad_weights");
  r.grad_rates = call.output(args.optional_shaped(), {s.rate_rows, s.rate_columns}, "grad_rates");
  r.support.grad_x = call.output_as(args.optional_shaped(), support_x, "grad_support_x");
  r.query.grad_x = call.output_as(args.optional_shaped(), query_x, "grad_query_x");
  r.adapted = call.output(args.optional_shaped(), {T, P}, "adapted");
  r.batch_stats = call.output(args.optional_shaped(), {K + 1, p.stats_total}, "batch_stats");
  s.grad_weights = r.grad_weights != nullptr;
  s.grad_rates = r.grad_rates != nullptr;
  s.grad_support_x = r.support.grad_x != nullptr;
  s.grad_query_x = r.query.grad_x != nullptr;
  args.device_index();
  call.run();
}

void plain(StableIValue* stack, uint64_t count, bool hvp) {
  Call call(stack, count, hvp ? "metafast::task_hvp" : "metafast::task_grad");
  Args& args = call.args();
  EngineSettings& s = call.settings;
  EngineRequest& r = call.request;
  call.read_program();
  call.read_weights(args.shaped());
  ExampleSet& set = hvp ? r.support : r.query;
  const ShapedView x = call.read_examples(set, "");
  call.read_classes();
  call.use_stats(args.optional_shaped(), 0);
  r.seed = args.integer();
  r.step = args.integer();
  r.first_task = args.integer();
  call.check_values(set, "");
  const int64_t T = r.tasks, N = set.count, P = call.program().param_total;
  s.mode = hvp ? EngineMode::hvp : EngineMode::gradient;
  s.order = 1;
  if (hvp) {
    s.support = N;
    const ShapedView tangents = args.shaped();
    r.tangents = call.output(tangents, {T, P}, "tangents");
    r.grad_weights = call.output(args.shaped(), {T, P}, "hvp");
    set.grad_x = call.output_as(args.optional_shaped(), x, "mixed_x");
    s.grad_weights = 1;
    s.grad_support_x = set.grad_x != nullptr;
  } else {
    s.query = N;
    r.task_losses = call.output(args.shaped(), {T}, "losses");
    r.logits = call.output(args.optional_shaped(), {T, N, call.program().classes()}, "logits");
    r.grad_weights = call.output(args.optional_shaped(), {T, P}, "grads");
    set.grad_x = call.output_as(args.optional_shaped(), x, "grad_x");
    s.grad_weights = r.grad_weights != nullptr;
    s.grad_query_x = set.grad_x != nullptr;
  }
  args.device_index();
  call.run();
}

void inner_loop_memory(StableIValue* stack, uint64_t count, uint64_t) {
  Args args(stack, count, "metafast::inner_loop_memory");
  const View bytes = args.tensor();
  require(bytes, dtype_codes().i64, 1, args.op(), "bytes");
  *bytes.as<int64_t>() = last_bytes;
}

void task_grad(StableIValue* stack, uint64_t count, uint64_t) { plain(stack, count, false); }
void task_hvp(StableIValue* stack, uint64_t count, uint64_t) { plain(stack, count, true); }

}  // namespace
}  // namespace mf::cpu

STABLE_TORCH_LIBRARY_IMPL(metafast, CPU, m) {
  m.impl("inner_loop", &mf::cpu::inner_loop);
  m.impl("inner_loop_memory", &mf::cpu::inner_loop_memory);
  m.impl("task_grad", &mf::cpu::task_grad);
  m.impl("task_hvp", &mf::cpu::task_hvp);
}
