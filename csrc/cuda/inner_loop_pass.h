// One pass over the examples of all tasks: forward, backward, and the directional derivative of both, layer by layer.
// `Device` launches kernel bodies: each(f, rows, count), sums<columns of a block>(f, rows),
// conv<pass>(args), zero(pointer, bytes).
#pragma once

#include "inner_loop_plan.h"

namespace mf::cuda {

// What a pass keeps: values, their gradients, statistics and the places of maxima.
template <class T>
struct PassMemory {
  std::vector<T*> values, grads, aux;
  std::vector<uint16_t*> arg;
  T* losses = nullptr;
};

template <class T>
struct PassData {
  Rows rows;
  const void* x;  // torch's order, or tokens
  const void* y;
  int64_t examples;  // of a task in x and y
  PerTask<const T> theta;
  const T* stats;  // a row of fixed statistics, or null
  uint64_t step;   // for dropout
};

template <class T>
struct Shared {  // what all passes of a call have in common
  int tasks = 0;
  const int64_t* classes = nullptr;
  const T* task_weights = nullptr;
  uint64_t seed = 0, first_task = 0;
  T* splits = nullptr;  // room for partial sums of weight gradients
};

template <class T, class Device>
class Pass {
 public:
  Pass(const Plan& plan, Device& device, const Shared<T>& shared, const PassData<T>& data, const PassMemory<T>& memory)
      : plan_(plan), p_(plan.program), device_(device), s_(shared), d_(data), m_(memory) {}

  // Room for a pass of n examples: for these values and gradients, for statistics and places only with `primal`. What
  // `shared` has of the other values is used along.
  static PassMemory<T> carve(const Plan& plan, Carver& carver, int tasks, int n, const std::vector<char>& values,
                             const std::vector<char>& grads, bool primal, const PassMemory<T>* shared = nullptr) {
    PassMemory<T> m;
    const int64_t rows = int64_t{1} * tasks * n;
    const auto numel = [&](size_t v) { return rows * plan.value(static_cast<int>(v)).numel(); };
    for (size_t v = 0; v < plan.storage.size(); ++v) {
      const bool held = plan.storage[v] == static_cast<int>(v) && !(v == 0 && plan.program.tokens);
      m.values.push_back(held && values[v] ? carver.take<T>(numel(v)) : (shared ? shared->values[v] : nullptr));
      m.grads.push_back(held && grads[v] ? carver.take<T>(numel(v)) : nullptr);
    }
    for (size_t v = 0; v < plan.storage.size(); ++v) {
      m.values[v] = m.values[plan.storage[v]];
      m.grads[v] = m.grads[plan.storage[v]];
    }
    for (size_t k = 0; k < plan.program.instructions.size(); ++k) {
      const Instruction& i = plan.instruction(k);
      if (shared && !values[plan.output(k)]) {
        m.aux.push_back(shared->aux[k]);
        m.arg.push_back(shared->arg[k]);
        continue;
      }
      const int64_t sets = i.op == Opcode::batch_norm ? plan.value(i.in0).c * tasks
                                                      : (i.op == Opcode::group_norm ? i.ints[0] : 1) * rows;
      m.aux.push_back(primal && Plan::is_norm(i.op) ? carver.take<T>(sets * kNormAux) : nullptr);
      m.arg.push_back(primal && i.op == Opcode::max_pool ? carver.take<uint16_t>(numel(i.out)) : nullptr);
    }
    if (primal) m.losses = carver.take<T>(rows);
    return m;
  }

  void gather() {
    if (p_.tokens) return;
    const ValueInfo& v = plan_.value(0);
    const int c = static_cast<int>(v.c), area = static_cast<int>(v.h * v.w);
    each(GatherInput<T>{static_cast<const T*>(d_.x), value(0), d_.rows, d_.examples * v.numel(), c, area, FastDiv(c),
                        FastDiv(c * area)},
         int64_t{1} * d_.rows.n * c * area);
  }

  // The layers that a pass takes: all, or those whose output depends on the parameters of a reach, or the others.
  struct Part {
    const Reach* moving = nullptr;
    bool frozen = false;
  };

  void forward(Part part = {}) {
    for (size_t i = 0; i < p_.instructions.size(); ++i) {
      const Instruction& in = p_.instructions[i];
      if (!takes(part, i)) continue;
      const PerTask<T> x = value(in.in0), y = value(in.out);
      switch (in.op) {
        case Opcode::conv2d:
        case Opcode::linear:
          conv<ConvPass::forward>(i, {{x.p, theta(in.weight).p, x.stride, d_.theta.stride}}, theta(in.bias), y, false);
          break;
        case Opcode::batch_norm:
        case Opcode::layer_norm:
        case Opcode::group_norm:
          norms(NormForward<T>{norm(i), in.op == Opcode::batch_norm && d_.stats ? d_.stats + in.ints[1] : nullptr, y},
                i);
          break;
        case Opcode::max_pool:
          each(MaxPool<T>{pool(in), d_.rows, x, y, arg(i)}, count(in.out));
          break;
        case Opcode::avg_pool:
          each(AvgPool<T>{pool(in), d_.rows, x, y}, count(in.out));
          break;
        case Opcode::add:
          each(AddMaps<T>{map(in.out), x, value(in.in1), y, false}, count(in.out));
          break;
        case Opcode::dropout:
          dropout(i, x, y, false);
          break;
        case Opcode::embed_mean:
          embed(in, theta(in.weight), y);
          break;
        default:
          each(Activate<T>{map(in.out), kind(in), static_cast<T>(in.attribute), x, y}, count(in.out));
      }
    }
  }

  // The tasks' mean losses, into a column of `to` (stride to_task) and weighted into `total`; dlogits where `scale` is
  // not 0, times the task's weight.
  void loss(T* to, int64_t to_task, T* total, T total_weight, T scale, const T* weight) {
    const PerTask<T> losses{m_.losses, d_.rows.n};
    each(Loss<T>{loss_data(), losses, scale != T(0) ? grad(p_.logits) : PerTask<T>{}, weight, scale}, d_.rows.n);
    each(MeanLoss<T>{losses, d_.rows, to, to_task, total, total_weight}, 1);
  }

  // From dlogits (or from the gradients that are `there`): adds the gradients of `wanted.params` to `grads`, fills
  // those of `wanted.values`.
  void backward(const Reach& wanted, PerTask<T> grads, Part part = {}, const std::vector<char>* there = nullptr) {
    begin_backward(there);
    for (size_t i = p_.instructions.size(); i-- > 0;) {
      const Instruction& in = p_.instructions[i];
      const int out = plan_.output(i);
      if (!takes(part, i) || !there_[out]) continue;
      const PerTask<T> x = value(in.in0), dy = grad(out);
      const bool wants_x = wanted.values[in.in0];
      const auto param = [&](int k) { return k >= 0 && wanted.params[k] ? at(grads, k) : PerTask<T>{}; };
      const PerTask<T> dw = param(in.weight), db = param(in.bias);
      switch (in.op) {
        case Opcode::conv2d:
        case Opcode::linear:
          if (dw) conv<ConvPass::weight>(i, {{x.p, dy.p, x.stride, dy.stride}}, {}, dw, true);
          if (db) bias_sums(in, dy, db);
          if (wants_x)
            conv<ConvPass::input>(i, {{dy.p, theta(in.weight).p, dy.stride, d_.theta.stride}}, {}, grad(in.in0),
                                  add(in.in0));
          break;
        case Opcode::batch_norm:
        case Opcode::layer_norm:
        case Opcode::group_norm: {
          const bool batch = in.op == Opcode::batch_norm;
          norms(NormBackward<T>{norm(i), dy, wants_x ? grad(in.in0) : PerTask<T>{}, batch ? dw : PerTask<T>{},
                                batch ? db : PerTask<T>{}, wants_x && add(in.in0)},
                i);
          if (!batch && (dw || db)) affine_sums(i, dy, {}, {}, dw, db);
          break;
        }
        case Opcode::embed_mean:
          if (dw) embed_grad(in, dy, dw);
          break;
        case Opcode::add:
          for (const int v : {in.in0, in.in1})
            if (wanted.values[v]) each(AddMaps<T>{map(v), dy, {}, grad(v), add(v)}, count(v));
          break;
        default:
          if (wants_x) backward_map(i, dy, {}, {}, grad(in.in0), add(in.in0));
      }
    }
  }

  // ẏ of every value that depends on the parameters in `moving`, whose tangents are `u`.
  void tangent(const Reach& moving, PerTask<const T> u, const PassMemory<T>& t) {
    for (size_t i = 0; i < p_.instructions.size(); ++i) {
      const Instruction& in = p_.instructions[i];
      if (plan_.fused[i] || !moving.values[plan_.output(i)]) continue;
      const PerTask<const T> x = value(in.in0), x_dot = moved(moving, t, in.in0);
      const auto param = [&](int k) { return k >= 0 && moving.params[k] ? at(u, k) : PerTask<const T>{}; };
      const PerTask<const T> w_dot = param(in.weight), b_dot = param(in.bias);
      const PerTask<T> y_dot = tangent_of(t, in.out);
      switch (in.op) {
        case Opcode::conv2d:
        case Opcode::linear: {
          std::vector<ConvTerm<T>> terms;
          if (x_dot) terms.push_back({x_dot.p, theta(in.weight).p, x_dot.stride, d_.theta.stride});
          if (w_dot) terms.push_back({x.p, w_dot.p, x.stride, w_dot.stride});
          conv<ConvPass::forward>(i, terms, b_dot, y_dot, false);
          break;
        }
        case Opcode::batch_norm:
        case Opcode::layer_norm:
        case Opcode::group_norm:
          norms(NormTangent<T>{norm(i), x_dot, w_dot, b_dot, y_dot}, i);
          break;
        case Opcode::max_pool:
          each(MaxPoolTangent<T>{pool(in), d_.rows, x_dot, y_dot, arg(i)}, count(in.out));
          break;
        case Opcode::avg_pool:
          each(AvgPool<T>{pool(in), d_.rows, x_dot, y_dot}, count(in.out));
          break;
        case Opcode::add:
          each(AddMaps<T>{map(in.out), x_dot, moved(moving, t, in.in1), y_dot, false}, count(in.out));
          break;
        case Opcode::dropout:
          dropout(i, x_dot, y_dot, false);
          break;
        case Opcode::embed_mean:
          embed(in, w_dot, y_dot);
          break;
        default:
          each(ActivateGrad<T>{map(in.out), kind(in), static_cast<T>(in.attribute), x, x_dot, {}, {}, y_dot, false},
               count(in.out));
      }
    }
    each(LossTangent<T>{loss_data(), tangent_of(t, p_.logits), gradient_of(t, p_.logits)}, d_.rows.n);
  }

  // The directional derivative of backward: adds to `grads`, fills t.grads; adds to those that are `there` already.
  void backward_tangent(const Reach& wanted, const Reach& moving, PerTask<const T> u, const PassMemory<T>& t,
                        PerTask<T> grads, Part part = {}, const std::vector<char>* there = nullptr) {
    begin_backward(there);
    for (size_t i = p_.instructions.size(); i-- > 0;) {
      const Instruction& in = p_.instructions[i];
      const int out = plan_.output(i);
      if (!takes(part, i) || !there_[out]) continue;
      const PerTask<const T> x = value(in.in0), x_dot = moved(moving, t, in.in0);
      const PerTask<const T> dy = moving.values[out] ? grad(out) : PerTask<T>{}, dy_dot = gradient_of(t, out);
      const bool wants_x = wanted.values[in.in0];
      const auto param = [&](int k) { return k >= 0 && wanted.params[k] ? at(grads, k) : PerTask<T>{}; };
      const auto param_dot = [&](int k) { return k >= 0 && moving.params[k] ? at(u, k) : PerTask<const T>{}; };
      const PerTask<T> dw = param(in.weight), db = param(in.bias);
      const PerTask<const T> w_dot = param_dot(in.weight);
      const PerTask<T> dx_dot = wants_x ? gradient_of(t, in.in0) : PerTask<T>{};
      switch (in.op) {
        case Opcode::conv2d:
        case Opcode::linear: {
          std::vector<ConvTerm<T>> terms{{x.p, dy_dot.p, x.stride, dy_dot.stride}};
          if (x_dot) terms.push_back({x_dot.p, dy.p, x_dot.stride, dy.stride});
          if (dw) conv<ConvPass::weight>(i, terms, {}, dw, true);
          if (db) bias_sums(in, dy_dot, db);
          terms = {{dy_dot.p, theta(in.weight).p, dy_dot.stride, d_.theta.stride}};
          if (w_dot) terms.push_back({dy.p, w_dot.p, dy.stride, w_dot.stride});
          if (wants_x) conv<ConvPass::input>(i, terms, {}, dx_dot, add(in.in0));
          break;
        }
        case Opcode::batch_norm:
        case Opcode::layer_norm:
        case Opcode::group_norm: {
          const bool batch = in.op == Opcode::batch_norm;
          norms(NormBackwardTangent<T>{norm(i), x_dot, w_dot, dy, dy_dot, dx_dot, batch ? dw : PerTask<T>{},
                                       batch ? db : PerTask<T>{}, wants_x && add(in.in0)},
                i);
          if (!batch && (dw || db)) affine_sums(i, dy, x_dot, dy_dot, dw, db);
          break;
        }
        case Opcode::embed_mean:
          if (dw) embed_grad(in, dy_dot, dw);
          break;
        case Opcode::add:
          for (const int v : {in.in0, in.in1})
            if (wanted.values[v]) each(AddMaps<T>{map(v), dy_dot, {}, gradient_of(t, v), add(v)}, count(v));
          break;
        default:
          if (wants_x) backward_map(i, dy_dot, x_dot, dy, dx_dot, add(in.in0));
      }
    }
  }

  // Which gradients the last backward pass has left.
  const std::vector<char>& there() const { return there_; }

  // Adds the gradient of the input (of this pass, or of its tangent) to torch's layout.
  void scatter_input(const PassMemory<T>& m, T* to) {
    const ValueInfo& v = plan_.value(0);
    const int c = static_cast<int>(v.c), area = static_cast<int>(v.h * v.w);
    if (!there_[0]) return;
    each(ScatterInput<T>{PerTask<T>{m.grads[0], stride(0)}, to, d_.rows, s_.task_weights, static_cast<int>(d_.examples),
                         c, area, FastDiv(area), FastDiv(c * area)},
         d_.examples * c * area);
  }

  void scatter_logits(T* to) {
    const int width = static_cast<int>(p_.classes());
    device_.zero(to, sizeof(T) * static_cast<size_t>(s_.tasks * d_.examples * width));
    each(ScatterLogits<T>{value(p_.logits), to, d_.rows, static_cast<int>(d_.examples), width, FastDiv(width)},
         int64_t{1} * d_.rows.n * width);
  }

  void batch_stats(T* to) {
    for (size_t i = 0; i < p_.instructions.size(); ++i) {
      const Instruction& in = p_.instructions[i];
      if (in.op != Opcode::batch_norm || in.ints[0] != 0) continue;
      const ValueInfo& v = plan_.value(in.in0);
      device_.each(BatchStats<T>{aux(i), d_.rows, s_.task_weights, to + in.ints[1], s_.tasks, static_cast<int>(v.c),
                                 static_cast<int>(v.h * v.w)},
                   1, v.c);
    }
  }

 private:
  int64_t stride(int v) const { return d_.rows.n * plan_.value(v).numel(); }
  int64_t count(int v) const { return stride(v); }
  PerTask<T> value(int v) const { return v < 0 ? PerTask<T>{} : PerTask<T>{m_.values[v], stride(v)}; }
  PerTask<T> grad(int v) const { return {m_.grads[v], stride(v)}; }
  PerTask<T> tangent_of(const PassMemory<T>& t, int v) const { return {t.values[v], stride(v)}; }
  PerTask<T> gradient_of(const PassMemory<T>& t, int v) const { return {t.grads[v], stride(v)}; }
  PerTask<const T> moved(const Reach& moving, const PassMemory<T>& t, int v) const {
    return moving.values[v] ? tangent_of(t, v) : PerTask<T>{};
  }
  PerTask<const T> theta(int k) const { return k < 0 ? PerTask<const T>{} : d_.theta.at(plan_.packed_offset[k]); }
  template <class U>
  PerTask<U> at(PerTask<U> all, int k) const {
    return all.at(plan_.packed_offset[k]);
  }
  PerTask<uint16_t> arg(size_t i) const { return {m_.arg[i], stride(p_.instructions[i].out)}; }
  PerTask<T> aux(size_t i) const {
    const Instruction& in = p_.instructions[i];
    const int64_t sets = in.op == Opcode::batch_norm ? plan_.value(in.in0).c
                                                     : (in.op == Opcode::group_norm ? in.ints[0] : 1) * d_.rows.n;
    return {m_.aux[i], sets * kNormAux};
  }
  Map1<T> map(int v) const { return {d_.rows, static_cast<int>(plan_.value(v).numel())}; }

  template <class F>
  void each(const F& f, int64_t count) {
    device_.each(f, s_.tasks, count);
  }

  bool takes(const Part& part, size_t i) const {
    if (plan_.fused[i]) return false;
    return !part.moving || static_cast<bool>(part.moving->values[plan_.output(i)]) != part.frozen;
  }

  void begin_backward(const std::vector<char>* there) {
    if (there) there_ = *there;
    else there_.assign(plan_.storage.size(), 0);
    there_[p_.logits] = 1;
  }
  // Whether a gradient is to be added to what is there; from now on something is.
  bool add(int v) {
    const bool was = there_[plan_.storage[v]];
    there_[plan_.storage[v]] = 1;
    return was;
  }

  static mf::Activation kind(const Instruction& in) {
    switch (in.op) {
      case Opcode::gelu:
        return in.ints[0] ? mf::Activation::gelu_tanh : mf::Activation::gelu;
      case Opcode::tanh:
        return mf::Activation::tanh;
      case Opcode::sigmoid:
        return mf::Activation::sigmoid;
      case Opcode::silu:
        return mf::Activation::silu;
      case Opcode::leaky_relu:
        return mf::Activation::leaky_relu;
      default:
        return mf::Activation::relu;
    }
  }

  LossData<T> loss_data() const {
    return {value(p_.logits),
            d_.y,
            s_.classes,
            d_.rows,
            d_.examples,
            static_cast<int>(p_.classes()),
            p_.loss == LossKind::mse,
            static_cast<T>(p_.label_smoothing)};
  }

  PoolGeometry pool(const Instruction& in) const {
    const ValueInfo &x = plan_.value(in.in0), &y = plan_.value(in.out);
    PoolGeometry g{};
    g.h = int(x.h), g.w = int(x.w), g.c = int(x.c), g.oh = int(y.h), g.ow = int(y.w);
    g.kh = int(in.ints[0]), g.kw = int(in.ints[1]), g.sh = int(in.ints[2]), g.sw = int(in.ints[3]);
    g.ph = int(in.ints[4]), g.pw = int(in.ints[5]), g.count_padding = in.ints[6] != 0;
    g.by_c = FastDiv(g.c), g.by_ow = FastDiv(g.ow), g.by_oh = FastDiv(g.oh), g.by_w = FastDiv(g.w);
    g.by_h = FastDiv(g.h);
    return g;
  }

  NormData<T> norm(size_t i) const {
    const Instruction& in = p_.instructions[i];
    const ValueInfo& v = plan_.value(in.in0);
    NormData<T> d{};
    d.kind = in.op == Opcode::batch_norm ? NormKind::batch : NormKind::example;
    d.relu = plan_.relu_follows(i);
    d.fixed = in.op == Opcode::batch_norm && in.ints[0] == 1;
    d.rows = d_.rows;
    d.c = int(v.c), d.area = int(v.h * v.w);
    d.groups = in.op == Opcode::group_norm ? int(in.ints[0]) : 1;
    d.set_size = d.c * d.area / d.groups;
    d.per_element = in.op == Opcode::layer_norm;
    d.by_groups = FastDiv(d.groups), d.by_group_c = FastDiv(d.c / d.groups);
    d.eps = static_cast<T>(in.attribute);
    d.x = value(in.in0), d.y = value(in.out), d.gamma = theta(in.weight), d.beta = theta(in.bias);
    d.aux = aux(i);
    return d;
  }
  template <class F>
  void norms(const F& f, size_t i) {
    if (p_.instructions[i].op == Opcode::batch_norm) device_.template sums<kColumns>(f, s_.tasks);
    else device_.template sums<1>(f, s_.tasks);
  }
  void affine_sums(size_t i, PerTask<const T> dy, PerTask<const T> x_dot, PerTask<const T> dy_dot, PerTask<T> dw,
                   PerTask<T> db) {
    device_.template sums<kColumns>(AffineSums<T>{norm(i), dy, x_dot, dy_dot, dw, db, FastDiv(norm(i).area)}, s_.tasks);
  }
  // Nothing where a batch norm takes the mean away: the gradient of such a bias is 0.
  void bias_sums(const Instruction& in, PerTask<const T> dy, PerTask<T> db) {
    if (plan_.centred[in.out]) return;
    const ValueInfo& v = plan_.value(in.out);
    device_.template sums<kColumns>(ColumnSums<T>{d_.rows, int(v.c), int(v.h * v.w), dy, db}, s_.tasks);
  }

  void dropout(size_t i, PerTask<const T> from, PerTask<T> to, bool accumulate) {
    const Instruction& in = p_.instructions[i];
    const ValueInfo& v = plan_.value(in.out);
    const uint32_t salt = static_cast<uint32_t>(i + 1) * 0x9e3779b9u;
    const auto threshold = static_cast<uint32_t>(std::ceil(in.attribute * (1 << 24)));
    each(Dropout<T>{map(in.out), from, to, s_.seed, s_.first_task, d_.step, salt, threshold,
                    static_cast<T>(1.0 / (1.0 - in.attribute)), int(v.c), int(v.h * v.w), FastDiv(int(v.numel())),
                    FastDiv(int(v.c)), accumulate},
         count(in.out));
  }
  int64_t token_count(const Instruction& in) const { return plan_.value(in.in0).numel(); }
  void embed(const Instruction& in, PerTask<const T> table, PerTask<T> y) {
    const int width = int(plan_.value(in.out).c), words = int(p_.params[in.weight].dims[0]);
    each(EmbedMean<T>{static_cast<const int64_t*>(d_.x), d_.examples * token_count(in), d_.rows, table, y,
                      int(token_count(in)), width, words, int(in.ints[0]), FastDiv(width)},
         count(in.out));
  }
  void embed_grad(const Instruction& in, PerTask<const T> dy, PerTask<T> dw) {
    const int width = int(plan_.value(in.out).c), words = int(p_.params[in.weight].dims[0]);
    each(EmbedGrad<T>{static_cast<const int64_t*>(d_.x), d_.examples * token_count(in), d_.rows, dy, dw,
                      int(token_count(in)), width, words, int(in.ints[0])},
         width);
  }

  // Layers without parameters: dx (+)= J g, and the second-order part where ẋ and dy are given.
  void backward_map(size_t i, PerTask<const T> g, PerTask<const T> x_dot, PerTask<const T> dy, PerTask<T> dx,
                    bool accumulate) {
    const Instruction& in = p_.instructions[i];
    if (in.op == Opcode::dropout) return dropout(i, g, dx, accumulate);
    if (in.op == Opcode::max_pool || in.op == Opcode::avg_pool) {
      const PerTask<const uint16_t> places =
          in.op == Opcode::max_pool ? PerTask<const uint16_t>(arg(i)) : PerTask<const uint16_t>{};
      return each(PoolGrad<T>{pool(in), d_.rows, g, dx, places, accumulate}, count(in.in0));
    }
    each(ActivateGrad<T>{map(in.in0), kind(in), static_cast<T>(in.attribute), value(in.in0), g, x_dot, dy, dx,
                         accumulate},
         count(in.in0));
  }

  template <ConvPass kPass>
  void conv(size_t i, const std::vector<ConvTerm<T>>& terms, PerTask<const T> bias, PerTask<T> out, bool accumulate) {
    ConvArgs<T> a;
    a.g = plan_.conv[i];
    a.terms = static_cast<int>(terms.size());
    for (size_t k = 0; k < terms.size(); ++k) a.term[k] = terms[k];
    a.tasks = s_.tasks, a.n = d_.rows.n, a.counts = d_.rows.counts;
    a.bias = bias.p, a.bias_task = bias.stride;
    a.out = out.p, a.out_task = out.stride, a.accumulate = accumulate;
    if constexpr (kPass == ConvPass::weight) {
      a.splits = splits_of(a.g, s_.tasks, d_.rows.n * a.terms);
      if (a.splits > 1) {
        a.out = s_.splits, a.out_task = a.g.weights(), a.out_split = a.out_task * s_.tasks, a.accumulate = false;
        device_.template conv<kPass>(a);
        each(AddSplits<T>{s_.splits, out, a.out_task, a.out_split, a.splits, int(a.out_task)}, a.out_task);
        return;
      }
    }
    device_.template conv<kPass>(a);
  }

 public:
  // In how many parts the positions of a weight gradient are cut, so that there are blocks enough.
  static int splits_of(const ConvGeometry& g, int tasks, int n) {
    constexpr int kTile = 2 * kConvWarpTile, kLeastDepth = 8 * kConvDepth;
    const int64_t blocks = (g.weights() / g.co + kTile - 1) / kTile * ((g.cog + kTile - 1) / kTile) * g.groups * tasks;
    const int64_t deepest = int64_t{1} * n * g.oh * g.ow / kLeastDepth;
    int64_t splits = kConvBlocks / blocks;
    if (splits > deepest) splits = deepest;
    if (splits > kConvMaxSplits) splits = kConvMaxSplits;
    return splits < 1 ? 1 : static_cast<int>(splits);
  }

 private:
  const Plan& plan_;
  const Program& p_;
  Device& device_;
  const Shared<T>& s_;
  PassData<T> d_;
  const PassMemory<T>& m_;
  std::vector<char> there_;
};

}  // namespace mf::cuda
