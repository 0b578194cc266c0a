// The inner-loop driver for CUDA on the host: its engine and kernel bodies as they are, with launches that run every
// block and thread in plain loops, phase by phase. test_inner_loop.py builds it and compares the ops with their
// reference.
#include "cuda/inner_loop_ops.h"
#include "cuda/inner_loop_task.h"

#include <memory>

namespace mf::cuda {
namespace {

// The mma.m16n8k8 of a warp: operands lose what TF32 does not hold, sums are fp32.
template <class Tile>
void multiply_fragments(typename Tile::Thread* warp, const typename Tile::Fragments* f) {
  const auto tf32 = [](uint32_t bits) { return bits_float(bits & 0xffffe000u); };
  float a[2][32][8], b[2][8][32];  // [hi, lo]
  for (int lane = 0; lane < 32; ++lane) {
    for (int i = 0; i < 2; ++i)
      for (int r = 0; r < 4; ++r) {
        const int row = 16 * i + lane / 4 + r % 2 * 8, k = lane % 4 + r / 2 * 4;
        a[0][row][k] = tf32(f[lane].a_hi[i][r]), a[1][row][k] = tf32(f[lane].a_lo[i][r]);
      }
    for (int j = 0; j < 4; ++j)
      for (int r = 0; r < 2; ++r) {
        const int column = 8 * j + lane / 4, k = lane % 4 + r * 4;
        b[0][k][column] = tf32(f[lane].b_hi[j][r]), b[1][k][column] = tf32(f[lane].b_lo[j][r]);
      }
  }
  for (int row = 0; row < 32; ++row) {
    float sums[32];
    const auto at = [&](int column) -> float& {
      const int lane = row % 8 * 4 + column % 8 / 2, r = row % 16 / 8 * 2 + column % 2;
      return warp[lane].part[(row / 16 * 4 + column / 8) * 4 + r];
    };
    for (int column = 0; column < 32; ++column) sums[column] = at(column);
    for (const auto& [p, q] : {std::pair(1, 0), std::pair(0, 1), std::pair(0, 0)})
      for (int k = 0; k < 8; ++k)
        for (int column = 0; column < 32; ++column) sums[column] += a[p][row][k] * b[q][k][column];
    for (int column = 0; column < 32; ++column) at(column) = sums[column];
  }
}

template <class Tile>
void run_tile(const typename Tile::Args& a) {
  std::vector<typename Tile::Thread> threads(kConvThreads);
  std::vector<typename Tile::Fragments> fragments(32);
  const auto shared = std::make_unique<typename Tile::Shared>();
  const int64_t bx = Tile::blocks_x(a), by = Tile::blocks_y(a), bz = int64_t{1} * a.tasks * a.splits;
  for (int64_t block = bx * by * bz; block-- > 0;) {  // backwards: blocks must not depend on one another
    std::memset(static_cast<void*>(shared.get()), 0xff, sizeof *shared);  // NaN
    bool works = false;
    for (int tid = 0; tid < kConvThreads; ++tid)
      works = Tile::begin(a, int(block % bx), int(block / bx % by), int(block / bx / by), tid, threads[tid]);
    if (!works) continue;
    for (int tile = threads[0].first; tile < threads[0].last; ++tile) {
      const int stage = tile % Tile::kStages;
      for (const auto& t : threads) Tile::copy_tile(a, t, *shared, stage, tile);
      if constexpr (Tile::kTensor) {
        for (auto& t : threads) Tile::clear_part(t);
        for (int k = 0; k < Tile::kK; k += 8)
          for (int warp = 0; warp < kConvThreads / 32; ++warp) {
            for (int lane = 0; lane < 32; ++lane)
              Tile::load_fragments(*shared, threads[warp * 32 + lane], stage, k, fragments[lane]);
            multiply_fragments<Tile>(&threads[warp * 32], fragments.data());
          }
        for (auto& t : threads) Tile::add_part(t);
      } else {
        for (auto& t : threads) Tile::multiply_scalar(*shared, t, stage);
      }
    }
    for (const auto& t : threads) Tile::end(a, t);
  }
}

struct HostDevice {
  template <class F>
  void each(const F& f, int rows, int64_t count) {
    for (int row = rows; row-- > 0;)
      for (int64_t i = 0, n = f.limit(row); i < n; ++i) {
        if (i >= count) throw std::runtime_error("a launch is smaller than its work");
        f(row, static_cast<int>(i));
      }
  }

  template <int kWidth, class F>
  void sums(const F& f, int rows) {
    using V = typename F::Value;
    constexpr int kThreads = kBlockThreads<V, kWidth>;
    std::vector<typename F::State> state(kThreads);
    std::vector<V> sum(kThreads), product(kThreads);
    std::vector<char> works(kThreads);
    const int blocks = (f.columns() + kWidth - 1) / kWidth, lanes = kThreads / kWidth;
    for (int row = rows; row-- > 0;)
      for (int block = blocks; block-- > 0;) {
        for (int tid = 0; tid < kThreads; ++tid) works[tid] = f.open(row, block * kWidth + tid % kWidth, state[tid]);
        for (int stage = 0; stage < F::kStages; ++stage) {
          for (int tid = 0; tid < kThreads; ++tid) {
            sum[tid] = product[tid] = V(0);
            if (works[tid]) f.part(stage, row, state[tid], tid / kWidth, lanes, sum[tid], product[tid]);
          }
          for (int half = kThreads / 2; half >= kWidth; half /= 2)
            for (int tid = 0; tid < half; ++tid) sum[tid] += sum[tid + half], product[tid] += product[tid + half];
          for (int tid = 0; tid < kThreads; ++tid)
            if (works[tid]) f.take(stage, row, state[tid], sum[tid % kWidth], product[tid % kWidth]);
        }
        for (int tid = 0; tid < kWidth; ++tid)
          if (works[tid]) f.totals(row, state[tid], sum[tid], product[tid]);
        for (int tid = 0; tid < kThreads; ++tid)
          if (works[tid]) f.finish(row, state[tid], tid / kWidth, lanes);
      }
  }

  template <ConvPass kPass, class T>
  void conv(const ConvArgs<T>& a) {
    const bool vectors = std::is_same_v<T, float> && a.g.cig % 4 == 0 && a.g.cog % 4 == 0;
    const bool narrow = (kPass == ConvPass::input ? a.g.cig : a.g.cog) <= kConvWarpTile;
    if constexpr (std::is_same_v<T, float>) {
      if (vectors && narrow) return run_tile<ConvTile<T, kPass, 4, 4, 1>>(a);
      if (vectors) return run_tile<ConvTile<T, kPass, 4, 2, 2>>(a);
      if (narrow) return run_tile<ConvTile<T, kPass, 1, 4, 1>>(a);
    }
    run_tile<ConvTile<T, kPass, 1, 2, 2>>(a);
  }

  void zero(void* p, size_t bytes) { std::memset(p, 0, bytes); }
};

}  // namespace

template <class T>
void run_inner_loop(const InnerLoopRequest& r, const Place& place) {
  HostDevice device;
  LoopEngine<T, HostDevice>(r, device, place);
}
template <class T>
void run_task_grad(const TaskRequest& r, const Place& place) {
  HostDevice device;
  TaskEngine<T, HostDevice>(r, device, place);
}
template <class T>
void run_task_hvp(const TaskRequest& r, const Place& place) {
  run_task_grad<T>(r, place);
}
template void run_inner_loop<float>(const InnerLoopRequest&, const Place&);
template void run_inner_loop<double>(const InnerLoopRequest&, const Place&);
template void run_task_grad<float>(const TaskRequest&, const Place&);
template void run_task_grad<double>(const TaskRequest&, const Place&);
template void run_task_hvp<float>(const TaskRequest&, const Place&);
template void run_task_hvp<double>(const TaskRequest&, const Place&);

OnDevice::OnDevice(int device) : previous_(device), device_(device) {}
OnDevice::~OnDevice() = default;
Stream current_stream(int) { return nullptr; }

}  // namespace mf::cuda

STABLE_TORCH_LIBRARY_IMPL(metafast_host_inner_loop, CPU, m) { mf::cuda::register_inner_loop_ops(m); }
