// From a checked program to nodes: which values and parameters depend on what, how every map lies in memory, where
// every parameter lies in the packed vector.
#pragma once

#include <algorithm>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

#include "layers/engine_nodes.h"
#include "layers/program.h"

namespace mf {
inline namespace MF_ISA {

// How a parameter is laid out in the packed vector.
template <class T>
struct PackedParam {
  enum class Kind { conv, rows, map } kind = Kind::rows;
  Slot slot;
  int64_t size = 0;                 // elements in the packed vector
  int64_t torch_at = 0, numel = 0;  // in the flat vector
  int64_t rows = 1, columns = 0;    // rows: [rows][columns] to [rows][padded columns]
  int64_t c = 0, h = 0, w = 0;      // map: [c][h][w] to [h][w][padded c]
  const Conv2d<T>* conv = nullptr;

  // Padded lanes become 0.
  void pack(const T* torch, T* packed) const {
    const T* from = torch + torch_at;
    T* to = packed + slot.at;
    if (kind == Kind::conv) return conv->pack(from, to);
    std::fill(to, to + size, T(0));
    if (kind == Kind::rows) {
      const int64_t stride = size / rows;
      for (int64_t r = 0; r < rows; ++r) std::copy(from + r * columns, from + (r + 1) * columns, to + r * stride);
    } else {
      const int64_t cp = size / (h * w);
      for (int64_t k = 0; k < c; ++k)
        for (int64_t i = 0; i < h * w; ++i) to[i * cp + k] = from[k * h * w + i];
    }
  }
  void unpack(const T* packed, T* torch) const {
    const T* from = packed + slot.at;
    T* to = torch + torch_at;
    if (kind == Kind::conv) return conv->unpack(from, to);
    if (kind == Kind::rows) {
      const int64_t stride = size / rows;
      for (int64_t r = 0; r < rows; ++r) std::copy(from + r * stride, from + r * stride + columns, to + r * columns);
    } else {
      const int64_t cp = size / (h * w);
      for (int64_t k = 0; k < c; ++k)
        for (int64_t i = 0; i < h * w; ++i) to[k * h * w + i] = from[i * cp + k];
    }
  }
};

template <class T>
struct Model {
  std::vector<std::unique_ptr<Node<T>>> nodes;  // live ones, in order
  std::vector<Map> maps, cotangent_maps;        // by value; n is the most examples
  std::vector<bool> live, depends,
      upstream_param;  // by value: used at all; moves with θ; a wanted parameter lies before it
  std::vector<PackedParam<T>> params;
  int64_t adapted_size = 0, packed_size = 0, fixed_stats_size = 0;
  bool shared_params = false;
  struct FixedStats {
    int64_t at, packed_at, c, cp;
  };
  std::vector<FixedStats> fixed_stats;

  const Map& map(int value) const { return maps[value]; }
};

template <class T>
class ModelBuilder {
 public:
  // all_adapted: every parameter moves (plain gradients and Hessians). want_frozen: frozen parameters want gradients.
  // examples: the most that will come. input_grad: the model's input wants one.
  ModelBuilder(const Program& program, int64_t examples, bool all_adapted, bool want_frozen, bool input_grad,
               int64_t token_length)
      : p_(program), n_(examples), length_(token_length) {
    adapted_.resize(p_.params.size());
    for (size_t i = 0; i < adapted_.size(); ++i) adapted_[i] = all_adapted || p_.params[i].adapted;
    mark(want_frozen, input_grad);
    choose_fusions();
    place_maps();
  }

  Model<T> build() {
    for (size_t i = 0; i < p_.instructions.size(); ++i)
      if (alive_[i] && !fused_into_[i]) add_node(static_cast<int>(i));
    place_params();
    return std::move(m_);
  }

 private:
  static constexpr int64_t kLargeImage = 64 << 10;  // bytes of one image of a convolution's output

  void mark(bool want_frozen, bool input_grad) {
    const size_t values = p_.values.size();
    m_.live.assign(values, false);
    m_.depends.assign(values, false);
    m_.upstream_param.assign(values, false);
    alive_.assign(p_.instructions.size(), false);
    consumers_.assign(values, 0);
    m_.live[p_.logits] = true;
    for (size_t i = p_.instructions.size(); i-- > 0;) {
      const Instruction& ins = p_.instructions[i];
      if (!m_.live[ins.out]) continue;
      alive_[i] = true;
      m_.live[ins.in0] = true;
      ++consumers_[ins.in0];
      if (ins.in1 >= 0) m_.live[ins.in1] = true, ++consumers_[ins.in1];
    }
    ++consumers_[p_.logits];
    m_.upstream_param[0] = input_grad;
    for (size_t i = 0; i < p_.instructions.size(); ++i) {
      const Instruction& ins = p_.instructions[i];
      bool moves = m_.depends[ins.in0] || (ins.in1 >= 0 && m_.depends[ins.in1]);
      bool wanted = m_.upstream_param[ins.in0] || (ins.in1 >= 0 && m_.upstream_param[ins.in1]);
      for (const int param : {ins.weight, ins.bias}) {
        if (param < 0) continue;
        moves = moves || adapted_[param];
        wanted = wanted || want_frozen || adapted_[param];
      }
      m_.depends[ins.out] = moves;
      m_.upstream_param[ins.out] = wanted;
    }
  }

  int only_consumer(int value) const {
    if (consumers_[value] != 1) return -1;
    for (size_t i = 0; i < p_.instructions.size(); ++i)
      if (alive_[i] && (p_.instructions[i].in0 == value || p_.instructions[i].in1 == value)) return static_cast<int>(i);
    return -1;
  }

  // BATCH_NORM, its RELU and a plain 2x2 MAX_POOL after it become one node.
  void choose_fusions() {
    fused_into_.assign(p_.instructions.size(), false);
    fused_end_.assign(p_.instructions.size(), -1);
    norm_of_.assign(p_.instructions.size(), -1);
    pooled_.assign(p_.instructions.size(), false);
    for (size_t i = 0; i < p_.instructions.size(); ++i) {
      const Instruction& norm = p_.instructions[i];
      if (!alive_[i] || norm.op != Opcode::batch_norm || norm.weight < 0 || norm.bias < 0) continue;
      const int relu = only_consumer(norm.out);
      if (relu < 0 || p_.instructions[relu].op != Opcode::relu) continue;
      fused_into_[relu] = true;
      m_.live[norm.out] = false;
      fused_end_[i] = p_.instructions[relu].out;
      const int pool = only_consumer(fused_end_[i]);
      if (pool < 0 || p_.instructions[pool].op != Opcode::max_pool) continue;
      const int64_t* k = p_.instructions[pool].ints;
      if (k[0] != 2 || k[1] != 2 || k[2] != 2 || k[3] != 2 || k[4] != 0 || k[5] != 0) continue;
      fused_into_[pool] = pooled_[i] = true;
      m_.live[fused_end_[i]] = false;
      fused_end_[i] = p_.instructions[pool].out;
    }
    for (size_t i = 0; i < p_.instructions.size(); ++i) choose_conv_norm(static_cast<int>(i));
  }

  // With large images the convolution before such a norm joins it: its cotangents then never leave the cache.
  void choose_conv_norm(int i) {
    const Instruction& conv = p_.instructions[i];
    const ValueInfo& z = p_.values[conv.out];
    if (!alive_[i] || conv.op != Opcode::conv2d) return;
    const int norm = only_consumer(conv.out);
    if (norm < 0 || fused_end_[norm] < 0 || p_.instructions[norm].ints[0] != 0) return;
    if (z.h * z.w * padded_channels(z.c) * static_cast<int64_t>(sizeof(T)) < kLargeImage) return;
    norm_of_[i] = norm;
    fused_into_[norm] = true;
    fused_end_[i] = fused_end_[norm];
  }

  int out_of(int i) const { return fused_end_[i] >= 0 ? fused_end_[i] : p_.instructions[i].out; }

  static Geometry geometry(const Instruction& i, const ValueInfo& x) {
    if (i.op == Opcode::linear) return Geometry::linear(x.h, x.w);
    return {i.ints[0], i.ints[1], i.ints[2], i.ints[3], i.ints[4], i.ints[5], i.ints[6]};
  }

  void place_maps() {
    const size_t values = p_.values.size();
    std::vector<Border> x(values), d(values);
    bool input_is_plain = true;  // read by broadcasts only, so its channels need no padding
    for (size_t i = 0; i < p_.instructions.size(); ++i) {
      const Instruction& ins = p_.instructions[i];
      if (!alive_[i] || fused_into_[i]) continue;
      const bool conv = ins.op == Opcode::conv2d || ins.op == Opcode::linear;
      if (!conv && (ins.in0 == 0 || ins.in1 == 0)) input_is_plain = false;
      if (!conv) continue;
      const Geometry g = geometry(ins, p_.values[ins.in0]);
      const Border bx = Conv2d<T>::border_for_x(g);
      const Border bd = Conv2d<T>::border_for_dy(g, p_.values[ins.in0].h, p_.values[ins.in0].w);
      x[ins.in0] = {std::max(x[ins.in0].h, bx.h), std::max(x[ins.in0].w, bx.w)};
      // Without a gradient for its input, a convolution reads no border of dy.
      if (m_.upstream_param[ins.in0]) d[ins.out] = {std::max(d[ins.out].h, bd.h), std::max(d[ins.out].w, bd.w)};
    }
    for (size_t v = 0; v < values; ++v) {
      const ValueInfo& info = p_.values[v];
      m_.maps.push_back(Map::padded(n_, info.h, info.w, info.c, x[v]));
      m_.cotangent_maps.push_back(Map::padded(n_, info.h, info.w, info.c, d[v]));
    }
    if (input_is_plain) m_.maps[0].cp = p_.values[0].c;
  }

  Map input_cotangent_map(int value) const {
    Map d = m_.cotangent_maps[value];
    if (!m_.upstream_param[value]) d.n = 0;
    return d;
  }

  template <class N>
  N* place(std::unique_ptr<N> node, int i) {
    const Instruction& ins = p_.instructions[i];
    node->in0 = ins.in0;
    node->in1 = ins.in1;
    node->out = out_of(i);
    node->instruction = i;
    node->index = static_cast<int>(m_.nodes.size());
    node->weight_param = ins.weight;
    node->bias_param = ins.bias;
    N* raw = node.get();
    m_.nodes.push_back(std::move(node));
    return raw;
  }

  template <class L>
  void maps_of(L& layer, const Node<T>& node) const {
    layer.x = m_.maps[node.in0];
    layer.y = m_.maps[node.out];
    layer.dy = m_.cotangent_maps[node.out];
    layer.dx = m_.cotangent_maps[node.in0];
  }

  int64_t fixed_stats(const Instruction& ins) {
    const int64_t c = p_.values[ins.in0].c, cp = padded_channels(c), at = m_.fixed_stats_size;
    m_.fixed_stats.push_back({ins.ints[1], at, c, cp});
    m_.fixed_stats_size += 2 * cp;
    return at;
  }

  void add_node(int i) {
    const Instruction& ins = p_.instructions[i];
    const int reader = only_consumer(ins.out);
    const auto make = [&]<class N>(std::unique_ptr<N> node) { return place(std::move(node), i); };
    switch (ins.op) {
      case Opcode::conv2d:
      case Opcode::linear:
        if (norm_of_[i] >= 0) {
          add_conv_norm(i);
          break;
        }
        make(std::make_unique<ConvNode<T>>(m_.maps[ins.in0], m_.maps[ins.out], geometry(ins, p_.values[ins.in0]),
                                           m_.cotangent_maps[ins.out], input_cotangent_map(ins.in0)))
            ->bias_cancels =
            reader >= 0 && p_.instructions[reader].op == Opcode::batch_norm && p_.instructions[reader].ints[0] == 0;
        break;
      case Opcode::batch_norm:
        if (fused_end_[i] >= 0) {
          auto* node = make(std::make_unique<NormPoolNode<T>>());
          maps_of(node->layer, *node);
          node->layer.eps = ins.attribute;
          node->layer.pool = pooled_[i];
          node->writes_dx_again = consumers_[ins.in0] == 1;
          node->layer.fixed = ins.ints[0] == 1;
          node->offset = ins.ints[1];
          if (node->layer.fixed) node->packed_offset = fixed_stats(ins);
        } else {
          auto* node = make(std::make_unique<BatchNormNode<T>>());
          maps_of(node->layer, *node);
          node->layer.eps = ins.attribute;
          node->layer.fixed = ins.ints[0] == 1;
          node->offset = ins.ints[1];
          if (node->layer.fixed) node->packed_offset = fixed_stats(ins);
        }
        break;
      case Opcode::layer_norm:
      case Opcode::group_norm: {
        auto* node = make(std::make_unique<GroupNormNode<T>>());
        maps_of(node->layer, *node);
        node->layer.eps = ins.attribute;
        node->layer.per_element = ins.op == Opcode::layer_norm;
        node->layer.groups = ins.op == Opcode::layer_norm ? 1 : ins.ints[0];
        break;
      }
      case Opcode::relu:
      case Opcode::gelu:
      case Opcode::tanh:
      case Opcode::sigmoid:
      case Opcode::silu:
      case Opcode::leaky_relu: {
        auto* node = make(std::make_unique<ActivationNode<T>>());
        maps_of(node->layer, *node);
        node->layer.kind = ins.op == Opcode::relu      ? Activation::relu
                           : ins.op == Opcode::gelu    ? (ins.ints[0] ? Activation::gelu_tanh : Activation::gelu)
                           : ins.op == Opcode::tanh    ? Activation::tanh
                           : ins.op == Opcode::sigmoid ? Activation::sigmoid
                           : ins.op == Opcode::silu    ? Activation::silu
                                                       : Activation::leaky_relu;
        node->layer.slope = ins.attribute;
        break;
      }
      case Opcode::max_pool: {
        auto* node = make(std::make_unique<MaxPoolNode<T>>());
        maps_of(node->layer, *node);
        node->layer.window = window(ins);
        if (!MaxPool<T>::supports(node->layer.window))
          throw std::invalid_argument("program: instruction " + std::to_string(i) +
                                      ": max pooling windows have at most 256 elements");
        break;
      }
      case Opcode::avg_pool: {
        auto* node = make(std::make_unique<AvgPoolNode<T>>());
        maps_of(node->layer, *node);
        node->layer.window = window(ins);
        node->layer.count_include_pad = ins.ints[6] != 0;
        break;
      }
      case Opcode::add: {
        auto* node = make(std::make_unique<AddNode<T>>());
        node->a = m_.maps[ins.in0], node->b = m_.maps[ins.in1], node->y = m_.maps[ins.out];
        node->da = m_.cotangent_maps[ins.in0], node->db = m_.cotangent_maps[ins.in1];
        node->dy = m_.cotangent_maps[ins.out];
        break;
      }
      case Opcode::dropout: {
        auto* node = make(std::make_unique<DropoutNode<T>>());
        maps_of(*node, *node);
        node->p_drop = ins.attribute;
        break;
      }
      case Opcode::embed_mean: {
        auto* node = make(std::make_unique<EmbedMeanNode<T>>());
        node->layer.length = length_;
        node->layer.words = p_.params[ins.weight].dims[0];
        node->layer.padding = ins.ints[0];
        node->layer.y = m_.maps[ins.out];
        node->layer.dy = m_.cotangent_maps[ins.out];
        break;
      }
    }
  }

  void add_conv_norm(int i) {
    const Instruction &ins = p_.instructions[i], &norm = p_.instructions[norm_of_[i]];
    NormPool<T> layer;
    layer.x = m_.maps[ins.out];
    layer.dx = m_.cotangent_maps[ins.out];
    layer.y = m_.maps[fused_end_[i]];
    layer.dy = m_.cotangent_maps[fused_end_[i]];
    layer.eps = norm.attribute;
    layer.pool = pooled_[norm_of_[i]];
    auto* node = place(std::make_unique<ConvNormNode<T>>(m_.maps[ins.in0], geometry(ins, p_.values[ins.in0]), layer,
                                                         input_cotangent_map(ins.in0)),
                       i);
    node->offset = norm.ints[1];
    node->kept = ins.out;
    node->gamma_param = norm.weight;
    node->beta_param = norm.bias;
  }

  static Window window(const Instruction& ins) {
    return {ins.ints[0], ins.ints[1], ins.ints[2], ins.ints[3], ins.ints[4], ins.ints[5]};
  }

  // Adapted parameters first, each kind in the program's order.
  void place_params() {
    m_.params.resize(p_.params.size());
    std::vector<int> uses(p_.params.size(), 0);
    for (size_t k = 0; k < p_.params.size(); ++k) {
      PackedParam<T>& q = m_.params[k];
      q.torch_at = p_.params[k].offset;
      q.columns = q.numel = p_.params[k].numel();
      q.size = padded_channels(q.numel);
    }
    for (const auto& node : m_.nodes) {
      if (node->weight_param >= 0) {
        PackedParam<T>& q = m_.params[node->weight_param];
        const ValueInfo& x = p_.values[p_.instructions[node->instruction].in0];
        ++uses[node->weight_param];
        if (const Conv2d<T>* conv = node->convolution()) {
          q.kind = PackedParam<T>::Kind::conv;
          q.conv = conv;
          q.size = conv->packed_size();
        } else if (p_.instructions[node->instruction].op == Opcode::layer_norm) {
          as_map(q, x);
        } else if (const auto* table = dynamic_cast<const EmbedMeanNode<T>*>(node.get())) {
          q.rows = table->layer.words;
          q.columns = q.numel / q.rows;
          q.size = q.rows * padded_channels(q.columns);
        }
      }
      if (node->bias_param >= 0) {
        ++uses[node->bias_param];
        if (p_.instructions[node->instruction].op == Opcode::layer_norm)
          as_map(m_.params[node->bias_param], p_.values[p_.instructions[node->instruction].in0]);
      }
    }
    for (const auto& node : m_.nodes)
      for (const int param : {node->gamma_param, node->beta_param})
        if (param >= 0) ++uses[param];
    m_.shared_params = std::any_of(uses.begin(), uses.end(), [](int u) { return u > 1; });
    for (const bool adapted : {true, false}) {
      for (size_t k = 0; k < m_.params.size(); ++k) {
        if (adapted_[k] != adapted) continue;
        m_.params[k].slot = {m_.packed_size, adapted};
        m_.packed_size += m_.params[k].size;
      }
      if (adapted) m_.adapted_size = m_.packed_size;
    }
    for (const auto& node : m_.nodes) {
      if (node->weight_param >= 0) node->weight = m_.params[node->weight_param].slot;
      if (node->bias_param >= 0) node->bias = m_.params[node->bias_param].slot;
      if (node->gamma_param >= 0) node->gamma = m_.params[node->gamma_param].slot;
      if (node->beta_param >= 0) node->beta = m_.params[node->beta_param].slot;
    }
  }

  static void as_map(PackedParam<T>& q, const ValueInfo& x) {
    q.kind = PackedParam<T>::Kind::map;
    q.c = x.c, q.h = x.h, q.w = x.w;
    q.size = x.h * x.w * padded_channels(x.c);
  }

  const Program& p_;
  int64_t n_, length_;
  std::vector<bool> adapted_, alive_, fused_into_, pooled_;
  std::vector<int> consumers_, fused_end_, norm_of_;
  Model<T> m_;
};

}  // namespace MF_ISA
}  // namespace mf
