// DROPOUT: y = x * kept / (1 - p); kept is a hash of (seed, task, step, instruction, element), see
// metafast/ops/_dropout_hash.py. Linear in x: all four passes are `apply` between different maps.
#pragma once

#include "map.h"
#include "team.h"

namespace mf {
inline namespace MF_ISA {

struct DropoutKey {
  uint64_t seed = 0, task = 0, step = 0, instruction = 0;
};

// examples[i] is the position of example i in the task's original order (null: i). y may be x when the maps are equal.
template <class T>
void dropout(double p, const DropoutKey& key, const int64_t* examples, const Map& from, const T* x, const Map& to, T* y,
             bool add, int64_t n, Team& team);

}  // namespace MF_ISA
}  // namespace mf
