#pragma once

// How a layer spreads over threads inside one task. The blocks of a layer depend on its shape alone, never on the
// number of threads, and no two blocks write the same element, so results do not depend on who runs a block.
#include <cstdint>

#include "core/simd.h"

namespace mf {
inline namespace MF_ISA {

class Team {
 public:
  using Block = void (*)(const void* function, int64_t block);
  // Runs call(function, block) for every block in [0, blocks), on any threads, and returns when all are done.
  using Spread = void (*)(void* pool, int64_t blocks, Block call, const void* function);

  Team() = default;  // everything on the calling thread
  Team(Spread spread, void* pool, int threads) : spread_(spread), pool_(pool), threads_(threads) {}

  int threads() const { return threads_; }

  template <class F>
  void run(int64_t blocks, const F& f) {
    if (blocks > 1 && spread_ != nullptr) {
      spread_(pool_, blocks, [](const void* g, int64_t b) { (*static_cast<const F*>(g))(b); }, &f);
    } else {
      for (int64_t b = 0; b < blocks; ++b) f(b);
    }
  }

 private:
  Spread spread_ = nullptr;
  void* pool_ = nullptr;
  int threads_ = 1;
};

}  // namespace MF_ISA
}  // namespace mf
