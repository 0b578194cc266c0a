// Drives a rule over one chunk with SIMD. Compiled once per instruction set, with MF_ISA as its namespace.
#include "kernels.h"

#include <algorithm>
#include <cstring>
#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include "../core/no_denormals.h"

#define MF_STRING_(x) #x
#define MF_STRING(x) MF_STRING_(x)

namespace mf::cpu::MF_ISA {
namespace {

constexpr int64_t kBlock = 1024;  // elements between two additions to the double sums; buffers of this size stay in L1

void load_f16(const uint16_t* src, float* dst, int64_t n) {
  int64_t i = 0;
#if defined(__F16C__)
  for (; i + 8 <= n; i += 8)
    _mm256_storeu_ps(dst + i, _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(src + i))));
  for (; i < n; ++i) dst[i] = _cvtsh_ss(src[i]);
#else
  for (; i < n; ++i) {
    _Float16 h;
    std::memcpy(&h, src + i, sizeof h);
    dst[i] = static_cast<float>(h);
  }
#endif
}

void store_f16(uint16_t* dst, const float* src, int64_t n) {
  int64_t i = 0;
#if defined(__F16C__)
  for (; i + 8 <= n; i += 8)
    _mm_storeu_si128(reinterpret_cast<__m128i*>(dst + i),
                     _mm256_cvtps_ph(_mm256_loadu_ps(src + i), _MM_FROUND_TO_NEAREST_INT));
  for (; i < n; ++i) dst[i] = _cvtss_sh(src[i], _MM_FROUND_TO_NEAREST_INT);
#else
  for (; i < n; ++i) {
    const _Float16 h = static_cast<_Float16>(src[i]);
    std::memcpy(dst + i, &h, sizeof h);
  }
#endif
}

void load_bf16(const uint16_t* __restrict src, float* __restrict dst, int64_t n) {
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) dst[i] = bf16_to_float(src[i]);
}

void store_bf16(uint16_t* __restrict dst, const float* __restrict src, int64_t n) {
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) dst[i] = float_to_bf16(src[i], nearest_even_bits(src[i]));
}

template <int kStream>
void store_bf16_stochastic(uint16_t* __restrict dst, const float* __restrict src, const uint32_t* __restrict word,
                           int64_t n) {
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) dst[i] = float_to_bf16(src[i], rounding_bits(word[i], kStream));
}

void rounding_words(uint32_t* __restrict word, uint32_t key, int64_t first, int64_t n) {
  const uint32_t low = static_cast<uint32_t>(first), high = rounding_high(static_cast<uint64_t>(first));
  if (low + static_cast<uint64_t>(n) <= 0xffffffffull) {  // 32-bit lanes unless the block crosses 2^32 elements
#pragma omp simd
    for (int64_t i = 0; i < n; ++i) word[i] = rounding_word(key, low + static_cast<uint32_t>(i), high);
  } else {
    for (int64_t i = 0; i < n; ++i) word[i] = rounding_word(key, static_cast<uint64_t>(first + i));
  }
}

// A view of `n` elements as floats: the memory itself where it is fp32, else a copy in `buffer`.
float* open(const StreamRef& s, int64_t offset, int64_t n, float* buffer) {
  if (s.dtype == DType::f32) return static_cast<float*>(s.data) + offset;
  const uint16_t* data = static_cast<const uint16_t*>(s.data) + offset;
  s.dtype == DType::bf16 ? load_bf16(data, buffer, n) : load_f16(data, buffer, n);
  return buffer;
}

template <int kStream>
void close(const StreamRef& s, int64_t offset, int64_t n, const StreamRef& floats, const uint32_t* word) {
  const float* values = static_cast<const float*>(floats.data);
  if (s.dtype == DType::f32) {
    float* data = static_cast<float*>(s.data) + offset;
    if (data != values) std::memcpy(data, values, static_cast<size_t>(n) * sizeof(float));
    return;
  }
  uint16_t* data = static_cast<uint16_t*>(s.data) + offset;
  if (s.dtype == DType::f16) return store_f16(data, values, n);
  word ? store_bf16_stochastic<kStream>(data, values, word, n) : store_bf16(data, values, n);
}

struct Sums {
  float gg = 0, gu = 0, uu = 0, pp = 0;
};

// ---- common storage types, converted in registers: passes over buffers before and after cost as much as the maths

template <DType kType>
struct Storage {
  using type = uint16_t;
  MF_HD static float load(uint16_t x) { return bf16_to_float(x); }
};
template <>
struct Storage<DType::f32> {
  using type = float;
  MF_HD static float load(float x) { return x; }
};

template <DType kType, int kStream, bool kStochastic>
MF_HD typename Storage<kType>::type stored(float x, uint32_t word) {
  if constexpr (kType == DType::f32) {
    return x;
  } else {
    return float_to_bf16(x, kStochastic ? rounding_bits(word, kStream) : nearest_even_bits(x));
  }
}

// Storage types of one call: of the parameter and its gradient, of s0 to s2, and of s3.
template <DType kParam, DType kState, DType kRate, bool kStochasticRounding = false>
struct Format {
  static constexpr DType kP = kParam, kS = kState, kR = kRate;
  static constexpr bool kStochastic = kStochasticRounding;
  static constexpr bool kFloat = kP == DType::f32 && kS == DType::f32 && kR == DType::f32;

  template <class R>
  static bool fits(const Chunk& c) {
    const auto is = [](unsigned stream, const StreamRef& s, DType type) {
      return !((R::kReads | R::kWrites) & stream) || s.dtype == type;
    };
    return is(mf::kP, c.p, kP) && is(kG, c.g, kP) && is(kS0, c.s[0], kS) && is(kS1, c.s[1], kS) &&
           is(kS2, c.s[2], kS) && is(kS3, c.s[3], kR) && !c.copy.data && (kFloat || c.stochastic == kStochastic);
  }
};
using Floats = Format<DType::f32, DType::f32, DType::f32>;

template <class T>
T* from(const StreamRef& s, int64_t element) {
  return s.data ? static_cast<T*>(s.data) + element : nullptr;
}

// One loop does loads, maths, sums, rounding and stores. A rest of less than a vector is the compiler's: in narrower
// vectors and then one by one.
template <class R, class F>
Sums block(const typename R::Hyper& hyper, const Chunk& c, int64_t first, int64_t n) {
  using P = Storage<F::kP>;
  using S = Storage<F::kS>;
  using Q = Storage<F::kR>;
  const auto* __restrict g = from<const typename P::type>(c.g, first);
  auto* __restrict p = from<typename P::type>(c.p, first);
  auto* __restrict s0 = from<typename S::type>(c.s[0], first);
  auto* __restrict s1 = from<typename S::type>(c.s[1], first);
  auto* __restrict s2 = from<typename S::type>(c.s[2], first);
  auto* __restrict s3 = from<typename Q::type>(c.s[3], first);
  const typename R::Hyper h = hyper;
  const uint64_t element = static_cast<uint64_t>(c.first + first);
  const uint32_t key = c.key, low = static_cast<uint32_t>(element);
  const uint32_t high = rounding_high(element);
  float gg = 0, gu = 0, uu = 0, pp = 0;
#pragma omp simd reduction(+ : gg, gu, uu, pp)
  for (int64_t i = 0; i < n; ++i) {
    float gi = 0, u = 0, pi = 0, a = 0, b = 0, c2 = 0, d = 0;
    if constexpr (R::kReads & kG) gi = P::load(g[i]);
    if constexpr (R::kReads & mf::kP) pi = P::load(p[i]);
    if constexpr (R::kReads & kS0) a = S::load(s0[i]);
    if constexpr (R::kReads & kS1) b = S::load(s1[i]);
    if constexpr (R::kReads & kS2) c2 = S::load(s2[i]);
    if constexpr (R::kReads & kS3) d = Q::load(s3[i]);
    if constexpr (R::kReads & mf::kP) pp += pi * pi;
    R::step(h, gi, u, pi, a, b, c2, d);
    if constexpr (R::kStats) {
      gg += gi * gi;
      gu += gi * u;
      uu += u * u;
    }
    const uint32_t word = F::kStochastic ? rounding_word(key, low + static_cast<uint32_t>(i), high) : 0u;
    if constexpr (R::kWrites & mf::kP) p[i] = stored<F::kP, 0, F::kStochastic>(pi, word);
    if constexpr (R::kWrites & kS0) s0[i] = stored<F::kS, 1, F::kStochastic>(a, word);
    if constexpr (R::kWrites & kS1) s1[i] = stored<F::kS, 2, F::kStochastic>(b, word);
    if constexpr (R::kWrites & kS2) s2[i] = stored<F::kS, 3, F::kStochastic>(c2, word);
    if constexpr (R::kWrites & kS3) s3[i] = stored<F::kR, 4, F::kStochastic>(d, word);
  }
  return {gg, gu, uu, pp};
}

struct Totals {
  double sum[kStatCount] = {};

  void operator+=(const Sums& part) {
    sum[0] += part.gg;
    sum[1] += part.gu;
    sum[2] += part.uu;
    sum[3] += part.pp;
  }
};

template <class R, class F>
bool run_format(const Chunk& c, const typename R::Hyper& h, Totals& totals) {
  if (!F::template fits<R>(c)) return false;
  // A chunk that crosses 2^32 elements is left to the general loop, whose random words are 64-bit.
  if (F::kStochastic && static_cast<uint32_t>(c.first) + static_cast<uint64_t>(c.n) > 0xffffffffull) return false;
  for (int64_t i = 0; i < c.n; i += kBlock) totals += block<R, F>(h, c, i, std::min(kBlock, c.n - i));
  return true;
}

// The storage types that are converted in registers; false for others.
template <class R>
bool run_common(const Chunk& c, const typename R::Hyper& h, Totals& totals) {
  constexpr DType f32 = DType::f32, bf16 = DType::bf16;
  const auto any = [&]<class... F>() { return (run_format<R, F>(c, h, totals) || ...); };
  if constexpr (R::kWrites & kS3)
    return any
        .template operator()<Floats, Format<f32, f32, bf16>, Format<f32, f32, bf16, true>, Format<f32, bf16, bf16>,
                             Format<f32, bf16, bf16, true>, Format<bf16, bf16, bf16>, Format<bf16, bf16, bf16, true>>();
  else
    return any
        .template operator()<Floats, Format<f32, bf16, f32>, Format<f32, bf16, f32, true>, Format<bf16, bf16, f32>,
                             Format<bf16, bf16, f32, true>, Format<bf16, f32, f32>, Format<bf16, f32, f32, true>>();
}

// Any storage types, through buffers of floats.
template <class R>
void run_general(const Chunk& c, const typename R::Hyper& h, Totals& totals) {
  alignas(64) float buffer[2 + kMaxStates][kBlock];
  alignas(64) uint32_t words[kBlock];
  for (int64_t i = 0; i < c.n; i += kBlock) {
    const int64_t n = std::min(kBlock, c.n - i);
    const auto opened = [&](unsigned stream, const StreamRef& s, int which) {
      const bool used = (R::kReads | R::kWrites) & stream;
      return StreamRef{used ? open(s, i, n, buffer[which]) : nullptr, DType::f32};
    };
    Chunk floats;
    floats.g = opened(kG, c.g, 0);
    floats.p = opened(kP, c.p, 1);
    for (int k = 0; k < kMaxStates; ++k) floats.s[k] = opened(kS0 << k, c.s[k], 2 + k);
    totals += block<R, Floats>(h, floats, 0, n);
    const uint32_t* word = nullptr;
    if (c.stochastic) {
      rounding_words(words, c.key, c.first + i, n);
      word = words;
    }
    if constexpr (R::kWrites & kP) {
      close<0>(c.p, i, n, floats.p, c.copy.data ? nullptr : word);
      if (c.copy.data) close<0>(c.copy, i, n, floats.p, nullptr);
    }
    if constexpr (R::kWrites & kS0) close<1>(c.s[0], i, n, floats.s[0], word);
    if constexpr (R::kWrites & kS1) close<2>(c.s[1], i, n, floats.s[1], word);
    if constexpr (R::kWrites & kS2) close<3>(c.s[2], i, n, floats.s[2], word);
    if constexpr (R::kWrites & kS3) close<4>(c.s[3], i, n, floats.s[3], word);
  }
}

template <class R>
void run_chunk(const Chunk& c, const void* hyper, double* sums) {
  const auto& h = *static_cast<const typename R::Hyper*>(hyper);
  const NoDenormals flush;
  Totals totals;
  if (!run_common<R>(c, h, totals)) run_general<R>(c, h, totals);
  std::copy(totals.sum, totals.sum + kStatCount, sums);
}

double squares(StreamRef g, int64_t size) {
  alignas(64) float buffer[kBlock];
  double total = 0;
  for (int64_t i = 0; i < size; i += kBlock) {
    const int64_t n = std::min(kBlock, size - i);
    const float* x = open(g, i, n, buffer);
    float sum = 0;
#pragma omp simd reduction(+ : sum)
    for (int64_t j = 0; j < n; ++j) sum += x[j] * x[j];
    total += sum;
  }
  return total;
}

}  // namespace

// inner_loop_kernels.cpp
std::unique_ptr<AnyEngine> make_engine_float(const Program&, const EngineSettings&);
std::unique_ptr<AnyEngine> make_engine_double(const Program&, const EngineSettings&);

extern const TangentFn tangent_kernels[];  // tangent_kernels.cpp

const Kernels table = {
    MF_STRING(MF_ISA),
    {
#define X(name, ...) run_chunk<__VA_ARGS__>,
        MF_RULES(X)
#undef X
    },
    squares,
    tangent_kernels,
    make_engine_float,
    make_engine_double,
};

}  // namespace mf::cpu::MF_ISA
