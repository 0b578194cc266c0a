// Everything but convolutions, for all tasks at once. Two kinds of kernel bodies, on any compiler:
//
//   each    f.limit(task) elements of every task, f(task, i) for each
//   blocks  columns of sums: f.part adds a thread's share into two sums, a fixed tree adds the lanes of a column,
//           f.take sees the totals; f.kStages times. Then one lane runs f.totals, and all of them f.finish
//
// Maps are [task][example][y][x][channel]; counts[task] of the n examples are valid, and only these are read or
// written. A dot is a directional derivative, d a derivative of the loss, as in layers/scalar.h.
#pragma once

#include "../layers/scalar.h"
#include "inner_loop_conv.cuh"

namespace mf::cuda {

// One array for all tasks; a stride of 0 shares it between them.
template <class T>
struct PerTask {
  T* p = nullptr;
  int64_t stride = 0;

  MF_HD T* operator[](int task) const { return p + task * stride; }
  explicit MF_HD operator bool() const { return p != nullptr; }
  MF_HD PerTask at(int64_t offset) const { return {p ? p + offset : nullptr, stride}; }
  template <class U, class = std::enable_if_t<std::is_same_v<U, const T> && !std::is_const_v<T>>>
  MF_HD operator PerTask<U>() const {
    return {p, stride};
  }
};

// The examples of a pass: n rows for each task, of which counts[task] are used. order[task][row] is the row's place in
// the task's data; null pointers mean all of them, in order.
struct Rows {
  int n = 0;
  const int* counts = nullptr;
  const int* order = nullptr;

  MF_HD int count(int task) const { return counts ? counts[task] : n; }
  MF_HD int source(int task, int row) const { return order ? order[int64_t{1} * task * n + row] : row; }
};

template <class T>
MF_HD void put(T* to, T value, bool accumulate) {
  *to = accumulate ? *to + value : value;
}

MF_HD void stop_if(bool wrong) {  // a wrong index must stop the launch, not read someone else's memory
#if defined(__CUDA_ARCH__)
  if (wrong) __trap();
#else
  (void)wrong;
#endif
}

// ---- examples

// One thread for each task: the valid examples of its batch, in order.
struct SelectRows {
  const uint8_t* mask;   // [task][examples] or null
  const int64_t* batch;  // [task][n] or null: all
  int64_t batch_task;
  int n, examples;
  int* counts;
  int* order;

  MF_HD int limit(int) const { return 1; }
  MF_HD void operator()(int task, int) const {
    int used = 0;
    for (int j = 0; j < n; ++j) {
      const int64_t from = batch ? batch[task * batch_task + j] : j;
      stop_if(from < 0 || from >= examples);
      if (mask && !mask[int64_t{1} * task * examples + from]) continue;
      order[int64_t{1} * task * n + used++] = static_cast<int>(from);
    }
    counts[task] = used;
  }
};

// x [task][example][c][h w] to [task][row][h w][c].
template <class T>
struct GatherInput {
  const T* from;
  PerTask<T> to;
  Rows rows;
  int64_t from_task;
  int c, area;
  FastDiv by_c, by_numel;

  MF_HD int limit(int task) const { return rows.count(task) * c * area; }
  MF_HD void operator()(int task, int i) const {
    const int row = by_numel.div(i), at = by_numel.mod(i, row), pos = by_c.div(at), channel = by_c.mod(at, pos);
    const int64_t source = int64_t{1} * rows.source(task, row) * c * area + channel * area + pos;
    to[task][i] = from[task * from_task + source];
  }
};

// The gradient of x, added to [task][example][c][h w]. A mini-batch may hold an example twice: each place looks for its
// rows.
template <class T>
struct ScatterInput {
  PerTask<const T> from;
  T* to;
  Rows rows;
  const T* task_weights;  // a task of weight 0 adds nothing; null: all of them count
  int examples, c, area;
  FastDiv by_area, by_numel;

  MF_HD int limit(int task) const { return task_weights && task_weights[task] == T(0) ? 0 : examples * c * area; }
  MF_HD void operator()(int task, int i) const {
    const int example = by_numel.div(i), at = by_numel.mod(i, example), channel = by_area.div(at),
              pos = by_area.mod(at, channel);
    const int count = rows.count(task), first = rows.order ? 0 : example, last = rows.order ? count : example + 1;
    T sum = T(0);
    for (int row = first; row < last && row < count; ++row)
      if (rows.source(task, row) == example) sum += from[task][int64_t{1} * row * c * area + pos * c + channel];
    to[int64_t{1} * task * examples * c * area + i] += sum;
  }
};

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

// ---- losses

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

// ---- maps, element by element; `numel` of each example

template <class T>
struct Map1 {
  Rows rows;
  int numel;
  MF_HD int limit(int task) const { return rows.count(task) * numel; }
};

template <class T>
struct Activate : Map1<T> {
  mf::Activation kind;
  T slope;
  PerTask<const T> x;
  PerTask<T> y;
  MF_HD void operator()(int task, int i) const { y[task][i] = mf::activate(kind, x[task][i], slope).f; }
};

// out (+)= f'(x) g, and + f''(x) ẋ dy where ẋ and dy are given.
template <class T>
struct ActivateGrad : Map1<T> {
  mf::Activation kind;
  T slope;
  PerTask<const T> x, g, x_dot, dy;
  PerTask<T> out;
  bool accumulate;
  MF_HD void operator()(int task, int i) const {
    const auto f = mf::activate(kind, x[task][i], slope);
    T value = g ? f.d1 * g[task][i] : T(0);
    if (x_dot && dy) value += f.d2 * x_dot[task][i] * dy[task][i];
    put(out[task] + i, value, accumulate);
  }
};

// out (+)= a + b; either may be missing.
template <class T>
struct AddMaps : Map1<T> {
  PerTask<const T> a, b;
  PerTask<T> out;
  bool accumulate;
  MF_HD void operator()(int task, int i) const {
    const T value = (a ? a[task][i] : T(0)) + (b ? b[task][i] : T(0));
    put(out[task] + i, value, accumulate);
  }
};

// Linear in x, so that all four passes are this one. metafast/ops/_dropout_hash.py has the formula.
template <class T>
struct Dropout : Map1<T> {
  PerTask<const T> from;
  PerTask<T> to;
  uint64_t seed, first_task, step;
  uint32_t salt, threshold;  // (instruction + 1) 0x9e3779b9, ceil(p 2^24)
  T scale;
  int c, area;
  FastDiv by_numel, by_c;
  bool accumulate;
  MF_HD void operator()(int task, int i) const {
    const int row = by_numel.div(i), at = by_numel.mod(i, row), pos = by_c.div(at), channel = by_c.mod(at, pos);
    const uint64_t element =
        static_cast<uint64_t>(this->rows.source(task, row)) * this->numel + static_cast<uint64_t>(channel * area + pos);
    const uint32_t key = mix32(rounding_key(seed, first_task + task, step) + salt);
    const bool kept = rounding_word(key, element) >> 8 >= threshold;
    put(to[task] + i, kept ? from[task][i] * scale : T(0), accumulate);
  }
};

// ---- pooling

struct PoolGeometry {
  int h, w, c, oh, ow, kh, kw, sh, sw, ph, pw;
  bool count_padding;
  FastDiv by_c, by_ow, by_oh, by_w, by_h;

  MF_HD void open(int i, bool output, int& n, int& y, int& x, int& channel) const {
    const int row = by_c.div(i);
    channel = by_c.mod(i, row);
    const int line = output ? by_ow.div(row) : by_w.div(row);
    x = output ? by_ow.mod(row, line) : by_w.mod(row, line);
    n = output ? by_oh.div(line) : by_h.div(line);
    y = output ? by_oh.mod(line, n) : by_h.mod(line, n);
  }
  MF_HD int64_t in(int n, int y, int x, int channel) const { return ((int64_t{1} * n * h + y) * w + x) * c + channel; }
  MF_HD int64_t out(int n, int y, int x, int channel) const {
    return ((int64_t{1} * n * oh + y) * ow + x) * c + channel;
  }
  MF_HD int window(int oy, int ox) const {  // divisor of an average
    const int y0 = oy * sh - ph, x0 = ox * sw - pw;
    if (count_padding) {  // as torch: the window may not pass the padded map
      const int y1 = y0 + kh < h + ph ? y0 + kh : h + ph, x1 = x0 + kw < w + pw ? x0 + kw : w + pw;
      return (y1 - y0) * (x1 - x0);
    }
    const int y1 = y0 + kh < h ? y0 + kh : h, x1 = x0 + kw < w ? x0 + kw : w;
    return (y1 - (y0 > 0 ? y0 : 0)) * (x1 - (x0 > 0 ? x0 : 0));
  }
};

template <class T>
struct MaxPool {
  PoolGeometry g;
  Rows rows;
  PerTask<const T> x;
  PerTask<T> y;
  PerTask<uint16_t> arg;  // place in the window

  MF_HD int limit(int task) const { return rows.count(task) * g.oh * g.ow * g.c; }
  MF_HD void operator()(int task, int i) const {
    int n, oy, ox, channel;
    g.open(i, true, n, oy, ox, channel);
    T best = -static_cast<T>(INFINITY);
    int where = -1;
    for (int ky = 0; ky < g.kh; ++ky)
      for (int kx = 0; kx < g.kw; ++kx) {
        const int iy = oy * g.sh - g.ph + ky, ix = ox * g.sw - g.pw + kx;
        if (iy < 0 || iy >= g.h || ix < 0 || ix >= g.w) continue;
        const T v = x[task][g.in(n, iy, ix, channel)];
        if (where < 0 || v > best || v != v) best = v, where = ky * g.kw + kx;
      }
    y[task][i] = best;
    arg[task][i] = static_cast<uint16_t>(where);
  }
};

template <class T>
struct MaxPoolTangent {
  PoolGeometry g;
  Rows rows;
  PerTask<const T> x;
  PerTask<T> y;
  PerTask<const uint16_t> arg;

  MF_HD int limit(int task) const { return rows.count(task) * g.oh * g.ow * g.c; }
  MF_HD void operator()(int task, int i) const {
    int n, oy, ox, channel;
    g.open(i, true, n, oy, ox, channel);
    const int where = arg[task][i], ky = where / g.kw, kx = where - ky * g.kw;
    y[task][i] = x[task][g.in(n, oy * g.sh - g.ph + ky, ox * g.sw - g.pw + kx, channel)];
  }
};

template <class T>
struct AvgPool {
  PoolGeometry g;
  Rows rows;
  PerTask<const T> x;
  PerTask<T> y;

  MF_HD int limit(int task) const { return rows.count(task) * g.oh * g.ow * g.c; }
  MF_HD void operator()(int task, int i) const {
    int n, oy, ox, channel;
    g.open(i, true, n, oy, ox, channel);
    T sum = T(0);
    for (int ky = 0; ky < g.kh; ++ky)
      for (int kx = 0; kx < g.kw; ++kx) {
        const int iy = oy * g.sh - g.ph + ky, ix = ox * g.sw - g.pw + kx;
        if (iy >= 0 && iy < g.h && ix >= 0 && ix < g.w) sum += x[task][g.in(n, iy, ix, channel)];
      }
    y[task][i] = sum / static_cast<T>(g.window(oy, ox));
  }
};

// dx (+)= the windows that hold the input, in order: of maxima (arg) or of averages.
template <class T>
struct PoolGrad {
  PoolGeometry g;
  Rows rows;
  PerTask<const T> dy;
  PerTask<T> dx;
  PerTask<const uint16_t> arg;  // null: averages
  bool accumulate;

  MF_HD int limit(int task) const { return rows.count(task) * g.h * g.w * g.c; }
  MF_HD void operator()(int task, int i) const {
    int n, y, x, channel;
    g.open(i, false, n, y, x, channel);
    const int y_first = y + g.ph - g.kh, x_first = x + g.pw - g.kw;
    const int oy0 = y_first < 0 ? 0 : y_first / g.sh + 1, ox0 = x_first < 0 ? 0 : x_first / g.sw + 1;
    T sum = T(0);
    for (int oy = oy0; oy < g.oh && oy * g.sh <= y + g.ph; ++oy)
      for (int ox = ox0; ox < g.ow && ox * g.sw <= x + g.pw; ++ox) {
        const int64_t at = g.out(n, oy, ox, channel);
        if (!arg) sum += dy[task][at] / static_cast<T>(g.window(oy, ox));
        else if (arg[task][at] == (y + g.ph - oy * g.sh) * g.kw + x + g.pw - ox * g.sw) sum += dy[task][at];
      }
    put(dx[task] + i, sum, accumulate);
  }
};

// ---- mean of word vectors

template <class T>
struct EmbedMean {
  const int64_t* tokens;  // [task][example][length]
  int64_t tokens_task;
  Rows rows;
  PerTask<const T> table;
  PerTask<T> y;
  int length, width, words, padding;
  FastDiv by_width;

  MF_HD int limit(int task) const { return rows.count(task) * width; }
  MF_HD void operator()(int task, int i) const {
    const int row = by_width.div(i), d = by_width.mod(i, row);
    const int64_t* const text = tokens + task * tokens_task + int64_t{1} * rows.source(task, row) * length;
    T sum = T(0);
    int used = 0;
    for (int l = 0; l < length; ++l) {
      if (text[l] == padding) continue;
      stop_if(text[l] < 0 || text[l] >= words);
      sum += table[task][text[l] * width + d];
      ++used;
    }
    y[task][i] = used ? sum / static_cast<T>(used) : T(0);
  }
};

// dtable += dy / used: one thread for each column of the table, which no other thread touches.
template <class T>
struct EmbedGrad {
  const int64_t* tokens;
  int64_t tokens_task;
  Rows rows;
  PerTask<const T> dy;
  PerTask<T> dtable;
  int length, width, words, padding;

  MF_HD int limit(int) const { return width; }
  MF_HD void operator()(int task, int d) const {
    const int count = rows.count(task);
    T* const column = dtable[task] + d;
    for (int row = 0; row < count; ++row) {
      const int64_t* const text = tokens + task * tokens_task + int64_t{1} * rows.source(task, row) * length;
      int used = 0;
      MF_ROLLED
      for (int l = 0; l < length; ++l) used += text[l] != padding;
      const T g = dy[task][int64_t{1} * row * width + d] / static_cast<T>(used);
      MF_ROLLED
      for (int l = 0; l < length; ++l)
        if (text[l] != padding) column[text[l] * width] += g;
    }
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
