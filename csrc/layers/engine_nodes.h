// The layers of a program as nodes: each turns the values and parameters of a pass into the pointers that a layer's own
// header takes. A layer is added here by one class and one case in engine_build.h.
#pragma once

#include "layers/activation.h"
#include "layers/conv2d.h"
#include "layers/conv_norm.h"
#include "layers/dropout.h"
#include "layers/elementwise.h"
#include "layers/embedding.h"
#include "layers/engine_node.h"
#include "layers/group_norm.h"
#include "layers/norm.h"
#include "layers/pool.h"

namespace mf {
inline namespace MF_ISA {

template <class T>
class ConvNode final : public Node<T> {
 public:
  ConvNode(const Map& x, const Map& y, const Geometry& g, const Map& dy, const Map& dx)
      : conv(x, y, g, dy, dx), dy_(dy) {}

  int64_t scratch_size() const override { return conv.scratch_size(); }
  const Conv2d<T>* convolution() const override { return &conv; }

  void forward(const Pass<T>& p) const override {
    const ConvTerm<T> term{p.x[this->in0], this->weight.value(p)};
    conv.forward(&term, 1, this->bias.value(p), p.x[this->out], p.n, *p.team);
  }
  void backward(const Pass<T>& p, const Want& want, T** d) const override {
    const T* dy = d[this->out];
    if (want.w) {
      const ConvTerm<T> term{p.x[this->in0], dy};
      conv.backward_weight(&term, 1, this->weight.grad(p, true), want.add_params, p.n, *p.team);
    }
    if (want.b) bias_gradient(p, dy, want.add_params);
    if (want.x0) {
      const ConvTerm<T> term{dy, this->weight.value(p)};
      conv.backward_input(&term, 1, d[this->in0], want.add_x0, p.n, *p.team, p.scratch);
    }
  }
  void tangent(const Pass<T>& p) const override {
    const ConvTerm<T> terms[] = {{p.xt[this->in0], this->weight.value(p)}, {p.x[this->in0], this->weight.tangent(p)}};
    conv.forward(terms, 2, this->bias.tangent(p), p.xt[this->out], p.n, *p.team);
  }
  void backward_tangent(const Pass<T>& p, const Want& want) const override {
    const T *dy = p.dx[this->out], *dyt = p.dxt[this->out];
    if (want.w) {
      const ConvTerm<T> terms[] = {{p.xt[this->in0], dy}, {p.x[this->in0], dyt}};
      conv.backward_weight(terms, 2, this->weight.grad(p, true), want.add_params, p.n, *p.team);
    }
    if (want.b) bias_gradient(p, dyt, want.add_params);
    if (want.x0) {
      const ConvTerm<T> terms[] = {{dyt, this->weight.value(p)}, {dy, this->weight.tangent(p)}};
      conv.backward_input(terms, 2, p.dxt[this->in0], want.add_x0, p.n, *p.team, p.scratch);
    }
  }

  Conv2d<T> conv;
  bool bias_cancels = false;  // a batch norm takes the mean away: the bias moves nothing, and its gradient is 0

 private:
  void bias_gradient(const Pass<T>& p, const T* dy, bool add) const {
    T* db = this->bias.grad(p, true);
    if (bias_cancels) {
      if (!add) std::fill(db, db + dy_.cp, T(0));
    } else if (dy_.image() == dy_.cp) {
      sum_rows(dy, db, add, p.n);
    } else {
      sum_channels(dy_, dy, db, add, p.n);
    }
  }

  // One pixel for each example, as a linear layer has: as many channels as the padding at a time, in two chains.
  void sum_rows(const T* dy, T* db, bool add, int64_t n) const {
    using V = Vec<T>;
    static_assert(kLanePad % V::kLanes == 0);
    constexpr int64_t kStep = kLanePad;
    for (int64_t c = 0; c < dy_.cp; c += kStep) {
      V even[kStep / V::kLanes], odd[kStep / V::kLanes];
      for (V& v : even) v = V::zero();
      for (V& v : odd) v = V::zero();
      const T* row = dy + c;
      int64_t i = 0;
      for (; i + 1 < n; i += 2, row += 2 * dy_.cp)
        for (int64_t k = 0; k < kStep / V::kLanes; ++k) {
          even[k] += V::load(row + k * V::kLanes);
          odd[k] += V::load(row + dy_.cp + k * V::kLanes);
        }
      for (int64_t k = 0; k < kStep / V::kLanes; ++k) {
        if (i < n) even[k] += V::load(row + k * V::kLanes);
        V total = even[k] + odd[k];
        if (add) total += V::load(db + c + k * V::kLanes);
        total.store(db + c + k * V::kLanes);
      }
    }
  }

  Map dy_;
};

template <class T>
class BatchNormNode final : public Node<T> {
 public:
  BatchNorm<T> layer;
  int64_t offset = 0;         // of its statistics in the op's tensors
  int64_t packed_offset = 0;  // of its fixed statistics in the engine's

  int64_t aux_size() const override { return layer.aux_size(); }
  bool has_batch_stats() const override { return !layer.fixed; }
  void batch_stats(const Pass<T>& p, double* mean, double* var) const override {
    layer.batch_stats(p.aux[this->index], p.n, mean, var);
  }
  int64_t stats_at() const override { return offset; }
  int64_t stats_channels() const override { return layer.x.c; }

  void forward(const Pass<T>& p) const override {
    layer.forward(p.x[this->in0], this->weight.value(p), this->bias.value(p),
                  layer.fixed ? p.stats + packed_offset : nullptr, p.x[this->out], p.aux[this->index], p.n, *p.team);
  }
  void backward(const Pass<T>& p, const Want& want, T** d) const override {
    layer.backward(p.x[this->in0], this->weight.value(p), p.aux[this->index], d[this->out], this->wanted_x0(d, want),
                   want.add_x0, this->weight.grad(p, want.w), this->bias.grad(p, want.b), want.add_params, p.n,
                   *p.team);
  }
  void tangent(const Pass<T>& p) const override {
    layer.forward_tangent(p.x[this->in0], this->weight.value(p), p.aux[this->index], p.xt[this->in0],
                          this->weight.tangent(p), this->bias.tangent(p), p.xt[this->out], p.n, *p.team);
  }
  void backward_tangent(const Pass<T>& p, const Want& want) const override {
    layer.backward_tangent(p.x[this->in0], this->weight.value(p), p.aux[this->index], p.xt[this->in0],
                           this->weight.tangent(p), p.dx[this->out], p.dxt[this->out], this->wanted_x0(p.dxt, want),
                           want.add_x0, this->weight.grad(p, want.w), this->bias.grad(p, want.b), want.add_params, p.n,
                           *p.team);
  }
};

// GROUP_NORM and LAYER_NORM.
template <class T>
class GroupNormNode final : public Node<T> {
 public:
  GroupNorm<T> layer;

  int64_t aux_size() const override { return layer.aux_size(); }

  void forward(const Pass<T>& p) const override {
    layer.forward(p.x[this->in0], this->weight.value(p), this->bias.value(p), p.x[this->out], p.aux[this->index], p.n,
                  *p.team);
  }
  void backward(const Pass<T>& p, const Want& want, T** d) const override {
    layer.backward(p.x[this->in0], this->weight.value(p), p.aux[this->index], d[this->out], this->wanted_x0(d, want),
                   want.add_x0, this->weight.grad(p, want.w), this->bias.grad(p, want.b), want.add_params, p.n,
                   *p.team);
  }
  void tangent(const Pass<T>& p) const override {
    layer.forward_tangent(p.x[this->in0], this->weight.value(p), p.aux[this->index], p.xt[this->in0],
                          this->weight.tangent(p), this->bias.tangent(p), p.xt[this->out], p.n, *p.team);
  }
  void backward_tangent(const Pass<T>& p, const Want& want) const override {
    layer.backward_tangent(p.x[this->in0], this->weight.value(p), p.aux[this->index], p.xt[this->in0],
                           this->weight.tangent(p), p.dx[this->out], p.dxt[this->out], this->wanted_x0(p.dxt, want),
                           want.add_x0, this->weight.grad(p, want.w), this->bias.grad(p, want.b), want.add_params, p.n,
                           *p.team);
  }
};

// BATCH_NORM, RELU and perhaps MAX_POOL 2x2 in one.
template <class T>
class NormPoolNode final : public Node<T> {
 public:
  NormPool<T> layer;
  int64_t offset = 0, packed_offset = 0;

  int64_t aux_size() const override { return layer.aux_size(); }
  int64_t byte_size() const override { return layer.byte_size(); }
  bool has_batch_stats() const override { return !layer.fixed; }
  void batch_stats(const Pass<T>& p, double* mean, double* var) const override {
    layer.batch_stats(p.aux[this->index], p.n, mean, var);
  }
  int64_t stats_at() const override { return offset; }
  int64_t stats_channels() const override { return layer.x.c; }

  void forward(const Pass<T>& p) const override {
    layer.forward(p.x[this->in0], this->weight.value(p), this->bias.value(p),
                  layer.fixed ? p.stats + packed_offset : nullptr, p.x[this->out], p.aux[this->index],
                  p.bytes[this->index], p.n, *p.team);
  }
  void backward(const Pass<T>& p, const Want& want, T** d) const override {
    layer.backward(p.x[this->in0], this->weight.value(p), p.aux[this->index], p.bytes[this->index], d[this->out],
                   this->wanted_x0(d, want), want.add_x0, this->weight.grad(p, want.w), this->bias.grad(p, want.b),
                   want.add_params, p.n, *p.team);
  }
  void tangent(const Pass<T>& p) const override {
    layer.forward_tangent(p.x[this->in0], this->weight.value(p), p.aux[this->index], p.bytes[this->index],
                          p.xt[this->in0], this->weight.tangent(p), this->bias.tangent(p), p.xt[this->out], p.n,
                          *p.team);
  }
  void backward_tangent(const Pass<T>& p, const Want& want) const override {
    layer.backward_tangent(p.x[this->in0], this->weight.value(p), p.aux[this->index], p.bytes[this->index],
                           p.xt[this->in0], this->weight.tangent(p), p.dx[this->out], p.dxt[this->out],
                           want.x0_passes ? p.dx[this->in0] : nullptr, this->wanted_x0(p.dxt, want), want.add_x0,
                           this->weight.grad(p, want.w), this->bias.grad(p, want.b), want.add_params, p.n, *p.team);
  }
};

// CONV2D of large images and the batch norm (of the task's statistics) that reads it, ReLU, perhaps MAX_POOL 2x2.
template <class T>
class ConvNormNode final : public Node<T> {
 public:
  ConvNormNode(const Map& x, const Geometry& g, const NormPool<T>& norm, const Map& dx) : layer(x, g, norm, dx) {}

  ConvNorm<T> layer;
  int64_t offset = 0;  // of its statistics in the op's tensors

  int64_t aux_size() const override { return layer.aux_size(); }
  int64_t byte_size() const override { return layer.byte_size(); }
  int64_t scratch_size() const override { return layer.scratch_size(); }
  bool has_batch_stats() const override { return true; }
  void batch_stats(const Pass<T>& p, double* mean, double* var) const override {
    layer.norm.batch_stats(p.aux[this->index], p.n, mean, var);
  }
  int64_t stats_at() const override { return offset; }
  int64_t stats_channels() const override { return layer.norm.x.c; }
  const Conv2d<T>* convolution() const override { return &layer.conv; }

  void forward(const Pass<T>& p) const override {
    layer.forward(p.x[this->in0], this->weight.value(p), this->bias.value(p), this->gamma.value(p), this->beta.value(p),
                  nullptr, p.x[this->kept], p.x[this->out], p.aux[this->index], p.bytes[this->index], p.n, *p.team);
  }
  void backward(const Pass<T>& p, const Want& want, T** d) const override {
    no_bias_gradient(p, want);
    layer.backward(p.x[this->in0], this->weight.value(p), this->gamma.value(p), p.aux[this->index],
                   p.bytes[this->index], p.x[this->kept], d[this->out], this->wanted_x0(d, want), want.add_x0,
                   this->weight.grad(p, want.w), want.add_params, this->gamma.grad(p, want.gamma),
                   this->beta.grad(p, want.beta), want.add_params, p.n, *p.team, p.scratch);
  }
  void tangent(const Pass<T>& p) const override {
    layer.forward_tangent(p.x[this->in0], p.xt[this->in0], this->weight.value(p), this->weight.tangent(p),
                          this->bias.tangent(p), this->gamma.value(p), this->gamma.tangent(p), this->beta.tangent(p),
                          p.aux[this->index], p.bytes[this->index], p.x[this->kept], p.xt[this->kept], p.xt[this->out],
                          p.n, *p.team);
  }
  void backward_tangent(const Pass<T>& p, const Want& want) const override {
    no_bias_gradient(p, want);
    layer.backward_tangent(p.x[this->in0], p.xt[this->in0], this->weight.value(p), this->weight.tangent(p),
                           this->gamma.value(p), this->gamma.tangent(p), p.aux[this->index], p.bytes[this->index],
                           p.x[this->kept], p.xt[this->kept], p.dx[this->out], p.dxt[this->out],
                           this->wanted_x0(p.dxt, want), want.add_x0, this->weight.grad(p, want.w), want.add_params,
                           this->gamma.grad(p, want.gamma), this->beta.grad(p, want.beta), want.add_params, p.n,
                           *p.team, p.scratch);
  }

 private:
  // The norm takes the bias away with the mean.
  void no_bias_gradient(const Pass<T>& p, const Want& want) const {
    T* db = this->bias.grad(p, want.b);
    if (db && !want.add_params) std::fill(db, db + layer.norm.x.cp, T(0));
  }
};

template <class T>
class ActivationNode final : public Node<T> {
 public:
  Pointwise<T> layer;

  void forward(const Pass<T>& p) const override { layer.forward(p.x[this->in0], p.x[this->out], p.n, *p.team); }
  void backward(const Pass<T>& p, const Want& want, T** d) const override {
    if (want.x0) layer.backward(p.x[this->in0], d[this->out], d[this->in0], want.add_x0, p.n, *p.team);
  }
  void tangent(const Pass<T>& p) const override {
    layer.forward_tangent(p.x[this->in0], p.xt[this->in0], p.xt[this->out], p.n, *p.team);
  }
  void backward_tangent(const Pass<T>& p, const Want& want) const override {
    if (want.x0)
      layer.backward_tangent(p.x[this->in0], p.xt[this->in0], p.dx[this->out], p.dxt[this->out], p.dxt[this->in0],
                             want.add_x0, p.n, *p.team);
  }
};

template <class T>
class MaxPoolNode final : public Node<T> {
 public:
  MaxPool<T> layer;
  MaxPoolNode() { this->backward_reads_x = this->tangent_reads_x = false; }

  int64_t byte_size() const override { return layer.byte_size(); }

  void forward(const Pass<T>& p) const override {
    layer.forward(p.x[this->in0], p.x[this->out], p.bytes[this->index], p.n, *p.team);
  }
  void backward(const Pass<T>& p, const Want& want, T** d) const override {
    if (want.x0) layer.backward(p.bytes[this->index], d[this->out], d[this->in0], want.add_x0, p.n, *p.team);
  }
  void tangent(const Pass<T>& p) const override {
    layer.forward_tangent(p.bytes[this->index], p.xt[this->in0], p.xt[this->out], p.n, *p.team);
  }
  void backward_tangent(const Pass<T>& p, const Want& want) const override { backward(p, want, p.dxt); }
};

template <class T>
class AvgPoolNode final : public Node<T> {
 public:
  AvgPool<T> layer;
  AvgPoolNode() { this->backward_reads_x = this->tangent_reads_x = false; }

  void forward(const Pass<T>& p) const override { layer.forward(p.x[this->in0], p.x[this->out], p.n, *p.team); }
  void backward(const Pass<T>& p, const Want& want, T** d) const override {
    if (want.x0) layer.backward(d[this->out], d[this->in0], want.add_x0, p.n, *p.team);
  }
  void tangent(const Pass<T>& p) const override { layer.forward(p.xt[this->in0], p.xt[this->out], p.n, *p.team); }
  void backward_tangent(const Pass<T>& p, const Want& want) const override { backward(p, want, p.dxt); }
};

template <class T>
class AddNode final : public Node<T> {
 public:
  Map a, b, y, da, db, dy;
  AddNode() { this->backward_reads_x = this->tangent_reads_x = false; }

  void forward(const Pass<T>& p) const override {
    add_maps(a, p.x[this->in0], b, p.x[this->in1], y, p.x[this->out], p.n, *p.team);
  }
  void backward(const Pass<T>& p, const Want& want, T** d) const override {
    if (want.x0) copy_map(dy, d[this->out], da, d[this->in0], want.add_x0, p.n, *p.team);
    if (want.x1) copy_map(dy, d[this->out], db, d[this->in1], want.add_x1, p.n, *p.team);
  }
  void tangent(const Pass<T>& p) const override {
    const T *at = p.xt[this->in0], *bt = p.xt[this->in1];
    if (at && bt) add_maps(a, at, b, bt, y, p.xt[this->out], p.n, *p.team);
    else copy_map(at ? a : b, at ? at : bt, y, p.xt[this->out], false, p.n, *p.team);
  }
  void backward_tangent(const Pass<T>& p, const Want& want) const override { backward(p, want, p.dxt); }
};

template <class T>
class DropoutNode final : public Node<T> {
 public:
  double p_drop = 0;
  Map x, y, dy, dx;
  DropoutNode() { this->backward_reads_x = this->tangent_reads_x = false; }

  bool is_random() const override { return true; }

  void forward(const Pass<T>& p) const override { apply(p, x, p.x[this->in0], y, p.x[this->out], false); }
  void backward(const Pass<T>& p, const Want& want, T** d) const override {
    if (want.x0) apply(p, dy, d[this->out], dx, d[this->in0], want.add_x0);
  }
  void tangent(const Pass<T>& p) const override { apply(p, x, p.xt[this->in0], y, p.xt[this->out], false); }
  void backward_tangent(const Pass<T>& p, const Want& want) const override { backward(p, want, p.dxt); }

 private:
  void apply(const Pass<T>& p, const Map& from, const T* in, const Map& to, T* out, bool add) const {
    const DropoutKey key{p.seed, p.task, p.step, static_cast<uint64_t>(this->instruction)};
    dropout(p_drop, key, p.examples, from, in, to, out, add, p.n, *p.team);
  }
};

template <class T>
class EmbedMeanNode final : public Node<T> {
 public:
  EmbedMean<T> layer;
  EmbedMeanNode() { this->backward_reads_x = this->tangent_reads_x = false; }

  void forward(const Pass<T>& p) const override {
    layer.forward(p.tokens, this->weight.value(p), p.x[this->out], p.n, *p.team);
  }
  void backward(const Pass<T>& p, const Want& want, T** d) const override {
    if (!want.w) return;
    T* dw = this->weight.grad(p, true);
    if (!want.add_params) std::fill(dw, dw + layer.words * layer.y.cp, T(0));
    layer.backward(p.tokens, d[this->out], dw, p.n);
  }
  void tangent(const Pass<T>& p) const override {
    layer.forward(p.tokens, this->weight.tangent(p), p.xt[this->out], p.n, *p.team);
  }
  void backward_tangent(const Pass<T>& p, const Want& want) const override { backward(p, want, p.dxt); }
};

}  // namespace MF_ISA
}  // namespace mf
