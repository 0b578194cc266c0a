// Batch norm alone, with ReLU, and with ReLU and the 2x2 pool: four passes against hyper-dual numbers of the plain
// definition, whole maps and rows, float and double, odd sizes, padded channels, w of both signs and 0, null arguments,
// fixed statistics, large means, threads.
#include "layers/norm.h"

#include <algorithm>
#include <string>

#include "layers_reference.h"

using namespace mf;
using namespace reference;

namespace {

struct Case {
  Shape shape;
  bool relu, pool, fixed = false, add = false, null_xt = false, null_params = false, in_rows = false;
  double mean = 0.0;
  std::string name() const {
    return std::to_string(shape.n) + "x" + std::to_string(shape.c) + "x" + std::to_string(shape.h) + "x" +
           std::to_string(shape.w) + (relu ? " relu" : "") + (pool ? " pool" : "") + (fixed ? " fixed" : "") +
           (add ? " add" : "") + (null_xt ? " no ẋ" : "") + (null_params ? " no w" : "") + (in_rows ? " rows" : "");
  }
};

constexpr double kEps = 1e-3;

Numbers definition(const Case& c, const Values& stats, const Numbers& x, const Numbers& p) {
  const Shape& s = c.shape;
  Numbers z(x.size());
  for (int64_t k = 0; k < s.c; ++k) {
    Number mean, var;
    const double m = static_cast<double>(s.n * s.h * s.w);
    const auto all = [&](const auto& f) {
      for (int64_t i = 0; i < s.n; ++i)
        for (int64_t r = 0; r < s.h; ++r)
          for (int64_t q = 0; q < s.w; ++q) f(s.at(i, k, r, q));
    };
    all([&](int64_t at) { mean = mean + x[at]; });
    mean = mean / m;
    all([&](int64_t at) { var = var + (x[at] - mean) * (x[at] - mean); });
    var = var / m;
    if (c.fixed) mean = stats[k], var = stats[s.c + k];
    const Number r = Number(1.0) / sqrt(var + kEps);
    all([&](int64_t at) {
      const Number hat = (x[at] - mean) * r;
      z[at] = c.null_params ? hat : hat * p[k] + p[s.c + k];
      if (c.relu && !(z[at].v > 0.0)) z[at] = Number(0.0);
    });
  }
  if (!c.pool) return z;
  const Shape o = {s.n, s.c, s.h / 2, s.w / 2};
  Numbers y(static_cast<size_t>(o.size()));
  for (int64_t i = 0; i < s.n; ++i)
    for (int64_t k = 0; k < s.c; ++k)
      for (int64_t r = 0; r < o.h; ++r)
        for (int64_t q = 0; q < o.w; ++q) {
          Number best = z[s.at(i, k, 2 * r, 2 * q)];
          for (int64_t j = 1; j < 4; ++j) {
            const Number v = z[s.at(i, k, 2 * r + j / 2, 2 * q + j % 2)];
            if (v.v > best.v) best = v;
          }
          y[o.at(i, k, r, q)] = best;
        }
  return y;
}

// Runs blocks backwards: results must not depend on the order.
void backwards(void*, int64_t blocks, Team::Block call, const void* f) {
  for (int64_t b = blocks; b-- > 0;) call(f, b);
}

template <class T>
void run(const Case& c, double tolerance) {
  std::mt19937 random(7);
  const Shape s = c.shape, o = c.pool ? Shape{s.n, s.c, s.h / 2, s.w / 2} : s;
  const Values x = normal(s.size(), random, c.mean), xt = c.null_xt ? Values(x.size()) : normal(s.size(), random);
  Values p = normal(2 * s.c, random), pt = normal(2 * s.c, random), stats = normal(2 * s.c, random);
  p[0] = -std::fabs(p[0]);
  if (s.c > 1) p[1] = 0.0;  // a pool of equal values
  if (c.null_params) p.clear(), pt.clear();
  for (int64_t k = 0; k < s.c; ++k) stats[s.c + k] = 0.5 + stats[s.c + k] * stats[s.c + k];
  const Values dy = normal(o.size(), random), dyt = normal(o.size(), random);
  Values base = normal(s.size(), random);
  // What the layer is given, rounded to T, is also what the reference is given.
  const auto rounded = [](Values v) {
    for (double& e : v) e = static_cast<double>(static_cast<T>(e));
    return v;
  };
  const Values rx = rounded(x), rxt = rounded(xt), rp = rounded(p), rpt = rounded(pt), rdy = rounded(dy),
               rdyt = rounded(dyt), rstats = rounded(stats);
  base = rounded(base);
  Passes want = passes([&](const Numbers& nx, const Numbers& np) { return definition(c, rstats, nx, np); }, rx, rxt, rp,
                       rpt, rdy, rdyt);

  NormPool<T> layer;
  Buffer<T> bx(s, c.in_rows || s.w % 3 == 0 ? Border{} : Border{1, 1}), by(o, {1, 2}), bdy(o, {0, 1}), bdx(s, {2, 1});
  Buffer<T> bxt = bx, byt = by, bdyt = bdy, bdxt = bdx;
  layer.eps = kEps, layer.x = bx.map, layer.y = by.map, layer.dy = bdy.map, layer.dx = bdx.map;
  layer.pool = c.pool, layer.relu = c.relu, layer.fixed = c.fixed;
  const int64_t cp = bx.map.cp;
  const auto vector = [&](const Values& v, int64_t from) {
    std::vector<T> out(static_cast<size_t>(cp), T(0));
    for (int64_t k = 0; k < s.c && from + k < static_cast<int64_t>(v.size()); ++k) out[k] = static_cast<T>(v[from + k]);
    return out;
  };
  std::vector<T> w = vector(p, 0), b = vector(p, s.c), wt = vector(pt, 0), bt = vector(pt, s.c), dw(cp, T(3)),
                 db(cp, T(3)), dwt(cp, T(3)), dbt(cp, T(3)), fixed = vector(stats, 0), var = vector(stats, s.c);
  fixed.insert(fixed.end(), var.begin(), var.end());
  std::vector<T> aux(static_cast<size_t>(layer.aux_size()), static_cast<T>(NAN));
  std::vector<uint8_t> bytes(static_cast<size_t>(layer.byte_size()), 0xee);
  const T *pw = c.null_params ? nullptr : w.data(), *pb = c.null_params ? nullptr : b.data();
  const T *pwt = c.null_params ? nullptr : wt.data(), *pbt = c.null_params ? nullptr : bt.data();
  T *pdw = c.null_params ? nullptr : dw.data(), *pdb = c.null_params ? nullptr : db.data();
  T *pdwt = c.null_params ? nullptr : dwt.data(), *pdbt = c.null_params ? nullptr : dbt.data();
  bx.set(x), bxt.set(xt), bdy.set(dy), bdyt.set(dyt);
  if (c.add) bdx.set(base), bdxt.set(base);
  const T* pxt = c.null_xt ? nullptr : bxt.p();
  Team team = c.add ? Team(backwards, nullptr, 2) : Team();
  const int64_t n = s.n;
  Buffer<T> again = bdx;  // dx, written a second time beside dẋ
  if (!c.in_rows) {
    layer.forward(bx.p(), pw, pb, fixed.data(), by.p(), aux.data(), bytes.data(), n, team);
    layer.backward(bx.p(), pw, aux.data(), bytes.data(), bdy.p(), bdx.p(), c.add, pdw, pdb, c.add, n, team);
    layer.forward_tangent(bx.p(), pw, aux.data(), bytes.data(), pxt, pwt, pbt, byt.p(), n, team);
    layer.backward_tangent(bx.p(), pw, aux.data(), bytes.data(), pxt, pwt, bdy.p(), bdyt.p(), again.p(), bdxt.p(),
                           c.add, pdwt, pdbt, c.add, n, team);
  } else {
    const auto steps = [&](const auto& f) {  // no row twice
      for (int64_t i = 0; i < n; ++i)
        for (int64_t r = 0; r < s.h;) {
          const int64_t end = r + 3 >= s.h ? s.h : r + 2;
          f(i, r, end, bdx.map.at(i, r, 0));
          r = end;
        }
    };
    const int64_t row = bdx.map.row();
    steps([&](int64_t i, int64_t r0, int64_t r1, int64_t) {
      layer.forward_rows(bx.p(), pw, aux.data(), bytes.data(), i, r0, r1);
    });
    layer.forward_finish(bx.p(), pw, pb, fixed.data(), by.p(), aux.data(), bytes.data(), n, team);
    layer.backward_sums(bx.p(), pw, aux.data(), bytes.data(), bdy.p(), pdw, pdb, c.add, n, team);
    steps([&](int64_t i, int64_t r0, int64_t r1, int64_t at) {
      layer.backward_rows(bx.p(), pw, aux.data(), bytes.data(), bdy.p(), bdx.p() + at, row, c.add, i, r0, r1);
    });
    if (pxt != nullptr)
      steps([&](int64_t i, int64_t r0, int64_t r1, int64_t) {
        layer.forward_tangent_rows(bx.p(), aux.data(), bytes.data(), pxt, i, r0, r1);
      });
    layer.forward_tangent_finish(bx.p(), pw, aux.data(), bytes.data(), pxt, pwt, pbt, byt.p(), n, team);
    layer.backward_tangent_sums(bx.p(), pw, aux.data(), bytes.data(), pxt, pwt, bdy.p(), bdyt.p(), pdwt, pdbt, c.add, n,
                                team);
    again = bdx;
    steps([&](int64_t i, int64_t r0, int64_t r1, int64_t at) {
      layer.backward_tangent_rows(bx.p(), pw, aux.data(), bytes.data(), pxt, pwt, bdy.p(), bdyt.p(), nullptr,
                                  bdxt.p() + at, row, c.add, i, r0, r1);
    });
  }
  const std::string name = c.name();
  const char* label = name.c_str();
  if (c.add) {
    for (size_t j = 0; j < base.size(); ++j) want.dx[j] += base[j], want.dxt[j] += base[j];
    for (double& e : want.dp) e += 3.0;
    for (double& e : want.dpt) e += 3.0;
  }
  CHECK_CLOSE(by.get(), want.y, tolerance, "%s", label);
  CHECK_CLOSE(bdx.get(), want.dx, tolerance, "%s", label);
  CHECK_CLOSE(byt.get(), want.yt, tolerance, "%s", label);
  CHECK_CLOSE(bdxt.get(), want.dxt, tolerance, "%s", label);
  CHECK_CLOSE(again.get(), want.dx, tolerance, "%s", label);
  CHECK(by.clean() && bdx.clean() && byt.clean() && bdxt.clean(), "%s: borders and padded lanes stay 0", label);
  if (!c.null_params) {
    const auto params = [&](const std::vector<T>& first, const std::vector<T>& second) {
      Values v;
      for (int64_t k = 0; k < s.c; ++k) v.push_back(static_cast<double>(first[k]));
      for (int64_t k = 0; k < s.c; ++k) v.push_back(static_cast<double>(second[k]));
      return v;
    };
    CHECK_CLOSE(params(dw, db), want.dp, tolerance, "%s", label);
    CHECK_CLOSE(params(dwt, dbt), want.dpt, tolerance, "%s", label);
    for (int64_t k = s.c; k < cp; ++k)
      CHECK(c.add || (dw[k] == T(0) && db[k] == T(0) && dwt[k] == T(0) && dbt[k] == T(0)), "%s: padded lanes", label);
  }
}

// A NaN stays in its channel, reaches every output of it, and ReLU does not hide it.
void not_a_number() {
  const Shape s{2, 20, 6, 6};
  std::mt19937 random(4);
  for (const bool pool : {false, true}) {
    Values v = normal(s.size(), random);
    Buffer<float> x(s, {}), y(pool ? Shape{2, 20, 3, 3} : s, {});
    v[s.at(1, 3, 4, 2)] = NAN;
    x.set(v);
    NormPool<float> layer;
    layer.x = layer.dx = x.map, layer.y = layer.dy = y.map, layer.pool = pool;
    std::vector<float> aux(static_cast<size_t>(layer.aux_size(false)));
    std::vector<uint8_t> bytes(static_cast<size_t>(layer.byte_size()));
    Team team;
    layer.forward(x.p(), nullptr, nullptr, nullptr, y.p(), aux.data(), bytes.data(), s.n, team);
    const Values out = y.get();
    const auto per_channel = static_cast<int64_t>(y.map.h * y.map.w);
    for (size_t j = 0; j < out.size(); ++j) {
      const bool bad = (static_cast<int64_t>(j) / per_channel) % s.c == 3;
      CHECK(std::isnan(out[j]) == bad, "output %zu is %g", j, out[j]);
    }
  }
}

}  // namespace

int main() {
  not_a_number();
  std::vector<Case> cases;
  for (const Shape& s : {Shape{3, 5, 4, 6}, Shape{2, 17, 5, 3}, Shape{7, 18, 2, 2}, Shape{1, 3, 6, 9}})
    for (int kind = 0; kind < 3; ++kind) {
      Case c{s, kind > 0, kind > 1};
      cases.push_back(c);
      c.in_rows = true;
      cases.push_back(c);
      c.add = true;
      cases.push_back(c);
      c.in_rows = false, c.null_xt = true;
      cases.push_back(c);
      c.null_xt = false, c.null_params = true;
      cases.push_back(c);
      c.null_params = false, c.fixed = true, c.add = false;
      cases.push_back(c);
    }
  cases.push_back({{10, 40, 1, 1}, true, false});
  cases.push_back({{10, 40, 1, 1}, false, false});
  for (const Case& c : cases) {
    run<double>(c, 1e-12);
    run<float>(c, 2e-5);
  }
  return check_result();
}
