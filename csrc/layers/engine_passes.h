// The passes of one task's examples through a program: forward, the loss, backward, and the Hessian-vector product.
#pragma once

#include "layers/engine_worker.h"

namespace mf {
inline namespace MF_ISA {

template <class T>
class Passes {
 protected:
  Passes(const Program& program, const EngineSettings& settings)
      : p_(program),
        s_(settings),
        meta_(wants_meta(s_)),
        model_(build(p_, s_, s_.support)),
        query_model_(build(p_, s_, s_.query)),
        plan_(plan(model_, Side::support)),
        query_plan_(plan(query_model_, Side::query)) {
    cross_entropy_.smoothing = p_.label_smoothing;
    cross_entropy_.x = squared_.x = model_.maps[p_.logits];
    cross_entropy_.dx = squared_.dx = model_.cotangent_maps[p_.logits];
  }

  static Model<T> build(const Program& p, const EngineSettings& s, int64_t examples) {
    const bool all = s.mode != EngineMode::inner_loop;
    return ModelBuilder<T>(p, std::max<int64_t>(1, examples), all, s.grad_weights != 0,
                           s.grad_support_x != 0 || s.grad_query_x != 0, s.token_length)
        .build();
  }

  Plan<T> plan(const Model<T>& model, Side side) const {
    const int64_t loss_aux = p_.loss == LossKind::cross_entropy ? model.maps[p_.logits].cp : 0;
    return Planner<T>(model, p_, s_, side, loss_aux).plan();
  }

  Pass<T> pass(Worker<T>& w, Tables<T>& tables, const Examples<T>& e, int64_t t, uint64_t step, Team& team) const {
    Pass<T> p;
    p.n = e.n;
    p.examples = e.rows;
    p.tokens = e.tokens;
    p.x = tables.x.data();
    p.dx = tables.dx.data();
    p.xt = tables.xt.data();
    p.dxt = tables.dxt.data();
    p.aux = tables.aux.data();
    p.bytes = tables.bytes.data();
    p.w0 = w.origin;
    p.seed = static_cast<uint64_t>(r_->seed);
    p.task = static_cast<uint64_t>(r_->first_task + t);
    p.step = step;
    p.scratch = w.scratch;
    p.team = &team;
    return p;
  }

  const T* stats_row(int64_t k) const {
    return packed_stats_.empty() ? nullptr
                                 : packed_stats_.data() + (s_.stats_rows > 1 ? k : 0) * model_.fixed_stats_size;
  }

  void forward(const std::vector<Visit<T>>& visits, const Pass<T>& p, bool clear) const {
    for (const Visit<T>& v : visits) {
      if (clear && v.clear_out) clear_border(model_.maps[v.node->out], p.x[v.node->out], p.n);
      v.node->forward(p);
    }
  }
  void backward(const std::vector<Visit<T>>& visits, const Pass<T>& p, bool clear) const {
    for (const Visit<T>& v : visits) {
      if (clear || v.want.x0_passes) clear_inputs(v, p.dx, p.n);
      v.node->backward(p, v.want, p.dx);
    }
  }
  void clear_inputs(const Visit<T>& v, T** d, int64_t n) const {
    if (v.clear_x0) clear_border(model_.cotangent_maps[v.node->in0], d[v.node->in0], n);
    if (v.clear_x1) clear_border(model_.cotangent_maps[v.node->in1], d[v.node->in1], n);
  }

  int64_t classes(int64_t t) const { return r_->classes ? r_->classes[t] : p_.classes(); }

  double loss(const Pass<T>& p, const Examples<T>& e, int64_t t) const {
    if (p.n == 0) return 0.0;
    const T* logits = p.x[p_.logits];
    return p_.loss == LossKind::cross_entropy
               ? cross_entropy_.forward(logits, e.labels, classes(t), p.aux[model_.nodes.size()], p.n)
               : squared_.forward(logits, e.targets, p.n);
  }
  void loss_backward(const Pass<T>& p, const Examples<T>& e, int64_t t, double scale, bool clear) const {
    T* dx = p.dx[p_.logits];
    if (clear) clear_logits(dx, p.n);
    if (p_.loss == LossKind::cross_entropy)
      cross_entropy_.backward(p.aux[model_.nodes.size()], e.labels, classes(t), scale, dx, p.n);
    else squared_.backward(p.x[p_.logits], e.targets, scale, dx, p.n);
  }
  void clear_logits(T* dx, int64_t n) const {
    const Map& m = model_.cotangent_maps[p_.logits];
    if (m.bh + m.bw > 0) clear_border(m, dx, n);
  }

  // dL/dw along wt: adds H wt to p.dw.
  void hessian_product(const Pass<T>& p, int64_t t) const {
    for (const Visit<T>& v : plan_.tangent) {
      if (v.clear_out) clear_border(model_.maps[v.node->out], p.xt[v.node->out], p.n);
      v.node->tangent(p);
    }
    T* dxt = p.dxt[p_.logits];
    clear_logits(dxt, p.n);
    if (p_.loss == LossKind::cross_entropy)
      cross_entropy_.backward_tangent(p.aux[model_.nodes.size()], classes(t), 1.0, p.xt[p_.logits], dxt, p.n);
    else squared_.backward_tangent(1.0, p.xt[p_.logits], dxt, p.n);
    for (const Visit<T>& v : plan_.hvp) {
      clear_inputs(v, p.dxt, p.n);
      if (v.want.x0_passes) clear_inputs(v, p.dx, p.n);
      if (v.moves) v.node->backward_tangent(p, v.want);
      else v.node->backward(p, v.want, p.dxt);
    }
  }

  void add_batch_stats(const std::vector<Visit<T>>& visits, const Pass<T>& p, double* row) const {
    if (p.n == 0) return;
    for (const Visit<T>& v : visits) {
      if (!v.node->has_batch_stats()) continue;
      double* mean = row + v.node->stats_at();
      v.node->batch_stats(p, mean, mean + v.node->stats_channels());
    }
  }

  // The cotangents that passes add up, of values that the prefix made.
  void clear_boundary(const Tables<T>& tables, int64_t n) const {
    for (const int v : plan_.boundary)
      if (tables.dx[v]) std::fill(tables.dx[v], tables.dx[v] + n * model_.cotangent_maps[v].image(), T(0));
  }

  void write_logits(const Pass<T>& p, const Examples<T>& e, int64_t t, int64_t count) const {
    if (!r_->logits) return;
    const int64_t C = p_.classes();
    const Map& m = model_.maps[p_.logits];
    T* to = static_cast<T*>(r_->logits) + t * count * C;
    if (e.n < count) std::fill(to, to + count * C, T(0));
    for (int64_t i = 0; i < e.n; ++i) {
      const T* from = p.x[p_.logits] + m.at(i, 0, 0);
      std::copy(from, from + C, to + e.rows[i] * C);
    }
  }

  void zero_rows(const ExampleSet& set, int64_t t) const {
    const int64_t size = set.count * p_.values[0].numel();
    T* to = static_cast<T*>(set.grad_x) + t * size;
    std::fill(to, to + size, T(0));
  }

  const Program p_;
  const EngineSettings s_;
  const bool meta_;
  const Model<T> model_, query_model_;  // the same program for as many examples as each side has
  const Plan<T> plan_, query_plan_;
  CrossEntropy<T> cross_entropy_;
  MeanSquaredError<T> squared_;
  const EngineRequest* r_ = nullptr;  // the call in hand
  std::vector<T> packed_stats_;       // fixed statistics, a row for each step or one for all
};

}  // namespace MF_ISA
}  // namespace mf
