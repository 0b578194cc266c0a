#pragma once

// Loops over the inner parts of maps, in blocks that depend on shapes alone.
#include <algorithm>

#if defined(__AVX2__)
#include <immintrin.h>
#endif

#include "layers/map.h"
#include "layers/team.h"

namespace mf {
inline namespace MF_ISA {

constexpr int64_t kBlockElements = 8192;  // one block of a team: large enough to hand over, small enough to balance

inline int64_t blocks_of(int64_t total, int64_t per_block) { return (total + per_block - 1) / per_block; }

// Calls f(length, offset in each map) for stretches of whole pixels that together cover the first n examples. The maps
// share n, h, w, and cp.
template <class F, class... Maps>
MF_INLINE void for_spans(int64_t n, Team& team, const F& f, const Map& first, const Maps&... rest) {
  const bool flat = first.bh + first.bw == 0 && ((rest.bh + rest.bw == 0) && ...);
  const int64_t row = first.w * first.cp, rows = n * first.h;
  if (flat) {
    const int64_t size = rows * row, blocks = blocks_of(size, kBlockElements);
    const auto part = [&](int64_t b) {
      const int64_t at = b * kBlockElements;
      f(std::min(kBlockElements, size - at), at, (static_cast<void>(rest), at)...);
    };
    if (blocks == 1) return part(0);
    return team.run(blocks, part);
  }
  const int64_t per_block = std::max<int64_t>(1, kBlockElements / std::max<int64_t>(1, row));
  team.run(blocks_of(rows, per_block), [&](int64_t b) {
    const int64_t end = std::min(rows, (b + 1) * per_block);
    for (int64_t r = b * per_block; r < end; ++r) {
      const int64_t i = r / first.h, y = r - i * first.h;
      f(row, first.at(i, y, 0), rest.at(i, y, 0)...);
    }
  });
}

// One byte per lane, widened to integer lanes and back. Compilers take them apart lane by lane when left alone.
template <class T>
MF_INLINE typename Vec<T>::Mask load_bytes(const uint8_t* p) {
#if defined(__AVX512F__)
  if constexpr (sizeof(T) == 4) {
    return (typename Vec<T>::Mask)_mm512_maskz_cvtepu8_epi32(0xffff, _mm_loadu_si128((const __m128i*)p));
  } else {
    uint64_t bytes;  // GCC 12 fails to compile a masked conversion that reads memory itself
    std::memcpy(&bytes, p, sizeof bytes);
    asm("" : "+r"(bytes));
    return (typename Vec<T>::Mask)_mm512_maskz_cvtepu8_epi64(0xff, _mm_cvtsi64_si128(static_cast<int64_t>(bytes)));
  }
#elif defined(__AVX2__)
  if constexpr (sizeof(T) == 4) return (typename Vec<T>::Mask)_mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i*)p));
  else return (typename Vec<T>::Mask)_mm256_cvtepu8_epi64(_mm_loadu_si32(p));
#else
  typename Vec<T>::Mask m;
  for (int64_t i = 0; i < Vec<T>::kLanes; ++i) m[i] = p[i];
  return m;
#endif
}

template <class T>
MF_INLINE void store_bytes(typename Vec<T>::Mask m, uint8_t* p) {
#if defined(__AVX512F__)
  if constexpr (sizeof(T) == 4) return _mm_storeu_si128((__m128i*)p, _mm512_maskz_cvtepi32_epi8(0xffff, (__m512i)m));
  else return _mm_storel_epi64((__m128i*)p, _mm512_maskz_cvtepi64_epi8(0xff, (__m512i)m));
#elif defined(__AVX2__)
  if constexpr (sizeof(T) == 4) {
    const __m256i wide = (__m256i)m;
    const __m128i words = _mm_packus_epi32(_mm256_castsi256_si128(wide), _mm256_extracti128_si256(wide, 1));
    return _mm_storel_epi64((__m128i*)p, _mm_packus_epi16(words, words));
  }
#endif
  for (int64_t i = 0; i < Vec<T>::kLanes; ++i) p[i] = static_cast<uint8_t>(m[i]);
}

}  // namespace MF_ISA
}  // namespace mf
