// The one list of rules on dual numbers, which move tangents along; csrc/cpu/tangents.cpp picks one.
#pragma once

#include "adam.h"
#include "sgd.h"

// X(name, type)
#define MF_TANGENT_RULES(X)  \
  X(adam, AdamTangents)      \
  X(sgd, SgdTangents<false>) \
  X(sgd_momentum, SgdTangents<true>)

namespace mf {

enum class TangentRuleId : int {
#define X(name, ...) name,
  MF_TANGENT_RULES(X)
#undef X
};

}  // namespace mf
