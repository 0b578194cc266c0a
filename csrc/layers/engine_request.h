// What a caller asks of the engine: pointers and numbers only, so that this header is the same for every instruction
// set. All sizes have been checked against the program by whoever fills it in.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "program.h"

namespace mf {

// How calls spread over threads. `run` calls fn(context, index) for every index in [0, count), each on any thread.
struct Parallel {
  int64_t threads = 1;
  void (*run)(int64_t count, void (*fn)(const void* context, int64_t index), const void* context) = nullptr;
};

enum class EngineMode : int64_t { inner_loop, gradient, hvp };

// What a plan is made for; two calls with equal settings share one.
struct EngineSettings {
  EngineMode mode = EngineMode::inner_loop;
  int64_t support = 0, query = 0;  // examples of one task that are in memory at once: mini-batch size, query size
  int64_t steps = 0, order = 0, rule = 0;
  int64_t batches = 0;  // 1: every step has its own examples
  int64_t stats_rows = 0;
  int64_t rate_rows = 1, rate_columns = 1;
  int64_t middle_queries = 0;  // 1: query losses before the last step count
  int64_t grad_weights = 0, grad_rates = 0, grad_support_x = 0, grad_query_x = 0, anchored = 0;  // 1: wanted
  int64_t budget = -1, threads = 1;
  int64_t token_length = 0;

  bool operator==(const EngineSettings&) const = default;
};

// One side (support or query) of all tasks.
struct ExampleSet {
  int64_t count = 0;           // examples of each task
  const void* x = nullptr;     // [T, count, c, h, w] or int64 tokens [T, count, L]
  const void* y = nullptr;     // int64 [T, count] or T [T, count, D]
  const bool* mask = nullptr;  // [T, count]
  void* grad_x = nullptr;      // as x
};

struct EngineRequest {
  int64_t tasks = 0;
  const void* weights = nullptr;
  bool own_weights = false;  // [T, P] instead of [P]
  const void* rates = nullptr;
  ExampleSet support, query;
  const int64_t* classes = nullptr;
  const int64_t* batches = nullptr;
  bool own_batches = false;  // [T, K, B] instead of [K, B]
  const void* stats = nullptr;
  const double* query_weights = nullptr;
  const double* task_weights = nullptr;
  double momentum = 0, beta2 = 0, eps = 0, weight_decay = 0, prox = 0;
  int64_t seed = 0, first_task = 0, step = 0;
  const void* tangents = nullptr;  // [T, P], hvp only
  void *task_losses = nullptr, *support_losses = nullptr, *query_losses = nullptr, *logits = nullptr;
  void *grad_weights = nullptr, *grad_rates = nullptr, *adapted = nullptr, *batch_stats = nullptr;
};

class AnyEngine {
 public:
  virtual ~AnyEngine() = default;
  virtual void run(const EngineRequest& request, const Parallel& parallel) = 0;
  virtual int64_t bytes() const = 0;  // of memory that it holds, as of its last call
};

// One for each instruction set and type of number.
using MakeEngine = std::unique_ptr<AnyEngine> (*)(const Program&, const EngineSettings&);

}  // namespace mf
