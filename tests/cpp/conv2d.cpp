// Conv2d against a plain loop in double: every pass, one and two terms, odd shapes, and any division of the work.
#include "layers/conv2d.h"

#include <cmath>
#include <cstdint>
#include <vector>

#include "check.h"

using mf::Border;
using mf::Geometry;
using mf::Map;

namespace {

struct Shape {
  const char* name;
  int64_t n, ci, h, w, co;
  Geometry g;
  bool bare = false;  // the model's input: channels without padding
};

uint64_t state = 1;
double draw() {
  state = state * 6364136223846793005ull + 1442695040888963407ull;
  return static_cast<double>(state >> 33) / static_cast<double>(1ull << 30) - 1.0;
}

// Logical tensors in NCHW and OIHW order.
using Dense = std::vector<double>;
Dense random_dense(int64_t size) {
  Dense d(static_cast<size_t>(size));
  for (double& v : d) v = static_cast<float>(draw());
  return d;
}

// Visits every product of a convolution: f(index in x, index in w, index in y).
template <class F>
void each_product(const Shape& s, const F& f) {
  const Geometry& g = s.g;
  const int64_t oh = g.out_h(s.h), ow = g.out_w(s.w), ci = s.ci / g.groups, co = s.co / g.groups;
  for (int64_t n = 0; n < s.n; ++n)
    for (int64_t o = 0; o < s.co; ++o)
      for (int64_t y = 0; y < oh; ++y)
        for (int64_t x = 0; x < ow; ++x)
          for (int64_t c = 0; c < ci; ++c)
            for (int64_t kh = 0; kh < g.kh; ++kh)
              for (int64_t kw = 0; kw < g.kw; ++kw) {
                const int64_t iy = y * g.sh - g.ph + kh, ix = x * g.sw - g.pw + kw;
                if (iy < 0 || iy >= s.h || ix < 0 || ix >= s.w) continue;
                f(static_cast<size_t>(((n * s.ci + o / co * ci + c) * s.h + iy) * s.w + ix),
                  static_cast<size_t>(((o * ci + c) * g.kh + kh) * g.kw + kw),
                  static_cast<size_t>(((n * s.co + o) * oh + y) * ow + x));
              }
}

template <class T>
std::vector<T> place(const Map& m, const Dense& d) {
  std::vector<T> v(static_cast<size_t>(m.size()), T(0));
  for (int64_t i = 0, k = 0; i < m.n && k < static_cast<int64_t>(d.size()); ++i)
    for (int64_t c = 0; c < m.c; ++c)
      for (int64_t y = 0; y < m.h; ++y)
        for (int64_t x = 0; x < m.w; ++x)
          v[static_cast<size_t>(m.at(i, y, x) + c)] = static_cast<T>(d[static_cast<size_t>(k++)]);
  return v;
}

double largest(const Dense& d) {
  double most = 1e-30;
  for (double v : d) most = std::max(most, std::fabs(v));
  return most;
}

// The whole memory of a map: `expected` inside, 0 in padded lanes, border and images that were not asked for.
template <class T>
void check_map(const Shape& s, const char* what, const Map& m, const std::vector<T>& got, const Dense& expected) {
  const std::vector<double> want = place<double>(m, expected);
  const double tolerance = (sizeof(T) == 4 ? 3e-6 : 1e-13) * largest(expected);
  double worst = 0;
  int64_t at = 0;
  for (size_t i = 0; i < want.size(); ++i) {
    const double error = std::fabs(want[i] - static_cast<double>(got[i]));
    if (!(error <= worst)) worst = error, at = static_cast<int64_t>(i);
  }
  CHECK(worst <= tolerance, "%s, %s: error %g at %ld, at most %g", s.name, what, worst, static_cast<long>(at),
        tolerance);
}

// A team that runs its blocks backwards: no block may depend on another.
void backwards(void*, int64_t blocks, mf::Team::Block call, const void* f) {
  for (int64_t b = blocks - 1; b >= 0; --b) call(f, b);
}

template <class T>
void check_shape(const Shape& s) {
  using Conv = mf::Conv2d<T>;
  const Geometry& g = s.g;
  const int64_t oh = g.out_h(s.h), ow = g.out_w(s.w), more = s.n + 2;  // tables for more examples than a call has
  Map x = Map::padded(more, s.h, s.w, s.ci, Conv::border_for_x(g));
  if (s.bare) x.cp = x.c;
  const Map y = Map::padded(more, oh, ow, s.co, {1, 2});
  const Map dy = Map::padded(more, oh, ow, s.co, Conv::border_for_dy(g, s.h, s.w));
  const Map dx = Map::padded(more, s.h, s.w, s.ci, {1, 1});
  const Conv conv(x, y, g, dy, dx);

  const int64_t weights = s.co * (s.ci / g.groups) * g.kh * g.kw;
  Dense xs[2], ws[2], dys[2], bias = random_dense(s.co);
  Dense y1(static_cast<size_t>(s.n * s.co * oh * ow)), y2 = y1, dx1(static_cast<size_t>(s.n * s.ci * s.h * s.w)),
                                                       dx2 = dx1, dw1(static_cast<size_t>(weights)), dw2 = dw1;
  for (int t = 0; t < 2; ++t) {
    xs[t] = random_dense(s.n * s.ci * s.h * s.w);
    ws[t] = random_dense(weights);
    dys[t] = random_dense(s.n * s.co * oh * ow);
    each_product(s, [&](size_t i, size_t j, size_t k) {
      (t ? y2 : y1)[k] += xs[t][i] * ws[t][j];
      (t ? dx2 : dx1)[i] += dys[t][k] * ws[t][j];
      (t ? dw2 : dw1)[j] += xs[t][i] * dys[t][k];
    });
  }
  const auto sum = [](const Dense& a, const Dense& b, double scale = 1) {
    Dense c = a;
    for (size_t i = 0; i < c.size(); ++i) c[i] += scale * b[i];
    return c;
  };
  Dense biased = y1;
  for (size_t i = 0; i < biased.size(); ++i)
    biased[i] += bias[i / static_cast<size_t>(oh * ow) % static_cast<size_t>(s.co)];

  std::vector<T> px[2], pdy[2], pw[2], pb(static_cast<size_t>(y.cp), T(0));
  for (int64_t c = 0; c < s.co; ++c) pb[static_cast<size_t>(c)] = static_cast<T>(bias[static_cast<size_t>(c)]);
  for (int t = 0; t < 2; ++t) {
    px[t] = place<T>(x, xs[t]);
    pdy[t] = place<T>(dy, dys[t]);
    pw[t].assign(static_cast<size_t>(conv.packed_size()), T(7));
    std::vector<T> plain(ws[t].begin(), ws[t].end()), back(plain.size(), T(7));
    conv.pack(plain.data(), pw[t].data());
    conv.unpack(pw[t].data(), back.data());
    CHECK(plain == back, "%s: unpack does not undo pack", s.name);
  }
  std::vector<T> scratch(static_cast<size_t>(conv.scratch_size()));
  const mf::ConvTerm<T> xw[2] = {{px[0].data(), pw[0].data()}, {px[1].data(), pw[1].data()}};
  const mf::ConvTerm<T> dyw[2] = {{pdy[0].data(), pw[0].data()}, {pdy[1].data(), pw[1].data()}};
  const mf::ConvTerm<T> xdy[2] = {{px[0].data(), pdy[0].data()}, {px[1].data(), pdy[1].data()}};
  const mf::ConvTerm<T> dropped[2] = {{nullptr, pw[1].data()}, xw[0]};

  mf::Team alone, team(backwards, nullptr, 3);
  std::vector<T> kept[3];
  for (mf::Team* who : {&alone, &team}) {
    std::vector<T> out(static_cast<size_t>(y.size()), T(0));
    conv.forward(xw, 1, pb.data(), out.data(), s.n, *who);
    check_map(s, "forward with bias", y, out, biased);
    conv.forward(dropped, 2, nullptr, out.data(), s.n, *who);
    check_map(s, "forward, null term", y, out, y1);
    conv.forward(xw, 2, nullptr, out.data(), s.n, *who);
    check_map(s, "forward of two terms", y, out, sum(y1, y2));
    if (who == &alone) kept[0] = out;
    CHECK(out == kept[0], "%s: forward depends on the team", s.name);
    conv.forward(nullptr, 0, nullptr, out.data(), s.n, *who);
    check_map(s, "forward of no term", y, out, Dense(y1.size()));

    out.assign(static_cast<size_t>(dx.size()), T(0));
    conv.backward_input(dyw, 1, out.data(), false, s.n, *who, scratch.data());
    check_map(s, "backward_input", dx, out, dx1);
    conv.backward_input(dyw, 2, out.data(), true, s.n, *who, scratch.data());
    check_map(s, "backward_input of two terms, added", dx, out, sum(sum(dx1, dx2), dx1));
    if (who == &alone) kept[1] = out;
    CHECK(out == kept[1], "%s: backward_input depends on the team", s.name);

    std::vector<T> dw(static_cast<size_t>(conv.packed_size()), T(7)), expected(dw.size());
    const auto check_weights = [&](const char* what, const Dense& want) {
      std::vector<double> as_map(want.size());
      std::vector<T> plain(want.begin(), want.end());
      conv.pack(plain.data(), expected.data());
      double worst = 0;
      for (size_t i = 0; i < dw.size(); ++i)
        worst = std::max(worst, std::fabs(static_cast<double>(dw[i] - expected[i])));
      for (T v : dw) worst = v == v ? worst : 1e30;
      const double tolerance = (sizeof(T) == 4 ? 3e-6 : 1e-13) * largest(want);
      CHECK(worst <= tolerance, "%s, %s: error %g, at most %g", s.name, what, worst, tolerance);
    };
    conv.backward_weight(xdy, 1, dw.data(), false, s.n, *who);
    check_weights("backward_weight", dw1);
    conv.backward_weight(xdy, 2, dw.data(), true, s.n, *who);
    check_weights("backward_weight of two terms, added", sum(sum(dw1, dw2), dw1));
    if (who == &alone) kept[2] = dw;
    CHECK(dw == kept[2], "%s: backward_weight depends on the team", s.name);
    conv.backward_weight(nullptr, 0, dw.data(), false, s.n, *who);
    check_weights("backward_weight of no term", Dense(dw1.size()));
  }

  std::vector<T> db(static_cast<size_t>(dy.cp), T(7));
  sum_channels(dy, pdy[0].data(), db.data(), false, s.n);
  Dense expected_db(static_cast<size_t>(s.co));
  for (size_t i = 0; i < dys[0].size(); ++i)
    expected_db[i / static_cast<size_t>(oh * ow) % static_cast<size_t>(s.co)] += dys[0][i];
  check_map(s, "sum_channels", Map::padded(1, 1, 1, s.co), db, expected_db);
}

const Shape kShapes[] = {
    {"3x3, stride 2", 3, 16, 14, 14, 64, {3, 3, 2, 2, 1, 1, 1}},
    {"first layer", 2, 1, 28, 28, 24, {3, 3, 2, 2, 1, 1, 1}, true},
    {"first layer of three channels", 1, 3, 21, 17, 32, {3, 3, 1, 1, 1, 1, 1}, true},
    {"3x3, odd channels", 4, 7, 5, 6, 21, {3, 3, 1, 1, 1, 1, 1}},
    {"3x3, many rows", 2, 64, 6, 5, 48, {3, 3, 1, 1, 1, 1, 1}},
    {"32 channels", 2, 32, 9, 10, 32, {3, 3, 1, 1, 1, 1, 1}},
    {"40 channels, odd height", 2, 40, 7, 9, 72, {3, 3, 1, 1, 1, 1, 1}},
    {"3x3 by Winograd, small map", 6, 32, 5, 6, 18, {3, 3, 1, 1, 1, 1, 1}},
    {"3x3 by Winograd, odd sizes", 2, 32, 9, 11, 48, {3, 3, 1, 1, 1, 1, 1}},
    {"3x3 by Winograd, odd channels", 2, 21, 10, 11, 37, {3, 3, 1, 1, 1, 1, 1}},
    {"1x1", 3, 20, 7, 7, 33, {1, 1, 1, 1, 0, 0, 1}},
    {"1x1, stride 2", 3, 32, 7, 8, 16, {1, 1, 2, 2, 0, 0, 1}},
    {"7x7, stride 2", 1, 3, 19, 20, 16, {7, 7, 2, 2, 3, 3, 1}, true},
    {"even kernel, no padding", 2, 5, 9, 8, 6, {2, 4, 1, 1, 0, 0, 1}},
    {"padding beyond the kernel", 1, 2, 4, 4, 3, {1, 2, 1, 1, 2, 3, 1}},
    {"stride beyond the kernel", 2, 4, 11, 13, 5, {2, 2, 3, 4, 1, 0, 1}},
    {"uneven strides", 2, 4, 11, 6, 5, {3, 5, 2, 1, 0, 2, 1}},
    {"groups", 2, 12, 6, 6, 20, {3, 3, 1, 1, 1, 1, 4}},
    {"groups of whole vectors", 2, 32, 5, 5, 48, {3, 3, 2, 2, 1, 1, 2}},
    {"one input channel each", 2, 6, 6, 6, 12, {3, 3, 1, 1, 1, 1, 6}},
    {"depthwise", 2, 21, 9, 9, 21, {3, 3, 1, 1, 1, 1, 21}},
    {"depthwise, stride 2", 3, 40, 9, 8, 40, {5, 3, 2, 2, 2, 1, 40}},
    {"linear", 10, 40, 1, 1, 40, Geometry::linear(1, 1)},
    {"linear of one feature", 10, 1, 1, 1, 40, Geometry::linear(1, 1), true},
    {"linear to one feature", 10, 40, 1, 1, 1, Geometry::linear(1, 1)},
    {"linear over a map", 7, 18, 3, 2, 5, Geometry::linear(3, 2)},
    {"linear, many examples", 400, 9, 1, 1, 17, Geometry::linear(1, 1)},
};

}  // namespace

int main() {
  for (const Shape& s : kShapes) {
    check_shape<float>(s);
    check_shape<double>(s);
  }
  return check_result();
}
