// Picks the instruction set once per process.
#include "kernels.h"

namespace mf::cpu {

#if defined(__x86_64__)
const Kernels& kernels() {
  static const Kernels& best = []() -> const Kernels& {
    const bool wide = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
                      __builtin_cpu_supports("avx512cd");
    return wide ? avx512::table : avx2::table;
  }();
  return best;
}
#else
const Kernels& kernels() { return neon::table; }
#endif

}  // namespace mf::cpu
