// The unit of work that every driver hands to a kernel: one chunk of one tensor, its streams and its hyperparameters.
#pragma once

#include <cstdint>

#include "../rules/rule.h"
#include "rounding.h"

namespace mf {

// Rows of the int64 tables `items` and `chunks`; metafast/ops/_bucket.py builds them.
struct Item {
  int64_t slot, offset, numel;
};
struct ChunkRow {
  int64_t item, start, before;
};

struct StreamRef {
  void* data = nullptr;  // at the first element of the chunk
  DType dtype = DType::f32;
};

struct Chunk {
  StreamRef p;     // the parameter, or its fp32 master
  StreamRef copy;  // low-precision parameter that follows a master; data is null without one
  StreamRef g;
  StreamRef s[kMaxStates];
  int64_t n;
  int64_t first;  // index of the chunk's first element in its tensor
  uint32_t key;   // of stochastic rounding
  bool stochastic;
};

}  // namespace mf
