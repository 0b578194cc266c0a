// Storage types and rounding. The maths is fp32 everywhere; only loads and stores know the storage type.
//
// Stochastic rounding draws its bits from a counter-based hash, so that a result depends on (seed, step, slot, element)
// and never on threads, chunks or vector width. metafast/ops/_rounding.py is the same hash in PyTorch.
#pragma once

#include <cstdint>
#include <cstring>

#include "macros.h"

namespace mf {

enum class DType : int { f32, bf16, f16 };

MF_HD uint32_t mix32(uint32_t x) {  // "lowbias32" constants (Ellis Wells 2018): full avalanche in two multiplies
  x ^= x >> 16;
  x *= 0x7feb352du;
  x ^= x >> 15;
  x *= 0x846ca68bu;
  x ^= x >> 16;
  return x;
}

MF_HD uint32_t rounding_key(uint64_t seed, uint64_t slot, uint64_t step) {
  return mix32(mix32(static_cast<uint32_t>(seed) ^ mix32(static_cast<uint32_t>(seed >> 32))) +
               static_cast<uint32_t>(slot) * 0x9e3779b9u + static_cast<uint32_t>(step) * 0x85ebca6bu);
}

// One word of random bits per element; each stream takes its own 16 bits of it.
MF_HD uint32_t rounding_high(uint64_t element) { return static_cast<uint32_t>(element >> 32) * 0x9e3779b9u; }

// In 32-bit lanes, where all elements of a loop share the upper half of their index.
MF_HD uint32_t rounding_word(uint32_t key, uint32_t low, uint32_t high) { return mix32((low ^ key) + high); }

MF_HD uint32_t rounding_word(uint32_t key, uint64_t element) {
  return rounding_word(key, static_cast<uint32_t>(element), rounding_high(element));
}

// Stream 0 is the parameter, 1 to 4 are the states.
MF_HD uint32_t rounding_bits(uint32_t word, int stream) {
  if (stream == 1) return word & 0xffffu;
  if (stream == 2) return word >> 16;
  const uint32_t other = word * 0x9e3779b1u + 0x7f4a7c15u;
  return stream == 0 ? other >> 16 : (other >> (stream == 3 ? 8 : 4)) & 0xffffu;
}

MF_HD uint32_t float_bits(float x) {
#if defined(__CUDA_ARCH__)
  return __float_as_uint(x);
#else
  uint32_t u;
  std::memcpy(&u, &x, sizeof u);
  return u;
#endif
}

MF_HD float bits_float(uint32_t u) {
#if defined(__CUDA_ARCH__)
  return __uint_as_float(u);
#else
  float x;
  std::memcpy(&x, &u, sizeof x);
  return x;
#endif
}

MF_HD float bf16_to_float(uint16_t b) { return bits_float(static_cast<uint32_t>(b) << 16); }

// Adding `bits` in [0, 65535] before truncation rounds stochastically; the nearest-even bits round to nearest.
MF_HD uint16_t float_to_bf16(float x, uint32_t bits) {
  const uint32_t u = float_bits(x);
  const uint32_t rounded = (u + bits) >> 16;
  const bool nan = (u & 0x7fffffffu) > 0x7f800000u;  // the sum could carry a NaN into the sign bit
  return static_cast<uint16_t>(nan ? 0x7fc0u : rounded);
}

MF_HD uint32_t nearest_even_bits(float x) { return 0x7fffu + ((float_bits(x) >> 16) & 1u); }

}  // namespace mf
