// Runs a program over tasks: K steps of adaptation, the losses, and the meta-gradient by the backward recursion over
// steps. metafast/ops/inner_loop.py has the formulas.
//
// One thread takes one task through everything, in memory of its own; with fewer tasks than threads, all threads share
// each layer of one task after the other. Sums over tasks are added in the order of the tasks, whoever computed them.
#pragma once

#include <atomic>
#include <cmath>
#include <exception>
#include <mutex>

#include "core/no_denormals.h"
#include "layers/engine_passes.h"
#include "layers/engine_sum.h"

namespace mf {
inline namespace MF_ISA {

template <class T>
class Engine final : public AnyEngine, private Passes<T> {
 public:
  Engine(const Program& program, const EngineSettings& settings) : Passes<T>(program, settings) {
    choose_history();
    spans();
  }

  int64_t bytes() const override { return held_; }

  void run(const EngineRequest& request, const Parallel& parallel) override {
    const std::lock_guard lock(mutex_);
    r_ = &request;
    const bool alone = request.tasks < parallel.threads;  // then the threads share each layer
    const int64_t workers = alone ? 1 : std::min(parallel.threads, request.tasks);
    prepare(request);
    if (static_cast<int64_t>(workers_.size()) < workers) workers_.resize(workers);
    next_task_ = 0;
    error_ = nullptr;
    struct Job {
      Engine* engine;
      Team team;
    } job{this, {}};
    if (alone) {
      job.team = Team(
          [](void* pool, int64_t blocks, Team::Block call, const void* function) {
            struct Call {
              Team::Block call;
              const void* function;
            } both{call, function};
            static_cast<const Parallel*>(pool)->run(
                blocks,
                [](const void* context, int64_t block) {
                  const NoDenormals flush;
                  const auto* c = static_cast<const Call*>(context);
                  c->call(c->function, block);
                },
                &both);
          },
          const_cast<Parallel*>(&parallel), static_cast<int>(parallel.threads));
    }
    const auto work = [](const void* context, int64_t index) {
      const auto* j = static_cast<const Job*>(context);
      Team team = j->team;
      j->engine->work(index, team);
    };
    if (workers == 1) work(&job, 0);
    else parallel.run(workers, work, &job);
    count_held();
    if (error_) std::rethrow_exception(error_);
    finish(request);
  }

 private:
  using Base = Passes<T>;
  using Base::add_batch_stats;
  using Base::backward;
  using Base::clear_boundary;
  using Base::forward;
  using Base::hessian_product;
  using Base::loss;
  using Base::loss_backward;
  using Base::meta_;
  using Base::model_;
  using Base::p_;
  using Base::packed_stats_;
  using Base::pass;
  using Base::plan_;
  using Base::query_model_;
  using Base::query_plan_;
  using Base::r_;
  using Base::s_;
  using Base::stats_row;
  using Base::write_logits;
  using Base::zero_rows;

  void choose_history() {
    const auto rule = static_cast<InnerRule>(s_.rule);
    history_.theta = s_.mode == EngineMode::inner_loop && meta_ && (s_.order == 2 || s_.middle_queries);
    // What the backward of a rule reads; see inner_rule.h.
    history_.d = meta_ && (rule == InnerRule::adam || (rule == InnerRule::sgd && s_.grad_rates));
    history_.m = meta_ && (rule == InnerRule::adam || (rule == InnerRule::momentum && s_.grad_rates));
    history_.v = meta_ && rule == InnerRule::adam;
    if (s_.mode != EngineMode::inner_loop || s_.order < 2 || !meta_) return;
    history_.slots = std::max<int64_t>(1, s_.steps);
    if (s_.budget < 0) return;
    History least = history_;
    least.slots = 1;
    const int64_t fixed = Worker<T>::bytes(p_, s_, model_, plan_, query_plan_, least);
    const int64_t slot = std::max<int64_t>(1, aligned(plan_.pass.total));
    const int64_t extra = (s_.budget / std::max<int64_t>(1, s_.threads) - fixed) / slot;
    history_.slots = std::clamp<int64_t>(1 + extra, 1, history_.slots);
  }

  // Kept as a number, so that others may ask while a call runs.
  void count_held() {
    int64_t total = 0;
    for (const auto& worker : workers_)
      if (worker) total += worker->arena.bytes();
    for (const auto* kept : {&shared_start_, &packed_rates_, &pack_space_, &packed_stats_, &sum_.total})
      total += static_cast<int64_t>(kept->capacity() * sizeof(T));
    held_ = total + static_cast<int64_t>(sum_.total_doubles.capacity() * sizeof(double));
  }

  // Runs of adapted parameters; where a rate is shared by all of them, one run.
  void spans() {
    const auto R = s_.rate_columns;
    elementwise_ = R > 1 && R != static_cast<int64_t>(p_.params.size());
    for (size_t k = 0; k < p_.params.size(); ++k) {
      const PackedParam<T>& q = model_.params[k];
      if (!q.slot.adapted) continue;
      const int64_t rate = R > 1 && !elementwise_ ? static_cast<int64_t>(k) : 0;
      if (!spans_.empty() && (R == 1 || elementwise_)) spans_.back().size += q.size;
      else spans_.push_back({q.slot.at, q.size, rate});
    }
  }

  // ---- once per call

  void prepare(const EngineRequest& r) {
    const auto* weights = static_cast<const T*>(r.weights);
    if (!r.own_weights) {
      shared_start_.resize(model_.packed_size);
      for (const auto& q : model_.params) q.pack(weights, shared_start_.data());
    }
    const int64_t R = s_.rate_columns;
    const auto* rates = static_cast<const T*>(r.rates);
    if (s_.mode == EngineMode::inner_loop) {
      if (elementwise_) {
        packed_rates_.resize(s_.rate_rows * model_.adapted_size);
        std::vector<T>& all = pack_space_;
        all.resize(model_.packed_size);
        for (int64_t k = 0; k < s_.rate_rows; ++k) {
          for (const auto& q : model_.params)
            if (q.slot.adapted) q.pack(rates + k * R, all.data());
          std::copy(all.begin(), all.begin() + model_.adapted_size, packed_rates_.begin() + k * model_.adapted_size);
        }
      } else {
        packed_rates_.assign(rates, rates + s_.rate_rows * R);
      }
    }
    if (r.stats && model_.fixed_stats_size) {
      const auto* stats = static_cast<const T*>(r.stats);
      packed_stats_.assign(s_.stats_rows * model_.fixed_stats_size, T(0));
      for (int64_t k = 0; k < s_.stats_rows; ++k)
        for (const auto& f : model_.fixed_stats) {
          const T* from = stats + k * p_.stats_total + f.at;
          T* to = packed_stats_.data() + k * model_.fixed_stats_size + f.packed_at;
          std::copy(from, from + f.c, to);
          std::copy(from + f.c, from + 2 * f.c, to + f.cp);
        }
    }
    const bool shared = meta_ && s_.mode == EngineMode::inner_loop;
    rate_elements_ = s_.grad_rates && elementwise_ ? s_.rate_rows * model_.adapted_size : 0;
    rate_sums_ = s_.grad_rates && !elementwise_ ? s_.rate_rows * R : 0;
    stats_sums_ = r.batch_stats ? (s_.steps + 1) * p_.stats_total : 0;
    // With starts of their own tasks share the rates' gradient only.
    skip_values_ = r.own_weights ? model_.packed_size : 0;
    sum_.begin(shared ? model_.packed_size + rate_elements_ - skip_values_ : 0, rate_sums_ + stats_sums_, 0);
    counted_tasks_ = 0;
    for (int64_t t = 0; t < r.tasks; ++t) counted_tasks_ += task_weight(t) != 0;
  }

  double task_weight(int64_t t) const {
    return r_->task_weights ? r_->task_weights[t] : 1.0 / static_cast<double>(r_->tasks);
  }

  void finish(const EngineRequest& r) {
    if (s_.mode != EngineMode::inner_loop) return;
    const int64_t R = s_.rate_columns, PA = model_.adapted_size;
    if (r.grad_weights && !r.own_weights) {
      auto* to = static_cast<T*>(r.grad_weights);
      if (!meta_) std::fill(to, to + p_.param_total, T(0));
      else
        for (const auto& q : model_.params) q.unpack(sum_.total.data(), to);
    }
    if (r.grad_rates) {
      auto* to = static_cast<T*>(r.grad_rates);
      std::fill(to, to + s_.rate_rows * R, T(0));
      if (meta_ && elementwise_) {
        for (int64_t k = 0; k < s_.rate_rows; ++k)
          for (const auto& q : model_.params)
            if (q.slot.adapted) q.unpack(sum_.total.data() + model_.packed_size - skip_values_ + k * PA, to + k * R);
      } else if (meta_) {
        for (int64_t i = 0; i < rate_sums_; ++i) to[i] = static_cast<T>(sum_.total_doubles[i]);
      }
    }
    if (r.batch_stats) {
      const double share = 1.0 / static_cast<double>(std::max<int64_t>(1, counted_tasks_));
      for (int64_t i = 0; i < stats_sums_; ++i)
        static_cast<T*>(r.batch_stats)[i] = static_cast<T>(sum_.total_doubles[rate_sums_ + i] * share);
    }
  }

  // ---- one thread

  void work(int64_t index, Team& team) {
    try {
      const NoDenormals flush;
      if (!workers_[index]) workers_[index] = std::make_unique<Worker<T>>(p_, s_, model_, plan_, query_plan_, history_);
      Worker<T>& w = *workers_[index];
      for (int64_t t; (t = next_task_.fetch_add(1)) < r_->tasks;) {
        if (s_.mode == EngineMode::inner_loop) inner_loop(w, t, team);
        else plain(w, t, team);
      }
    } catch (...) {
      const std::lock_guard lock(error_mutex_);
      if (!error_) error_ = std::current_exception();
      next_task_ = r_->tasks;
      sum_.stop();
    }
  }

  const T* choose_start(Worker<T>& w, int64_t t) const {
    if (!r_->own_weights) return shared_start_.data();
    for (const auto& q : model_.params) q.pack(static_cast<const T*>(r_->weights) + t * p_.param_total, w.start);
    return w.start;
  }

  bool elementwise_ = false;  // a rate for each element
  History history_;
  std::vector<RuleSpan> spans_;
  std::mutex mutex_, error_mutex_;  // one call at a time
  std::exception_ptr error_;
  std::vector<std::unique_ptr<Worker<T>>> workers_;
  std::vector<T> shared_start_, packed_rates_, pack_space_;
  int64_t rate_elements_ = 0, rate_sums_ = 0, stats_sums_ = 0, skip_values_ = 0, counted_tasks_ = 0;
  OrderedSum<T> sum_;
  std::atomic<int64_t> next_task_{0}, held_{0};

  // ---- task_grad and task_hvp

  void plain(Worker<T>& w, int64_t t, Team& team) {
    w.origin = choose_start(w, t);
    const bool hvp = s_.mode == EngineMode::hvp;
    Examples<T>& e = hvp ? w.support : w.query;
    const ExampleSet& set = hvp ? r_->support : r_->query;
    Tables<T>& tables = hvp ? w.slots[0] : w.at_query;
    w.load(set, t, nullptr, set.count, e);
    Pass<T> p = pass(w, tables, e, t, static_cast<uint64_t>(r_->step), team);
    p.w = w.origin;
    p.stats = stats_row(0);
    p.dw = w.lambda;
    std::fill(w.lambda, w.lambda + model_.packed_size, T(0));
    clear_boundary(tables, e.n);
    if (set.grad_x) zero_rows(set, t);
    double value = 0;
    if (e.n > 0) {
      const Plan<T>& plan = hvp ? plan_ : query_plan_;
      forward(plan.prefix, p, true);
      forward(plan.body, p, !hvp);
      value = loss(p, e, t);
      if (!hvp && (r_->grad_weights || set.grad_x)) {
        loss_backward(p, e, t, 1.0, true);
        backward(plan.query, p, true);
        backward(plan.prefix_back, p, true);
      } else if (hvp) {
        loss_backward(p, e, t, 1.0, false);
        backward(plan_.again, p, false);
        for (const auto& q : model_.params) q.pack(static_cast<const T*>(r_->tangents) + t * p_.param_total, w.u);
        p.wt = w.u;
        hessian_product(p, t);
        backward(plan.prefix_back, p, true);
      }
    }
    if (!hvp) {
      static_cast<T*>(r_->task_losses)[t] = static_cast<T>(value);
      write_logits(p, e, t, set.count);
    }
    if (r_->grad_weights)
      for (const auto& q : model_.params) q.unpack(w.lambda, static_cast<T*>(r_->grad_weights) + t * p_.param_total);
    if (set.grad_x && e.n > 0) w.flush_input_grad(tables, e, set, t);
  }

  // ---- inner_loop

  void inner_loop(Worker<T>& w, int64_t t, Team& team) {
    w.origin = choose_start(w, t);
    const int64_t K = s_.steps;
    const double weight = task_weight(t);
    const bool meta = meta_ && weight != 0, counts = weight != 0;
    double* stats = w.sums + rate_sums_;
    std::fill(w.sums, w.sums + rate_sums_ + stats_sums_, 0.0);
    for (const ExampleSet* set : {&r_->support, &r_->query})
      if (set->grad_x) zero_rows(*set, t);
    if (meta) {
      std::fill(w.lambda, w.lambda + model_.packed_size + rate_elements_, T(0));
      if (s_.anchored) std::fill(w.anchor, w.anchor + model_.adapted_size, T(0));
    }

    // What does not change over the steps.
    if (!s_.batches) w.load(r_->support, t, nullptr, r_->support.count, w.support);
    w.load(r_->query, t, nullptr, r_->query.count, w.query);
    Pass<T> q = pass(w, w.at_query, w.query, t, kQueryStep, team);
    q.stats = stats_row(0);
    if (w.query.n > 0) forward(query_plan_.prefix, q, true);
    if (meta) clear_boundary(w.at_query, w.query.n);
    if (meta) clear_boundary(w.slots[0], s_.batches ? s_.support : w.support.n);
    if (!s_.batches && w.support.n > 0 && K > 0) {
      const Pass<T> p = steady_support(w, t, team);
      forward(plan_.prefix, p, true);
      if (stats_sums_ && counts)
        for (int64_t k = 0; k < K; ++k) add_batch_stats(plan_.prefix, p, stats + k * p_.stats_total);
    }

    double task_loss = 0;
    const auto query_at = [&](int64_t k, bool backwards) {
      const double share = r_->query_weights[k];
      q.w = k == 0 ? w.origin : w.theta[k];
      q.stats = stats_row(k);
      q.step = kQueryStep + static_cast<uint64_t>(k);
      double value = 0;
      if (q.n > 0) {
        forward(query_plan_.body, q, true);
        value = loss(q, w.query, t);
        if (backwards) {
          q.dw = w.lambda;
          loss_backward(q, w.query, t, weight * share, true);
          backward(query_plan_.query, q, true);
        }
      }
      if (r_->query_losses) static_cast<T*>(r_->query_losses)[t * (K + 1) + k] = static_cast<T>(value);
      if (share != 0) task_loss += share * value;
    };
    if (r_->query_losses) {
      T* row = static_cast<T*>(r_->query_losses) + t * (K + 1);
      std::fill(row, row + K + 1, std::numeric_limits<T>::quiet_NaN());
    }

    // ---- forward over the steps
    RuleStep<T> step;
    step.rule = static_cast<InnerRule>(s_.rule);
    step.momentum = static_cast<T>(r_->momentum);
    step.beta2 = static_cast<T>(r_->beta2);
    step.eps = static_cast<T>(r_->eps);
    step.weight_decay = static_cast<T>(r_->weight_decay);
    step.prox = static_cast<T>(r_->prox);
    const int64_t stored_from = K - static_cast<int64_t>(w.slots.size());  // earlier steps are computed again
    const auto slot_of = [&](int64_t k) -> Tables<T>& { return w.slots[std::max<int64_t>(0, k - stored_from)]; };
    const bool second = is_second_order(s_);
    for (int64_t k = 0; k < K; ++k) {
      if (!meta && s_.middle_queries && r_->query_weights[k] != 0) query_at(k, false);
      Pass<T> p = support_pass(w, slot_of(k), t, k, team);
      p.dw = w.g;
      double value = 0;
      const bool moves = plan_.loss_moves && p.n > 0;
      if (model_.shared_params || !moves) std::fill(w.g, w.g + model_.adapted_size, T(0));
      if (p.n > 0) {
        forward(plan_.body, p, !second);
        value = loss(p, w.support, t);
        if (stats_sums_ && counts) add_batch_stats(plan_.body, p, stats + k * p_.stats_total);
        if (moves) {
          loss_backward(p, w.support, t, 1.0, !second);
          backward(plan_.inner, p, !second);
        }
      }
      if (r_->support_losses) static_cast<T*>(r_->support_losses)[t * K + k] = static_cast<T>(value);
      step.set_step(k, r_->momentum, r_->beta2);
      update(w, step, k);
    }

    // ---- the query loss at θ_K
    const double last_share = r_->query_weights[K];
    if (last_share != 0 || r_->logits || r_->batch_stats) {
      query_at(K, meta && last_share != 0);
      write_logits(q, w.query, t, r_->query.count);
      if (stats_sums_ && counts) {
        add_batch_stats(query_plan_.prefix, q, stats + K * p_.stats_total);
        add_batch_stats(query_plan_.body, q, stats + K * p_.stats_total);
      }
    }
    if (r_->adapted) {
      T* to = static_cast<T*>(r_->adapted) + t * p_.param_total;
      const T* last = K == 0 ? w.origin : w.theta[K];
      for (const auto& param : model_.params) param.unpack(param.slot.adapted ? last : w.origin, to);
    }

    // ---- backward over the steps
    if (meta) {
      for (int64_t k = K - 1; k >= 0; --k) {
        const bool hessian = second && plan_.loss_moves;
        Pass<T> p = support_pass(w, slot_of(k), t, k, team, hessian);
        if (hessian && k < stored_from && p.n > 0) {
          forward(plan_.body, p, false);
          loss(p, w.support, t);
          loss_backward(p, w.support, t, 1.0, false);
          backward(plan_.again, p, false);
        }
        step.set_step(k, r_->momentum, r_->beta2);
        update_backward(w, step, k, k == K - 1);
        if (hessian && p.n > 0) {
          p.wt = w.u;
          p.dw = w.lambda;
          hessian_product(p, t);
          if (s_.batches && model_.upstream_param[0]) w.flush_input_grad(w.slots[0], w.support, r_->support, t);
        }
        if (r_->query_weights[k] != 0) query_at(k, true);
      }
      if (!plan_.prefix_back.empty()) {
        if (second && w.support.n > 0 && K > 0) {
          Pass<T> p = steady_support(w, t, team);
          p.dw = w.lambda;
          backward(plan_.prefix_back, p, true);
        }
        if (w.query.n > 0) {
          q.dw = w.lambda;
          backward(query_plan_.prefix_back, q, true);
        }
      }
      if (model_.upstream_param[0]) {
        if (!s_.batches && second) w.flush_input_grad(w.slots[0], w.support, r_->support, t);
        w.flush_input_grad(w.at_query, w.query, r_->query, t);
      }
      if (s_.anchored)
        for (int64_t i = 0; i < model_.adapted_size; ++i) w.lambda[i] += w.anchor[i];
    }
    static_cast<T*>(r_->task_losses)[t] = static_cast<T>(task_loss);
    if (r_->own_weights && r_->grad_weights) {
      T* to = static_cast<T*>(r_->grad_weights) + t * p_.param_total;
      if (!meta) std::fill(to, to + p_.param_total, T(0));
      else
        for (const auto& param : model_.params) param.unpack(w.lambda, to);
    }
    if (!sum_.total.empty() || !sum_.total_doubles.empty())
      sum_.add(t, meta ? w.lambda + skip_values_ : nullptr, w.sums);
  }

  Pass<T> steady_support(Worker<T>& w, int64_t t, Team& team) const {
    Pass<T> p = pass(w, w.slots[0], w.support, t, 0, team);
    p.stats = stats_row(0);
    p.w = w.origin;
    return p;
  }

  // The support pass at θ_k, with the examples of that step in place.
  Pass<T> support_pass(Worker<T>& w, Tables<T>& tables, int64_t t, int64_t k, Team& team, bool load = true) const {
    if (s_.batches && load) {
      const int64_t B = s_.support;
      w.load(r_->support, t, r_->batches + ((r_->own_batches ? t * s_.steps : 0) + k) * B, B, w.support);
    }
    Pass<T> p = pass(w, tables, w.support, t, static_cast<uint64_t>(k), team);
    p.stats = stats_row(k);
    p.w = k == 0 ? w.origin : w.theta[k];
    return p;
  }

  const T* rates(int64_t k, const RuleSpan& span) const {
    const int64_t row = s_.rate_rows > 1 ? k : 0;
    return elementwise_ ? packed_rates_.data() + row * model_.adapted_size + span.begin
                        : packed_rates_.data() + row * s_.rate_columns + span.rate;
  }

  void update(Worker<T>& w, const RuleStep<T>& step, int64_t k) const {
    const auto at = [](T* x, int64_t i) { return x ? x + i : nullptr; };
    for (const RuleSpan& span : spans_) {
      const int64_t i = span.begin;
      RuleVectors<T> a{};
      a.theta = (k == 0 ? w.origin : w.theta[k]) + i;
      a.start = w.origin + i;
      a.g = w.g + i;
      a.next = w.theta[k + 1] + i;
      a.m_before = k ? at(w.m[k - 1], i) : nullptr;
      a.v_before = k ? at(w.v[k - 1], i) : nullptr;
      a.d = at(w.d[k], i);
      a.m = at(w.m[k], i);
      a.v = at(w.v[k], i);
      rule_forward(step, a, rates(k, span), elementwise_, span.size);
    }
  }

  void update_backward(Worker<T>& w, const RuleStep<T>& step, int64_t k, bool last) const {
    const auto at = [](T* x, int64_t i) { return x ? x + i : nullptr; };
    const int64_t row = s_.rate_rows > 1 ? k : 0;
    for (const RuleSpan& span : spans_) {
      const int64_t i = span.begin;
      RuleCotangents<T> a{};
      a.lambda = w.lambda + i;
      a.u = w.u + i;
      a.mu = at(w.mu, i);
      a.nu = at(w.nu, i);
      a.d = at(w.d[k], i);
      a.m = at(w.m[k], i);
      a.v = at(w.v[k], i);
      a.start = s_.anchored ? w.anchor + i : nullptr;
      a.grad_rate = rate_elements_ ? w.rate_elements + row * model_.adapted_size + i : nullptr;
      const double sum = rule_backward(step, a, rates(k, span), elementwise_, s_.grad_rates != 0, last, span.size);
      if (rate_sums_) w.sums[row * s_.rate_columns + span.rate] += sum;
    }
  }
};

}  // namespace MF_ISA
}  // namespace mf
