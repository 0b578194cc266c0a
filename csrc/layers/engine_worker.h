// One thread's memory, and the passes over one task's examples in it.
#pragma once

#include <limits>

#include "layers/engine_plan.h"
#include "layers/inner_rule.h"
#include "layers/loss.h"

namespace mf {
inline namespace MF_ISA {

constexpr uint64_t kQueryStep = 1'000'000;  // dropout at θ_k in a query pass counts as step kQueryStep + k

// The examples of one side of one task: compacted to the valid ones, in the model's input layout.
template <class T>
struct Examples {
  T* x = nullptr;  // input map, or null for tokens
  int64_t* tokens = nullptr;
  int64_t* labels = nullptr;
  T* targets = nullptr;
  int64_t* rows = nullptr;  // position of each in the task's original order
  int64_t n = 0;
};

// Pointers by value and by node for one kind of pass.
template <class T>
struct Tables {
  std::vector<T*> x, dx, xt, dxt, aux;
  std::vector<uint8_t*> bytes;
};

// How far the recursion needs what earlier steps saw; see Engine.
struct History {
  bool theta = false, d = false, m = false, v = false;  // one for each step instead of one
  int64_t slots = 1;
};

template <class T>
class Worker {
 public:
  Worker(const Program& p, const EngineSettings& s, const Model<T>& m, const Plan<T>& support_plan,
         const Plan<T>& query_plan, const History& h)
      : Worker(p, s, m, support_plan, query_plan) {
    place(h, nullptr);
    arena.allocate(used_);
    place(h, arena.data());
  }

  Arena arena;
  Examples<T> support, query;
  std::vector<Tables<T>> slots;  // of support passes
  Tables<T> at_query;
  std::vector<T*> theta, d, m, v;  // by step; several steps may name the same memory
  T *start = nullptr, *g = nullptr, *u = nullptr, *mu = nullptr, *nu = nullptr, *anchor = nullptr, *scratch = nullptr;
  const T* origin = nullptr;  // θ_0 of the task in hand
  T* lambda = nullptr;        // then the gradient of elementwise rates
  T* rate_elements = nullptr;
  double* sums = nullptr;  // gradients of shared rates, then batch statistics

  static int64_t bytes(const Program& p, const EngineSettings& s, const Model<T>& m, const Plan<T>& support_plan,
                       const Plan<T>& query_plan, const History& h) {
    Worker w(p, s, m, support_plan, query_plan);
    w.place(h, nullptr);
    return w.used_;
  }

  int64_t rate_element_count() const { return s_.grad_rates && elementwise() ? s_.rate_rows * m_.adapted_size : 0; }
  int64_t rate_sum_count() const { return s_.grad_rates && !elementwise() ? s_.rate_rows * s_.rate_columns : 0; }
  int64_t stats_count() const { return (s_.steps + 1) * p_.stats_total; }
  bool elementwise() const { return s_.rate_columns > 1 && s_.rate_columns != static_cast<int64_t>(p_.params.size()); }

  // Copies rows of [count, c, h, w] into the input map; `index` (null: all) and `mask` choose them.
  void load(const ExampleSet& set, int64_t t, const int64_t* index, int64_t count, Examples<T>& to) const {
    to.n = 0;
    for (int64_t i = 0; i < count; ++i) {
      const int64_t row = index ? index[i] : i;
      if (set.mask && !set.mask[t * set.count + row]) continue;
      to.rows[to.n++] = row;
    }
    const ValueInfo& in = p_.values[0];
    const Map& map = m_.maps[0];
    for (int64_t i = 0; i < to.n; ++i) {
      const int64_t row = t * set.count + to.rows[i];
      if (p_.tokens) {
        const auto* from = static_cast<const int64_t*>(set.x) + row * s_.token_length;
        std::copy(from, from + s_.token_length, to.tokens + i * s_.token_length);
      } else {
        transpose(static_cast<const T*>(set.x) + row * in.numel(), in, map, to.x + i * map.image());
      }
      if (p_.loss == LossKind::cross_entropy) {
        to.labels[i] = static_cast<const int64_t*>(set.y)[row];
      } else {
        const int64_t width = p_.classes();
        const T* from = static_cast<const T*>(set.y) + row * width;
        std::copy(from, from + width, to.targets + i * width);
      }
    }
  }

  // Adds the input's cotangent to the caller's [count, c, h, w], and begins anew.
  void flush_input_grad(const Tables<T>& tables, const Examples<T>& examples, const ExampleSet& set, int64_t t) const {
    const Map& map = m_.cotangent_maps[0];
    const ValueInfo& in = p_.values[0];
    T* from = tables.dx[0];
    if (set.grad_x) {
      for (int64_t i = 0; i < examples.n; ++i) {
        T* to = static_cast<T*>(set.grad_x) + (t * set.count + examples.rows[i]) * in.numel();
        for (int64_t k = 0; k < in.c; ++k)
          for (int64_t y = 0; y < in.h; ++y)
            for (int64_t x = 0; x < in.w; ++x) *to++ += from[map.at(i, y, x) + k];
      }
    }
    std::fill(from, from + examples.n * map.image(), T(0));
  }

 private:
  Worker(const Program& p, const EngineSettings& s, const Model<T>& m, const Plan<T>& support_plan,
         const Plan<T>& query_plan)
      : p_(p), s_(s), m_(m), support_plan_(support_plan), query_plan_(query_plan) {}

  template <class E>
  E* take(int64_t count, char* base) {
    const int64_t at = used_;
    used_ += aligned(count * static_cast<int64_t>(sizeof(E)));
    return base ? reinterpret_cast<E*>(base + at) : nullptr;
  }

  // Called twice: without memory, to count, and with it.
  void place(const History& h, char* base) {
    used_ = 0;
    const bool meta = wants_meta(s_);
    const int64_t PA = m_.adapted_size, PP = m_.packed_size, K = s_.steps;
    start = take<T>(PP, base);
    const auto steps = [&](bool each, std::vector<T*>& to, int64_t count, bool any) {
      to.assign(count, nullptr);
      if (!any) return;
      T* one = nullptr;
      for (int64_t k = 0; k < count; ++k) to[k] = each || k == 0 ? (one = take<T>(PA, base)) : one;
    };
    steps(h.theta, theta, K + 1, s_.mode == EngineMode::inner_loop);
    const auto rule = static_cast<InnerRule>(s_.rule);
    steps(h.d, d, K, h.d);
    steps(h.m, m, K, rule != InnerRule::sgd);
    steps(h.v, v, K, rule == InnerRule::adam);
    g = take<T>(PA, base);
    if (meta) {
      u = take<T>(PA, base);
      if (rule != InnerRule::sgd) mu = take<T>(PA, base);
      if (rule == InnerRule::adam) nu = take<T>(PA, base);
      anchor = take<T>(s_.anchored ? PA : 0, base);
    }
    lambda = take<T>(meta ? PP + rate_element_count() : 0, base);
    rate_elements = lambda ? lambda + PP : nullptr;
    sums = take<double>(rate_sum_count() + stats_count(), base);
    examples(support, s_.support, base);
    examples(query, s_.query, base);
    scratch = take<T>(std::max(support_plan_.scratch, query_plan_.scratch), base);

    Tables<T> tables;
    tables.x.resize(p_.values.size());
    tables.dx = tables.xt = tables.dxt = tables.x;
    tables.aux.resize(m_.nodes.size() + 1);
    tables.bytes.resize(m_.nodes.size());
    slots.assign(h.slots, tables);
    at_query = tables;
    char* prefix = take<char>(support_plan_.prefix_layout.total, base);
    for (Tables<T>& slot : slots) {
      fill(support_plan_.prefix_layout, prefix, slot);
      slot.x[0] = support.x;
    }
    prefix = take<char>(query_plan_.prefix_layout.total, base);
    fill(query_plan_.prefix_layout, prefix, at_query);
    at_query.x[0] = query.x;

    const bool own = support_plan_.own_memory;
    if (own)
      for (Tables<T>& slot : slots) fill(support_plan_.pass, take<char>(support_plan_.pass.total, base), slot);
    char* region = take<char>(
        std::max({own ? int64_t{0} : support_plan_.pass.total, query_plan_.pass.total, support_plan_.tangents.total}),
        base);
    fill(query_plan_.pass, region, at_query);
    for (Tables<T>& slot : slots) {
      if (!own) fill(support_plan_.pass, region, slot);
      slot.dxt = slot.dx;  // where cotangents of what the prefix made add up
      pointers(support_plan_.tangents.x, region, slot.xt);
      pointers(support_plan_.tangents.dx, region, slot.dxt);
      pointers(support_plan_.passing_dx, region, slot.dx);
    }
  }

  void examples(Examples<T>& e, int64_t n, char* base) {
    if (p_.tokens) e.tokens = take<int64_t>(n * s_.token_length, base);
    else e.x = take<T>(n * m_.maps[0].image(), base);
    e.labels = take<int64_t>(n, base);
    if (p_.loss == LossKind::mse) e.targets = take<T>(n * p_.classes(), base);
    e.rows = take<int64_t>(n, base);
  }

  template <class E>
  static void pointers(const std::vector<int64_t>& offsets, char* base, std::vector<E*>& to) {
    if (!base) return;
    for (size_t i = 0; i < offsets.size(); ++i)
      if (offsets[i] >= 0) to[i] = reinterpret_cast<E*>(base + offsets[i]);
  }

  static void fill(const Layout& l, char* base, Tables<T>& t) {
    pointers(l.x, base, t.x);
    pointers(l.dx, base, t.dx);
    pointers(l.aux, base, t.aux);
    pointers(l.bytes, base, t.bytes);
  }

  static void transpose(const T* from, const ValueInfo& in, const Map& map, T* to) {
    if (in.h == 1 && in.w == 1) {
      std::copy(from, from + in.c, to + map.at(0, 0, 0));
      return;
    }
    for (int64_t k = 0; k < in.c; ++k)
      for (int64_t y = 0; y < in.h; ++y) {
        T* row = to + map.at(0, y, 0) + k;
        for (int64_t x = 0; x < in.w; ++x) row[x * map.cp] = *from++;
      }
  }

  const Program& p_;
  const EngineSettings& s_;
  const Model<T>& m_;
  const Plan<T>&support_plan_, &query_plan_;
  int64_t used_ = 0;
};

}  // namespace MF_ISA
}  // namespace mf
