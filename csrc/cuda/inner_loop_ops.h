// Reads and checks the arguments of inner_loop, task_grad and task_hvp, and hands them to the engine.
#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/headeronly/util/Exception.h>

#include <exception>
#include <initializer_list>
#include <optional>
#include <string>
#include <vector>

#include "inner_loop.h"
#include "launch.h"

namespace mf::cuda {

Stream current_stream(int device);  // torch's

namespace inner_loop_detail {

struct TensorArg {
  void* data = nullptr;
  std::vector<int64_t> sizes;
  int64_t numel = 0;
  int32_t dtype = -1, device_type = -1, device = -1;

  explicit operator bool() const { return device_type >= 0; }
  int64_t size(size_t d) const { return d < sizes.size() ? sizes[d] : 1; }
  int64_t dims() const { return static_cast<int64_t>(sizes.size()); }
};

inline std::string text(const std::vector<int64_t>& sizes) {
  std::string out = "[";
  for (size_t d = 0; d < sizes.size(); ++d) out += (d ? ", " : "") + std::to_string(sizes[d]);
  return out + "]";
}

// Reads arguments in order; owns every handle until the call is over.
class Reader {
 public:
  Reader(StableIValue* stack, uint64_t count, const char* op) : stack_(stack), count_(count), op_(op) {}
  ~Reader() {
    for (AtenTensorHandle h : held_) aoti_torch_delete_tensor_object(h);
  }
  Reader(const Reader&) = delete;
  Reader& operator=(const Reader&) = delete;

  TensorArg tensor(const char* name) { return hold(torch::stable::detail::to<AtenTensorHandle>(next()), name); }
  TensorArg optional(const char* name) {
    const auto handle = torch::stable::detail::to<std::optional<AtenTensorHandle>>(next());
    return handle ? hold(*handle, name) : TensorArg{};
  }
  double number() { return torch::stable::detail::to<double>(next()); }
  int64_t integer() { return torch::stable::detail::to<int64_t>(next()); }
  const char* op() const { return op_; }

  void check(bool holds, const std::string& what) const { STD_TORCH_CHECK(holds, op_, ": ", what); }
  void shape(const TensorArg& t, const char* name, const std::vector<int64_t>& sizes) const {
    check(!t || t.sizes == sizes, std::string(name) + " has shape " + text(t.sizes) + ", expected " + text(sizes));
  }
  void type(const TensorArg& t, const char* name, int32_t dtype, const char* wanted) const {
    check(!t || t.dtype == dtype, std::string(name) + " must be " + wanted);
  }
  void on_host(const TensorArg& t, const char* name) const {
    check(t.device_type == aoti_torch_device_type_cpu(),
          std::string(name) + " must be a CPU tensor: calls are planned from it");
  }
  void on_device(const TensorArg& t, const char* name, const TensorArg& like) const {
    check(!t || (t.device_type == like.device_type && t.device == like.device),
          std::string(name) + " must be on the device of weights");
  }

 private:
  StableIValue next() {
    STD_TORCH_CHECK(at_ < count_, op_, ": the schema has ", count_, " arguments, the kernel reads more");
    return stack_[at_++];
  }
  TensorArg hold(AtenTensorHandle handle, const char* name) {
    held_.push_back(handle);
    TensorArg t;
    int64_t dims, *sizes, *strides;
    TORCH_ERROR_CODE_CHECK(aoti_torch_get_data_ptr(handle, &t.data));
    TORCH_ERROR_CODE_CHECK(aoti_torch_get_numel(handle, &t.numel));
    TORCH_ERROR_CODE_CHECK(aoti_torch_get_dtype(handle, &t.dtype));
    TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_type(handle, &t.device_type));
    TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_index(handle, &t.device));
    TORCH_ERROR_CODE_CHECK(aoti_torch_get_dim(handle, &dims));
    TORCH_ERROR_CODE_CHECK(aoti_torch_get_sizes(handle, &sizes));
    TORCH_ERROR_CODE_CHECK(aoti_torch_get_strides(handle, &strides));
    t.sizes.assign(sizes, sizes + dims);
    int64_t expected = 1;
    for (int64_t d = dims; d-- > 0 && t.numel > 0;) {
      STD_TORCH_CHECK(sizes[d] == 1 || strides[d] == expected, op_, ": ", name, " must be contiguous; pass ", name,
                      ".contiguous()");
      expected *= sizes[d];
    }
    return t;
  }

  StableIValue* stack_;
  uint64_t count_, at_ = 0;
  const char* op_;
  std::vector<AtenTensorHandle> held_;
};

// The call's one block of memory, from torch's allocator: on its stream, and in a graph's own pool while it is
// captured.
struct Memory {
  int32_t device_type, device;
  AtenTensorHandle handle = nullptr;

  Memory(int32_t type, int32_t index) : device_type(type), device(index) {}
  Memory(const Memory&) = delete;
  Memory& operator=(const Memory&) = delete;
  ~Memory() {
    if (handle) aoti_torch_delete_tensor_object(handle);
  }
  static void* allocate(void* context, size_t bytes) {
    auto& self = *static_cast<Memory*>(context);
    const int64_t size = static_cast<int64_t>(bytes), stride = 1;
    TORCH_ERROR_CODE_CHECK(aoti_torch_empty_strided(1, &size, &stride, aoti_torch_dtype_uint8(), self.device_type,
                                                    self.device, &self.handle));
    void* data = nullptr;
    TORCH_ERROR_CODE_CHECK(aoti_torch_get_data_ptr(self.handle, &data));
    return data;
  }
};

inline Program read_program(const Reader& args, const TensorArg& program, const TensorArg& attributes) {
  args.on_host(program, "program");
  args.on_host(attributes, "attributes");
  args.type(program, "program", aoti_torch_dtype_int64(), "int64");
  args.type(attributes, "attributes", aoti_torch_dtype_float64(), "float64");
  return parse_program(static_cast<const int64_t*>(program.data), program.numel,
                       static_cast<const double*>(attributes.data), attributes.numel);
}

// weights [P] or [T, P]; T is read from x.
inline bool read_weights(const Reader& args, const Program& p, const TensorArg& weights, int64_t tasks) {
  const bool own = weights.dims() == 2;
  args.check(weights.dtype == aoti_torch_dtype_float32() || weights.dtype == aoti_torch_dtype_float64(),
             "weights must be float32 or float64");
  if (own) args.shape(weights, "weights", {tasks, p.param_total});
  else args.shape(weights, "weights", {p.param_total});
  return own;
}

inline Examples read_examples(const Reader& args, const Program& p, const TensorArg& weights, int64_t tasks,
                              const TensorArg& x, const TensorArg& y, const TensorArg& mask, const char* side) {
  const std::string name = side;
  Examples e;
  e.x = x.data, e.y = y.data, e.mask = static_cast<const uint8_t*>(mask.data), e.n = x.size(1);
  const std::string x_name = name + "x", y_name = name + "y", mask_name = name + "mask";
  args.check(x.dims() >= 2 && x.size(0) == tasks && x.numel == tasks * e.n * p.values[0].numel(),
             x_name + " has shape " + text(x.sizes) + ", expected " + std::to_string(tasks) +
                 " tasks of examples with " + std::to_string(p.values[0].numel()) + " elements");
  args.type(x, x_name.c_str(), p.tokens ? aoti_torch_dtype_int64() : weights.dtype,
            p.tokens ? "int64 tokens" : "of the weights' dtype");
  if (p.loss == LossKind::mse) {
    args.type(y, y_name.c_str(), weights.dtype, "of the weights' dtype");
    args.check(y.numel == tasks * e.n * p.classes(),
               y_name + " has shape " + text(y.sizes) + ", expected " + text({tasks, e.n, p.classes()}));
  } else {
    args.type(y, y_name.c_str(), aoti_torch_dtype_int64(), "int64");
    args.shape(y, y_name.c_str(), {tasks, e.n});
  }
  args.type(mask, mask_name.c_str(), aoti_torch_dtype_bool(), "bool");
  args.shape(mask, mask_name.c_str(), {tasks, e.n});
  for (const auto& [t, label] : {std::pair(&x, &x_name), std::pair(&y, &y_name), std::pair(&mask, &mask_name)})
    args.on_device(*t, label->c_str(), weights);
  return e;
}

template <class Run>
void guarded(const char* op, const Run& run) {
  try {
    run();
  } catch (const std::exception& error) {
    const std::string what = error.what();
    STD_TORCH_CHECK(false, what.rfind(op, 0) == 0 ? "" : std::string(op) + ": ", what);
  }
}

// Whether a pass has batch norms with fixed statistics.
inline bool needs_stats(const Program& p) {
  for (const Instruction& i : p.instructions)
    if (i.op == Opcode::batch_norm && i.ints[0] == 1) return true;
  return false;
}

}  // namespace inner_loop_detail

inline void inner_loop_op(StableIValue* stack, uint64_t count, uint64_t) {
  using namespace inner_loop_detail;
  Reader args(stack, count, "metafast::inner_loop");
  const TensorArg program = args.tensor("program"), attributes = args.tensor("attributes"),
                  weights = args.tensor("weights"), rates = args.tensor("rates"), support_x = args.tensor("support_x"),
                  support_y = args.tensor("support_y"), support_mask = args.optional("support_mask"),
                  query_x = args.tensor("query_x"), query_y = args.tensor("query_y"),
                  query_mask = args.optional("query_mask"), classes = args.optional("classes"),
                  batches = args.optional("batches"), stats = args.optional("stats"),
                  query_weights = args.tensor("query_weights"), task_weights = args.optional("task_weights");
  InnerLoopRequest r;
  r.steps = args.integer(), r.order = args.integer(), r.rule = args.integer();
  r.momentum = args.number(), r.beta2 = args.number(), r.eps = args.number();
  r.weight_decay = args.number(), r.prox = args.number();
  r.seed = args.integer(), r.first_task = args.integer(), r.memory_budget = args.integer();
  const char* names[] = {"task_losses", "support_losses", "query_losses", "logits",  "grad_weights",
                         "grad_rates",  "grad_support_x", "grad_query_x", "adapted", "batch_stats"};
  TensorArg out[10];
  out[0] = args.tensor(names[0]);
  for (int k = 1; k < 10; ++k) out[k] = args.optional(names[k]);

  guarded(args.op(), [&] {
    const Program p = read_program(args, program, attributes);
    r.program = &p;
    r.tasks = support_x.size(0);
    const int64_t tasks = r.tasks, steps = r.steps;
    args.check(steps >= 0, "steps must not be negative, got " + std::to_string(steps));
    args.check(r.order >= 0 && r.order <= 2, "order must be 0, 1 or 2, got " + std::to_string(r.order));
    args.check(r.rule >= 0 && r.rule <= 2, "rule must be 0, 1 or 2, got " + std::to_string(r.rule));
    r.weights_per_task = read_weights(args, p, weights, tasks);
    r.weights = weights.data;
    r.support = read_examples(args, p, weights, tasks, support_x, support_y, support_mask, "support_");
    r.query = read_examples(args, p, weights, tasks, query_x, query_y, query_mask, "query_");

    args.type(rates, "rates", weights.dtype, "of the weights' dtype");
    r.rates = rates.data, r.rate_rows = rates.size(0), r.rate_width = rates.size(1);
    const auto params = static_cast<int64_t>(p.params.size());
    args.check(rates.dims() == 2 && (r.rate_rows == 1 || r.rate_rows == steps) &&
                   (r.rate_width == 1 || r.rate_width == params || r.rate_width == p.param_total),
               "rates has shape " + text(rates.sizes) + ", expected [1 or " + std::to_string(steps) + ", 1, " +
                   std::to_string(params) + " or " + std::to_string(p.param_total) + "]");
    args.type(classes, "classes", aoti_torch_dtype_int64(), "int64");
    args.shape(classes, "classes", {tasks});
    r.classes = static_cast<const int64_t*>(classes.data);
    args.type(batches, "batches", aoti_torch_dtype_int64(), "int64");
    if (batches) {
      r.batches_per_task = batches.dims() == 3;
      r.batch = batches.sizes.empty() ? 0 : batches.sizes.back();
      args.shape(
          batches, "batches",
          r.batches_per_task ? std::vector<int64_t>{tasks, steps, r.batch} : std::vector<int64_t>{steps, r.batch});
      r.batches = static_cast<const int64_t*>(batches.data);
    }
    args.check(stats || !needs_stats(p), "stats is missing: the program has batch norms with fixed statistics");
    args.type(stats, "stats", weights.dtype, "of the weights' dtype");
    if (stats) {
      r.stats_rows = stats.size(0);
      args.check(r.stats_rows == 1 || r.stats_rows == steps + 1, "stats must have 1 row or steps + 1");
      args.shape(stats, "stats", {r.stats_rows, p.stats_total});
      r.stats = stats.data;
    }
    args.on_host(query_weights, "query_weights");
    args.type(query_weights, "query_weights", aoti_torch_dtype_float64(), "float64");
    args.shape(query_weights, "query_weights", {steps + 1});
    const auto* w = static_cast<const double*>(query_weights.data);
    r.query_weights.assign(w, w + steps + 1);
    args.type(task_weights, "task_weights", aoti_torch_dtype_float64(), "float64");
    args.shape(task_weights, "task_weights", {tasks});
    r.task_weights = static_cast<const double*>(task_weights.data);

    const std::vector<int64_t> shapes[] = {
        {tasks},     {tasks, steps},  {tasks, steps + 1}, {tasks, r.query.n, p.classes()}, weights.sizes,
        rates.sizes, support_x.sizes, query_x.sizes,      {tasks, p.param_total},          {steps + 1, p.stats_total}};
    for (int k = 0; k < 10; ++k) {
      args.type(out[k], names[k], weights.dtype, "of the weights' dtype");
      args.shape(out[k], names[k], shapes[k]);
      args.on_device(out[k], names[k], weights);
    }
    for (const auto& [t, name] :
         {std::pair(&rates, "rates"), std::pair(&classes, "classes"), std::pair(&batches, "batches"),
          std::pair(&stats, "stats"), std::pair(&task_weights, "task_weights")})
      args.on_device(*t, name, weights);
    r.task_losses = out[0].data, r.support_losses = out[1].data, r.query_losses = out[2].data, r.logits = out[3].data;
    r.grad_weights = out[4].data, r.grad_rates = out[5].data, r.grad_support_x = out[6].data;
    r.grad_query_x = out[7].data, r.adapted = out[8].data, r.batch_stats = out[9].data;

    const OnDevice guard(weights.device);
    Memory memory(weights.device_type, weights.device);
    const Place place{current_stream(weights.device), &memory, &Memory::allocate};
    if (weights.dtype == aoti_torch_dtype_float32()) run_inner_loop<float>(r, place);
    else run_inner_loop<double>(r, place);
  });
}

template <bool kHvp>
void task_op(StableIValue* stack, uint64_t count, uint64_t) {
  using namespace inner_loop_detail;
  Reader args(stack, count, kHvp ? "metafast::task_hvp" : "metafast::task_grad");
  const TensorArg program = args.tensor("program"), attributes = args.tensor("attributes"),
                  weights = args.tensor("weights"), x = args.tensor("x"), y = args.tensor("y"),
                  mask = args.optional("mask"), classes = args.optional("classes"), stats = args.optional("stats");
  TaskRequest r;
  r.seed = args.integer(), r.step = args.integer(), r.first_task = args.integer();
  TensorArg tangents, losses, logits, grads, grad_x;
  if constexpr (kHvp) {
    tangents = args.tensor("tangents");
    grads = args.tensor("hvp");
    grad_x = args.optional("mixed_x");
  } else {
    losses = args.tensor("losses");
    logits = args.optional("logits");
    grads = args.optional("grads");
    grad_x = args.optional("grad_x");
  }
  guarded(args.op(), [&] {
    const Program p = read_program(args, program, attributes);
    r.program = &p;
    r.tasks = x.size(0);
    r.weights_per_task = read_weights(args, p, weights, r.tasks);
    r.weights = weights.data;
    r.data = read_examples(args, p, weights, r.tasks, x, y, mask, "");
    args.type(classes, "classes", aoti_torch_dtype_int64(), "int64");
    args.shape(classes, "classes", {r.tasks});
    r.classes = static_cast<const int64_t*>(classes.data);
    args.check(stats || !needs_stats(p), "stats is missing: the program has batch norms with fixed statistics");
    args.type(stats, "stats", weights.dtype, "of the weights' dtype");
    args.shape(stats, "stats", {1, p.stats_total});
    r.stats = stats.data;
    const std::vector<int64_t> all{r.tasks, p.param_total};
    const struct {
      const TensorArg& t;
      const char* name;
      std::vector<int64_t> sizes;
    } outputs[] = {{tangents, "tangents", all},
                   {losses, "losses", {r.tasks}},
                   {logits, "logits", {r.tasks, r.data.n, p.classes()}},
                   {grads, kHvp ? "hvp" : "grads", all},
                   {grad_x, kHvp ? "mixed_x" : "grad_x", x.sizes}};
    for (const auto& o : outputs) {
      args.type(o.t, o.name, weights.dtype, "of the weights' dtype");
      args.shape(o.t, o.name, o.sizes);
      args.on_device(o.t, o.name, weights);
    }
    args.on_device(classes, "classes", weights);
    args.on_device(stats, "stats", weights);
    r.tangents = tangents.data, r.losses = losses.data, r.logits = logits.data, r.grads = grads.data;
    r.grad_x = p.tokens ? nullptr : grad_x.data;

    const OnDevice guard(weights.device);
    Memory memory(weights.device_type, weights.device);
    const Place place{current_stream(weights.device), &memory, &Memory::allocate};
    const bool single = weights.dtype == aoti_torch_dtype_float32();
    if constexpr (kHvp) single ? run_task_hvp<float>(r, place) : run_task_hvp<double>(r, place);
    else single ? run_task_grad<float>(r, place) : run_task_grad<double>(r, place);
  });
}

inline void register_inner_loop_ops(torch::stable::detail::StableLibrary& m) {
  m.impl("inner_loop", &inner_loop_op);
  m.impl("task_grad", &task_op<false>);
  m.impl("task_hvp", &task_op<true>);
}

}  // namespace mf::cuda
