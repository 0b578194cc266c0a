// Every layer but convolution and the fused norm block: four passes against hyper-dual numbers of the plain definition,
// in float and double, with borders, padded channels, `add`, and blocks in another order.
#include <algorithm>
#include <string>

#include "layers/activation.h"
#include "layers/dropout.h"
#include "layers/elementwise.h"
#include "layers/embedding.h"
#include "layers/group_norm.h"
#include "layers/loss.h"
#include "layers/norm.h"
#include "layers/pool.h"
#include "layers_reference.h"

using namespace mf;
using namespace reference;

namespace {

// Runs blocks backwards: results must not depend on the order.
void backwards(void*, int64_t blocks, Team::Block call, const void* f) {
  for (int64_t b = blocks; b-- > 0;) call(f, b);
}

// The data of one comparison: every layer of this file is one call of `four` with its own four passes.
template <class T>
struct Trial {
  Shape in, out;
  bool add;
  Buffer<T> x, xt, y, yt, dy, dyt, dx, dxt;
  Values p, pt;
  Values base;
  Team team;

  Trial(const Shape& a, const Shape& b, int64_t params, bool adds, bool borders)
      : in(a), out(b), add(adds), team(adds ? Team(backwards, nullptr, 2) : Team()) {
    std::mt19937 random(11);
    const Border none, one = borders ? Border{1, 2} : none, two = borders ? Border{2, 0} : none;
    x = Buffer<T>(in, one), y = Buffer<T>(out, two), dy = Buffer<T>(out, one), dx = Buffer<T>(in, two);
    xt = x, yt = y, dyt = dy, dxt = dx;
    x.set(normal(in.size(), random)), xt.set(normal(in.size(), random));
    dy.set(normal(out.size(), random)), dyt.set(normal(out.size(), random));
    p = rounded(normal(params, random)), pt = rounded(normal(params, random));
    base = rounded(normal(in.size(), random));
    if (add) dx.set(base), dxt.set(base);
  }
  static Values rounded(Values v) {
    for (double& e : v) e = static_cast<double>(static_cast<T>(e));
    return v;
  }
  Passes reference(const Layer& layer) const {
    Passes want = passes(layer, x.get(), xt.get(), p, pt, dy.get(), dyt.get());
    if (add)
      for (size_t j = 0; j < base.size(); ++j) want.dx[j] += base[j], want.dxt[j] += base[j];
    return want;
  }
  void check(const Passes& want, double tolerance, const char* name) const {
    CHECK_CLOSE(y.get(), want.y, tolerance, "%s", name);
    CHECK_CLOSE(yt.get(), want.yt, tolerance, "%s", name);
    CHECK_CLOSE(dx.get(), want.dx, tolerance, "%s", name);
    CHECK_CLOSE(dxt.get(), want.dxt, tolerance, "%s", name);
    CHECK(y.clean() && yt.clean() && dx.clean() && dxt.clean(), "%s: borders and padded lanes stay 0", name);
  }
};

Number gelu(Number x) { return Number(0.5) * x * (Number(1.0) + erf(x * std::sqrt(0.5))); }
Number gelu_tanh(Number x) {
  return Number(0.5) * x * (Number(1.0) + tanh(std::sqrt(2.0 / M_PI) * (x + Number(0.044715) * x * x * x)));
}
Number logistic_of(Number x) { return Number(1.0) / (Number(1.0) + exp(Number(0.0) - x)); }

template <class T>
void activations(double tolerance) {
  struct Row {
    Activation kind;
    const char* name;
    std::function<Number(Number)> f;
  };
  const std::vector<Row> rows = {
      {Activation::relu, "relu", [](Number x) { return x.v > 0.0 ? x : Number(0.0); }},
      {Activation::leaky_relu, "leaky_relu", [](Number x) { return x.v > 0.0 ? x : Number(0.125) * x; }},
      {Activation::gelu, "gelu", gelu},
      {Activation::gelu_tanh, "gelu_tanh", gelu_tanh},
      {Activation::tanh, "tanh", [](Number x) { return tanh(x); }},
      {Activation::sigmoid, "sigmoid", logistic_of},
      {Activation::silu, "silu", [](Number x) { return x * logistic_of(x); }},
  };
  for (const Row& row : rows)
    for (const bool add : {false, true}) {
      Trial<T> t({2, 5, 2, 3}, {2, 5, 2, 3}, 0, add, add);
      const Passes want = t.reference([&](const Numbers& x, const Numbers&) {
        Numbers y;
        for (const Number& e : x) y.push_back(row.f(e));
        return y;
      });
      const Pointwise<T> layer{row.kind, 0.125, t.x.map, t.y.map, t.dy.map, t.dx.map};
      layer.forward(t.x.p(), t.y.p(), 2, t.team);
      layer.backward(t.x.p(), t.dy.p(), t.dx.p(), add, 2, t.team);
      layer.forward_tangent(t.x.p(), t.xt.p(), t.yt.p(), 2, t.team);
      layer.backward_tangent(t.x.p(), t.xt.p(), t.dy.p(), t.dyt.p(), t.dxt.p(), add, 2, t.team);
      t.check(want, tolerance, row.name);
    }
  // NaN is passed on, whatever the activation.
  for (const Row& row : rows) {
    Buffer<T> x({1, 1, 1, 1}, {}), y = x;
    x.data[0] = static_cast<T>(NAN);
    Team team;
    Pointwise<T>{row.kind, 0.125, x.map, y.map, y.map, x.map}.forward(x.p(), y.p(), 1, team);
    CHECK(std::isnan(y.data[0]), "%s: NaN stays NaN", row.name);
  }
}

template <class T>
void group_norms(double tolerance) {
  struct Row {
    Shape shape;
    int64_t groups;
    bool per_element, affine;
  };
  const double eps = 1e-3;
  for (const Row& row :
       {Row{{2, 6, 2, 3}, 3, false, true}, Row{{3, 18, 1, 2}, 2, false, true}, Row{{2, 4, 3, 1}, 4, false, false},
        Row{{2, 5, 2, 3}, 1, true, true}, Row{{3, 19, 1, 1}, 1, true, true}, Row{{2, 3, 2, 2}, 1, true, false}})
    for (const bool add : {false, true}) {
      const Shape s = row.shape;
      const int64_t elements = s.c * s.h * s.w, params = row.per_element ? elements : s.c;
      Trial<T> t(s, s, row.affine ? 2 * params : 0, add, add);
      const Passes want = t.reference([&](const Numbers& x, const Numbers& p) {
        Numbers y(x.size());
        const int64_t size = elements / row.groups;
        for (int64_t i = 0; i < s.n; ++i)
          for (int64_t g = 0; g < row.groups; ++g) {
            const int64_t first = i * elements + g * size;  // channels of a group follow each other
            Number mean, var;
            for (int64_t j = 0; j < size; ++j) mean = mean + x[first + j];
            mean = mean / static_cast<double>(size);
            for (int64_t j = 0; j < size; ++j) var = var + (x[first + j] - mean) * (x[first + j] - mean);
            const Number r = Number(1.0) / sqrt(var / static_cast<double>(size) + eps);
            for (int64_t j = 0; j < size; ++j) {
              const Number hat = (x[first + j] - mean) * r;
              const int64_t at = row.per_element ? g * size + j : (g * size + j) / (s.h * s.w);
              y[first + j] = row.affine ? hat * p[at] + p[params + at] : hat;
            }
          }
        return y;
      });
      GroupNorm<T> layer{eps, t.x.map, t.y.map, t.dy.map, t.dx.map, row.groups, row.per_element};
      const Shape packed = row.per_element ? Shape{1, s.c, s.h, s.w} : Shape{1, s.c, 1, 1};
      const auto pack = [&](const Values& v, int64_t from) {
        Buffer<T> b(packed, {});
        if (row.affine) b.set(Values(v.begin() + from, v.begin() + from + params));
        return b;
      };
      Buffer<T> w = pack(t.p, 0), b = pack(t.p, params), wt = pack(t.pt, 0), bt = pack(t.pt, params);
      Buffer<T> dw = w, db = b, dwt = wt, dbt = bt;
      const auto only = [&](Buffer<T>& v) { return row.affine ? v.p() : nullptr; };
      CHECK(layer.param_size() == w.map.size(), "parameters are packed as a map");
      std::vector<T> aux(static_cast<size_t>(layer.aux_size()), static_cast<T>(NAN));
      layer.forward(t.x.p(), only(w), only(b), t.y.p(), aux.data(), s.n, t.team);
      layer.backward(t.x.p(), only(w), aux.data(), t.dy.p(), t.dx.p(), add, only(dw), only(db), add, s.n, t.team);
      layer.forward_tangent(t.x.p(), only(w), aux.data(), t.xt.p(), only(wt), only(bt), t.yt.p(), s.n, t.team);
      layer.backward_tangent(t.x.p(), only(w), aux.data(), t.xt.p(), only(wt), t.dy.p(), t.dyt.p(), t.dxt.p(), add,
                             only(dwt), only(dbt), add, s.n, t.team);
      const char* name = row.per_element ? "layer_norm" : "group_norm";
      t.check(want, tolerance, name);
      if (!row.affine) continue;
      const auto gradient = [&](const Values& all, int64_t from, const Buffer<T>& start) {
        Values v(all.begin() + from, all.begin() + from + params);
        const Values first = start.get();
        if (add)
          for (int64_t j = 0; j < params; ++j) v[j] += first[j];
        return v;
      };
      CHECK_CLOSE(dw.get(), gradient(want.dp, 0, w), tolerance, "%s", name);
      CHECK_CLOSE(db.get(), gradient(want.dp, params, b), tolerance, "%s", name);
      CHECK_CLOSE(dwt.get(), gradient(want.dpt, 0, wt), tolerance, "%s", name);
      CHECK_CLOSE(dbt.get(), gradient(want.dpt, params, bt), tolerance, "%s", name);
      CHECK(dw.clean() && db.clean() && dwt.clean() && dbt.clean(), "%s: padded lanes of gradients stay 0", name);
      // ẋ = 0 may be left out.
      Buffer<T> zero = t.xt, y1 = t.yt, y2 = t.yt, d1 = t.dxt, d2 = t.dxt;
      zero.set(Values(static_cast<size_t>(s.size())));
      for (const bool null : {false, true}) {
        const T* xt = null ? nullptr : zero.p();
        layer.forward_tangent(t.x.p(), w.p(), aux.data(), xt, wt.p(), bt.p(), (null ? y1 : y2).p(), s.n, t.team);
        layer.backward_tangent(t.x.p(), w.p(), aux.data(), xt, wt.p(), t.dy.p(), t.dyt.p(), (null ? d1 : d2).p(), false,
                               dwt.p(), dbt.p(), false, s.n, t.team);
      }
      CHECK_CLOSE(y1.get(), y2.get(), 0.0, "%s without ẋ", name);
      CHECK_CLOSE(d1.get(), d2.get(), tolerance, "%s without ẋ", name);
    }
}

Numbers pooled(const Shape& in, const Shape& out, const Window& w, bool maximum, bool count_pad, const Numbers& x) {
  Numbers y(static_cast<size_t>(out.size()));
  for (int64_t i = 0; i < out.n; ++i)
    for (int64_t k = 0; k < out.c; ++k)
      for (int64_t r = 0; r < out.h; ++r)
        for (int64_t q = 0; q < out.w; ++q) {
          Number best, sum;
          int64_t count = 0;
          for (int64_t a = r * w.sh - w.ph; a < r * w.sh - w.ph + w.kh; ++a)
            for (int64_t b = q * w.sw - w.pw; b < q * w.sw - w.pw + w.kw; ++b) {
              if (a < 0 || b < 0 || a >= in.h || b >= in.w) continue;
              const Number v = x[in.at(i, k, a, b)];
              if (count == 0 || v.v > best.v) best = v;
              sum = sum + v;
              ++count;
            }
          y[out.at(i, k, r, q)] = maximum ? best : sum / static_cast<double>(count_pad ? w.kh * w.kw : count);
        }
  return y;
}

template <class T>
void pools(double tolerance) {
  for (const Window& w : {Window{2, 2, 2, 2, 0, 0}, Window{3, 3, 2, 2, 1, 1}, Window{3, 2, 1, 2, 1, 0},
                          Window{5, 6, 1, 1, 0, 0}, Window{2, 3, 3, 4, 0, 1}})
    for (const bool add : {false, true}) {
      const Shape in{2, 3, 5, 6}, out{2, 3, (5 + 2 * w.ph - w.kh) / w.sh + 1, (6 + 2 * w.pw - w.kw) / w.sw + 1};
      Trial<T> t(in, out, 0, add, add);
      Values ties = t.x.get();
      ties[0] = ties[1] = ties[6] = 9.0;  // the first of equal values is chosen
      t.x.set(ties);
      {
        const MaxPool<T> layer{w, t.x.map, t.y.map, t.dy.map, t.dx.map};
        std::vector<uint8_t> bytes(static_cast<size_t>(layer.byte_size()), 0xee);
        layer.forward(t.x.p(), t.y.p(), bytes.data(), 2, t.team);
        layer.backward(bytes.data(), t.dy.p(), t.dx.p(), add, 2, t.team);
        layer.forward_tangent(bytes.data(), t.xt.p(), t.yt.p(), 2, t.team);
        layer.backward(bytes.data(), t.dyt.p(), t.dxt.p(), add, 2, t.team);
        t.check(t.reference([&](const Numbers& x, const Numbers&) { return pooled(in, out, w, true, false, x); }),
                tolerance, "max pool");
      }
      for (const bool count_pad : {false, true}) {
        if (add) t.dx.set(t.base), t.dxt.set(t.base);
        const AvgPool<T> layer{w, count_pad, t.x.map, t.y.map, t.dy.map, t.dx.map};
        layer.forward(t.x.p(), t.y.p(), 2, t.team);
        layer.backward(t.dy.p(), t.dx.p(), add, 2, t.team);
        layer.forward(t.xt.p(), t.yt.p(), 2, t.team);
        layer.backward(t.dyt.p(), t.dxt.p(), add, 2, t.team);
        t.check(t.reference([&](const Numbers& x, const Numbers&) { return pooled(in, out, w, false, count_pad, x); }),
                tolerance, "average pool");
      }
    }
  Buffer<T> x({1, 1, 2, 2}, {}), y({1, 1, 1, 1}, {});
  x.set({1.0, NAN, 3.0, 2.0});
  uint8_t bytes[kLanePad];
  Team team;
  MaxPool<T>{{2, 2, 2, 2, 0, 0}, x.map, y.map, y.map, x.map}.forward(x.p(), y.p(), bytes, 1, team);
  CHECK(std::isnan(y.data[0]), "NaN wins a pool");
}

template <class T>
void losses(double tolerance) {
  const int64_t n = 4, c = 6;
  const double scale = 0.7;
  const Shape s{n, c, 1, 1};
  for (const int64_t classes : {c, c - 2}) {
    for (const double smoothing : {0.0, 0.2}) {
      Trial<T> t(s, s, 0, false, false);
      const std::vector<int64_t> labels = {0, 3, 1, 2};
      const Passes want = passes(
          [&](const Numbers& z, const Numbers&) {
            Number total;
            for (int64_t i = 0; i < n; ++i) {
              Number sum;
              for (int64_t k = 0; k < classes; ++k) sum = sum + exp(z[i * c + k]);
              for (int64_t k = 0; k < classes; ++k) {
                const double q = (k == labels[i] ? 1.0 - smoothing : 0.0) + smoothing / static_cast<double>(classes);
                total = total - Number(q) * (z[i * c + k] - log(sum));
              }
            }
            return Numbers{total / static_cast<double>(n)};
          },
          t.x.get(), t.xt.get(), {}, {}, {scale}, {0.0});
      const CrossEntropy<T> layer{smoothing, t.x.map, t.dx.map};
      std::vector<T> aux(static_cast<size_t>(layer.aux_size(n)), static_cast<T>(NAN));
      const Values loss = {layer.forward(t.x.p(), labels.data(), classes, aux.data(), n)};
      layer.backward(aux.data(), labels.data(), classes, scale, t.dx.p(), n);
      const Values loss_t = {layer.forward_tangent(aux.data(), labels.data(), classes, t.xt.p(), n)};
      layer.backward_tangent(aux.data(), classes, scale, t.xt.p(), t.dxt.p(), n);
      CHECK_CLOSE(loss, want.y, tolerance, "cross-entropy");
      CHECK_CLOSE(loss_t, want.yt, tolerance, "cross-entropy");
      CHECK_CLOSE(t.dx.get(), want.dx, tolerance, "cross-entropy");
      CHECK_CLOSE(t.dxt.get(), want.dxt, tolerance, "cross-entropy");
      CHECK(t.dx.clean() && t.dxt.clean(), "cross-entropy: padded lanes stay 0");
    }
  }
  Trial<T> t(s, s, 0, false, false);
  std::mt19937 random(5);
  const Values targets = Trial<T>::rounded(normal(n * c, random));
  std::vector<T> given(targets.begin(), targets.end());
  const Passes want = passes(
      [&](const Numbers& y, const Numbers&) {
        Number total;
        for (size_t j = 0; j < y.size(); ++j) total = total + (y[j] - targets[j]) * (y[j] - targets[j]);
        return Numbers{total / static_cast<double>(y.size())};
      },
      t.x.get(), t.xt.get(), {}, {}, {scale}, {0.0});
  const MeanSquaredError<T> layer{t.x.map, t.dx.map};
  const Values loss = {layer.forward(t.x.p(), given.data(), n)};
  layer.backward(t.x.p(), given.data(), scale, t.dx.p(), n);
  const Values loss_t = {layer.forward_tangent(t.x.p(), given.data(), t.xt.p(), n)};
  layer.backward_tangent(scale, t.xt.p(), t.dxt.p(), n);
  CHECK_CLOSE(loss, want.y, tolerance, "mse");
  CHECK_CLOSE(loss_t, want.yt, tolerance, "mse");
  CHECK_CLOSE(t.dx.get(), want.dx, tolerance, "mse");
  CHECK_CLOSE(t.dxt.get(), want.dxt, tolerance, "mse");
  // Large logits do not overflow, and one example of certainty costs nothing.
  Buffer<T> z({1, 2, 1, 1}, {});
  z.set({1000.0, -1000.0});
  T aux[kLanePad];
  const int64_t label = 0;
  CHECK((CrossEntropy<T>{0.0, z.map, z.map}.forward(z.p(), &label, 2, aux, 1)) == 0.0, "a certain and right answer");
}

template <class T>
void embeddings(double tolerance) {
  const int64_t n = 3, length = 4, words = 5, d = 18;
  const std::vector<int64_t> tokens = {1, 2, 2, 0, 0, 0, 0, 0, 4, 3, 4, 4};
  for (const int64_t padding : {int64_t{-1}, int64_t{0}}) {
    const Shape s{n, d, 1, 1};
    Trial<T> t(s, s, words * d, false, false);
    const Passes want = passes(
        [&](const Numbers&, const Numbers& w) {
          Numbers y(static_cast<size_t>(s.size()));
          for (int64_t i = 0; i < n; ++i)
            for (int64_t k = 0; k < d; ++k) {
              Number sum;
              double count = 0.0;
              for (int64_t l = 0; l < length; ++l) {
                const int64_t word = tokens[i * length + l];
                if (word != padding) sum = sum + w[word * d + k], count += 1.0;
              }
              if (count > 0.0) y[i * d + k] = sum / count;
            }
          return y;
        },
        {}, {}, t.p, t.pt, t.dy.get(), t.dyt.get());
    const Shape table{words, d, 1, 1};
    Buffer<T> w(table, {}), wt(table, {}), dw(table, {}), dwt(table, {});
    w.set(t.p), wt.set(t.pt);
    const EmbedMean<T> layer{length, words, padding, t.y.map, t.dy.map};
    layer.forward(tokens.data(), w.p(), t.y.p(), n, t.team);
    layer.forward(tokens.data(), wt.p(), t.yt.p(), n, t.team);
    layer.backward(tokens.data(), t.dy.p(), dw.p(), n);
    layer.backward(tokens.data(), t.dyt.p(), dwt.p(), n);
    CHECK_CLOSE(t.y.get(), want.y, tolerance, "embedding");
    CHECK_CLOSE(t.yt.get(), want.yt, tolerance, "embedding");
    CHECK_CLOSE(dw.get(), want.dp, tolerance, "embedding");
    CHECK_CLOSE(dwt.get(), want.dpt, tolerance, "embedding");
    CHECK(t.y.clean() && dw.clean(), "embedding: padded lanes stay 0");
  }
}

template <class T>
void dropouts() {
  const Shape s{6, 21, 5, 7};
  Buffer<T> x(s, {1, 0}), y(s, {0, 2}), z(s, {0, 2});
  x.set(Values(static_cast<size_t>(s.size()), 1.0));
  Team team, other(backwards, nullptr, 2);
  const DropoutKey key{42, 3, 1000001, 7};
  dropout<T>(0.3, key, nullptr, x.map, x.p(), y.map, y.p(), false, s.n, team);
  dropout<T>(0.3, key, nullptr, x.map, x.p(), z.map, z.p(), false, s.n, other);
  CHECK(y.data == z.data && y.clean(), "dropout does not depend on the order of blocks");
  double kept = 0.0;
  for (const double v : y.get()) {
    CHECK(v == 0.0 || std::fabs(v - 1.0 / 0.7) < 1e-6, "kept elements are scaled: %g", v);
    kept += v != 0.0 ? 1.0 : 0.0;
  }
  CHECK(std::fabs(kept / static_cast<double>(s.size()) - 0.7) < 0.03, "%g of all kept", kept);
  // Example 1 of a mini-batch is example 4 of the task.
  const int64_t examples[] = {2, 4};
  dropout<T>(0.3, key, examples, x.map, x.p(), z.map, z.p(), false, 2, team);
  const Values all = y.get(), some = z.get();
  const auto per = static_cast<size_t>(s.c * s.h * s.w);
  CHECK(std::equal(some.begin() + per, some.begin() + 2 * per, all.begin() + 4 * per), "a mini-batch keeps its masks");
  // Element ((n c + channel) h + row) w + column, by the formula of _dropout_hash.py.
  const uint32_t word_key = mix32(rounding_key(42, 3, 1000001) + 8u * 0x9e3779b9u);
  for (size_t j = 0; j < all.size(); j += 13)
    CHECK((all[j] != 0.0) == (rounding_word(word_key, j) >> 8 >= static_cast<uint32_t>(std::ceil(0.3 * 16777216.0))),
          "element %zu", j);
  dropout<T>(0.0, key, nullptr, x.map, x.p(), y.map, y.p(), true, s.n, team);
  CHECK(y.get()[0] >= 1.0, "p = 0 keeps everything, add adds");
}

template <class T>
void sums_and_copies() {
  std::mt19937 random(3);
  const Shape s{3, 5, 4, 3};
  Buffer<T> a(s, {1, 1}), b(s, {0, 0}), y(s, {2, 1});
  const Values va = Trial<T>::rounded(normal(s.size(), random)), vb = Trial<T>::rounded(normal(s.size(), random));
  a.set(va), b.set(vb);
  Team team(backwards, nullptr, 2);
  add_maps(a.map, a.p(), b.map, b.p(), y.map, y.p(), s.n, team);
  Values want = va;
  for (size_t j = 0; j < want.size(); ++j) want[j] += vb[j];
  CHECK_CLOSE(y.get(), want, 1e-6, "add");
  CHECK(y.clean(), "add: borders stay 0");
  copy_map(a.map, a.p(), y.map, y.p(), false, s.n, team);
  CHECK_CLOSE(y.get(), va, 0.0, "copy");
  Buffer<T> tight(s, {});  // a model's input: channels without padding
  tight.map.cp = s.c;
  tight.data.assign(static_cast<size_t>(tight.map.size()), T(0));
  tight.set(vb);
  copy_map(tight.map, tight.p(), y.map, y.p(), true, s.n, team);
  CHECK_CLOSE(y.get(), want, 1e-6, "copy from a map without padded channels");
  CHECK(y.clean(), "copy: borders and padded lanes stay 0");
  std::vector<T> u(37, T(1)), v(37, T(2));
  axpy<T>(T(3), u.data(), v.data(), 37);
  CHECK(std::all_of(v.begin(), v.end(), [](T e) { return e == T(5); }), "axpy");
  clear_map(y.map, y.p(), 2, team);
  const Values left = y.get();
  CHECK(left[0] == 0.0 && left[static_cast<size_t>(2 * s.c * s.h * s.w)] != 0.0, "clear_map stops after n examples");
}

// Float statistics where the mean is far larger than the deviation, and where the first row is an odd one out.
void large_means() {
  const Shape s{5, 16, 20, 20};
  for (const double odd : {0.0, 50.0}) {
    std::mt19937 random(9);
    Values v = normal(s.size(), random, 300.0, 0.5);
    for (int64_t k = 0; k < s.c; ++k)
      for (int64_t q = 0; q < s.w; ++q) v[s.at(0, k, 0, q)] += odd;
    Buffer<float> x(s, {}), y(s, {});
    x.set(v);
    const Values given = x.get();
    const BatchNorm<float> layer{0.0, x.map, y.map, y.map, x.map};
    std::vector<float> aux(static_cast<size_t>(layer.aux_size()));
    Team team;
    layer.forward(x.p(), nullptr, nullptr, nullptr, y.p(), aux.data(), s.n, team);
    std::vector<double> mean(s.c), var(s.c);
    layer.batch_stats(aux.data(), s.n, mean.data(), var.data());
    for (int64_t k = 0; k < s.c; ++k) {
      long double m = 0.0, square = 0.0;
      const long double count = s.n * s.h * s.w;
      const auto all = [&](const auto& f) {
        for (int64_t i = 0; i < s.n; ++i)
          for (int64_t j = 0; j < s.h * s.w; ++j) f(given[s.at(i, k, 0, 0) + j]);
      };
      all([&](long double e) { m += e / count; });
      all([&](long double e) { square += (e - m) * (e - m); });
      CHECK(std::fabs(mean[k] - static_cast<double>(m)) < 3e-5, "mean %g, exactly %g", mean[k], static_cast<double>(m));
      const double exact = static_cast<double>(square / (count - 1.0L));
      const double tolerance = odd == 0.0 ? 1e-6 : 1e-5;
      CHECK(std::fabs(var[k] / exact - 1.0) < tolerance, "variance %.9g, exactly %.9g", var[k], exact);
    }
  }
}

}  // namespace

int main() {
  activations<float>(2e-6), activations<double>(1e-14);
  group_norms<float>(2e-5), group_norms<double>(1e-12);
  pools<float>(1e-6), pools<double>(1e-14);
  losses<float>(1e-6), losses<double>(1e-14);
  embeddings<float>(1e-6), embeddings<double>(1e-14);
  dropouts<float>(), dropouts<double>();
  sums_and_copies<float>(), sums_and_copies<double>();
  large_means();
  return check_result();
}
