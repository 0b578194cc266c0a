// Drives a rule over one chunk with SIMD. Compiled once per instruction set, with MF_ISA as its namespace.
#include "kernels.h"

#include <algorithm>
#include <cstring>
#if defined(__x86_64__)
#include <immintrin.h>
#endif

#define MF_STRING_(x) #x
#define MF_STRING(x) MF_STRING_(x)

namespace mf::cpu::MF_ISA {
namespace {

constexpr int kLanes = 16;    // a block is a multiple of this; the last one is padded with zeros
constexpr int kBlock = 1024;  // elements between two additions to the double sums; buffers of this size stay in L1

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
  const uint32_t low = static_cast<uint32_t>(first), high = static_cast<uint32_t>(first >> 32) * 0x9e3779b9u;
  if (low + static_cast<uint64_t>(n) <= 0xffffffffull) {  // 32-bit lanes unless the block crosses 2^32 elements
#pragma omp simd
    for (int64_t i = 0; i < n; ++i) word[i] = mix32(((low + static_cast<uint32_t>(i)) ^ key) + high);
  } else {
    for (int64_t i = 0; i < n; ++i) word[i] = rounding_word(key, static_cast<uint64_t>(first + i));
  }
}

// A view of `n` elements as floats: the memory itself where it is fp32 and a whole number of vectors, else `buffer`.
float* open(const StreamRef& s, int64_t offset, int64_t n, int64_t padded, float* buffer) {
  if (s.dtype == DType::f32) {
    float* data = static_cast<float*>(s.data) + offset;
    if (n == padded) return data;
    std::memcpy(buffer, data, static_cast<size_t>(n) * sizeof(float));
  } else {
    const uint16_t* data = static_cast<const uint16_t*>(s.data) + offset;
    s.dtype == DType::bf16 ? load_bf16(data, buffer, n) : load_f16(data, buffer, n);
  }
  std::fill(buffer + n, buffer + padded, 0.0f);
  return buffer;
}

template <int kStream>
void close(const StreamRef& s, int64_t offset, int64_t n, const float* values, const uint32_t* word) {
  if (s.dtype == DType::f32) {
    float* data = static_cast<float*>(s.data) + offset;
    if (data != values) std::memcpy(data, values, static_cast<size_t>(n) * sizeof(float));
    return;
  }
  uint16_t* data = static_cast<uint16_t*>(s.data) + offset;
  if (s.dtype == DType::f16) return store_f16(data, values, n);
  word ? store_bf16_stochastic<kStream>(data, values, word, n) : store_bf16(data, values, n);
}

// Moments of weights whose gradient stays 0 decay into denormals, which cost up to five times the time of a pass. They
// count as 0 here, as on a GPU, and the thread's mode is given back.
class FlushDenormals {
 public:
#if defined(__x86_64__)
  FlushDenormals() : saved_(_mm_getcsr()) { _mm_setcsr(saved_ | 0x8040); }
  ~FlushDenormals() { _mm_setcsr(saved_); }

 private:
  unsigned saved_;
#elif defined(__aarch64__)
  FlushDenormals() {
    asm volatile("mrs %0, fpcr" : "=r"(saved_));
    asm volatile("msr fpcr, %0" ::"r"(saved_ | (1ull << 24)));
  }
  ~FlushDenormals() { asm volatile("msr fpcr, %0" ::"r"(saved_)); }

 private:
  uint64_t saved_;
#endif
};

struct Sums {
  float gg = 0, gu = 0, uu = 0, pp = 0;
};

// n is a multiple of kLanes.
template <class R>
Sums block(const typename R::Hyper& hyper, int64_t n, const float* __restrict g, float* __restrict p,
           float* __restrict s0, float* __restrict s1, float* __restrict s2, float* __restrict s3) {
  const typename R::Hyper h = hyper;
  float gg = 0, gu = 0, uu = 0, pp = 0;
  n &= ~static_cast<int64_t>(kLanes - 1);
#pragma omp simd reduction(+ : gg, gu, uu, pp)
  for (int64_t i = 0; i < n; ++i) {
    float gi = 0, u = 0, pi = 0, a = 0, b = 0, c = 0, d = 0;
    if constexpr (R::kReads & kG) gi = g[i];
    if constexpr (R::kReads & kP) pi = p[i];
    if constexpr (R::kReads & kS0) a = s0[i];
    if constexpr (R::kReads & kS1) b = s1[i];
    if constexpr (R::kReads & kS2) c = s2[i];
    if constexpr (R::kReads & kS3) d = s3[i];
    if constexpr (R::kReads & kP) pp += pi * pi;
    R::step(h, gi, u, pi, a, b, c, d);
    if constexpr (R::kStats) {
      gg += gi * gi;
      gu += gi * u;
      uu += u * u;
    }
    if constexpr (R::kWrites & kP) p[i] = pi;
    if constexpr (R::kWrites & kS0) s0[i] = a;
    if constexpr (R::kWrites & kS1) s1[i] = b;
    if constexpr (R::kWrites & kS2) s2[i] = c;
    if constexpr (R::kWrites & kS3) s3[i] = d;
  }
  return {gg, gu, uu, pp};
}

template <class R>
void run_chunk(const Chunk& c, const void* hyper, double* sums) {
  const auto& h = *static_cast<const typename R::Hyper*>(hyper);
  const FlushDenormals flush;
  alignas(64) float buffer[2 + kMaxStates][kBlock];
  alignas(64) uint32_t words[kBlock];
  double gg = 0, gu = 0, uu = 0, pp = 0;
  for (int64_t i = 0; i < c.n; i += kBlock) {
    int64_t n = std::min<int64_t>(kBlock, c.n - i);
    // A last block of whole vectors and a rest: the rest goes alone through the padded buffers.
    if (n > kLanes && n % kLanes != 0) n -= n % kLanes;
    const int64_t padded = (n + kLanes - 1) / kLanes * kLanes;
    float *p = nullptr, *g = nullptr, *s[kMaxStates] = {};
    if constexpr (R::kReads & kG) g = open(c.g, i, n, padded, buffer[0]);
    if constexpr (R::kReads & kP) p = open(c.p, i, n, padded, buffer[1]);
    if constexpr (R::kReads & kS0) s[0] = open(c.s[0], i, n, padded, buffer[2]);
    if constexpr (R::kReads & kS1) s[1] = open(c.s[1], i, n, padded, buffer[3]);
    if constexpr (R::kReads & kS2) s[2] = open(c.s[2], i, n, padded, buffer[4]);
    if constexpr (R::kReads & kS3) s[3] = open(c.s[3], i, n, padded, buffer[5]);
    const Sums part = block<R>(h, padded, g, p, s[0], s[1], s[2], s[3]);
    const uint32_t* word = nullptr;
    if (c.stochastic) {
      rounding_words(words, c.key, c.first + i, n);
      word = words;
    }
    if constexpr (R::kWrites & kP) {
      close<0>(c.p, i, n, p, c.copy.data ? nullptr : word);
      if (c.copy.data) close<0>(c.copy, i, n, p, nullptr);
    }
    if constexpr (R::kWrites & kS0) close<1>(c.s[0], i, n, s[0], word);
    if constexpr (R::kWrites & kS1) close<2>(c.s[1], i, n, s[1], word);
    if constexpr (R::kWrites & kS2) close<3>(c.s[2], i, n, s[2], word);
    if constexpr (R::kWrites & kS3) close<4>(c.s[3], i, n, s[3], word);
    gg += part.gg;
    gu += part.gu;
    uu += part.uu;
    pp += part.pp;
    i -= kBlock - n;  // a short block moves on by its own length
  }
  sums[0] = gg;
  sums[1] = gu;
  sums[2] = uu;
  sums[3] = pp;
}

double squares(StreamRef g, int64_t size) {
  alignas(64) float buffer[kBlock];
  double total = 0;
  for (int64_t i = 0; i < size; i += kBlock) {
    const int64_t n = std::min<int64_t>(kBlock, size - i);
    const int64_t padded = (n + kLanes - 1) / kLanes * kLanes;
    const float* x = open(g, i, n, padded, buffer);
    float sum = 0;
#pragma omp simd reduction(+ : sum)
    for (int64_t j = 0; j < padded; ++j) sum += x[j] * x[j];
    total += sum;
  }
  return total;
}

}  // namespace

extern const Kernels table;
const Kernels table = {
    MF_STRING(MF_ISA),
    {
#define X(name, ...) run_chunk<__VA_ARGS__>,
        MF_RULES(X)
#undef X
    },
    squares,
};

}  // namespace mf::cpu::MF_ISA
