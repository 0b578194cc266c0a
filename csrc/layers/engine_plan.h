// What runs in which order in each kind of pass, and where every buffer of a pass lies.
//
// A pass is one of
//   inner      the support loss at θ_k and its gradient with respect to the adapted parameters
//   again      the same without parameter gradients: only what the Hessian-vector product reads
//   query      the query loss and its gradient with respect to every wanted parameter
//   hvp        the directional derivative of `inner` along a tangent of θ_k
//   prefix     the nodes before the first adapted parameter: forward once per task, backward once at the end
#pragma once

#include "layers/arena.h"
#include "layers/engine_build.h"
#include "layers/engine_request.h"

namespace mf {
inline namespace MF_ISA {

// One node in one pass.
template <class T>
struct Visit {
  const Node<T>* node = nullptr;
  Want want;
  bool moves = false;                       // its output depends on θ
  bool clear_out = false;                   // forward: the border may hold what was there before
  bool clear_x0 = false, clear_x1 = false;  // backward: likewise, of the cotangents that it begins
};

// Offsets in bytes from the start of a region; -1: not in this pass.
struct Layout {
  std::vector<int64_t> x, dx, aux, bytes;
  int64_t total = 0;
};

template <class T>
struct Plan {
  std::vector<Visit<T>> prefix, body, tangent;                  // forward
  std::vector<Visit<T>> inner, again, query, hvp, prefix_back;  // backward, in the order in which they run
  std::vector<int> boundary;  // values that the body takes from the prefix (or the input) and that want a cotangent
  bool loss_moves = false;    // the loss depends on adapted parameters at all

  Layout prefix_layout, pass, tangents;  // of the prefix; of a forward and backward pass; of ẋ and dẋ
  std::vector<int64_t> passing_dx;  // where `tangents` has room for cotangents that are not kept; both passes use it
  bool own_memory = false;          // `pass` shares no memory among its buffers
  int64_t scratch = 0;              // elements
};

enum class Side { support, query };

inline bool wants_meta(const EngineSettings& s) {
  return s.mode != EngineMode::inner_loop ||
         (s.order > 0 && (s.grad_weights || s.grad_rates || s.grad_support_x || s.grad_query_x));
}
inline bool is_second_order(const EngineSettings& s) {
  return s.mode == EngineMode::hvp || (s.mode == EngineMode::inner_loop && s.order == 2 && wants_meta(s));
}

template <class T>
class Planner {
 public:
  Planner(const Model<T>& m, const Program& p, const EngineSettings& s, Side side, int64_t loss_aux)
      : m_(m), p_(p), s_(s), side_(side), loss_aux_(loss_aux), meta_(wants_meta(s)) {
    split();
  }

  Plan<T> plan() {
    plan_.loss_moves = m_.depends[p_.logits];
    backward(body_, plan_.inner, Kind::inner);
    backward(body_, plan_.again, Kind::again);
    backward(body_, plan_.query, Kind::meta);
    backward(body_, plan_.hvp, Kind::meta);
    backward(prefix_, plan_.prefix_back, Kind::prefix);
    for (const int i : prefix_) plan_.prefix.push_back(visit(i));
    for (const int i : body_) {
      plan_.body.push_back(visit(i));
      if (m_.depends[m_.nodes[i]->out]) plan_.tangent.push_back(visit(i));
    }
    const bool second = is_second_order(s_);
    passing_.assign(p_.values.size(), false);
    if (side_ == Side::support) {
      plan_.own_memory = second;
      if (second)
        for (auto* visits : {&plan_.inner, &plan_.again, &plan_.hvp})
          for (Visit<T>& v : *visits) {
            const int in = v.node->in0;
            v.want.x0_passes = v.node->writes_dx_again && v.moves && v.want.x0 && m_.depends[in] && !in_prefix_[in];
            passing_[in] = passing_[in] || v.want.x0_passes;
          }
      plan_.pass = lay_out(s_.support, plan_.inner, !second);
      plan_.prefix_layout = lay_out_prefix(s_.support);
      if (second) plan_.tangents = lay_out_tangents(s_.support);
    } else {
      plan_.pass = lay_out(s_.query, meta_ ? plan_.query : std::vector<Visit<T>>{}, true);
      plan_.prefix_layout = lay_out_prefix(s_.query);
    }
    mark_clears();
    for (const auto& node : m_.nodes) plan_.scratch = std::max(plan_.scratch, node->scratch_size());
    return std::move(plan_);
  }

 private:
  enum class Kind { inner, again, meta, prefix };

  // The prefix is what no adapted parameter moves, unless each step has other data, masks or statistics.
  void split() {
    bool steady = s_.batches == 0;
    for (const auto& node : m_.nodes) {
      if (m_.depends[node->out]) continue;
      if (node->is_random() || (s_.stats_rows > 1 && node->stats_at() >= 0 && !node->has_batch_stats())) steady = false;
    }
    in_prefix_.assign(p_.values.size(), false);
    in_prefix_[0] = true;
    for (size_t i = 0; i < m_.nodes.size(); ++i) {
      const int out = m_.nodes[i]->out;
      const bool fixed = steady && !m_.depends[out] && out != p_.logits;
      (fixed ? prefix_ : body_).push_back(static_cast<int>(i));
      if (fixed) in_prefix_[out] = true;
    }
    std::vector<bool> seen(p_.values.size(), false);
    const auto meet = [&](int v) {
      if (v < 0 || seen[v] || !in_prefix_[v] || !m_.upstream_param[v]) return;
      seen[v] = true;
      plan_.boundary.push_back(v);
    };
    for (const int i : body_) meet(m_.nodes[i]->in0), meet(m_.nodes[i]->in1);
    if (m_.upstream_param[0] && !seen[0]) {  // the caller reads the input's cotangent where it always is
      seen[0] = true;
      plan_.boundary.push_back(0);
    }
    is_boundary_ = seen;
  }

  Visit<T> visit(int i) const {
    Visit<T> v;
    v.node = m_.nodes[i].get();
    v.moves = m_.depends[v.node->out];
    return v;
  }

  void backward(const std::vector<int>& nodes, std::vector<Visit<T>>& visits, Kind kind) {
    std::vector<bool> met(p_.values.size(), false), met_param(p_.params.size(), false);
    for (const int v : plan_.boundary) met[v] = true;
    const bool meta = kind == Kind::meta || kind == Kind::prefix;
    const auto wanted = [&](int v) { return v >= 0 && (meta ? m_.upstream_param[v] : m_.depends[v]); };
    const auto wanted_param = [&](int k) {
      if (k < 0 || kind == Kind::again) return false;
      return meta ? (s_.grad_weights || m_.params[k].slot.adapted) : m_.params[k].slot.adapted;
    };
    for (size_t j = nodes.size(); j-- > 0;) {
      Visit<T> v = visit(nodes[j]);
      const Node<T>& node = *v.node;
      if (!wanted(node.out)) continue;
      v.want.w = wanted_param(node.weight_param);
      v.want.b = wanted_param(node.bias_param);
      v.want.gamma = wanted_param(node.gamma_param);
      v.want.beta = wanted_param(node.beta_param);
      v.want.x0 = wanted(node.in0);
      v.want.x1 = wanted(node.in1);
      const auto meet = [&](int value, bool want, bool& add) {
        if (!want) return;
        add = met[value];
        met[value] = true;
      };
      meet(node.in0, v.want.x0, v.want.add_x0);
      meet(node.in1, v.want.x1, v.want.add_x1);
      // Of the gradient of one step the first writer sets; whatever is shared, and λ always, is added to.
      v.want.add_params = meta || m_.shared_params;
      if (v.want.w || v.want.b || v.want.gamma || v.want.beta || v.want.x0 || v.want.x1 ||
          (kind == Kind::again && node.aux_size() > 0))
        visits.push_back(v);
    }
  }

  int64_t value_bytes(const std::vector<Map>& maps, int v, int64_t n) const {
    return n * maps[v].image() * static_cast<int64_t>(sizeof(T));
  }

  // Buffers of a forward pass over the body and the backward pass `back`. Times: node j runs at j, the loss at N, and
  // the backward visit of node j at 2N - j.
  Layout lay_out(int64_t n, const std::vector<Visit<T>>& back, bool reuse) {
    const int N = static_cast<int>(body_.size());
    Layout l = empty_layout();
    Lifetimes life;
    std::vector<int> order(m_.nodes.size(), -1);
    for (int j = 0; j < N; ++j) order[body_[j]] = j;
    std::vector<const Visit<T>*> back_of(m_.nodes.size(), nullptr);
    for (const Visit<T>& v : back) back_of[v.node->index] = &v;
    std::vector<int64_t> first(p_.values.size(), -1), last(p_.values.size(), -1);
    std::vector<int64_t> dfirst(p_.values.size(), -1), dlast(p_.values.size(), -1);
    last[p_.logits] = first[p_.logits] = 2 * N;  // the caller reads them after the pass
    for (int j = 0; j < N; ++j) {
      const Node<T>& node = *m_.nodes[body_[j]];
      first[node.out] = j;
      last[node.out] = std::max<int64_t>(last[node.out], j);
      const bool again = back_of[node.index] != nullptr && node.backward_reads_x;
      for (const int v : {node.in0, node.in1})
        if (v >= 0) last[v] = std::max<int64_t>(last[v], again ? 2 * N - j : j);
      if (node.kept >= 0) first[node.kept] = j, last[node.kept] = again ? 2 * N - j : j;
    }
    if (!back.empty()) dfirst[p_.logits] = N;
    for (const Visit<T>& v : back) {
      const int64_t time = 2 * N - order[v.node->index];
      dlast[v.node->out] = time;
      for (const auto& [value, want] : {std::pair{v.node->in0, v.want.x0}, std::pair{v.node->in1, v.want.x1}})
        if (want && dfirst[value] < 0) dfirst[value] = time;
    }
    std::vector<int> xs(p_.values.size(), -1), ds(p_.values.size(), -1);
    for (size_t v = 0; v < p_.values.size(); ++v) {
      const int value = static_cast<int>(v);
      if (in_prefix_[v] || !m_.live[v]) continue;
      if (first[v] >= 0) xs[v] = life.add(value_bytes(m_.maps, value, n), first[v], last[v]);
      if (dfirst[v] >= 0)
        ds[v] = life.add(value_bytes(m_.cotangent_maps, value, n), dfirst[v], std::max(dfirst[v], dlast[v]));
    }
    std::vector<int> as(m_.nodes.size() + 1, -1), bs(m_.nodes.size(), -1);
    for (int j = 0; j < N; ++j) {
      const Node<T>& node = *m_.nodes[body_[j]];
      const int64_t until = back_of[node.index] ? 2 * N - j : (node.has_batch_stats() ? 2 * N : j);
      if (node.aux_size()) as[node.index] = life.add(node.aux_size() * sizeof(T), j, std::max<int64_t>(until, 2 * N));
      if (node.byte_size()) bs[node.index] = life.add(node.byte_size(), j, until);
    }
    as[m_.nodes.size()] = life.add(loss_aux_ * n * static_cast<int64_t>(sizeof(T)), N, 2 * N);
    life.place(reuse);
    fill(l.x, xs, life), fill(l.dx, ds, life), fill(l.aux, as, life), fill(l.bytes, bs, life);
    l.total = life.total();
    return l;
  }

  // ẋ and dẋ of the Hessian-vector product, with the same times.
  Layout lay_out_tangents(int64_t n) {
    const int N = static_cast<int>(body_.size());
    Layout l = empty_layout();
    Lifetimes life;
    std::vector<int> order(m_.nodes.size(), -1);
    for (int j = 0; j < N; ++j) order[body_[j]] = j;
    std::vector<int64_t> first(p_.values.size(), -1), last(p_.values.size(), -1);
    std::vector<int64_t> dfirst(p_.values.size(), -1), dlast(p_.values.size(), -1);
    for (const Visit<T>& v : plan_.tangent) {
      const int j = order[v.node->index];
      first[v.node->out] = j;
      last[v.node->out] = std::max<int64_t>(last[v.node->out], j);
      for (const int in : {v.node->in0, v.node->in1})
        if (in >= 0) last[in] = std::max<int64_t>(last[in], v.node->tangent_reads_x ? 2 * N - j : j);
      if (v.node->kept >= 0) first[v.node->kept] = j, last[v.node->kept] = 2 * N - j;
    }
    last[p_.logits] = std::max<int64_t>(last[p_.logits], N);
    dfirst[p_.logits] = N;
    for (const Visit<T>& v : plan_.hvp) {
      const int64_t time = 2 * N - order[v.node->index];
      dlast[v.node->out] = time;
      for (const auto& [value, want] : {std::pair{v.node->in0, v.want.x0}, std::pair{v.node->in1, v.want.x1}})
        if (want && dfirst[value] < 0) dfirst[value] = time;
    }
    std::vector<int> xs(p_.values.size(), -1), ds(p_.values.size(), -1), again(p_.values.size(), -1);
    for (size_t v = 0; v < p_.values.size(); ++v) {
      const int value = static_cast<int>(v);
      if (in_prefix_[v] || !m_.live[v]) continue;
      if (dfirst[v] >= 0 && passing_[v])
        again[v] = life.add(value_bytes(m_.cotangent_maps, value, n), dfirst[v], std::max(dfirst[v], dlast[v]));
      if (m_.depends[v] && first[v] >= 0) xs[v] = life.add(value_bytes(m_.maps, value, n), first[v], last[v]);
      if (dfirst[v] >= 0)
        ds[v] = life.add(value_bytes(m_.cotangent_maps, value, n), dfirst[v], std::max(dfirst[v], dlast[v]));
    }
    life.place(true);
    fill(l.x, xs, life), fill(l.dx, ds, life);
    plan_.passing_dx.assign(p_.values.size(), -1);
    fill(plan_.passing_dx, again, life);
    l.total = life.total();
    return l;
  }

  // The prefix keeps what its one backward pass reads until then, and what the body reads for the whole task.
  Layout lay_out_prefix(int64_t n) {
    const int N = static_cast<int>(prefix_.size());
    Layout l = empty_layout();
    Lifetimes life;
    std::vector<const Visit<T>*> back_of(m_.nodes.size(), nullptr);
    if (meta_)
      for (const Visit<T>& v : plan_.prefix_back) back_of[v.node->index] = &v;
    std::vector<int64_t> first(p_.values.size(), -1), last(p_.values.size(), -1);
    std::vector<int64_t> dfirst(p_.values.size(), -1), dlast(p_.values.size(), -1);
    std::vector<bool> read(p_.values.size(), false);
    for (const int i : body_)
      for (const int v : {m_.nodes[i]->in0, m_.nodes[i]->in1})
        if (v >= 0) read[v] = true;
    for (int j = 0; j < N; ++j) {
      const Node<T>& node = *m_.nodes[prefix_[j]];
      const Visit<T>* back = back_of[node.index];
      first[node.out] = j;
      last[node.out] = std::max<int64_t>(last[node.out], read[node.out] ? 2 * N + 1 : j);
      for (const int v : {node.in0, node.in1})
        if (v >= 0) last[v] = std::max<int64_t>(last[v], back && node.backward_reads_x ? 2 * N - j : j);
      if (node.kept >= 0) first[node.kept] = j, last[node.kept] = back ? 2 * N - j : j;
      if (!back) continue;
      dlast[node.out] = 2 * N - j;
    }
    if (meta_)
      for (const Visit<T>& v : plan_.prefix_back) {
        const int64_t time = dlast[v.node->out];
        for (const auto& [value, want] : {std::pair{v.node->in0, v.want.x0}, std::pair{v.node->in1, v.want.x1}})
          if (want && dfirst[value] < 0) dfirst[value] = time;
      }
    std::vector<int> xs(p_.values.size(), -1), ds(p_.values.size(), -1);
    for (size_t v = 0; v < p_.values.size(); ++v) {
      const int value = static_cast<int>(v);
      if (v > 0 && first[v] >= 0) xs[v] = life.add(value_bytes(m_.maps, value, n), first[v], last[v]);
      if (meta_ && is_boundary_[v]) ds[v] = life.add(value_bytes(m_.cotangent_maps, value, n), 0, 2 * N + 1);
      else if (dfirst[v] >= 0)
        ds[v] = life.add(value_bytes(m_.cotangent_maps, value, n), dfirst[v], std::max(dfirst[v], dlast[v]));
    }
    std::vector<int> as(m_.nodes.size() + 1, -1), bs(m_.nodes.size(), -1);
    for (int j = 0; j < N; ++j) {
      const Node<T>& node = *m_.nodes[prefix_[j]];
      const int64_t until = back_of[node.index] || node.has_batch_stats() ? 2 * N - j : j;
      if (node.aux_size()) as[node.index] = life.add(node.aux_size() * sizeof(T), j, until);
      if (node.byte_size()) bs[node.index] = life.add(node.byte_size(), j, until);
    }
    life.place(true);
    fill(l.x, xs, life), fill(l.dx, ds, life), fill(l.aux, as, life), fill(l.bytes, bs, life);
    l.total = life.total();
    return l;
  }

  Layout empty_layout() const {
    Layout l;
    l.x.assign(p_.values.size(), -1);
    l.dx.assign(p_.values.size(), -1);
    l.aux.assign(m_.nodes.size() + 1, -1);
    l.bytes.assign(m_.nodes.size(), -1);
    return l;
  }

  static void fill(std::vector<int64_t>& offsets, const std::vector<int>& numbers, const Lifetimes& life) {
    for (size_t i = 0; i < numbers.size(); ++i)
      if (numbers[i] >= 0) offsets[i] = life.at(numbers[i]);
  }

  // Buffers that share memory begin with a clear border. Cotangents of the boundary have their own, and start at 0.
  void mark_clears() {
    const auto bordered = [](const Map& m) { return m.bh + m.bw > 0; };
    for (auto* visits : {&plan_.prefix, &plan_.body, &plan_.tangent})
      for (Visit<T>& v : *visits) v.clear_out = bordered(m_.maps[v.node->out]);
    for (auto* visits : {&plan_.inner, &plan_.again, &plan_.query, &plan_.hvp, &plan_.prefix_back})
      for (Visit<T>& v : *visits) {
        v.clear_x0 = v.want.x0 && !v.want.add_x0 && bordered(m_.cotangent_maps[v.node->in0]);
        v.clear_x1 = v.want.x1 && !v.want.add_x1 && bordered(m_.cotangent_maps[v.node->in1]);
      }
  }

  const Model<T>& m_;
  const Program& p_;
  const EngineSettings& s_;
  Side side_;
  int64_t loss_aux_;
  bool meta_ = false;
  std::vector<int> prefix_, body_;
  std::vector<bool> in_prefix_, is_boundary_, passing_;
  Plan<T> plan_;
};

template <class T>
void clear_border(const Map& m, T* x, int64_t n) {
  const int64_t row = m.row(), side = m.bw * m.cp;
  for (int64_t i = 0; i < n; ++i, x += m.image()) {
    std::fill(x, x + m.bh * row, T(0));
    std::fill(x + (m.bh + m.h) * row, x + m.image(), T(0));
    if (!side) continue;
    for (int64_t y = m.bh; y < m.bh + m.h; ++y) {
      std::fill(x + y * row, x + y * row + side, T(0));
      std::fill(x + (y + 1) * row - side, x + (y + 1) * row, T(0));
    }
  }
}

}  // namespace MF_ISA
}  // namespace mf
