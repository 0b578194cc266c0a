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

}  // namespace mf::cuda
