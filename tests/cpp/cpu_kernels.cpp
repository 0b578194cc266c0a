// The CPU kernels of every instruction set that this machine runs, against a plain loop of the same rule: sizes around
// the vector widths, all storage types, elements beyond 2^31 and 2^32 of a tensor, sentinels around what is written.
#include "cpu/kernels.h"

#include <cmath>
#include <cstring>
#include <vector>

#include "check.h"

using namespace mf;

namespace {

struct Stream {
  std::vector<float> f32;
  std::vector<uint16_t> bf16;
  DType dtype;

  Stream(int64_t n, DType type, float base, float step) : f32(n + 2, -7.0f), bf16(n + 2, 0x4444), dtype(type) {
    for (int64_t i = 0; i < n; ++i) set(i, base + step * static_cast<float>((i * 37) % 101));
  }
  void set(int64_t i, float x) {
    f32[i + 1] = x;
    bf16[i + 1] = float_to_bf16(x, nearest_even_bits(x));
  }
  float get(int64_t i) const { return dtype == DType::f32 ? f32[i + 1] : bf16_to_float(bf16[i + 1]); }
  void put(int64_t i, float x, uint32_t bits) {
    if (dtype == DType::f32) f32[i + 1] = x;
    else bf16[i + 1] = float_to_bf16(x, bits);
  }
  StreamRef ref() { return {dtype == DType::f32 ? static_cast<void*>(&f32[1]) : static_cast<void*>(&bf16[1]), dtype}; }
  bool sentinels() const {
    return f32.front() == -7.0f && f32.back() == -7.0f && bf16.front() == 0x4444 && bf16.back() == 0x4444;
  }
};

template <class R>
void compare(cpu::ChunkFn kernel, const typename R::Hyper& h, int64_t n, int64_t first, DType param, DType state,
             bool stochastic) {
  const auto make = [&] {
    return std::vector<Stream>{{n, param, -0.5f, 0.01f},  {n, param, -0.3f, 0.007f}, {n, state, -0.2f, 0.004f},
                               {n, state, 1e-3f, 0.001f}, {n, state, 0.2f, 0.01f},   {n, state, 1e-2f, 1e-4f}};
  };
  std::vector<Stream> got = make(), want = make();
  Chunk c{};
  c.p = got[0].ref();
  c.g = got[1].ref();
  for (int k = 0; k < kMaxStates; ++k) c.s[k] = got[2 + k].ref();
  c.n = n;
  c.first = first;
  c.key = 1234567u;
  c.stochastic = stochastic;
  double sums[kStatCount];
  kernel(c, &h, sums);

  double expected[kStatCount] = {};
  for (int64_t i = 0; i < n; ++i) {
    float u = 0, v[6];
    for (int k = 0; k < 6; ++k) v[k] = want[k].get(i);
    const float p_old = v[0];
    R::step(h, v[1], u, v[0], v[2], v[3], v[4], v[5]);
    if (R::kStats) {
      expected[0] += static_cast<double>(v[1]) * v[1];
      expected[1] += static_cast<double>(v[1]) * u;
      expected[2] += static_cast<double>(u) * u;
    }
    if (R::kReads & kP) expected[3] += static_cast<double>(p_old) * p_old;
    const uint32_t word = rounding_word(c.key, static_cast<uint64_t>(first + i));
    const unsigned streams[] = {kP, 0, kS0, kS1, kS2, kS3};
    const int number[] = {0, -1, 1, 2, 3, 4};
    for (int k = 0; k < 6; ++k)
      if (R::kWrites & streams[k])
        want[k].put(i, v[k], stochastic ? rounding_bits(word, number[k]) : nearest_even_bits(v[k]));
  }
  int64_t different = 0;
  for (int k = 0; k < 6; ++k) {
    CHECK(got[k].sentinels(), "stream %d of %lld elements", k, static_cast<long long>(n));
    for (int64_t i = 0; i < n; ++i) {
      const float a = got[k].get(i), e = want[k].get(i);
      // One unit of the storage type where the two fp32 values straddle a boundary; that is rare.
      const float limit = (want[k].dtype == DType::f32 ? 2e-6f : 8e-3f) * (std::fabs(e) + 1e-2f);
      CHECK(std::fabs(a - e) <= limit, "stream %d element %lld: %g, expected %g", k, static_cast<long long>(i), a, e);
      different += want[k].dtype != DType::f32 && a != e;
    }
  }
  CHECK(different <= 2 + n / 100, "%lld roundings differ", static_cast<long long>(different));
  for (int k = 0; k < kStatCount; ++k)
    CHECK(std::fabs(sums[k] - expected[k]) <= 1e-5 * (std::sqrt(expected[0] * expected[2]) + expected[k] + 1e-6),
          "sum %d: %g, expected %g", k, sums[k], expected[k]);
}

AdamHyper adam_hyper() { return {1.0f, 0.0f, 0.99999f, 0.1f, 0.999f, 0.001f, 0.7f, 1e-8f, 0.6f, 1e-8f, 1e-2f}; }

void all(const cpu::Kernels& table) {
  HyperAdamElementHyper element{};
  static_cast<AdamHyper&>(element) = adam_hyper();
  element.rate = make_element_rate(kNormalized, 0.05, 1e-8, 10.0);
  element.lr = 1.0f;
  SgdHyper sgd{1.0f, 0.01f, 0.9f, 1.0f, 1.0f, 0.9f, 1e-2f};
  const auto kernel = [&](RuleId id) { return table.chunk[static_cast<int>(id)]; };
  for (int64_t n : {0, 1, 15, 16, 17, 31, 33, 1023, 1024, 1025, 4097})
    for (int64_t first : {int64_t{0}, (int64_t{1} << 31) - 5, (int64_t{1} << 32) - 16, (int64_t{1} << 33) + 7})
      for (DType param : {DType::f32, DType::bf16})
        for (DType state : {DType::f32, DType::bf16})
          for (bool stochastic : {false, true}) {
            compare<Adam<false>>(kernel(RuleId::adam), adam_hyper(), n, first, param, state, stochastic);
            compare<Adam<true>>(kernel(RuleId::adam_amsgrad), adam_hyper(), n, first, param, state, stochastic);
            compare<HyperAdamApply<false>>(kernel(RuleId::hyper_adam_apply), adam_hyper(), n, first, param, state,
                                           stochastic);
            compare<HyperAdamElement<false, false>>(kernel(RuleId::hyper_adam_element), element, n, first, param, state,
                                                    stochastic);
            compare<Sgd<true, true>>(kernel(RuleId::sgd_momentum_previous), sgd, n, first, param, state, stochastic);
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
