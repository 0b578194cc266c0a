// The recursion over steps: all inner steps forward, then back from the query loss to the start. Launches only; nothing
// is read back, so that a call can be captured in a CUDA graph.
#pragma once

#include <algorithm>

#include "inner_loop.h"
#include "inner_loop_pass.h"

namespace mf::cuda {

template <class T, class Device>
class Engine {
 public:
  using PassOf = Pass<T, Device>;

  Engine(const Program& program, int64_t tasks, Device& device) : plan_(program), device_(device) {
    constexpr int64_t kMaxTasks = 65535 / kConvMaxSplits;  // of a launch's third dimension
    if (tasks > kMaxTasks)
      throw std::invalid_argument("a call holds " + std::to_string(tasks) + " tasks, the CUDA kernels take at most " +
                                  std::to_string(kMaxTasks) + "; split the meta-batch");
    shared_.tasks = static_cast<int>(tasks);
  }

 protected:
  void check_size(int64_t n) const {
    for (const ValueInfo& v : plan_.program.values)
      if (n * v.numel() >= (int64_t{1} << 31))
        throw std::invalid_argument("the maps of one task have " + std::to_string(n * v.numel()) +
                                    " elements, the CUDA kernels count to 2^31; use fewer examples for each task");
  }
  void pack(PerTask<const T> from, PerTask<T> to, int rows) {
    for (const ParamTable& t : plan_.tables) device_.each(PackParams<T>{t, from, to}, rows, t.end - t.start);
  }
  void unpack(PerTask<const T> a, PerTask<const T> b, T* to, const T* weights, bool sum) {
    const PerTask<T> out{to, sum ? 0 : plan_.program.param_total};
    for (const ParamTable& t : plan_.tables)
      device_.each(UnpackParams<T>{t, a, b, out, weights, sum ? shared_.tasks : 0}, sum ? 1 : shared_.tasks,
                   t.end - t.start);
  }
  void zero(T* p, int64_t count) { device_.zero(p, sizeof(T) * static_cast<size_t>(count)); }
  int64_t all_params() const { return int64_t{1} * shared_.tasks * plan_.packed; }
  PerTask<T> params(T* p) const { return {p, plan_.packed}; }
  int64_t split_room(int n, int terms) const {
    int64_t most = 0;
    for (size_t i = 0; i < plan_.conv.size(); ++i) {
      const Opcode op = plan_.instruction(i).op;
      if (op != Opcode::conv2d && op != Opcode::linear) continue;
      for (int k = 1; k <= terms; ++k) {
        const int splits = PassOf::splits_of(plan_.conv[i], shared_.tasks, n * k);
        if (splits > 1) most = std::max(most, int64_t{1} * splits * shared_.tasks * plan_.conv[i].weights());
      }
    }
    return most;
  }
  static std::vector<char> none(const std::vector<char>& like) { return std::vector<char>(like.size(), 0); }
  static std::vector<char> every(size_t count) { return std::vector<char>(count, 1); }

  Rows select(const Examples& e, const int64_t* batch, int64_t batch_task, int n, int* counts, int* order) {
    if (!e.mask && !batch) return {n, nullptr, nullptr};
    device_.each(SelectRows{e.mask, batch, batch_task, n, static_cast<int>(e.n), counts, order}, shared_.tasks, 1);
    return {n, counts, order};
  }

  Plan plan_;
  Device& device_;
  Shared<T> shared_;
};

template <class T, class Device>
class LoopEngine : Engine<T, Device> {
  using Base = Engine<T, Device>;
  using Base::plan_, Base::device_, Base::shared_;

 public:
  LoopEngine(const InnerLoopRequest& r, Device& device, const Place& place)
      : Base(*r.program, r.tasks, device), r_(r), steps_(static_cast<int>(r.steps)), backward_(r.order > 0) {
    this->check_size(std::max(r.support.n, std::max(r.query.n, r.batch)));
    clear_outputs();
    if (r.tasks == 0) return;
    shared_.classes = r.classes;
    shared_.seed = static_cast<uint64_t>(r.seed), shared_.first_task = static_cast<uint64_t>(r.first_task);
    adapted_ = plan_.reach(plan_.adapted(), false);
    all_ = plan_.reach(plan_.all_params(), r.grad_query_x != nullptr);
    second_ = plan_.reach(plan_.all_params(), r.grad_support_x != nullptr);
    n_ = static_cast<int>(r.batches ? r.batch : r.support.n);
    constant_ = prefix_is_constant();
    frontier_.assign(plan_.storage.size(), 0);
    slots_ = 1;
    if (backward_) slots_ = stored_steps();
    Carver measure;
    carve(measure);
    Carver carver(place.allocate(place.context, measure.used()));
    carve(carver);
    run();
  }

 private:
  struct Slot {  // what one support pass keeps
    PassMemory<T> memory;
    T* g;
  };

  // Layers before the first adapted one see the same examples and weights at every step: they run forward once, and
  // backward once with the sum of what the steps send them.
  bool prefix_is_constant() const {
    if (r_.batches || !adapted_.values[plan_.program.logits]) return false;
    bool any = false;
    for (size_t i = 0; i < plan_.program.instructions.size(); ++i) {
      const Instruction& in = plan_.instruction(i);
      if (adapted_.values[plan_.output(i)]) continue;
      any = true;
      if (in.op == Opcode::dropout || (in.op == Opcode::batch_norm && in.ints[0] == 1 && r_.stats_rows > 1))
        return false;
    }
    return any;
  }

  Slot take_slot(Carver& c) const {
    Slot s;
    const auto everything = Base::every(plan_.storage.size());
    if (slot_.empty()) s.memory = Base::PassOf::carve(plan_, c, shared_.tasks, n_, everything, adapted_.values, true);
    else if (r_.order == 1)  // needs no activations on the way back
      s.memory = slot_.front().memory;
    else
      s.memory = Base::PassOf::carve(plan_, c, shared_.tasks, n_, constant_ ? adapted_.values : everything,
                                     adapted_.values, true, constant_ ? &slot_.front().memory : nullptr);
    s.g = c.template take<T>(this->all_params());
    return s;
  }

  // How many steps' activations fit the budget, the last ones; the others are computed again on the way back.
  int stored_steps() const {
    if (r_.memory_budget < 0 || r_.order == 1) return std::max(steps_, 1);
    Carver one;
    take_slot(one);
    const int64_t fitting = r_.memory_budget / static_cast<int64_t>(std::max<size_t>(one.used(), 1));
    return static_cast<int>(std::clamp<int64_t>(fitting, 1, std::max(steps_, 1)));
  }

  void carve(Carver& c) {
    const int q = static_cast<int>(r_.query.n);
    const int64_t all = this->all_params(), packed = plan_.packed;
    const auto everything = Base::every(plan_.storage.size());
    task_weights_ = c.template take<T>(shared_.tasks);
    start_ = c.template take<T>(r_.weights_per_task ? all : packed);
    rates_ = c.template take<T>(r_.rate_rows * packed), mask_ = c.template take<T>(packed);
    thetas_.assign(steps_ + 1, nullptr), m_.assign(steps_ + 1, nullptr), v_.assign(steps_ + 1, nullptr);
    for (int k = 1; k <= steps_; ++k) {  // without a way back two of each are enough
      const bool again = !backward_ && k > 2;
      thetas_[k] = again ? thetas_[k - 2] : c.template take<T>(all);
      if (r_.rule >= 1) m_[k] = again ? m_[k - 2] : c.template take<T>(all);
      if (r_.rule == 2) v_[k] = again ? v_[k - 2] : c.template take<T>(all);
    }
    slot_.clear();
    for (int s = 0; s < slots_; ++s) slot_.push_back(take_slot(c));
    const size_t mark = c.used();  // a query pass and a directional derivative are never there at one time
    query_ = Base::PassOf::carve(plan_, c, shared_.tasks, q, everything,
                                 backward_ ? all_.values : Base::none(everything), true);
    const size_t end = c.used();
    if (backward_ && r_.order == 2) {
      if (!constant_) c.rewind(mark);  // else gradients of the constant layers grow from step to step
      tangents_ = Base::PassOf::carve(plan_, c, shared_.tasks, n_, adapted_.values, second_.values, false);
      c.advance_to(end);
    }
    if (backward_) {
      lambda_ = c.template take<T>(all), d_bar_ = c.template take<T>(all);
      bar_m_ = r_.rule >= 1 ? c.template take<T>(all) : nullptr;
      bar_v_ = r_.rule == 2 ? c.template take<T>(all) : nullptr;
      start_bar_ = r_.prox != 0 ? c.template take<T>(all) : nullptr;
      rate_sums_ = r_.grad_rates ? c.template take<T>(r_.rate_rows * packed) : nullptr;
    }
    shared_.splits = c.template take<T>(std::max(this->split_room(n_, 2), this->split_room(q, 1)));
    const int64_t sets = r_.batches ? steps_ : 1;
    counts_ = c.template take<int>((sets + 1) * shared_.tasks);
    order_ = c.template take<int>(sets * shared_.tasks * n_);
    query_order_ = c.template take<int>(int64_t{1} * shared_.tasks * q);
  }

  void clear_outputs() {
    const int64_t tasks = shared_.tasks, p = plan_.program.param_total;
    const auto clear = [&](void* to, int64_t count) {
      if (to) this->zero(static_cast<T*>(to), count);
    };
    clear(r_.task_losses, tasks);
    clear(r_.batch_stats, (steps_ + 1) * plan_.program.stats_total);
    clear(r_.grad_weights, r_.weights_per_task ? tasks * p : p);
    clear(r_.grad_rates, r_.rate_rows * r_.rate_width);
    const int64_t input = plan_.program.tokens ? 0 : plan_.value(0).numel();
    clear(r_.grad_support_x, tasks * r_.support.n * input);
    clear(r_.grad_query_x, tasks * r_.query.n * input);
    if (r_.query_losses)
      device_.each(Fill<T>{static_cast<T*>(r_.query_losses), static_cast<T>(NAN), 0, int(tasks * (steps_ + 1))}, 1,
                   tasks * (steps_ + 1));
  }

  PerTask<const T> theta(int k) const {
    return k == 0 ? PerTask<const T>{start_, r_.weights_per_task ? plan_.packed : 0}
                  : PerTask<const T>(this->params(thetas_[k]));
  }
  const T* stats(int k) const {
    return r_.stats ? static_cast<const T*>(r_.stats) + (r_.stats_rows > 1 ? k : 0) * plan_.program.stats_total
                    : nullptr;
  }
  const T* rate(int k) const { return rates_ + (r_.rate_rows > 1 ? k : 0) * plan_.packed; }
  // The last steps have slots of their own; the earlier ones take turns in the last slot.
  Slot& slot(int k) { return slot_[std::min(steps_ - 1 - k, slots_ - 1)]; }
  bool stored(int k) const { return steps_ - 1 - k < slots_; }

  StepData<T> step_data(int k) {
    InnerOptions<T> o{static_cast<InnerRule>(r_.rule),
                      T(r_.momentum),
                      T(r_.beta2),
                      T(r_.eps),
                      T(r_.weight_decay),
                      T(r_.prox),
                      T(1 - std::pow(r_.momentum, k + 1)),
                      T(1 - std::pow(r_.beta2, k + 1))};
    return {o, theta(k), theta(0), this->params(slot(k).g), this->params(m_[k + 1]), this->params(v_[k + 1]), rate(k)};
  }

  PassData<T> support_data(int k) const {
    const int set = r_.batches ? k : 0;
    const bool chosen = r_.batches || r_.support.mask;
    const Rows rows{n_, chosen ? counts_ + (set + 1) * shared_.tasks : nullptr,
                    chosen ? order_ + int64_t{1} * set * shared_.tasks * n_ : nullptr};
    return {rows, r_.support.x, r_.support.y, r_.support.n, theta(k), stats(k), static_cast<uint64_t>(k)};
  }

  // All layers, where none is constant.
  typename Base::PassOf::Part frozen() const { return {constant_ ? &adapted_ : nullptr, constant_}; }
  typename Base::PassOf::Part moving() const { return {constant_ ? &adapted_ : nullptr, false}; }

  typename Base::PassOf support_pass(int k) {
    return typename Base::PassOf(plan_, device_, shared_, support_data(k), slot(k).memory);
  }

  // The loss' gradient at θ_k; outputs only the first time.
  void support_gradient(int k, bool first) {
    auto pass = support_pass(k);
    T* const losses = first && r_.support_losses ? static_cast<T*>(r_.support_losses) + k : nullptr;
    if (!constant_ || (first && k == 0)) {
      pass.gather();
      pass.forward(frozen());
    }
    if (constant_) pass.forward(moving());
    pass.loss(losses, steps_, nullptr, T(0), T(1), nullptr);
    if (first && r_.batch_stats) pass.batch_stats(static_cast<T*>(r_.batch_stats) + k * plan_.program.stats_total);
    this->zero(slot(k).g, this->all_params());
    pass.backward(adapted_, this->params(slot(k).g));
  }

  void query(int k) {
    const double weight = r_.query_weights[k];
    const bool last = k == steps_;
    if (weight == 0 && !(last && (r_.logits || r_.batch_stats))) return;
    constexpr uint64_t kQueryStep = 1000000;
    const Rows rows{static_cast<int>(r_.query.n), r_.query.mask ? counts_ : nullptr,
                    r_.query.mask ? query_order_ : nullptr};
    const PassData<T> data{
        rows, r_.query.x, r_.query.y, r_.query.n, theta(k), stats(k), kQueryStep + static_cast<uint64_t>(k)};
    typename Base::PassOf pass(plan_, device_, shared_, data, query_);
    T* const losses = r_.query_losses ? static_cast<T*>(r_.query_losses) + k : nullptr;
    T* const total = weight != 0 ? static_cast<T*>(r_.task_losses) : nullptr;
    const bool back = backward_ && weight != 0;
    pass.gather();
    pass.forward();
    pass.loss(losses, steps_ + 1, total, T(weight), back ? T(weight) : T(0), shared_.task_weights);
    if (last && r_.logits) pass.scatter_logits(static_cast<T*>(r_.logits));
    if (last && r_.batch_stats) pass.batch_stats(static_cast<T*>(r_.batch_stats) + k * plan_.program.stats_total);
    if (!back) return;
    pass.backward(all_, this->params(lambda_));
    if (r_.grad_query_x) pass.scatter_input(query_, static_cast<T*>(r_.grad_query_x));
  }

  void step_back(int k) {
    if (!stored(k)) support_gradient(k, false);
    const StepData<T> data = step_data(k);
    const int packed = static_cast<int>(plan_.packed);
    if (rate_sums_)
      device_.each(RateSums<T>{data, this->params(lambda_), shared_.task_weights,
                               rate_sums_ + (r_.rate_rows > 1 ? k : 0) * plan_.packed, shared_.tasks, packed, mask_},
                   1, packed);
    device_.each(
        RuleBackward<T>{data, this->params(lambda_), this->params(d_bar_), this->params(bar_m_), this->params(bar_v_),
                        start_bar_ ? this->params(start_bar_) : PerTask<T>{}, packed, k == steps_ - 1},
        shared_.tasks, packed);
    if (r_.order != 2 || !adapted_.values[plan_.program.logits]) return;
    auto pass = support_pass(k);
    pass.tangent(adapted_, this->params(d_bar_), tangents_);
    pass.backward_tangent(second_, adapted_, this->params(d_bar_), tangents_, this->params(lambda_), moving(),
                          &frontier_);
    if (constant_) {
      for (size_t v = 0; v < frontier_.size(); ++v) frontier_[v] = pass.there()[v] && !adapted_.values[v];
      if (k > 0) return;
      PassMemory<T> memory = slot(0).memory;
      memory.grads = tangents_.grads;
      typename Base::PassOf rest(plan_, device_, shared_, support_data(0), memory);
      rest.backward(second_, this->params(lambda_), frozen(), &frontier_);
      if (r_.grad_support_x) rest.scatter_input(tangents_, static_cast<T*>(r_.grad_support_x));
    } else if (r_.grad_support_x) {
      pass.scatter_input(tangents_, static_cast<T*>(r_.grad_support_x));
    }
  }

  void run() {
    const int packed = static_cast<int>(plan_.packed);
    device_.each(TaskWeights<T>{r_.task_weights, task_weights_, shared_.tasks}, 1, shared_.tasks);
    shared_.task_weights = task_weights_;
    this->pack({static_cast<const T*>(r_.weights), plan_.program.param_total}, {start_, plan_.packed},
               r_.weights_per_task ? shared_.tasks : 1);
    for (const ParamTable& t : plan_.tables)
      device_.each(ExpandRates<T>{t, static_cast<const T*>(r_.rates), rates_, mask_, plan_.packed, r_.rate_width,
                                  static_cast<int>(plan_.program.params.size())},
                   static_cast<int>(r_.rate_rows), t.end - t.start);
    if (r_.query.mask) this->select(r_.query, nullptr, 0, static_cast<int>(r_.query.n), counts_, query_order_);
    for (int k = 0; k < (r_.batches ? steps_ : 1); ++k)
      this->select(r_.support, r_.batches ? r_.batches + k * r_.batch : nullptr,
                   r_.batches_per_task ? steps_ * r_.batch : 0, n_, counts_ + (k + 1) * shared_.tasks,
                   order_ + int64_t{1} * k * shared_.tasks * n_);

    for (int k = 0; k < steps_; ++k) {
      support_gradient(k, true);
      if (!backward_) query(k);
      device_.each(
          UpdateParams<T>{step_data(k), this->params(m_[k]), this->params(v_[k]), this->params(thetas_[k + 1]), packed},
          shared_.tasks, packed);
    }
    if (r_.adapted) {
      const PerTask<const T> last = theta(steps_);
      this->unpack(last, {}, static_cast<T*>(r_.adapted), nullptr, false);
    }
    if (!backward_) return query(steps_);

    this->zero(lambda_, this->all_params());
    if (start_bar_) this->zero(start_bar_, this->all_params());
    if (rate_sums_) this->zero(rate_sums_, r_.rate_rows * plan_.packed);
    query(steps_);
    for (int k = steps_ - 1; k >= 0; --k) {
      step_back(k);
      query(k);
    }
    if (r_.grad_weights)
      this->unpack(this->params(lambda_), start_bar_ ? this->params(start_bar_) : PerTask<T>{},
                   static_cast<T*>(r_.grad_weights), task_weights_, !r_.weights_per_task);
    if (rate_sums_) finish_rates();
  }

  void finish_rates() {
    T* const out = static_cast<T*>(r_.grad_rates);
    const int rows = static_cast<int>(r_.rate_rows);
    const auto params = static_cast<int64_t>(plan_.program.params.size());
    if (r_.rate_width == 1) {
      device_.template sums<1>(RateTotals<T>{rate_sums_, out, plan_.packed, 1, 0, static_cast<int>(plan_.packed), 0},
                               rows);
      return;
    }
    for (const ParamTable& t : plan_.tables) {
      if (r_.rate_width != params) {
        device_.each(UnpackRates<T>{t, rate_sums_, out, plan_.packed, r_.rate_width}, rows, t.end - t.start);
        continue;
      }
      for (int k = 0; k < t.count; ++k) {
        const int from = static_cast<int>(t.row[k].packed_offset), column = t.first + k;
        if (t.row[k].adapted)
          device_.template sums<1>(
              RateTotals<T>{rate_sums_, out, plan_.packed, r_.rate_width, from, from + t.row[k].numel(), column}, rows);
      }
    }
  }

  const InnerLoopRequest& r_;
  int steps_, n_ = 0, slots_ = 1;
  bool backward_, constant_ = false;  // constant_: the layers before the first adapted one are
  std::vector<char> frontier_;        // gradients of constant layers that have come so far
  Reach adapted_, all_, second_;
  std::vector<Slot> slot_;
  PassMemory<T> query_, tangents_;
  std::vector<T*> thetas_, m_, v_;
  T *start_, *rates_, *mask_, *task_weights_, *lambda_ = nullptr, *d_bar_ = nullptr, *bar_m_ = nullptr,
                                              *bar_v_ = nullptr;
  T *start_bar_ = nullptr, *rate_sums_ = nullptr;
  int *counts_, *order_, *query_order_;
};

}  // namespace mf::cuda
