// How numbers near 0 are treated.
#pragma once

#include <cstdint>
#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace mf {
inline namespace MF_ISA {

// Denormals are zero while it lives, as on a GPU, and the thread's mode is given back. Moments of weights whose
// gradient stays 0 decay into them: up to five times the time of an optimizer's pass, and a hundred times that of a
// product.
class NoDenormals {
 public:
#if defined(__x86_64__)
  NoDenormals() : saved_(_mm_getcsr()) { _mm_setcsr(saved_ | 0x8040); }
  ~NoDenormals() { _mm_setcsr(saved_); }

 private:
  unsigned saved_;
#elif defined(__aarch64__)
  NoDenormals() {
    asm volatile("mrs %0, fpcr" : "=r"(saved_));
    asm volatile("msr fpcr, %0" ::"r"(saved_ | (1ull << 24)));
  }
  ~NoDenormals() { asm volatile("msr fpcr, %0" ::"r"(saved_)); }

 private:
  uint64_t saved_;
#endif
};

}  // namespace MF_ISA
}  // namespace mf
