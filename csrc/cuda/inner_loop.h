// The inner-loop ops on a device: what a call carries, in raw pointers. metafast/ops/inner_loop.py has the formulas.
#pragma once

#include <cstdint>
#include <vector>

#include "../layers/program.h"

namespace mf::cuda {

// One set of examples of every task.
struct Examples {
  const void* x = nullptr;  // [tasks, n, ...] in the weights' type, or int64 tokens
  const void* y = nullptr;
  const uint8_t* mask = nullptr;
  int64_t n = 0;
};

// All null pointers are arguments that were not given.
struct TaskRequest {
  const Program* program = nullptr;
  int64_t tasks = 0;
  const void* weights = nullptr;
  bool weights_per_task = false;
  Examples data;
  const int64_t* classes = nullptr;
  const void* stats = nullptr;
  int64_t seed = 0, step = 0, first_task = 0;
  const void* tangents = nullptr;  // task_hvp
  void *losses = nullptr, *logits = nullptr, *grads = nullptr, *grad_x = nullptr;
};

struct InnerLoopRequest {
  const Program* program = nullptr;
  int64_t tasks = 0;
  const void* weights = nullptr;
  bool weights_per_task = false;
  const void* rates = nullptr;
  int64_t rate_rows = 1, rate_width = 1;
  Examples support, query;
  const int64_t* classes = nullptr;
  const int64_t* batches = nullptr;
  int64_t batch = 0;  // examples of a mini-batch
  bool batches_per_task = false;
  const void* stats = nullptr;
  int64_t stats_rows = 1;
  std::vector<double> query_weights;
  const double* task_weights = nullptr;  // on the device
  int64_t steps = 0, order = 0, rule = 0;
  double momentum = 0, beta2 = 0, eps = 0, weight_decay = 0, prox = 0;
  int64_t seed = 0, first_task = 0, memory_budget = -1;
  void *task_losses = nullptr, *support_losses = nullptr, *query_losses = nullptr, *logits = nullptr;
  void *grad_weights = nullptr, *grad_rates = nullptr, *grad_support_x = nullptr, *grad_query_x = nullptr;
  void *adapted = nullptr, *batch_stats = nullptr;
};

// Where a call runs. `allocate` gives its one block of memory, which lives until the call's work has been enqueued.
struct Place {
  void* stream = nullptr;
  void* context = nullptr;
  void* (*allocate)(void* context, size_t bytes) = nullptr;
};

// Enqueue a call; they throw std::invalid_argument or std::runtime_error. T is float or double.
template <class T>
void run_inner_loop(const InnerLoopRequest& request, const Place& place);
template <class T>
void run_task_grad(const TaskRequest& request, const Place& place);
template <class T>
void run_task_hvp(const TaskRequest& request, const Place& place);

}  // namespace mf::cuda
