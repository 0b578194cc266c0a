// The CUDA driver on the host: csrc/cuda/ops.h as it is, with launches that run every block and lane in plain loops.
// test_host_driver.py builds it and compares the ops with their references, on machines without a GPU.
#include "cuda/ops.h"

namespace mf::cuda {
namespace {

template <class R, class T>
void step_blocks(const StepLaunch& l) {
  const StepArgs& a = l.args;
  if (skipped(a.tables.found_inf)) return;
  for (int64_t block = a.chunks; block-- > 0;) {  // backwards: blocks must not depend on one another
    const int64_t index = chunk_of_block(block, a.first_chunk, a.chunks, a.backwards);
    const Located at = locate(a.tables, index, a.first_item, kTensors);
    typename R::Hyper hyper;
    open_hyper(a, at.item.slot, hyper);
    const Chunk chunk = open_chunk(l, at);
    double total[kStatCount] = {};
    for (int lane = 0; lane < kLanes; ++lane) {
      const LaneSums sums = apply_chunk<R, T>(chunk, hyper, lane, kLanes);
      const float mine[kStatCount] = {sums.gg, sums.gu, sums.uu, sums.pp};
      for (int k = 0; k < kStatCount; ++k) total[k] += mine[k];
    }
    for (int k = R::kStats ? 0 : 3; k < (R::kReads & kP ? 4 : 3); ++k)
      a.tables.partials[index * kStatCount + k] = total[k];
  }
}

template <class R>
void step_of(const StepLaunch& l, Types types) {
  switch (types) {
    case Types::all_float:
      return step_blocks<R, AllFloat>(l);
    case Types::all_bfloat:
      return step_blocks<R, AllBfloat>(l);
    case Types::bfloat_param:
      return step_blocks<R, BfloatParam>(l);
    default:
      return step_blocks<R, AnyStorage>(l);
  }
}

}  // namespace

const char* launch_step(RuleId rule, Types types, const StepLaunch& l, Stream) {
  using Run = void (*)(const StepLaunch&, Types);
  static constexpr Run table[] = {
#define X(name, ...) step_of<__VA_ARGS__>,
      MF_RULES(X)
#undef X
  };
  table[static_cast<int>(rule)](l, types);
  return nullptr;
}

const char* launch_finish(const FinishLaunch& l, Stream) {
  const FinishArgs& a = l.args;
  if (skipped(a.tables.found_inf)) return nullptr;
  for (int64_t i = 0; i < a.items; ++i) {
    const int64_t slot = a.tables.items[a.first_item + i].slot;
    const int begin = l.first_chunk[i], end = l.first_chunk[i + 1], lanes = end - begin <= kWide ? kWarp : kFinishLanes;
    for (int k = a.from; k < a.to; ++k) {
      double total = 0;
      for (int lane = 0; lane < lanes; ++lane) total += column_sum(a, begin, end, k, lane, lanes);
      write_sum(a, slot, k, total);
    }
    if (a.step != nullptr) a.step[slot] += 1.0f;
  }
  return nullptr;
}

const char* launch_squares(const SquaresLaunch& l, Stream) {
  for (int64_t block = 0; block < l.args.chunks; ++block) {
    const int64_t index = l.args.first_chunk + block;
    const Located at = locate(l.args.tables, index, l.args.first_item, kSquaresTensors);
    const StreamRef g = advance({const_cast<void*>(l.grad[at.local]), l.args.grad_dtype}, at.row.start);
    double total = 0;
    for (int lane = 0; lane < kLanes; ++lane) total += squares_chunk(g, length(at), lane, kLanes);
    l.args.tables.partials[index] = total;
  }
  return nullptr;
}

const char* launch_rate(const RateArgs& a, Stream) {
  if (skipped(a.found_inf)) return nullptr;
  for (int64_t r = 0; r < a.rates; ++r) {
    RateSum sum;
    for (int64_t i = 0; i < a.slots; ++i)
      if (a.segments[i] == r) sum.look(a.stats + i * kStatCount);
    const int bits = summand_bits(sum.count);
    for (int64_t i = 0; i < a.slots; ++i)
      if (sum.finite && a.segments[i] == r) sum.add(a.stats + i * kStatCount, bits);
    a.rate[r] = sum.next(a.rate[r], a.rule, bits);
  }
  return nullptr;
}

OnDevice::OnDevice(int device) : previous_(device), device_(device) {}
OnDevice::~OnDevice() = default;
Stream current_stream(int) { return nullptr; }

}  // namespace mf::cuda

STABLE_TORCH_LIBRARY_IMPL(metafast_host_driver, CPU, m) { mf::cuda::register_ops(m); }
