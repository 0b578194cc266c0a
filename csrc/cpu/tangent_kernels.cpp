// Drives a rule on dual numbers over one chunk: the optimizer's step and the tangents of parameter and states in one
// pass. Compiled once per instruction set, with MF_ISA as its namespace. Explicit vectors, because a dual number is an
// array, and a loop over those is not one that a compiler vectorizes.
#include "../core/simd.h"

#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include <algorithm>
#include <cmath>

#include "../core/dual.h"
#include "../core/no_denormals.h"
#include "kernels.h"

namespace mf {
inline namespace MF_ISA {

MF_INLINE Vec<float> sqrt_(Vec<float> x) {
#if defined(__AVX512F__)
  return {_mm512_maskz_sqrt_ps(0xffff, x.v)};  // GCC 12 takes the other one's pass-through for uninitialized
#elif defined(__AVX__)
  return {_mm256_sqrt_ps(x.v)};
#else
  for (int64_t i = 0; i < Vec<float>::kLanes; ++i) x.v[i] = std::sqrt(x.v[i]);
  return x;
#endif
}
MF_INLINE Vec<float> inverse(Vec<float> x) { return Vec<float>::broadcast(1.0f) / x; }
MF_INLINE Vec<float> half_inverse_or_zero(Vec<float> x) {
  return select(x > Vec<float>::zero(), Vec<float>::broadcast(0.5f) / x, Vec<float>::zero());
}

}  // namespace MF_ISA
}  // namespace mf

namespace mf::cpu::MF_ISA {
namespace {

using V = Vec<float>;

constexpr int64_t kBlock = 1024;  // elements; more values than kTangents meet their primal streams in L1 again

// One vector of elements with K of the tangents; n < kLanes only where the chunk ends.
template <class R, int K, bool kWhole>
MF_INLINE void apply(const TangentChunk& c, const typename R::Hyper& h, int first, bool writes, int64_t i, int64_t n) {
  const auto load = [&](const float* from) { return kWhole ? V::load(from + i) : V::load_first(from + i, n); };
  const auto store = [&](V x, float* to) { kWhole ? x.store(to + i) : x.store_first(to + i, n); };
  const auto row = [&](int k, int stream) {
    return c.tangents + (static_cast<int64_t>(first + k) * (1 + R::kStates) + stream) * c.row;
  };
  using D = Dual<V, K>;
  D g, p, s[R::kStates > 0 ? R::kStates : 1];
  g.v = load(c.g);
  p.v = load(c.p);
  for (int j = 0; j < R::kStates; ++j) s[j].v = load(c.s[j]);
  for (int k = 0; k < K; ++k) {
    g.d[k] = c.grad_tangents ? load(c.grad_tangents[first + k]) : V::zero();
    p.d[k] = c.fresh ? V::zero() : load(row(k, 0)) * c.decay;
    for (int j = 0; j < R::kStates; ++j) s[j].d[k] = c.fresh ? V::zero() : load(row(k, 1 + j));
  }
  R::step(h, g, p, s);
  if (writes) {
    store(p.v, c.p);
    for (int j = 0; j < R::kStates; ++j) store(s[j].v, c.s[j]);
  }
  for (int k = 0; k < K; ++k) {
    store(p.d[k], row(k, 0));
    for (int j = 0; j < R::kStates; ++j) store(s[j].d[k], row(k, 1 + j));
  }
}

template <class R, int K>
void block(const TangentChunk& chunk, const typename R::Hyper& hyper, int first, bool writes, int64_t begin,
           int64_t end) {
  const TangentChunk c = chunk;  // copies, which no store can change
  const typename R::Hyper h = hyper;
  int64_t i = begin;
  for (; i + V::kLanes <= end; i += V::kLanes) apply<R, K, true>(c, h, first, writes, i, V::kLanes);
  if (i < end) apply<R, K, false>(c, h, first, writes, i, end - i);
}

// The last group of values writes the parameter, so that all see the one before the step.
template <class R>
void run_tangents(const TangentChunk& c, const void* hypers) {
  using Block = void (*)(const TangentChunk&, const typename R::Hyper&, int, bool, int64_t, int64_t);
  static constexpr Block table[] = {block<R, 0>, block<R, 1>, block<R, 2>, block<R, 3>, block<R, 4>};
  static_assert(std::size(table) == kTangents + 1);
  const auto* h = static_cast<const typename R::Hyper*>(hypers);
  const NoDenormals flush;
  for (int64_t begin = 0; begin < c.n; begin += kBlock) {
    const int64_t end = std::min(c.n, begin + kBlock);
    int first = 0;
    do {
      const int count = std::min(kTangents, c.values - first);
      table[count](c, h[first / kTangents], first, first + count == c.values, begin, end);
      first += count;
    } while (first < c.values);
  }
}

}  // namespace

extern const TangentFn tangent_kernels[];
const TangentFn tangent_kernels[] = {
#define X(name, ...) run_tangents<__VA_ARGS__>,
    MF_TANGENT_RULES(X)
#undef X
};

}  // namespace mf::cpu::MF_ISA
