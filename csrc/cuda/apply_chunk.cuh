// One chunk of one tensor, shared by `lanes` lanes: what a thread block runs, and what a host test runs lane by lane.
// No torch and no CUDA runtime here; a plain C++ compiler takes this file.
#pragma once

#include "../core/step.h"

#include <type_traits>

#if defined(__CUDACC__)
#include <cuda_fp16.h>
#else
#include <cassert>
#endif

namespace mf::cuda {

// Storage of the streams of a pass. `any` is decided at run time by StreamRef::dtype, alike for a whole launch.
enum class Storage { f32, bf16, any };

// The storage of the parameter (with its gradient) and of the states, the elements of one vector, the vectors in flight
// for each lane, and the blocks that share a multiprocessor's registers.
struct AllFloat {
  static constexpr Storage kParam = Storage::f32, kState = Storage::f32;
  static constexpr int kVector = 4, kUnroll = 2, kBlocks = 5;
};
struct AllBfloat {
  static constexpr Storage kParam = Storage::bf16, kState = Storage::bf16;
  static constexpr int kVector = 8, kUnroll = 1, kBlocks = 5;
};
struct BfloatParam {  // bf16 parameters and gradients over fp32 states
  static constexpr Storage kParam = Storage::bf16, kState = Storage::f32;
  static constexpr int kVector = 4, kUnroll = 2, kBlocks = 5;
};
struct AnyStorage {  // everything else: fp16, masters with a copy, mixed states
  static constexpr Storage kParam = Storage::any, kState = Storage::any;
  static constexpr int kVector = 4, kUnroll = 1, kBlocks = 4;
};

struct LaneSums {
  float gg = 0, gu = 0, uu = 0, pp = 0;
};

MF_HD float half_to_float(uint16_t bits) {
#if defined(__CUDACC__)
  return __half2float(__ushort_as_half(bits));
#else
  _Float16 h;
  std::memcpy(&h, &bits, sizeof h);
  return static_cast<float>(h);
#endif
}

MF_HD uint16_t float_to_half(float x) {
#if defined(__CUDACC__)
  return __half_as_ushort(__float2half_rn(x));
#else
  const _Float16 h = static_cast<_Float16>(x);
  uint16_t bits;
  std::memcpy(&bits, &h, sizeof bits);
  return bits;
#endif
}

// Moves kBytes with one memory instruction, or with several of 16 bytes.
template <int kBytes>
MF_HD void move_words(uint32_t* to, const char* from) {
#if defined(__CUDACC__)
  if constexpr (kBytes == 2) *to = *reinterpret_cast<const uint16_t*>(from);
  if constexpr (kBytes == 4) *to = *reinterpret_cast<const uint32_t*>(from);
  if constexpr (kBytes == 8) {
    const uint2 w = *reinterpret_cast<const uint2*>(from);
    to[0] = w.x, to[1] = w.y;
  }
  if constexpr (kBytes >= 16) {
#pragma unroll
    for (int k = 0; k < kBytes / 16; ++k) {
      const uint4 w = reinterpret_cast<const uint4*>(from)[k];
      to[4 * k] = w.x, to[4 * k + 1] = w.y, to[4 * k + 2] = w.z, to[4 * k + 3] = w.w;
    }
  }
#else
  assert(reinterpret_cast<uintptr_t>(from) % (kBytes < 16 ? kBytes : 16) == 0);
  *to = 0;
  std::memcpy(to, from, kBytes);
#endif
}

template <int kBytes>
MF_HD void move_words(char* to, const uint32_t* from) {
#if defined(__CUDACC__)
  if constexpr (kBytes == 2) *reinterpret_cast<uint16_t*>(to) = static_cast<uint16_t>(*from);
  if constexpr (kBytes == 4) *reinterpret_cast<uint32_t*>(to) = *from;
  if constexpr (kBytes == 8) *reinterpret_cast<uint2*>(to) = make_uint2(from[0], from[1]);
  if constexpr (kBytes >= 16) {
#pragma unroll
    for (int k = 0; k < kBytes / 16; ++k)
      reinterpret_cast<uint4*>(to)[k] = make_uint4(from[4 * k], from[4 * k + 1], from[4 * k + 2], from[4 * k + 3]);
  }
#else
  assert(reinterpret_cast<uintptr_t>(to) % (kBytes < 16 ? kBytes : 16) == 0);
  std::memcpy(to, from, kBytes);
#endif
}

template <Storage kStorage>
MF_HD bool is_float(const StreamRef& s) {
  if constexpr (kStorage == Storage::any) return s.dtype == DType::f32;
  return kStorage == Storage::f32;
}

// kVec elements as they lie in memory: raw, so that all loads of a step are in flight before the first is used.
template <Storage kStorage, int kVec>
struct Vector {
  uint32_t word[kStorage == Storage::bf16 ? (kVec + 1) / 2 : kVec];

  MF_HD void load(const StreamRef& s, int64_t i) {
    const char* data = static_cast<const char*>(s.data);
    if (is_float<kStorage>(s)) {
      if constexpr (kStorage != Storage::bf16) move_words<4 * kVec>(word, data + 4 * i);
    } else {
      if constexpr (kStorage != Storage::f32) move_words<2 * kVec>(word, data + 2 * i);
    }
  }

  MF_HD void store(const StreamRef& s, int64_t i) const {
    char* data = static_cast<char*>(s.data);
    if (is_float<kStorage>(s)) {
      if constexpr (kStorage != Storage::bf16) move_words<4 * kVec>(data + 4 * i, word);
    } else {
      if constexpr (kStorage != Storage::f32) move_words<2 * kVec>(data + 2 * i, word);
    }
  }

  MF_HD float get(const StreamRef& s, int j) const {
    if constexpr (kStorage == Storage::f32) {
      return bits_float(word[j]);
    } else {
      if (is_float<kStorage>(s)) return bits_float(word[kStorage == Storage::bf16 ? 0 : j]);
      const uint16_t half = static_cast<uint16_t>(word[j / 2] >> (16 * (j % 2)));
      return kStorage == Storage::any && s.dtype == DType::f16 ? half_to_float(half) : bf16_to_float(half);
    }
  }

  // `bits` round a bfloat16.
  MF_HD void set(const StreamRef& s, int j, float x, uint32_t bits) {
    if constexpr (kStorage == Storage::f32) {
      word[j] = float_bits(x);
    } else {
      if (is_float<kStorage>(s)) {
        word[kStorage == Storage::bf16 ? 0 : j] = float_bits(x);
        return;
      }
      const uint32_t half =
          kStorage == Storage::any && s.dtype == DType::f16 ? float_to_half(x) : float_to_bf16(x, bits);
      uint32_t& pair = word[j / 2];  // the other half may not have been read yet
      pair = j % 2 ? (pair & 0xffffu) | half << 16 : (pair & 0xffff0000u) | half;
    }
  }
};

// Elements [begin, end) of a chunk by vectors: `end - begin` is a multiple of kVec.
template <class R, class T, int kVec, int kUnroll>
MF_HD void apply_vectors(const Chunk& c, const typename R::Hyper& h, int lane, int lanes, int begin, int end,
                         LaneSums& sums) {
  constexpr bool kAny = T::kParam == Storage::any;
  constexpr bool kRounds = T::kParam != Storage::f32 || T::kState != Storage::f32;
  for (int base = begin + lane * kVec; base < end; base += lanes * kVec * kUnroll) {
    Vector<T::kParam, kVec> g[kUnroll], p[kUnroll];
    Vector<T::kState, kVec> s[kMaxStates][kUnroll];
#pragma unroll
    for (int k = 0; k < kUnroll; ++k) {
      const int i = base + k * lanes * kVec;
      if (i >= end) break;
      if constexpr (R::kReads & kG) g[k].load(c.g, i);
      if constexpr (R::kReads & kP) p[k].load(c.p, i);
#pragma unroll
      for (int m = 0; m < kMaxStates; ++m)
        if (R::kReads & (kS0 << m)) s[m][k].load(c.s[m], i);
    }
#pragma unroll
    for (int k = 0; k < kUnroll; ++k) {
      const int i = base + k * lanes * kVec;
      if (i >= end) break;
      Vector<T::kParam, kVec> copy{};
#pragma unroll
      for (int j = 0; j < kVec; ++j) {
        float gj = 0, u = 0, pj = 0, a[kMaxStates] = {};
        if constexpr (R::kReads & kG) gj = g[k].get(c.g, j);
        if constexpr (R::kReads & kP) pj = p[k].get(c.p, j);
#pragma unroll
        for (int m = 0; m < kMaxStates; ++m)
          if (R::kReads & (kS0 << m)) a[m] = s[m][k].get(c.s[m], j);
        if constexpr (R::kReads & kP) sums.pp += pj * pj;
        R::step(h, gj, u, pj, a[0], a[1], a[2], a[3]);
        if constexpr (R::kStats) {
          sums.gg += gj * gj;
          sums.gu += gj * u;
          sums.uu += u * u;
        }
        uint32_t word = 0;
        if constexpr (kRounds && R::kWrites != 0)
          if (c.stochastic) word = rounding_word(c.key, static_cast<uint64_t>(c.first + i + j));
        const auto bits = [&](float x, int stream) {
          return kRounds && c.stochastic ? rounding_bits(word, stream) : nearest_even_bits(x);
        };
        if constexpr (R::kWrites & kP) {
          p[k].set(c.p, j, pj, bits(pj, 0));
          if constexpr (kAny)
            if (c.copy.data) copy.set(c.copy, j, pj, nearest_even_bits(pj));
        }
#pragma unroll
        for (int m = 0; m < kMaxStates; ++m)
          if (R::kWrites & (kS0 << m)) s[m][k].set(c.s[m], j, a[m], bits(a[m], m + 1));
      }
      if constexpr (R::kWrites & kP) {
        p[k].store(c.p, i);
        if constexpr (kAny)
          if (c.copy.data) copy.store(c.copy, i);
      }
#pragma unroll
      for (int m = 0; m < kMaxStates; ++m)
        if (R::kWrites & (kS0 << m)) s[m][k].store(c.s[m], i);
    }
  }
}

template <unsigned kStreams>
constexpr int kStreamCount = kStreams == 0 ? 0 : 1 + kStreamCount<kStreams&(kStreams - 1)>;
template <>
inline constexpr int kStreamCount<0> = 0;

MF_HD bool aligned(const StreamRef& s, int vector) {
  const int bytes = vector * (s.dtype == DType::f32 ? 4 : 2);
  return reinterpret_cast<uintptr_t>(s.data) % static_cast<uintptr_t>(bytes < 16 ? bytes : 16) == 0;
}

// Lane `lane` of `lanes` takes its share of the chunk, and returns its share of the four sums.
template <class R, class T>
MF_HD LaneSums apply_chunk(const Chunk& c, const typename R::Hyper& h, int lane, int lanes) {
  bool whole = true;  // vectors only where every stream allows them: a view at an odd offset does not
  if constexpr ((R::kReads | R::kWrites) & kP) whole = whole && aligned(c.p, T::kVector) && aligned(c.copy, T::kVector);
  if constexpr (R::kReads & kG) whole = whole && aligned(c.g, T::kVector);
#pragma unroll
  for (int m = 0; m < kMaxStates; ++m)
    if ((R::kReads | R::kWrites) & (kS0 << m)) whole = whole && aligned(c.s[m], T::kVector);
  const int n = static_cast<int>(c.n), vectors = whole ? n - n % T::kVector : 0;
  LaneSums sums;
  constexpr int kUnroll = (kStreamCount<R::kReads>) > 4 ? 1 : T::kUnroll;  // registers: nothing may spill
  apply_vectors<R, T, T::kVector, kUnroll>(c, h, lane, lanes, 0, vectors, sums);
  apply_vectors<R, T, 1, 1>(c, h, lane, lanes, vectors, n, sums);
  return sums;
}

// Sum of squares of a lane's share of a gradient.
template <Storage kStorage, int kVec>
MF_HD float squares_vectors(const StreamRef& g, int lane, int lanes, int begin, int end) {
  constexpr int kUnroll = kVec == 1 ? 1 : 4;
  float sum = 0;
  for (int base = begin + lane * kVec; base < end; base += lanes * kVec * kUnroll) {
    Vector<kStorage, kVec> v[kUnroll];
#pragma unroll
    for (int k = 0; k < kUnroll; ++k)
      if (base + k * lanes * kVec < end) v[k].load(g, base + k * lanes * kVec);
#pragma unroll
    for (int k = 0; k < kUnroll; ++k) {
      if (base + k * lanes * kVec >= end) break;
#pragma unroll
      for (int j = 0; j < kVec; ++j) {
        const float x = v[k].get(g, j);
        sum += x * x;
      }
    }
  }
  return sum;
}

MF_HD float squares_chunk(const StreamRef& g, int n, int lane, int lanes) {
  const int vectors = aligned(g, 4) ? n - n % 4 : 0;
  return squares_vectors<Storage::any, 4>(g, lane, lanes, 0, vectors) +
         squares_vectors<Storage::any, 1>(g, lane, lanes, vectors, n);
}

}  // namespace mf::cuda
