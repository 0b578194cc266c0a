// Convolution, batch norm, ReLU and pool in one, by rows and by groups of images, against the two layers one after the
// other (which have tests of their own).
#include "layers/conv_norm.h"

#include <random>
#include <vector>

#include "check.h"

using namespace mf;

namespace {

template <class T>
using Data = std::vector<T>;

template <class T>
Data<T> random_map(const Map& m, unsigned seed) {
  std::mt19937 random(seed);
  std::normal_distribution<double> normal;
  Data<T> v(static_cast<size_t>(m.size()), T(0));
  for (int64_t i = 0; i < m.n; ++i)
    for (int64_t y = 0; y < m.h; ++y)
      for (int64_t x = 0; x < m.w; ++x)
        for (int64_t k = 0; k < m.c; ++k) v[m.at(i, y, x) + k] = static_cast<T>(normal(random));
  return v;
}

template <class T>
void compare(const Data<T>& got, const Data<T>& want, double tolerance, const char* name) {
  double error = 0.0, scale = 1e-3;
  for (size_t j = 0; j < want.size(); ++j) {
    const double e = std::fabs(static_cast<double>(got[j]) - static_cast<double>(want[j]));
    error = e <= error ? error : e;
    scale = std::fmax(scale, std::fabs(static_cast<double>(want[j])));
  }
  CHECK(error <= tolerance * scale, "%s: largest error %.3g of %.3g", name, error, scale);
}

// Runs blocks backwards: results must not depend on the order.
void backwards(void*, int64_t blocks, Team::Block call, const void* f) {
  for (int64_t b = blocks; b-- > 0;) call(f, b);
}

template <class T>
void run(int64_t n, int64_t h, int64_t width, int64_t ci, int64_t stride, bool pool, bool input_grad,
         double tolerance) {
  const int64_t co = 13;
  const Geometry g{3, 3, stride, stride, 1, 1, 1};
  const int64_t zh = g.out_h(h), zw = g.out_w(width);
  Map x = Map::padded(n, h, width, ci, {1, 1}), dx = Map::padded(n, h, width, ci, {0, 1});
  if (!input_grad) x.cp = ci, dx.n = 0;
  const Map z = Map::padded(n, zh, zw, co), dz = Map::padded(n, zh, zw, co, Conv2d<T>::border_for_dy(g, h, width));
  NormPool<T> norm;
  norm.x = z, norm.dx = dz, norm.pool = pool;
  norm.y = norm.dy = pool ? Map::padded(n, zh / 2, zw / 2, co, {1, 1}) : Map::padded(n, zh, zw, co, {1, 1});
  const ConvNorm<T> joint(x, g, norm, dx);
  const Conv2d<T> conv(x, z, g, dz, dx);
  Team team, other(backwards, nullptr, 2);

  const auto values = [&](int64_t size, unsigned seed) { return random_map<T>(Map{1, 1, 1, size, size, 0, 0}, seed); };
  const auto packed = [&](unsigned seed) {
    Data<T> p(static_cast<size_t>(conv.packed_size()));
    conv.pack(values(co * ci * 9, seed).data(), p.data());
    return p;
  };
  const Data<T> w = packed(1), wt = packed(2), px = random_map<T>(x, 3), pxt = random_map<T>(x, 4);
  const Data<T> dy = random_map<T>(norm.dy, 5), dyt = random_map<T>(norm.dy, 6);
  Data<T> gamma = values(16, 7), beta = values(16, 8), gammat = values(16, 9), betat = values(16, 10);
  for (Data<T>* v : {&gamma, &beta, &gammat, &betat}) std::fill(v->begin() + co, v->end(), T(0));
  const T* xt = input_grad ? pxt.data() : nullptr;

  struct Results {
    Data<T> z, zt, y, yt, dx, dxt, dw, dwt, dgamma, dbeta, dgammat, dbetat;
  };
  const auto fresh = [&] {
    const auto map = [](const Map& m) { return Data<T>(static_cast<size_t>(m.size()), T(0)); };
    const Data<T> weights(w.size(), T(2)), channels(16, T(2));
    return Results{map(z),  map(z),  map(norm.y), map(norm.y), map(dx),  map(dx),
                   weights, weights, channels,    channels,    channels, channels};
  };
  Results want = fresh(), got = fresh();
  Data<T> aux(static_cast<size_t>(norm.aux_size())), scratch(static_cast<size_t>(joint.scratch_size()), T(9));
  std::vector<uint8_t> bytes(static_cast<size_t>(norm.byte_size()) + 1);
  for (const bool add : {false, true}) {
    {
      Results& r = want;
      Data<T> d(static_cast<size_t>(dz.size()), T(0)), dt = d;
      const ConvTerm<T> forward{px.data(), w.data()}, tangents[] = {{xt, w.data()}, {px.data(), wt.data()}};
      conv.forward(&forward, 1, beta.data(), r.z.data(), n, team);
      norm.forward(r.z.data(), gamma.data(), beta.data(), nullptr, r.y.data(), aux.data(), bytes.data(), n, team);
      norm.backward(r.z.data(), gamma.data(), aux.data(), bytes.data(), dy.data(), d.data(), false, r.dgamma.data(),
                    r.dbeta.data(), add, n, team);
      const ConvTerm<T> by_weight{px.data(), d.data()}, by_input{d.data(), w.data()};
      conv.backward_weight(&by_weight, 1, r.dw.data(), add, n, team);
      if (input_grad) conv.backward_input(&by_input, 1, r.dx.data(), add, n, team, scratch.data());
      conv.forward(tangents, 2, betat.data(), r.zt.data(), n, team);
      norm.forward_tangent(r.z.data(), gamma.data(), aux.data(), bytes.data(), r.zt.data(), gammat.data(), betat.data(),
                           r.yt.data(), n, team);
      norm.backward_tangent(r.z.data(), gamma.data(), aux.data(), bytes.data(), r.zt.data(), gammat.data(), dy.data(),
                            dyt.data(), nullptr, dt.data(), false, r.dgammat.data(), r.dbetat.data(), add, n, team);
      const ConvTerm<T> weights[] = {{xt, d.data()}, {px.data(), dt.data()}};
      const ConvTerm<T> inputs[] = {{dt.data(), w.data()}, {d.data(), wt.data()}};
      conv.backward_weight(weights, 2, r.dwt.data(), add, n, team);
      if (input_grad) conv.backward_input(inputs, 2, r.dxt.data(), add, n, team, scratch.data());
    }
    Results& r = got;
    Team& order = add ? other : team;
    T *rdx = input_grad ? r.dx.data() : nullptr, *rdxt = input_grad ? r.dxt.data() : nullptr;
    joint.forward(px.data(), w.data(), beta.data(), gamma.data(), beta.data(), nullptr, r.z.data(), r.y.data(),
                  aux.data(), bytes.data(), n, order);
    joint.backward(px.data(), w.data(), gamma.data(), aux.data(), bytes.data(), r.z.data(), dy.data(), rdx, add,
                   r.dw.data(), add, r.dgamma.data(), r.dbeta.data(), add, n, order, scratch.data());
    joint.forward_tangent(px.data(), xt, w.data(), wt.data(), betat.data(), gamma.data(), gammat.data(), betat.data(),
                          aux.data(), bytes.data(), r.z.data(), r.zt.data(), r.yt.data(), n, order);
    joint.backward_tangent(px.data(), xt, w.data(), wt.data(), gamma.data(), gammat.data(), aux.data(), bytes.data(),
                           r.z.data(), r.zt.data(), dy.data(), dyt.data(), rdxt, add, r.dwt.data(), add,
                           r.dgammat.data(), r.dbetat.data(), add, n, order, scratch.data());
  }
  compare(got.z, want.z, tolerance, "z");
  compare(got.zt, want.zt, tolerance, "zt");
  compare(got.y, want.y, tolerance, "y");
  compare(got.yt, want.yt, tolerance, "yt");
  compare(got.dx, want.dx, tolerance, "dx");
  compare(got.dxt, want.dxt, tolerance, "dxt");
  compare(got.dw, want.dw, tolerance, "dw");
  compare(got.dwt, want.dwt, tolerance, "dwt");
  compare(got.dgamma, want.dgamma, tolerance, "dgamma");
  compare(got.dbeta, want.dbeta, tolerance, "dbeta");
  compare(got.dgammat, want.dgammat, tolerance, "dgammat");
  compare(got.dbetat, want.dbetat, tolerance, "dbetat");
}

}  // namespace

int main() {
  run<double>(2, 52, 44, 3, 1, true, false, 1e-11);   // rows, and a shorter rest
  run<double>(2, 48, 46, 3, 1, false, false, 1e-11);  // rows
  run<double>(5, 52, 45, 2, 1, true, true, 1e-11);    // groups of images
  run<double>(3, 31, 29, 2, 2, false, true, 1e-11);   // all images at once, strided
  run<float>(2, 104, 45, 3, 1, true, false, 1e-4);
  return check_result();
}
