// The CPU kernels, compiled once per instruction set (CMakeLists.txt) and chosen at run time.
#pragma once

#include "../core/step.h"
#include "../layers/engine_request.h"
#include "../rules/all.h"
#include "../rules/tangents.h"

namespace mf::cpu {

// Runs one chunk; adds nothing, writes its four sums to `sums`.
using ChunkFn = void (*)(const Chunk&, const void* hyper, double* sums);
// Sum of squares of a flat gradient of n elements.
using SquaresFn = double (*)(StreamRef, int64_t n);

// A chunk whose update carries tangents along, all in fp32. For each value of a hyperparameter `tangents` has a row for
// the parameter and one for each state.
struct TangentChunk {
  float* p;
  const float* g;
  float* s[kMaxStates];
  float* tangents;                    // at the chunk's first element in the first row
  const float* const* grad_tangents;  // of each value, at the chunk's first element; null where the gradient stands
  int64_t row;                        // elements from one row to the next
  int64_t n;
  int values;
  float decay;  // what is kept of the parameter's tangent before the step
  bool fresh;   // tangents are zero before the step, whatever their memory holds
};
// `hypers`: one for each kTangents values.
using TangentFn = void (*)(const TangentChunk&, const void* hypers);

struct Kernels {
  const char* isa;
  ChunkFn chunk[static_cast<int>(RuleId::count)];
  SquaresFn squares;
  const TangentFn* tangents;  // by TangentRuleId
  MakeEngine engine_f32, engine_f64;
};

// By instruction set.
#if defined(__x86_64__)
namespace avx2 {
extern const Kernels table;
}
namespace avx512 {
extern const Kernels table;
}
#else
namespace neon {
extern const Kernels table;
}
#endif

const Kernels& kernels();  // the best that this machine runs

}  // namespace mf::cpu
