// Parameters, rates and inner optimizers of all tasks: from torch's order to the kernels' and back, steps, and their
// backward. Kernel bodies of kind `each` (inner_loop_kernels.cuh).
#pragma once

#include "inner_loop_kernels.cuh"

namespace mf::cuda {

// 1 / tasks where there are no weights.
template <class T>
struct TaskWeights {
  const double* from;
  T* to;
  int tasks;

  MF_HD int limit(int) const { return tasks; }
  MF_HD void operator()(int, int task) const {
    to[task] = from ? static_cast<T>(from[task]) : T(1) / static_cast<T>(tasks);
  }
};

// ---- parameters: torch's order and ours ([tap][i][o], each parameter on a multiple of 4)

struct ParamRow {
  int64_t torch_offset, packed_offset;
  int outs, ins, taps;  // elements = outs ins taps; vectors have outs = 1, taps = 1
  int adapted;
  MF_HD int numel() const { return outs * ins * taps; }
};

constexpr int kParamRows = 96;  // of one launch: they travel in its parameters

struct ParamTable {
  ParamRow row[kParamRows];
  int count = 0, first = 0;  // rows here, and the index of the first in the program
  int end = 0;               // packed elements that this table covers: [start, end)
  int start = 0;

  // The parameter of packed element e, or -1 in a gap.
  MF_HD int find(int e) const {
    int low = 0, high = count - 1;
    while (low < high) {
      const int mid = (low + high + 1) / 2;
      if (row[mid].packed_offset <= e) low = mid;
      else high = mid - 1;
    }
    return e - row[low].packed_offset < row[low].numel() ? low : -1;
  }
  MF_HD int64_t torch_index(int k, int e) const {
    const ParamRow& p = row[k];
    const int local = static_cast<int>(e - p.packed_offset), rest = local / p.outs, o = local - rest * p.outs;
    const int tap = rest / p.ins, i = rest - tap * p.ins;
    return p.torch_offset + (int64_t{1} * o * p.ins + i) * p.taps + tap;
  }
};

template <class T>
struct PackParams {
  ParamTable table;
  PerTask<const T> from;  // torch's order
  PerTask<T> to;

  MF_HD int limit(int) const { return table.end - table.start; }
  MF_HD void operator()(int task, int i) const {
    const int e = table.start + i, k = table.find(e);
    to[task][e] = k < 0 ? T(0) : from[task][table.torch_index(k, e)];
  }
};

// Packed a + b of each task (b may be missing), 0 where the task's weight is 0; or their sum over tasks.
template <class T>
struct UnpackParams {
  ParamTable table;
  PerTask<const T> a, b;
  PerTask<T> to;
  const T* task_weights;
  int sum_tasks;  // 0: each task has a row of its own

  MF_HD int limit(int) const { return table.end - table.start; }
  MF_HD void operator()(int task, int i) const {
    const int e = table.start + i, k = table.find(e);
    if (k < 0) return;
    const int first = sum_tasks ? 0 : task, last = sum_tasks ? sum_tasks : task + 1;
    T sum = T(0);
    for (int t = first; t < last; ++t) {
      if (task_weights && task_weights[t] == T(0)) continue;
      sum += a[t][e];
      if (b) sum += b[t][e];
    }
    to[task][table.torch_index(k, e)] = sum;
  }
};

// The rate of every packed element at every step (task = step); 0 for what is not adapted, which mask shows too.
template <class T>
struct ExpandRates {
  ParamTable table;
  const T* rates;  // [steps][width]
  T* to;           // [steps][packed]
  T* mask;         // [packed]
  int64_t packed, width;
  int params;

  MF_HD int limit(int) const { return table.end - table.start; }
  MF_HD void operator()(int step, int i) const {
    const int e = table.start + i, k = table.find(e);
    T rate = T(0);
    if (k >= 0 && table.row[k].adapted) {
      const int64_t column = width == 1 ? 0 : (width == params ? table.first + k : table.torch_index(k, e));
      rate = rates[step * width + column];
    }
    to[step * packed + e] = rate;
    if (step == 0) mask[e] = k >= 0 && table.row[k].adapted ? T(1) : T(0);
  }
};

// Rates of every element: back to torch's order (task = step).
template <class T>
struct UnpackRates {
  ParamTable table;
  const T* from;
  T* to;
  int64_t packed, width;

  MF_HD int limit(int) const { return table.end - table.start; }
  MF_HD void operator()(int step, int i) const {
    const int e = table.start + i, k = table.find(e);
    if (k >= 0) to[step * width + table.torch_index(k, e)] = from[step * packed + e];
  }
};

// ---- inner optimizers

enum class InnerRule : int { sgd, momentum, adam };

template <class T>
struct InnerOptions {
  InnerRule rule;
  T momentum, beta2, eps, weight_decay, prox;
  T bias1, bias2;  // 1 - β^(k+1) of this step
};

// What a step reads and writes: θ_k, θ_0, g_k, and the states after the step.
template <class T>
struct StepData {
  InnerOptions<T> o;
  PerTask<const T> theta, start, g;
  PerTask<T> m, v;
  const T* rate;

  MF_HD T direction(int task, int e) const {
    const T at = theta[task][e];
    T d = g[task][e] + o.weight_decay * at;
    if (o.prox != T(0)) d += o.prox * (at - start[task][e]);
    return d;
  }
  // u_k, once the states are there.
  MF_HD T step(int task, int e) const {
    if (o.rule == InnerRule::sgd) return direction(task, e);
    if (o.rule == InnerRule::momentum) return m[task][e];
    return m[task][e] / o.bias1 / (std::sqrt(v[task][e] / o.bias2) + o.eps);
  }
};

// θ_{k+1} = θ_k - rate u_k. States go from one step's array to the next one's, for the way back.
template <class T>
struct UpdateParams {
  StepData<T> d;
  PerTask<const T> m_before, v_before;  // null at step 0
  PerTask<T> next;
  int packed;

  MF_HD int limit(int) const { return packed; }
  MF_HD void operator()(int task, int e) const {
    const InnerOptions<T>& o = d.o;
    if (o.rule == InnerRule::momentum) {
      d.m[task][e] = (m_before ? o.momentum * m_before[task][e] : T(0)) + d.direction(task, e);
    } else if (o.rule == InnerRule::adam) {
      const T g = d.direction(task, e);
      d.m[task][e] = (m_before ? o.momentum * m_before[task][e] : T(0)) + (T(1) - o.momentum) * g;
      d.v[task][e] = (v_before ? o.beta2 * v_before[task][e] : T(0)) + (T(1) - o.beta2) * g * g;
    }
    const T rate = d.rate[e];
    next[task][e] = d.theta[task][e] - (rate != T(0) ? rate * d.step(task, e) : T(0));
  }
};

// sums[e] -= Σ_t u λ_{k+1} over the tasks that count; nothing for what is not adapted.
template <class T>
struct RateSums {
  StepData<T> d;
  PerTask<const T> lambda;
  const T* task_weights;
  T* sums;
  int tasks, packed;
  const T* mask;  // of adapted elements

  MF_HD int limit(int) const { return packed; }
  MF_HD void operator()(int, int e) const {
    if (mask[e] == T(0)) return;
    T sum = T(0);
    for (int t = 0; t < tasks; ++t)
      if (!task_weights || task_weights[t] != T(0)) sum += d.step(t, e) * lambda[t][e];
    sums[e] -= sum;
  }
};

// From λ_{k+1} to λ^d, and the part of λ_k that does not go through the Hessian. `bar_m`, `bar_v` are what later steps
// want from the states.
template <class T>
struct RuleBackward {
  StepData<T> d;
  PerTask<T> lambda, d_bar, bar_m, bar_v, start_bar;  // start_bar or null
  int packed;
  bool last;  // the first step on the way back: no later states

  MF_HD int limit(int) const { return packed; }
  MF_HD void operator()(int task, int e) const {
    const InnerOptions<T>& o = d.o;
    const T rate = d.rate[e], u_bar = rate != T(0) ? -rate * lambda[task][e] : T(0);
    T bar = u_bar;
    if (o.rule == InnerRule::momentum) {
      bar = u_bar + (last ? T(0) : bar_m[task][e]);
      bar_m[task][e] = o.momentum * bar;
    } else if (o.rule == InnerRule::adam) {
      const T root = std::sqrt(d.v[task][e] / o.bias2), below = root + o.eps;
      const T first = u_bar / (o.bias1 * below) + (last ? T(0) : bar_m[task][e]);
      const T through_root =
          root > T(0) ? -u_bar * (d.m[task][e] / o.bias1) / (below * below) / (T(2) * root * o.bias2) : T(0);
      const T second = through_root + (last ? T(0) : bar_v[task][e]);
      bar = (T(1) - o.momentum) * first + T(2) * (T(1) - o.beta2) * d.direction(task, e) * second;
      bar_m[task][e] = o.momentum * first;
      bar_v[task][e] = o.beta2 * second;
    }
    d_bar[task][e] = bar;
    lambda[task][e] += (o.weight_decay + o.prox) * bar;
    if (start_bar) start_bar[task][e] -= o.prox * bar;
  }
};

// to[i] = value for the elements of one stretch.
template <class T>
struct Fill {
  T* to;
  T value;
  int64_t stride;
  int count;
  MF_HD int limit(int) const { return count; }
  MF_HD void operator()(int row, int i) const { to[row * stride + i] = value; }
};

// to[task][e] += Σ_split from[split][task][e], in order.
template <class T>
struct AddSplits {
  const T* from;
  PerTask<T> to;
  int64_t from_task, from_split;
  int splits, count;
  MF_HD int limit(int) const { return count; }
  MF_HD void operator()(int task, int e) const {
    T sum = T(0);
    for (int s = 0; s < splits; ++s) sum += from[s * from_split + task * from_task + e];
    to[task][e] += sum;
  }
};

}  // namespace mf::cuda
