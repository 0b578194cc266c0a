// The CPU kernels, compiled once per instruction set (CMakeLists.txt) and chosen at run time.
#pragma once

#include "../core/step.h"
#include "../layers/engine_request.h"
#include "../rules/all.h"

namespace mf::cpu {

// Runs one chunk; adds nothing, writes its four sums to `sums`.
using ChunkFn = void (*)(const Chunk&, const void* hyper, double* sums);
// Sum of squares of a flat gradient of n elements.
using SquaresFn = double (*)(StreamRef, int64_t n);

struct Kernels {
  const char* isa;
  ChunkFn chunk[static_cast<int>(RuleId::count)];
  SquaresFn squares;
  MakeEngine engine_f32, engine_f64;
};

const Kernels& kernels();  // the best that this machine runs

}  // namespace mf::cpu
