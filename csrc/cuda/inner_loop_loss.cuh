// Cross-entropy and squared error of all tasks, their gradients, and the gradients' directional derivative. Kernel
// bodies of kind `each` (inner_loop_kernels.cuh).
#pragma once

#include "inner_loop_kernels.cuh"

namespace mf::cuda {

template <class T>
struct LossData {
  PerTask<const T> logits;
  const void* y;  // int64 [task][example] or T [task][example][width]
  const int64_t* classes;
  Rows rows;
  int64_t y_task;  // examples of a task
  int width;
  bool squared;
  T smoothing;

  // Below 1 it is an error of the caller that Python has reported; the loss is then NaN.
  MF_HD int class_count(int task) const {
    const int64_t count = classes ? classes[task] : width;
    return static_cast<int>(count < width ? count : width);
  }
};

// One thread for each example: its loss, and dlogits times weight[task] · scale / count.
template <class T>
struct Loss {
  LossData<T> d;
  PerTask<T> losses;   // [task][row]
  PerTask<T> dlogits;  // or null
  const T* weight;     // or null: 1
  T scale;

  MF_HD int limit(int task) const { return d.rows.count(task); }
  MF_HD void operator()(int task, int row) const {
    const T* const z = d.logits[task] + int64_t{1} * row * d.width;
    const int64_t example = task * d.y_task + d.rows.source(task, row);
    const T factor = (weight ? weight[task] : T(1)) * scale / static_cast<T>(d.rows.count(task));
    T* const dz = dlogits ? dlogits[task] + int64_t{1} * row * d.width : nullptr;
    T loss = T(0);
    if (d.squared) {
      const T* const y = static_cast<const T*>(d.y) + example * d.width;
      for (int j = 0; j < d.width; ++j) {
        const T e = z[j] - y[j];
        loss += e * e;
        if (dz) dz[j] = T(2) * factor / static_cast<T>(d.width) * e;
      }
      losses[task][row] = loss / static_cast<T>(d.width);
      return;
    }
    const int64_t label = static_cast<const int64_t*>(d.y)[example];
    const int classes = d.class_count(task);
    T top = -static_cast<T>(INFINITY), sum = T(0);
    for (int j = 0; j < classes; ++j) top = z[j] > top || z[j] != z[j] ? z[j] : top;
    for (int j = 0; j < classes; ++j) sum += std::exp(z[j] - top);
    const T log_sum = std::log(sum);
    for (int j = 0; j < d.width; ++j) {
      if (j >= classes) {
        if (dz) dz[j] = T(0);
        continue;
      }
      const T log_p = z[j] - top - log_sum, q = mf::smooth_target(j == label, d.smoothing, classes);
      if (q != T(0)) loss -= q * log_p;
      if (dz) dz[j] = factor * (std::exp(log_p) - q);
    }
    losses[task][row] = label >= 0 && label < classes ? loss : static_cast<T>(NAN);
  }
};

// The directional derivative of dlogits (support: weight 1).
template <class T>
struct LossTangent {
  LossData<T> d;
  PerTask<const T> logits_dot;
  PerTask<T> dlogits_dot;

  MF_HD int limit(int task) const { return d.rows.count(task); }
  MF_HD void operator()(int task, int row) const {
    const T* const z = d.logits[task] + int64_t{1} * row * d.width;
    const T* const v = logits_dot[task] + int64_t{1} * row * d.width;
    T* const out = dlogits_dot[task] + int64_t{1} * row * d.width;
    const T factor = T(1) / static_cast<T>(d.rows.count(task));
    if (d.squared) {
      for (int j = 0; j < d.width; ++j) out[j] = T(2) * factor / static_cast<T>(d.width) * v[j];
      return;
    }
    const int classes = d.class_count(task);
    T top = -static_cast<T>(INFINITY), sum = T(0), mean = T(0);
    for (int j = 0; j < classes; ++j) top = z[j] > top || z[j] != z[j] ? z[j] : top;
    for (int j = 0; j < classes; ++j) {
      const T e = std::exp(z[j] - top);
      sum += e;
      mean += e * v[j];
    }
    mean /= sum;
    for (int j = 0; j < d.width; ++j)
      out[j] = j < classes ? factor * mf::softmax_dot(std::exp(z[j] - top) / sum, v[j], mean) : T(0);
  }
};

// One thread for each task: the mean over its examples.
template <class T>
struct MeanLoss {
  PerTask<const T> losses;
  Rows rows;
  T* to;  // [task] with a stride, or null
  int64_t to_task;
  T* total;  // += total_weight · mean; or null
  T total_weight;

  MF_HD int limit(int) const { return 1; }
  MF_HD void operator()(int task, int) const {
    const int count = rows.count(task);
    double sum = 0;
    for (int row = 0; row < count; ++row) sum += losses[task][row];
    const T mean = static_cast<T>(count > 0 ? sum / count : 0.0);
    if (to) to[task * to_task] = mean;
    if (total) total[task] += total_weight * mean;
  }
};

template <class T>
struct ScatterLogits {
  PerTask<const T> from;
  T* to;  // [task][examples][width], zero before
  Rows rows;
  int examples, width;
  FastDiv by_width;

  MF_HD int limit(int task) const { return rows.count(task) * width; }
  MF_HD void operator()(int task, int i) const {
    const int row = by_width.div(i);
    to[(int64_t{1} * task * examples + rows.source(task, row)) * width + by_width.mod(i, row)] = from[task][i];
  }
};

}  // namespace mf::cuda
