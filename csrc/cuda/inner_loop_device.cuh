// Launches the inner loops' kernel bodies: nvcc's side of `Device` (inner_loop_pass.h).
#pragma once

#include <cuda_runtime.h>

#include <stdexcept>
#include <string>

#include "inner_loop_task.h"

namespace mf::cuda {

constexpr int kEachThreads = 256;
constexpr int kEachBlocks = 4224;  // of a launch, at most: 32 for each multiprocessor of an H200

template <class F>
__global__ void __launch_bounds__(kEachThreads, 3) each_kernel(const __grid_constant__ F f) {
  const int row = static_cast<int>(blockIdx.y), limit = f.limit(row), step = static_cast<int>(gridDim.x) * kEachThreads;
  for (int64_t i = int64_t{1} * blockIdx.x * kEachThreads + threadIdx.x; i < limit; i += step)
    f(row, static_cast<int>(i));
}

template <class F, int kWidth>
__global__ void __launch_bounds__(kBlockThreads<typename F::Value, kWidth>, 1)
    sums_kernel(const __grid_constant__ F f) {
  using V = typename F::Value;
  constexpr int kThreads = kBlockThreads<V, kWidth>, kLanes = kThreads / kWidth;
  __shared__ V sums[kThreads], products[kThreads];
  const int tid = static_cast<int>(threadIdx.x), row = static_cast<int>(blockIdx.y);
  typename F::State state;
  const bool works = f.open(row, static_cast<int>(blockIdx.x) * kWidth + tid % kWidth, state);
  V sum = V(0), product = V(0);
#pragma unroll
  for (int stage = 0; stage < F::kStages; ++stage) {
    sum = product = V(0);
    if (works) f.part(stage, row, state, tid / kWidth, kLanes, sum, product);
    if (stage > 0) __syncthreads();
    sums[tid] = sum;
    products[tid] = product;
    __syncthreads();
#pragma unroll
    for (int half = kThreads / 2; half >= kWidth; half /= 2) {
      if (tid < half) {
        sums[tid] += sums[tid + half];
        products[tid] += products[tid + half];
      }
      __syncthreads();
    }
    sum = sums[tid % kWidth], product = products[tid % kWidth];
    if (works) f.take(stage, row, state, sum, product);
  }
  if (!works) return;
  if (tid < kWidth) f.totals(row, state, sum, product);
  f.finish(row, state, tid / kWidth, kLanes);
}

#if defined(__CUDA_ARCH__)
__device__ __forceinline__ void copies_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }
template <int kPending>
__device__ __forceinline__ void copies_wait() {
  asm volatile("cp.async.wait_group %0;" ::"n"(kPending) : "memory");
}

// d += a b: a 16 x 8, b 8 x 8, in TF32.
__device__ __forceinline__ void multiply_add(float* d, const uint32_t* a, const uint32_t* b) {
  asm("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}
#endif

template <class Tile>
__global__ void __launch_bounds__(kConvThreads) conv_kernel(const __grid_constant__ typename Tile::Args a) {
#if defined(__CUDA_ARCH__)
  __shared__ typename Tile::Shared shared;
  typename Tile::Thread t;
  if (!Tile::begin(a, static_cast<int>(blockIdx.x), static_cast<int>(blockIdx.y), static_cast<int>(blockIdx.z),
                   static_cast<int>(threadIdx.x), t))
    return;
  constexpr int kAhead = Tile::kStages - 1;
#pragma unroll
  for (int s = 0; s < kAhead; ++s) {
    if (t.first + s < t.last) Tile::copy_tile(a, t, shared, s, t.first + s);
    copies_commit();
  }
  int stage = 0;
  for (int tile = t.first; tile < t.last; ++tile) {
    copies_wait<kAhead - 1>();
    __syncthreads();  // this tile is there for all threads, and nobody reads the stage that is filled next
    const int next = stage == 0 ? kAhead : stage - 1;
    if (tile + kAhead < t.last) Tile::copy_tile(a, t, shared, next, tile + kAhead);
    copies_commit();
    if constexpr (Tile::kTensor) {
      Tile::clear_part(t);
#pragma unroll
      for (int k = 0; k < Tile::kK; k += 8) {
        typename Tile::Fragments f;
        Tile::load_fragments(shared, t, stage, k, f);
#pragma unroll
        for (int i = 0; i < 2; ++i)
#pragma unroll
          for (int j = 0; j < 4; ++j) multiply_add(t.part + (i * 4 + j) * 4, f.a_lo[i], f.b_hi[j]);
#pragma unroll
        for (int i = 0; i < 2; ++i)
#pragma unroll
          for (int j = 0; j < 4; ++j) multiply_add(t.part + (i * 4 + j) * 4, f.a_hi[i], f.b_lo[j]);
#pragma unroll
        for (int i = 0; i < 2; ++i)
#pragma unroll
          for (int j = 0; j < 4; ++j) multiply_add(t.part + (i * 4 + j) * 4, f.a_hi[i], f.b_hi[j]);
      }
      Tile::add_part(t);
    } else {
      Tile::multiply_scalar(shared, t, stage);
    }
    stage = stage == kAhead ? 0 : stage + 1;
  }
  Tile::end(a, t);
#endif
}

class CudaDevice {
 public:
  explicit CudaDevice(void* stream) : stream_(static_cast<cudaStream_t>(stream)) {}

  template <class F>
  void each(const F& f, int rows, int64_t count) {
    if (rows == 0 || count == 0) return;
    const int64_t wanted = (count + kEachThreads - 1) / kEachThreads, most = kEachBlocks / rows;
    const int64_t blocks = wanted < most ? wanted : (most > 0 ? most : 1);
    launch(&each_kernel<F>, dim3(static_cast<unsigned>(blocks), static_cast<unsigned>(rows)), kEachThreads, f);
  }

  template <int kWidth, class F>
  void sums(const F& f, int rows) {
    const int blocks = (f.columns() + kWidth - 1) / kWidth;
    if (rows == 0 || blocks == 0) return;
    launch(&sums_kernel<F, kWidth>, dim3(static_cast<unsigned>(blocks), static_cast<unsigned>(rows)),
           kBlockThreads<typename F::Value, kWidth>, f);
  }

  template <ConvPass kPass, class T>
  void conv(const ConvArgs<T>& a) {
    if constexpr (std::is_same_v<T, float>) {
      const bool vectors = a.g.cig % 4 == 0 && a.g.cog % 4 == 0;
      const bool narrow = (kPass == ConvPass::input ? a.g.cig : a.g.cog) <= kConvWarpTile;
      if (vectors && narrow) return conv_tile<ConvTile<T, kPass, 4, 4, 1>>(a);
      if (vectors) return conv_tile<ConvTile<T, kPass, 4, 2, 2>>(a);
      if (narrow) return conv_tile<ConvTile<T, kPass, 1, 4, 1>>(a);
    }
    conv_tile<ConvTile<T, kPass, 1, 2, 2>>(a);
  }

  void zero(void* p, size_t bytes) {
    if (bytes > 0) check(cudaMemsetAsync(p, 0, bytes, stream_));
  }

 private:
  template <class Tile>
  void conv_tile(const typename Tile::Args& a) {
    const dim3 grid(static_cast<unsigned>(Tile::blocks_x(a)), static_cast<unsigned>(Tile::blocks_y(a)),
                    static_cast<unsigned>(a.tasks * a.splits));
    if (grid.x == 0 || grid.z == 0) return;
    launch(&conv_kernel<Tile>, grid, kConvThreads, a);
  }

  template <class Kernel, class Params>
  void launch(Kernel* kernel, dim3 grid, int threads, const Params& params) {
    void* arguments[] = {const_cast<Params*>(&params)};
    check(cudaLaunchKernel(reinterpret_cast<const void*>(kernel), grid, dim3(static_cast<unsigned>(threads)), arguments,
                           0, stream_));
  }
  static void check(cudaError_t error) {
    if (error != cudaSuccess)
      throw std::runtime_error(std::string("the kernel did not launch: ") + cudaGetErrorString(error));
  }

  cudaStream_t stream_;
};

template <class T>
void run_inner_loop(const InnerLoopRequest& r, const Place& place) {
  CudaDevice device(place.stream);
  LoopEngine<T, CudaDevice>(r, device, place);
}
template <class T>
void run_task_grad(const TaskRequest& r, const Place& place) {
  CudaDevice device(place.stream);
  TaskEngine<T, CudaDevice>(r, device, place);
}
template <class T>
void run_task_hvp(const TaskRequest& r, const Place& place) {
  run_task_grad<T>(r, place);
}

}  // namespace mf::cuda
