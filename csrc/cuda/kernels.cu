// The kernels and their launchers: a thread block for each chunk, every sum in a fixed order.
#include "launch.h"

#include <cuda_runtime.h>

namespace mf::cuda {
namespace {

constexpr unsigned kAllLanes = 0xffffffffu;

// The sum over a warp, in every lane, by a fixed tree.
__device__ __forceinline__ double warp_sum(double x) {
#pragma unroll
  for (int step = kWarp / 2; step > 0; step /= 2) x += __shfl_xor_sync(kAllLanes, x, step);
  return x;
}

// The sum over the block, in thread 0, by a fixed tree. `scratch` holds one value for each warp.
template <int kThreads>
__device__ __forceinline__ double block_sum(double x, double* scratch) {
  constexpr int kWarps = kThreads / kWarp;
  x = warp_sum(x);
  if (threadIdx.x % kWarp == 0) scratch[threadIdx.x / kWarp] = x;
  __syncthreads();
  if (threadIdx.x < kWarp) x = warp_sum(threadIdx.x < kWarps ? scratch[threadIdx.x] : 0.0);
  __syncthreads();
  return x;
}

template <class R, class T>
__global__ void __launch_bounds__(kLanes, T::kBlocks) step_kernel(const __grid_constant__ StepLaunch l) {
  const StepArgs& a = l.args;
  if (skipped(a.tables.found_inf)) return;
  __shared__ typename R::Hyper shared;
  __shared__ double scratch[kLanes / kWarp];
  const int64_t index = chunk_of_block(blockIdx.x, a.first_chunk, a.chunks, a.backwards);
  if (threadIdx.x == 0) open_hyper(a, locate(a.tables, index, a.first_item, kTensors).item.slot, shared);
  __syncthreads();
  const Chunk chunk = open_chunk(l, locate(a.tables, index, a.first_item, kTensors));
  const typename R::Hyper hyper = shared;
  const LaneSums sums = apply_chunk<R, T>(chunk, hyper, static_cast<int>(threadIdx.x), kLanes);
  const float mine[kStatCount] = {sums.gg, sums.gu, sums.uu, sums.pp};
  constexpr int kFrom = R::kStats ? 0 : 3, kTo = R::kReads & kP ? 4 : 3;
#pragma unroll
  for (int k = kFrom; k < kTo; ++k) {
    const double total = block_sum<kLanes>(mine[k], scratch);
    if (threadIdx.x == 0) a.tables.partials[index * kStatCount + k] = total;
  }
}

__global__ void __launch_bounds__(kLanes) squares_kernel(const __grid_constant__ SquaresLaunch l) {
  __shared__ double scratch[kLanes / kWarp];
  const int64_t index = l.args.first_chunk + blockIdx.x;
  const Located at = locate(l.args.tables, index, l.args.first_item, kSquaresTensors);
  const StreamRef g = advance({const_cast<void*>(l.grad[at.local]), l.args.grad_dtype}, at.row.start);
  const double total = block_sum<kLanes>(squares_chunk(g, length(at), static_cast<int>(threadIdx.x), kLanes), scratch);
  if (threadIdx.x == 0) l.args.tables.partials[index] = total;
}

__global__ void __launch_bounds__(kFinishLanes) finish_kernel(const __grid_constant__ FinishLaunch l) {
  const FinishArgs& a = l.args;
  if (skipped(a.tables.found_inf)) return;
  constexpr int kItems = kFinishLanes / kWarp;
  __shared__ double scratch[kItems];
  const int64_t block_first = static_cast<int64_t>(blockIdx.x) * kItems;
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  const int64_t local = block_first + threadIdx.x / kWarp;
  if (local < a.items) {
    const int64_t slot = a.tables.items[a.first_item + local].slot;
    stop_unless(slot >= 0 && slot < a.tables.slots);
    const int begin = l.first_chunk[local], end = l.first_chunk[local + 1];
    if (end - begin <= kWide)
      for (int k = a.from; k < a.to; ++k) {
        const double total = warp_sum(column_sum(a, begin, end, k, lane, kWarp));
        if (lane == 0) write_sum(a, slot, k, total);
      }
    if (lane == 0 && a.step != nullptr) a.step[slot] += 1.0f;
  }
  for (int64_t i = block_first; i < block_first + kItems && i < a.items; ++i) {  // tensors of many chunks
    const int begin = l.first_chunk[i], end = l.first_chunk[i + 1];
    if (end - begin <= kWide) continue;
    const int64_t slot = a.tables.items[a.first_item + i].slot;
    for (int k = a.from; k < a.to; ++k) {
      const double total =
          block_sum<kFinishLanes>(column_sum(a, begin, end, k, static_cast<int>(threadIdx.x), kFinishLanes), scratch);
      if (threadIdx.x == 0) write_sum(a, slot, k, total);
    }
  }
}

// A block for each rate looks through all slots: rates are few, or have few tensors each. Integer atomics in shared
// memory, because their order cannot change a result.
__global__ void __launch_bounds__(kRateLanes) rate_kernel(const RateArgs a) {
  if (skipped(a.found_inf)) return;
  __shared__ int exponent[kMoments], finite;
  __shared__ unsigned long long count, total[kMoments];
  for (int64_t r = blockIdx.x; r < a.rates; r += gridDim.x) {
    RateSum sum;
    if (threadIdx.x < kMoments) {
      exponent[threadIdx.x] = exponent_of(0.0);
      total[threadIdx.x] = 0;
    }
    if (threadIdx.x == 0) {
      finite = 1;
      count = 0;
    }
    __syncthreads();
    for (int64_t i = threadIdx.x; i < a.slots; i += kRateLanes)
      if (a.segments[i] == r) sum.look(a.stats + i * kStatCount);
    if (sum.count > 0) {
      atomicAdd(&count, static_cast<unsigned long long>(sum.count));
#pragma unroll
      for (int k = 0; k < kMoments; ++k) atomicMax(&exponent[k], sum.exponent[k]);
      if (!sum.finite) finite = 0;
    }
    __syncthreads();
    const int bits = summand_bits(static_cast<int64_t>(count));
    if (finite) {
      for (int64_t i = threadIdx.x; i < a.slots; i += kRateLanes) {
        if (a.segments[i] != r) continue;
#pragma unroll
        for (int k = 0; k < kMoments; ++k)
          atomicAdd(&total[k],
                    static_cast<unsigned long long>(summand(a.stats[i * kStatCount + k], exponent[k], bits)));
      }
    }
    __syncthreads();
    if (threadIdx.x == 0) {
      sum.finite = finite;
      sum.count = static_cast<int64_t>(count);
#pragma unroll
      for (int k = 0; k < kMoments; ++k) {
        sum.exponent[k] = exponent[k];
        sum.total[k] = static_cast<int64_t>(total[k]);
      }
      a.rate[r] = sum.next(a.rate[r], a.rule, bits);
    }
    __syncthreads();
  }
}

template <class R>
const void* step_kernel_of(Types types) {
  switch (types) {
    case Types::all_float:
      return reinterpret_cast<const void*>(&step_kernel<R, AllFloat>);
    case Types::all_bfloat:
      return reinterpret_cast<const void*>(&step_kernel<R, AllBfloat>);
    case Types::bfloat_param:
      return reinterpret_cast<const void*>(&step_kernel<R, BfloatParam>);
    default:
      return reinterpret_cast<const void*>(&step_kernel<R, AnyStorage>);
  }
}

template <class Params>
const char* launch(const void* kernel, int64_t blocks, int threads, const Params& params, Stream stream) {
  if (blocks == 0) return nullptr;
  void* arguments[] = {const_cast<Params*>(&params)};
  const cudaError_t error = cudaLaunchKernel(kernel, dim3(static_cast<unsigned>(blocks)), dim3(threads), arguments, 0,
                                             static_cast<cudaStream_t>(stream));
  return error == cudaSuccess ? nullptr : cudaGetErrorString(error);
}

}  // namespace

const char* launch_step(RuleId rule, Types types, const StepLaunch& l, Stream stream) {
  using Of = const void* (*)(Types);
  static constexpr Of table[] = {
#define X(name, ...) step_kernel_of<__VA_ARGS__>,
      MF_RULES(X)
#undef X
  };
  return launch(table[static_cast<int>(rule)](types), l.args.chunks, kLanes, l, stream);
}

const char* launch_finish(const FinishLaunch& l, Stream stream) {
  constexpr int kItems = kFinishLanes / kWarp;
  return launch(reinterpret_cast<const void*>(&finish_kernel), (l.args.items + kItems - 1) / kItems, kFinishLanes, l,
                stream);
}

const char* launch_squares(const SquaresLaunch& l, Stream stream) {
  return launch(reinterpret_cast<const void*>(&squares_kernel), l.args.chunks, kLanes, l, stream);
}

const char* launch_rate(const RateArgs& a, Stream stream) {
  const int64_t blocks = a.rates < 65535 ? a.rates : 65535;
  return launch(reinterpret_cast<const void*>(&rate_kernel), blocks, kRateLanes, a, stream);
}

OnDevice::OnDevice(int device) : previous_(device), device_(device) {
  cudaGetDevice(&previous_);
  if (previous_ != device_) cudaSetDevice(device_);
}

OnDevice::~OnDevice() {
  if (previous_ != device_) cudaSetDevice(previous_);
}

}  // namespace mf::cuda
