// Runs a program over tasks: K steps of adaptation, the losses, and the meta-gradient by the backward recursion over
// steps. metafast/ops/inner_loop.py has the formulas.
//
// One thread takes one task through everything, in memory of its own; with fewer tasks than threads, all threads share
// each layer of one task after the other. Sums over tasks are added in the order of the tasks, whoever computed them.
#pragma once

#include <atomic>
#include <cmath>
#include <condition_variable>
#include <exception>
#include <map>
#include <mutex>
#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include "layers/engine_worker.h"

namespace mf {
inline namespace MF_ISA {

// Denormals are zero inside a call, as on a GPU: they make every multiplication a hundred times slower.
class NoDenormals {
 public:
#if defined(__x86_64__)
  NoDenormals() : saved_(_mm_getcsr()) { _mm_setcsr(saved_ | 0x8040); }
  ~NoDenormals() { _mm_setcsr(saved_); }

 private:
  unsigned saved_;
#elif defined(__aarch64__)
  NoDenormals() {
    asm volatile("mrs %0, fpcr" : "=r"(saved_));
    asm volatile("msr fpcr, %0" ::"r"(saved_ | (1ull << 24)));
  }
  ~NoDenormals() { asm volatile("msr fpcr, %0" ::"r"(saved_)); }

 private:
  uint64_t saved_;
#endif
};

// Adds vectors of tasks in the order of the tasks. A task that is early leaves its vector here.
template <class T>
class OrderedSum {
 public:
  void begin(int64_t size, int64_t doubles, int64_t first) {
    total.assign(size, T(0));
    total_doubles.assign(doubles, 0.0);
    next_ = first;
    waiting_.clear();
    stopped_ = false;
  }

  // Null vectors stand for zeros.
  void add(int64_t task, const T* values, const double* doubles) {
    std::unique_lock lock(mutex_);
    if (task != next_) {
      // The task that everybody waits for is in some thread's hands, so this ends; kMost bounds the memory.
      turn_.wait(lock, [&] { return task == next_ || waiting_.size() < kMost || stopped_; });
      if (task != next_) {
        Early& early = waiting_[task];
        if (values) early.values.assign(values, values + total.size());
        early.doubles.assign(doubles, doubles + total_doubles.size());
        return;
      }
    }
    accumulate(values, doubles);
    for (auto it = waiting_.begin(); it != waiting_.end() && it->first == next_; it = waiting_.erase(it))
      accumulate(it->second.values.empty() ? nullptr : it->second.values.data(), it->second.doubles.data());
    turn_.notify_all();
  }

  void stop() {
    const std::lock_guard lock(mutex_);
    stopped_ = true;
    turn_.notify_all();
  }

  std::vector<T> total;
  std::vector<double> total_doubles;

 private:
  static constexpr size_t kMost = 64;
  struct Early {
    std::vector<T> values;
    std::vector<double> doubles;
  };

  void accumulate(const T* values, const double* doubles) {
    T* to = total.data();
    if (values) {
#pragma omp simd
      for (size_t i = 0; i < total.size(); ++i) to[i] += values[i];
    }
    for (size_t i = 0; i < total_doubles.size(); ++i) total_doubles[i] += doubles[i];
    ++next_;
  }

  std::mutex mutex_;
  std::condition_variable turn_;
  std::map<int64_t, Early> waiting_;
  int64_t next_ = 0;
  bool stopped_ = false;
};

template <class T>
class Engine final : public AnyEngine {
 public:
  Engine(const Program& program, const EngineSettings& settings)
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
    choose_history();
    spans();
  }

  int64_t bytes() const override {
    int64_t total = 0;
    for (const auto& worker : workers_)
      if (worker) total += worker->arena.bytes();
    return total;
  }

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
    if (error_) std::rethrow_exception(error_);
    finish(request);
  }

 private:
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

  const T* choose_start(Worker<T>& w, int64_t t) const {
    if (!r_->own_weights) return shared_start_.data();
    for (const auto& q : model_.params) q.pack(static_cast<const T*>(r_->weights) + t * p_.param_total, w.start);
    return w.start;
  }

  const Program p_;
  const EngineSettings s_;
  const bool meta_;
  bool elementwise_ = false;
  const Model<T> model_, query_model_;  // the same program for as many examples as each side has
  const Plan<T> plan_, query_plan_;
  History history_;
  std::vector<RuleSpan> spans_;
  CrossEntropy<T> cross_entropy_;
  MeanSquaredError<T> squared_;

  std::mutex mutex_, error_mutex_;  // one call at a time
  std::exception_ptr error_;
  std::vector<std::unique_ptr<Worker<T>>> workers_;
  const EngineRequest* r_ = nullptr;
  std::vector<T> shared_start_, packed_rates_, packed_stats_, pack_space_;
  int64_t rate_elements_ = 0, rate_sums_ = 0, stats_sums_ = 0, skip_values_ = 0, counted_tasks_ = 0;
  OrderedSum<T> sum_;
  std::atomic<int64_t> next_task_{0};

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

  void zero_rows(const ExampleSet& set, int64_t t) const {
    const int64_t size = set.count * p_.values[0].numel();
    T* to = static_cast<T*>(set.grad_x) + t * size;
    std::fill(to, to + size, T(0));
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
