// Batch, layer and group normalization with an optional ReLU behind it, and sums over the columns of a map: the kernel
// bodies of kind `blocks` (inner_loop_kernels.cuh). A column is one set of statistics, or one parameter.
#pragma once

#include "inner_loop_kernels.cuh"

namespace mf::cuda {

// Neighbouring columns that share a block where they lie side by side in memory, and the block's threads: a whole
// multiprocessor's worth, because there may be no more blocks than multiprocessors.
constexpr int kColumns = 16;
template <class T, int kWidth>
constexpr int kBlockThreads = kWidth == 1 ? 256 : (sizeof(T) == 4 ? 1024 : 512);

// Elements lane, lane + lanes, ... of a set, kBatch at a time: all their loads are under way before the first is used.
template <int kBatch, class Load, class Use>
MF_HD void in_batches(int lane, int lanes, int size, const Load& load, const Use& use) {
  for (int first = lane; first < size; first += kBatch * lanes) {
    MF_UNROLL
    for (int j = 0; j < kBatch; ++j)
      if (first + j * lanes < size) load(j, first + j * lanes);
    MF_UNROLL
    for (int j = 0; j < kBatch; ++j)
      if (first + j * lanes < size) use(j, first + j * lanes);
  }
}

// What forward keeps for the other passes, for each set: the first four as in mf::Norm. For batch norm a and b are
// mean(dy) and mean(dy x̂) without γ, which is the same for the whole set.
enum NormAux { kMean, kRoot, kA, kB, kM, kC, kVariance, kNormAux };

enum class NormKind : int { batch, example };

template <class T>
struct NormData {
  NormKind kind;
  bool relu, fixed;  // fixed: statistics are given, and constants
  Rows rows;
  int c, area, groups, set_size;  // groups and set_size of NormKind::example
  bool per_element;               // one γ for each element of an example (layer norm), else for each channel
  FastDiv by_groups, by_group_c;
  T eps;
  PerTask<const T> x, y, gamma, beta;
  PerTask<T> aux;

  MF_HD int sets(int task) const { return kind == NormKind::batch ? c : rows.count(task) * groups; }
  MF_HD int size(int task) const { return kind == NormKind::batch ? rows.count(task) * area : set_size; }
  MF_HD int max_sets() const { return kind == NormKind::batch ? c : rows.n * groups; }

  // Where element e of a set lies, and its γ.
  MF_HD void locate(int set, int e, int64_t& at, int& affine) const {
    if (kind == NormKind::batch) {
      at = int64_t{1} * e * c + set;
      affine = set;
      return;
    }
    const int example = by_groups.div(set), group = by_groups.mod(set, example);
    const int pos = by_group_c.div(e), in = group * static_cast<int>(by_group_c.d) + by_group_c.mod(e, pos);
    at = int64_t{1} * example * c * area + int64_t{1} * pos * c + in;
    affine = per_element ? pos * c + in : in;
  }
  MF_HD int64_t place(int set, int e) const {
    int64_t at;
    int affine;
    locate(set, e, at, affine);
    return at;
  }
  MF_HD T* aux_of(int task, int set) const { return aux[task] + int64_t{1} * set * kNormAux; }
  MF_HD T gamma_of(int task, int affine) const { return gamma ? gamma[task][affine] : T(1); }
  MF_HD bool passes(int task, int64_t at) const { return !relu || !(y[task][at] <= T(0)); }
  MF_HD mf::Norm<T> open(int task, int set, bool moving) const {
    const T* const s = aux_of(task, set);
    return {s[kMean], s[kRoot], T(0), T(0), moving ? s[kM] : T(0), moving ? s[kC] : T(0)};
  }
};

template <class T>
struct NormState {
  int set, size;
  mf::Norm<T> n;
  T variance, a_dot, b_dot;
};

template <class T>
struct NormForward {
  using Value = T;
  using State = NormState<T>;
  static constexpr int kStages = 2;
  NormData<T> d;
  const T* stats;  // fixed: mean [c], then variance [c]
  PerTask<T> out;

  MF_HD int columns() const { return d.kind == NormKind::batch ? d.c : d.rows.n * d.groups; }
  MF_HD bool open(int task, int set, State& s) const {
    if (set >= d.sets(task)) return false;
    s.set = set, s.size = d.size(task);
    return true;
  }
  MF_HD void part(int stage, int task, State& s, int lane, int lanes, T& sum, T&) const {
    if (d.fixed) return;
    T x[4];
    in_batches<4>(
        lane, lanes, s.size, [&](int j, int e) { x[j] = d.x[task][d.place(s.set, e)]; },
        [&](int j, int) { sum += stage == 0 ? x[j] : (x[j] - s.n.mean) * (x[j] - s.n.mean); });
  }
  MF_HD void take(int stage, int, State& s, T sum, T) const {
    const T size = static_cast<T>(s.size);
    if (stage == 0) {
      s.n.mean = d.fixed ? stats[s.set] : sum / size;
      return;
    }
    s.variance = d.fixed ? stats[d.c + s.set] : sum / size;
    s.n.r = T(1) / std::sqrt(s.variance + d.eps);
  }
  MF_HD void totals(int task, const State& s, T, T) const {
    T* const aux = d.aux_of(task, s.set);
    aux[kMean] = s.n.mean, aux[kRoot] = s.n.r, aux[kVariance] = s.variance;
  }
  MF_HD void finish(int task, State& s, int lane, int lanes) const {
    T x[4];
    in_batches<4>(
        lane, lanes, s.size, [&](int j, int e) { x[j] = d.x[task][d.place(s.set, e)]; },
        [&](int j, int e) {
          int64_t at;
          int affine;
          d.locate(s.set, e, at, affine);
          const T y = s.n.hat(x[j]) * d.gamma_of(task, affine) + (d.beta ? d.beta[task][affine] : T(0));
          out[task][at] = d.relu ? mf::relu(y).f : y;
        });
  }
};

template <class T>
struct NormBackward {
  using Value = T;
  using State = NormState<T>;
  static constexpr int kStages = 1;
  NormData<T> d;
  PerTask<const T> dy;
  PerTask<T> dx, dgamma, dbeta;  // each or null; dgamma, dbeta of batch norm
  bool accumulate;

  MF_HD int columns() const { return d.kind == NormKind::batch ? d.c : d.rows.n * d.groups; }
  MF_HD bool open(int task, int set, State& s) const {
    if (set >= d.sets(task)) return false;
    s.set = set, s.size = d.size(task), s.n = d.open(task, set, false);
    return true;
  }
  MF_HD void part(int, int task, State& s, int lane, int lanes, T& sum, T& product) const {
    const bool batch = d.kind == NormKind::batch;
    T x[4], g[4];
    in_batches<4>(
        lane, lanes, s.size,
        [&](int j, int e) {
          int64_t at;
          int affine;
          d.locate(s.set, e, at, affine);
          x[j] = d.x[task][at];
          g[j] = d.passes(task, at) ? dy[task][at] : T(0);
          if (!batch) g[j] *= d.gamma_of(task, affine);
        },
        [&](int j, int) {
          sum += g[j];
          product += g[j] * s.n.hat(x[j]);
        });
  }
  MF_HD void take(int, int task, State& s, T sum, T product) const {
    const T size = static_cast<T>(s.size);
    const T gamma = d.kind == NormKind::batch ? d.gamma_of(task, s.set) : T(1);
    if (!d.fixed) s.n.a = gamma * sum / size, s.n.b = gamma * product / size;
  }
  MF_HD void totals(int task, const State& s, T sum, T product) const {
    const T size = static_cast<T>(s.size);
    T* const aux = d.aux_of(task, s.set);
    aux[kA] = sum / size, aux[kB] = product / size;
    if (dgamma) dgamma[task][s.set] += product;
    if (dbeta) dbeta[task][s.set] += sum;
  }
  MF_HD void finish(int task, State& s, int lane, int lanes) const {
    if (!dx) return;
    T x[4], g[4];
    in_batches<4>(
        lane, lanes, s.size,
        [&](int j, int e) {
          int64_t at;
          int affine;
          d.locate(s.set, e, at, affine);
          x[j] = d.x[task][at];
          g[j] = d.passes(task, at) ? d.gamma_of(task, affine) * dy[task][at] : T(0);
        },
        [&](int j, int e) { put(dx[task] + d.place(s.set, e), s.n.dx(s.n.hat(x[j]), g[j]), accumulate); });
  }
};

template <class T>
struct NormTangent {
  using Value = T;
  using State = NormState<T>;
  static constexpr int kStages = 1;
  NormData<T> d;
  PerTask<const T> x_dot, gamma_dot, beta_dot;  // each or null: 0
  PerTask<T> y_dot;

  MF_HD int columns() const { return d.kind == NormKind::batch ? d.c : d.rows.n * d.groups; }
  MF_HD bool open(int task, int set, State& s) const {
    if (set >= d.sets(task)) return false;
    s.set = set, s.size = d.size(task), s.n = d.open(task, set, false);
    return true;
  }
  MF_HD void part(int, int task, State& s, int lane, int lanes, T& sum, T& product) const {
    if (!x_dot || d.fixed) return;
    T x[4], v[4];
    in_batches<4>(
        lane, lanes, s.size,
        [&](int j, int e) {
          const int64_t at = d.place(s.set, e);
          x[j] = d.x[task][at], v[j] = x_dot[task][at];
        },
        [&](int j, int) {
          sum += v[j];
          product += v[j] * s.n.hat(x[j]);
        });
  }
  MF_HD void take(int, int, State& s, T sum, T product) const {
    s.n.m = sum / static_cast<T>(s.size), s.n.c = product / static_cast<T>(s.size);
  }
  MF_HD void totals(int task, const State& s, T, T) const {
    T* const aux = d.aux_of(task, s.set);
    aux[kM] = s.n.m, aux[kC] = s.n.c;
  }
  MF_HD void finish(int task, State& s, int lane, int lanes) const {
    T x[4], v[4];
    bool passes[4];
    in_batches<4>(
        lane, lanes, s.size,
        [&](int j, int e) {
          const int64_t at = d.place(s.set, e);
          passes[j] = d.passes(task, at);
          x[j] = d.x[task][at], v[j] = x_dot ? x_dot[task][at] : T(0);
        },
        [&](int j, int e) {
          int64_t at;
          int affine;
          d.locate(s.set, e, at, affine);
          const T hat = s.n.hat(x[j]);
          T out = T(0);
          if (x_dot) out += d.gamma_of(task, affine) * s.n.hat_dot(hat, v[j]);
          if (gamma_dot) out += gamma_dot[task][affine] * hat;
          if (beta_dot) out += beta_dot[task][affine];
          y_dot[task][at] = passes[j] ? out : T(0);
        });
  }
};

template <class T>
struct NormBackwardTangent {
  using Value = T;
  using State = NormState<T>;
  static constexpr int kStages = 1;
  NormData<T> d;
  PerTask<const T> x_dot, gamma_dot, dy;  // each or null: 0
  PerTask<const T> dy_dot;
  PerTask<T> dx_dot, dgamma_dot, dbeta_dot;
  bool accumulate;

  MF_HD int columns() const { return d.kind == NormKind::batch ? d.c : d.rows.n * d.groups; }
  MF_HD bool open(int task, int set, State& s) const {
    if (set >= d.sets(task)) return false;
    s.set = set, s.size = d.size(task), s.n = d.open(task, set, static_cast<bool>(x_dot));
    if (!d.fixed && dy) {
      const T* const aux = d.aux_of(task, set);
      const T gamma = d.kind == NormKind::batch ? d.gamma_of(task, set) : T(1);
      s.n.a = gamma * aux[kA], s.n.b = gamma * aux[kB];
    }
    return true;
  }
  struct Element {  // as loaded, behind the ReLU
    T x, x_dot, dy, dy_dot;
  };
  MF_HD Element load(int task, int64_t at) const {
    const bool passes = d.passes(task, at);
    return {d.x[task][at], x_dot ? x_dot[task][at] : T(0), passes && dy ? dy[task][at] : T(0),
            passes ? dy_dot[task][at] : T(0)};
  }
  // x̂, its derivative, γ dy and γ̇ dy + γ dẏ of one element.
  MF_HD void open(int task, const State& s, const Element& e, int affine, T& hat, T& hat_dot, T& g, T& g_dot) const {
    const T gamma = d.gamma_of(task, affine);
    hat = s.n.hat(e.x);
    hat_dot = x_dot ? s.n.hat_dot(hat, e.x_dot) : T(0);
    g = gamma * e.dy;
    g_dot = gamma * e.dy_dot + (gamma_dot ? gamma_dot[task][affine] * e.dy : T(0));
  }
  MF_HD void part(int, int task, State& s, int lane, int lanes, T& sum, T& product) const {
    const bool batch = d.kind == NormKind::batch;
    Element el[2];
    in_batches<2>(
        lane, lanes, s.size, [&](int j, int e) { el[j] = load(task, d.place(s.set, e)); },
        [&](int j, int e) {
          int64_t at;
          int affine;
          d.locate(s.set, e, at, affine);
          T hat, hat_dot, g, g_dot;
          open(task, s, el[j], affine, hat, hat_dot, g, g_dot);
          if (batch) g = el[j].dy, g_dot = el[j].dy_dot;  // without γ: the derivatives of dγ and dβ too
          sum += g_dot;
          product += g_dot * hat + g * hat_dot;
        });
  }
  MF_HD void take(int, int task, State& s, T sum, T product) const {
    const T size = static_cast<T>(s.size);
    s.a_dot = sum / size, s.b_dot = product / size;
    if (d.kind == NormKind::batch) {
      const T gamma = d.gamma_of(task, s.set), moved = gamma_dot && dy ? gamma_dot[task][s.set] : T(0);
      const T* const aux = d.aux_of(task, s.set);
      s.a_dot = gamma * sum / size + (moved != T(0) ? moved * aux[kA] : T(0));
      s.b_dot = gamma * product / size + (moved != T(0) ? moved * aux[kB] : T(0));
    }
    if (d.fixed) s.a_dot = s.b_dot = T(0);
  }
  MF_HD void totals(int task, const State& s, T sum, T product) const {
    if (dgamma_dot) dgamma_dot[task][s.set] += product;
    if (dbeta_dot) dbeta_dot[task][s.set] += sum;
  }
  MF_HD void finish(int task, State& s, int lane, int lanes) const {
    if (!dx_dot) return;
    Element el[2];
    in_batches<2>(
        lane, lanes, s.size, [&](int j, int e) { el[j] = load(task, d.place(s.set, e)); },
        [&](int j, int e) {
          int64_t at;
          int affine;
          d.locate(s.set, e, at, affine);
          T hat, hat_dot, g, g_dot;
          open(task, s, el[j], affine, hat, hat_dot, g, g_dot);
          put(dx_dot[task] + at, s.n.dx_dot(hat, hat_dot, g, g_dot, s.a_dot, s.b_dot), accumulate);
        });
  }
};

// to[column] += the sum of a map over examples and positions: the gradient of a bias.
template <class T>
struct ColumnSums {
  using Value = T;
  struct State {
    int column, size;
  };
  static constexpr int kStages = 1;
  Rows rows;
  int c, area;
  PerTask<const T> from;
  PerTask<T> to;

  MF_HD int columns() const { return c; }
  MF_HD bool open(int task, int column, State& s) const {
    s.column = column, s.size = rows.count(task) * area;
    return column < c;
  }
  MF_HD void part(int, int task, State& s, int lane, int lanes, T& sum, T&) const {
    T x[4];
    in_batches<4>(
        lane, lanes, s.size, [&](int j, int e) { x[j] = from[task][int64_t{1} * e * c + s.column]; },
        [&](int j, int) { sum += x[j]; });
  }
  MF_HD void take(int, int, State&, T, T) const {}
  MF_HD void totals(int task, const State& s, T sum, T) const { to[task][s.column] += sum; }
  MF_HD void finish(int, State&, int, int) const {}
};

// dγ += Σ dy x̂, dβ += Σ dy of layer and group norm; with dẏ given their derivatives dγ̇ += Σ dẏ x̂ + dy x̂̇, dβ̇ += Σ dẏ.
template <class T>
struct AffineSums {
  using Value = T;
  struct State {
    int column, size;
  };
  static constexpr int kStages = 1;
  NormData<T> d;
  PerTask<const T> dy, x_dot, dy_dot;
  PerTask<T> dgamma, dbeta;
  FastDiv by_area;

  MF_HD int columns() const { return d.per_element ? d.c * d.area : d.c; }
  MF_HD bool open(int task, int column, State& s) const {
    s.column = column, s.size = d.rows.count(task) * (d.per_element ? 1 : d.area);
    return column < columns();
  }
  MF_HD void part(int, int task, State& s, int lane, int lanes, T& sum, T& product) const {
    for (int e = lane; e < s.size; e += lanes) {
      const int64_t at = int64_t{1} * e * columns() + s.column;
      const int example = d.per_element ? e : by_area.div(e);
      const int set = d.per_element ? example : example * d.groups + d.by_group_c.div(s.column);
      if (!d.passes(task, at)) continue;
      const mf::Norm<T> n = d.open(task, set, static_cast<bool>(x_dot));
      const T hat = n.hat(d.x[task][at]);
      if (!dy_dot) {
        sum += dy[task][at];
        product += dy[task][at] * hat;
        continue;
      }
      sum += dy_dot[task][at];
      product += dy_dot[task][at] * hat;
      if (x_dot) product += dy[task][at] * n.hat_dot(hat, x_dot[task][at]);
    }
  }
  MF_HD void take(int, int, State&, T, T) const {}
  MF_HD void totals(int task, const State& s, T sum, T product) const {
    if (dgamma) dgamma[task][s.column] += product;
    if (dbeta) dbeta[task][s.column] += sum;
  }
  MF_HD void finish(int, State&, int, int) const {}
};

// Means over the tasks that count of each batch norm's mean and unbiased variance.
template <class T>
struct BatchStats {
  PerTask<const T> aux;
  Rows rows;
  const T* task_weights;
  T* to;  // mean [c], then variance [c]
  int tasks, c, area;

  MF_HD int limit(int) const { return c; }
  MF_HD void operator()(int, int channel) const {
    T mean = T(0), variance = T(0);
    int used = 0;
    for (int t = 0; t < tasks; ++t) {
      if (task_weights && task_weights[t] == T(0)) continue;
      const T* const a = aux[t] + int64_t{1} * channel * kNormAux;
      const T size = static_cast<T>(rows.count(t)) * static_cast<T>(area);
      mean += a[kMean];
      variance += a[kVariance] * size / (size > T(2) ? size - T(1) : T(1));
      ++used;
    }
    const T share = used ? T(1) / static_cast<T>(used) : T(0);
    to[channel] = mean * share;
    to[c + channel] = variance * share;
  }
};

// out[row][column] = Σ over a parameter's packed elements (row = step, column = parameter): rates that are shared.
template <class T>
struct RateTotals {
  using Value = T;
  struct State {
    int from, to;
  };
  static constexpr int kStages = 1;
  const T* sums;
  T* out;
  int64_t packed, width;
  int from, to, column;  // one parameter, or all

  MF_HD int columns() const { return 1; }
  MF_HD bool open(int, int set, State& s) const {
    s.from = from, s.to = to;
    return set == 0;
  }
  MF_HD void part(int, int step, State& s, int lane, int lanes, T& sum, T&) const {
    for (int e = s.from + lane; e < s.to; e += lanes) sum += sums[step * packed + e];
  }
  MF_HD void take(int, int, State&, T, T) const {}
  MF_HD void totals(int step, const State&, T sum, T) const { out[step * width + column] = sum; }
  MF_HD void finish(int, State&, int, int) const {}
};

}  // namespace mf::cuda
