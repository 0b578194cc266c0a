// What a launch carries, and what its thread blocks do before and after the element loops. No torch, no CUDA runtime:
// tests/cpp runs the same functions on the host.
//
// A step is two launches per batch of tensors: `step` (a block for each chunk) writes four sums per chunk, then
// `finish` (a warp for each tensor) adds them in the order of the chunks and counts the step. Nothing is read back by
// the host.
#pragma once

#include "../core/hyper.h"
#include "../rules/hyper_rate.h"
#include "apply_chunk.cuh"

namespace mf::cuda {

constexpr int kParameterBytes = 32764;  // of one kernel launch, since CUDA 12.1 on sm_70
constexpr int kTensors = 2000;          // of one launch: their pointers travel in its parameters
constexpr int kLanes = 128;             // threads that share a chunk
constexpr int kWarp = 32;
constexpr int kFinishLanes = 1024;  // of a `finish` block: one warp for each of 32 tensors
constexpr int kWide = 1024;         // chunks from which a tensor gets the whole block to add them
constexpr int kRateLanes = 256;     // that look through all slots for one rate

enum class Types : int { all_float, all_bfloat, bfloat_param, any, count };

struct RuleOptions {
  union {
    AdamOptions adam;
    SgdOptions sgd;
  };
  ElementRate element;

  RuleOptions() : sgd{}, element{} {}
  void set(const AdamOptions& o) { adam = o; }
  void set(const SgdOptions& o) { sgd = o; }
};

// The tables that describe a bucket, all in device memory.
struct Tables {
  const Item* items;
  const ChunkRow* chunks;
  double* partials;
  int64_t item_count, chunk_count, slots;
  const float* found_inf;  // or null
};

struct StepArgs {
  Tables tables;
  StreamRef state[kMaxStates], master;
  int64_t arena_size;  // the smallest of the arenas that the pass touches
  DType param_dtype, grad_dtype;
  const float* step;
  const double* lr;
  const float* grad_scale;
  const float* clip;
  RuleOptions options;
  int64_t seed;
  int64_t first_item, first_chunk, chunks;  // of this launch
  bool lr_per_slot, maximize, counts_step, backwards;
};

template <class Args>
struct Launch {
  Args args;
  void* param[kTensors];
  const void* grad[kTensors];
};
using StepLaunch = Launch<StepArgs>;
static_assert(sizeof(StepLaunch) <= kParameterBytes);

struct FinishArgs {
  Tables tables;
  double* sums;  // [slots, columns]: stats, or the squares of gradients
  float* step;   // counted where it is not null
  int columns, from, to;
  int64_t first_item, items;
};

constexpr int kFinishTensors = 7000;
struct FinishLaunch {
  FinishArgs args;
  int32_t first_chunk[kFinishTensors + 1];
};
static_assert(sizeof(FinishLaunch) <= kParameterBytes);

constexpr int kSquaresTensors = 4000;
struct SquaresArgs {
  Tables tables;
  DType grad_dtype;
  int64_t first_item, first_chunk, chunks;
};
struct SquaresLaunch {
  SquaresArgs args;
  const void* grad[kSquaresTensors];
};
static_assert(sizeof(SquaresLaunch) <= kParameterBytes);

struct RateArgs {
  double* rate;
  const double* stats;
  const int64_t* segments;
  int64_t rates, slots;
  const float* found_inf;
  HyperRate rule;
};

// A wrong table must stop the launch, not write to someone else's memory.
MF_HD void stop_unless(bool good) {
#if defined(__CUDA_ARCH__)
  if (!good) __trap();
#elif !defined(__CUDACC__)
  assert(good);
#else
  (void)good;
#endif
}

MF_HD bool skipped(const float* found_inf) { return found_inf != nullptr && *found_inf != 0.0f; }

MF_HD StreamRef advance(StreamRef s, int64_t elements) {
  if (s.data) s.data = static_cast<char*>(s.data) + elements * (s.dtype == DType::f32 ? 4 : 2);
  return s;
}

// Block b's row of `chunks`. Backwards, a pass meets first what the one before it has left in the cache.
MF_HD int64_t chunk_of_block(int64_t block, int64_t first_chunk, int64_t chunks, bool backwards) {
  return first_chunk + (backwards ? chunks - 1 - block : block);
}

struct Located {
  ChunkRow row;
  Item item;
  int local;  // index of the tensor in this launch
};

MF_HD Located locate(const Tables& t, int64_t chunk, int64_t first_item, int tensors) {
  Located at;
  at.row = t.chunks[chunk];
  stop_unless(at.row.item >= first_item && at.row.item < first_item + tensors && at.row.item < t.item_count);
  at.item = t.items[at.row.item];
  stop_unless(at.item.slot >= 0 && at.item.slot < t.slots && at.row.start >= 0 && at.row.start < at.item.numel);
  at.local = static_cast<int>(at.row.item - first_item);
  return at;
}

MF_HD int length(const Located& at) {
  const int64_t rest = at.item.numel - at.row.start;
  return static_cast<int>(rest < kChunk ? rest : kChunk);
}

// The number of the step that this pass belongs to.
MF_HD float step_number(const StepArgs& a, int64_t slot) { return a.step[slot] + (a.counts_step ? 1.0f : 0.0f); }

MF_HD Chunk open_chunk(const StepLaunch& l, const Located& at) {
  const StepArgs& a = l.args;
  const int64_t element = at.item.offset + at.row.start;
  stop_unless(at.item.offset >= 0 && at.item.offset + at.item.numel <= a.arena_size);
  const StreamRef param = advance({l.param[at.local], a.param_dtype}, at.row.start);
  Chunk c;
  c.p = a.master.data ? advance(a.master, element) : param;
  c.copy = a.master.data ? param : StreamRef{};
  c.g = advance({const_cast<void*>(l.grad[at.local]), a.grad_dtype}, at.row.start);
#pragma unroll
  for (int k = 0; k < kMaxStates; ++k) c.s[k] = advance(a.state[k], element);
  c.n = length(at);
  c.first = at.row.start;
  c.stochastic = a.seed >= 0;
  c.key = c.stochastic ? rounding_key(static_cast<uint64_t>(a.seed), static_cast<uint64_t>(at.item.slot),
                                      static_cast<uint64_t>(step_number(a, at.item.slot)))
                       : 0;
  return c;
}

MF_HD void make_hyper(const RuleOptions& o, double t, double lr, double g, AdamHyper& h) { h = o.adam.at(t, lr, g); }
MF_HD void make_hyper(const RuleOptions& o, double t, double lr, double g, SgdHyper& h) { h = o.sgd.at(t, lr, g); }
MF_HD void make_hyper(const RuleOptions& o, double t, double lr, double g, HyperAdamElementHyper& h) {
  h = o.adam.at(t, lr, g, o.element);
}
MF_HD void make_hyper(const RuleOptions& o, double t, double lr, double g, HyperSgdElementHyper& h) {
  h = o.sgd.at(t, lr, g, o.element);
}

template <class Hyper>
MF_HD void open_hyper(const StepArgs& a, int64_t slot, Hyper& h) {
  const double g_mul = (a.maximize ? -1.0 : 1.0) * (a.clip ? *a.clip : 1.0) / (a.grad_scale ? *a.grad_scale : 1.0);
  make_hyper(a.options, static_cast<double>(step_number(a, slot)), a.lr[a.lr_per_slot ? slot : 0], g_mul, h);
}

// A lane's share of a tensor's column, in the order of the chunks: chunks begin + lane, begin + lane + lanes, ...
MF_HD double column_sum(const FinishArgs& a, int64_t begin, int64_t end, int column, int lane, int lanes) {
  double sum = 0;
#pragma unroll 4
  for (int64_t c = begin + lane; c < end; c += lanes) sum += a.tables.partials[c * a.columns + column];
  return sum;
}

MF_HD void write_sum(const FinishArgs& a, int64_t slot, int column, double sum) {
  if (column >= a.from && column < a.to) a.sums[slot * a.columns + column] = sum;
}

// Cuts the tensors of a call into launches: fn(first item, items, first chunk, chunks).
template <class Numel, class Fn>
void for_batches(int64_t items, int64_t capacity, const Numel& numel, const Fn& fn) {
  int64_t chunk = 0;
  for (int64_t first = 0; first < items; first += capacity) {
    const int64_t count = items - first < capacity ? items - first : capacity;
    int64_t chunks = 0;
    for (int64_t i = first; i < first + count; ++i) chunks += (numel(i) + kChunk - 1) / kChunk;
    fn(first, count, chunk, chunks);
    chunk += chunks;
  }
}

// The launchers of kernels.cu. They enqueue on `stream` and return what the runtime says: null, or its error text.
using Stream = void*;
const char* launch_step(RuleId rule, Types types, const StepLaunch& launch, Stream stream);
const char* launch_finish(const FinishLaunch& launch, Stream stream);
const char* launch_squares(const SquaresLaunch& launch, Stream stream);
const char* launch_rate(const RateArgs& args, Stream stream);

// Makes a device current for the calling thread, and puts the old one back.
class OnDevice {
 public:
  explicit OnDevice(int device);
  ~OnDevice();
  OnDevice(const OnDevice&) = delete;
  OnDevice& operator=(const OnDevice&) = delete;

 private:
  int previous_, device_;
};

}  // namespace mf::cuda
