// The tangent kernels of every instruction set that this machine runs, against the same rules in double precision, one
// element at a time: sizes around the vector widths, more values than one visit moves, sentinels around what is
// written.
#include <cmath>
#include <cstring>
#include <vector>

#include "check.h"
#include "cpu/kernels.h"

namespace mf {

struct Real {  // a double that dual numbers take for their elements
  double x;

  friend Real operator+(Real a, Real b) { return {a.x + b.x}; }
  friend Real operator-(Real a, Real b) { return {a.x - b.x}; }
  friend Real operator*(Real a, Real b) { return {a.x * b.x}; }
  friend Real operator+(Real a, float b) { return {a.x + static_cast<double>(b)}; }
  friend Real operator*(Real a, float b) { return {a.x * static_cast<double>(b)}; }
};
inline Real sqrt_(Real a) { return {std::sqrt(a.x)}; }
inline Real inverse(Real a) { return {1.0 / a.x}; }
inline Real half_inverse_or_zero(Real a) { return {a.x > 0.0 ? 0.5 / a.x : 0.0}; }

}  // namespace mf

using namespace mf;

namespace {

constexpr float kSentinel = -7.0f;
constexpr int64_t kGap = 3;  // between two rows of tangents

struct Memory {
  std::vector<float> p, g, s[2], z;
  std::vector<std::vector<float>> gz;
  int64_t n, row;

  Memory(int64_t count, int values, int states) : n(count), row(count + kGap) {
    p = stream(0.3f, 0.011f);
    g = stream(-0.4f, 0.009f);
    s[0] = stream(-0.2f, 0.005f);
    s[1] = stream(0.0f, 0.002f);  // some second moments are 0
    for (int64_t i = 0; i < n; i += 7) g[i + 1] = s[0][i + 1] = s[1][i + 1] = 0.0f;
    z.assign(1 + values * (1 + states) * row, kSentinel);
    for (int r = 0; r < values * (1 + states); ++r)
      for (int64_t i = 0; i < n; ++i) z[1 + r * row + i] = 0.1f * std::sin(static_cast<float>(i + 13 * r));
    for (int k = 0; k < values; ++k) gz.push_back(stream(-0.1f * static_cast<float>(k), 0.003f));
  }

  std::vector<float> stream(float base, float step) const {
    std::vector<float> x(n + 2, kSentinel);
    for (int64_t i = 0; i < n; ++i) x[i + 1] = base + step * static_cast<float>((i * 37) % 101);
    return x;
  }
};

bool close(float found, double expected) { return std::fabs(found - expected) <= 2e-5 * (std::fabs(expected) + 1e-2); }

template <class R>
void compare(cpu::TangentFn kernel, const typename R::Hyper& one, int64_t n, int values, bool moving, bool fresh) {
  const std::vector<typename R::Hyper> hypers(1 + values / kTangents, one);
  const Memory want(n, values, R::kStates);
  Memory got = want;
  std::vector<const float*> gz;
  for (const auto& x : got.gz) gz.push_back(&x[1]);
  cpu::TangentChunk c{};
  c.p = &got.p[1];
  c.g = &got.g[1];
  for (int j = 0; j < R::kStates; ++j) c.s[j] = &got.s[j][1];
  c.tangents = values ? &got.z[1] : nullptr;
  c.grad_tangents = moving && values ? gz.data() : nullptr;
  c.row = got.row;
  c.n = n;
  c.values = values;
  c.decay = 0.9f;
  c.fresh = fresh;
  kernel(c, hypers.data());

  for (int64_t i = 0; i < n; ++i) {
    for (int k = 0; k < std::max(values, 1); ++k) {  // each value alone, as the only direction of its place
      const auto before = [&](int stream) {
        return values == 0 || fresh ? 0.0 : want.z[1 + (k * (1 + R::kStates) + stream) * want.row + i];
      };
      Dual<Real, kTangents> g{{want.g[i + 1]}, {}}, p{{want.p[i + 1]}, {}}, s[2] = {};
      const int place = k % kTangents;
      g.d[place].x = moving && values ? want.gz[k][i + 1] : 0.0;
      p.d[place].x = static_cast<double>(0.9f) * before(0);
      for (int j = 0; j < R::kStates; ++j) {
        s[j].v.x = want.s[j][i + 1];
        s[j].d[place].x = before(1 + j);
      }
      R::step(one, g, p, s);
      CHECK(close(got.p[i + 1], p.v.x), "p[%lld]: %g, expected %g", static_cast<long long>(i), got.p[i + 1], p.v.x);
      for (int j = 0; j < R::kStates; ++j)
        CHECK(close(got.s[j][i + 1], s[j].v.x), "state %d: %g, expected %g", j, got.s[j][i + 1], s[j].v.x);
      for (int j = 0; j <= R::kStates && values; ++j) {
        const double expected = j == 0 ? p.d[place].x : s[j - 1].d[place].x;
        const float found = got.z[1 + (k * (1 + R::kStates) + j) * got.row + i];
        CHECK(close(found, expected), "tangent %d of value %d at %lld: %g, expected %g", j, k,
              static_cast<long long>(i), found, expected);
      }
    }
  }
  for (const auto* x : {&got.p, &got.g, &got.s[0], &got.s[1]})
    CHECK(x->front() == kSentinel && x->back() == kSentinel, "a stream of %lld elements", static_cast<long long>(n));
  for (size_t r = 0; r < got.z.size() / got.row; ++r)
    for (int64_t i = 0; i < kGap; ++i)
      CHECK(got.z[(r + 1) * got.row - i] == kSentinel, "behind row %d of tangents", static_cast<int>(r));
}

DualFloat speed(float value, float scale) { return {value, {scale, -scale, 0.5f * scale, 0.0f}}; }

void all(const cpu::Kernels& table) {
  const AdamHyperOf<DualFloat> adam{-1.0f,
                                    speed(0.05f, 0.1f),
                                    speed(0.999f, 0.02f),
                                    speed(0.1f, 0.3f),
                                    speed(0.99f, 0.02f),
                                    speed(0.01f, -0.02f),
                                    speed(0.7f, 0.2f),
                                    speed(1e-3f, 1e-3f),
                                    {},
                                    {},
                                    speed(0.02f, 0.05f)};
  const SgdHyperOf<DualFloat> sgd{1.0f,
                                  speed(0.05f, 0.1f),
                                  speed(0.9f, -0.1f),
                                  speed(0.8f, 0.1f),
                                  speed(1.0f, 0.0f),
                                  speed(0.9f, -0.1f),
                                  speed(0.1f, 0.2f)};
  const auto kernel = [&](TangentRuleId id) { return table.tangents[static_cast<int>(id)]; };
  for (int64_t n : {0, 1, 7, 8, 15, 16, 17, 33, 1025})
    for (int values : {0, 1, 2, 3, 4, 5, 9})
      for (bool moving : {false, true})
        for (bool fresh : {false, true}) {
          compare<AdamTangents>(kernel(TangentRuleId::adam), adam, n, values, moving, fresh);
          compare<SgdTangents<false>>(kernel(TangentRuleId::sgd), sgd, n, values, moving, fresh);
          compare<SgdTangents<true>>(kernel(TangentRuleId::sgd_momentum), sgd, n, values, moving, fresh);
        }
}

}  // namespace

int main() {
#if defined(__x86_64__)
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) all(cpu::avx2::table);
  if (std::strcmp(cpu::kernels().isa, "avx512") == 0) all(cpu::avx512::table);
#else
  all(cpu::neon::table);
#endif
  return check_result();
}
