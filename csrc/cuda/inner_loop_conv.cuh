// Convolutions of all tasks at once, each task with its own weights, as implicit matrix products C += A B.
//
//   forward  C[position, o]      A: inputs at (position, tap, i)    B: weights[tap, i, o]
//   input    C[in position, i]   A: dy at (in position, tap, o)     B: weights[tap, i, o]ᵀ
//   weight   C[(tap, i), o]      A: inputs at (position, tap, i)ᵀ   B: dy[position, o]
//
// A linear layer is a convolution whose kernel covers the map. A sum of two products (a directional derivative) is one
// launch with two terms. Maps are [task][example][y][x][channel], weights [tap][i][o]; nothing is padded or unfolded in
// memory. An input gradient of stride s runs over s² classes of positions, whose taps are dense. Tiles go to shared
// memory by asynchronous copies in stages, 16 bytes each where channel counts allow it.
//
// Floats multiply on tensor cores: x = hi + lo in TF32, hi hi + hi lo + lo hi, with an error of about 2^-21 of each
// product. The cores truncate when they add, so that each tile's sum is taken up by an ordinary fp32 addition.
// Thread-level phases only: a host test runs them lane by lane, with barriers between them.
#pragma once

#include <cstdint>
#include <cstring>
#include <type_traits>

#include "../core/macros.h"
#include "../core/rounding.h"

namespace mf::cuda {

// n / d for 0 <= n < 2^31 by a multiplication.
struct FastDiv {
  uint32_t d = 1, mul = 1, shift = 0;

  FastDiv() = default;
  explicit FastDiv(int divisor) : d(static_cast<uint32_t>(divisor)) {
    while ((uint64_t{1} << shift) < d) ++shift;
    mul = static_cast<uint32_t>((((uint64_t{1} << shift) - d) << 32) / d + 1);
  }
  MF_HD int div(int n) const {
    const uint64_t product = static_cast<uint64_t>(static_cast<uint32_t>(n)) * mul;
    return static_cast<int>((static_cast<uint32_t>(product >> 32) + static_cast<uint32_t>(n)) >> shift);
  }
  MF_HD int mod(int n, int quotient) const { return n - quotient * static_cast<int>(d); }
};

struct ConvGeometry {
  int h, w, c, oh, ow, co, kh, kw, sh, sw, ph, pw, groups, cig, cog;
  FastDiv by_cig, by_cog, by_kw, by_ow, by_positions;

  ConvGeometry() = default;
  ConvGeometry(int64_t in_c, int64_t in_h, int64_t in_w, int64_t out_c, const int64_t* k, int64_t g)
      : h(int(in_h)),
        w(int(in_w)),
        c(int(in_c)),
        co(int(out_c)),
        kh(int(k[0])),
        kw(int(k[1])),
        sh(int(k[2])),
        sw(int(k[3])),
        ph(int(k[4])),
        pw(int(k[5])),
        groups(int(g)) {
    oh = (h + 2 * ph - kh) / sh + 1, ow = (w + 2 * pw - kw) / sw + 1;
    cig = c / groups, cog = co / groups;
    by_cig = FastDiv(cig), by_cog = FastDiv(cog), by_kw = FastDiv(kw), by_ow = FastDiv(ow);
    by_positions = FastDiv(oh * ow);
  }
  int64_t weights() const { return int64_t{1} * kh * kw * cig * co; }
};

enum class ConvPass { forward, input, weight };

// `a` is read at gathered positions, `b` is the other factor; strides of 0 share a tensor between tasks.
template <class T>
struct ConvTerm {
  const T* a = nullptr;
  const T* b = nullptr;
  int64_t a_task = 0, b_task = 0;
};

template <class T>
struct ConvArgs {
  ConvGeometry g;
  ConvTerm<T> term[2];
  int terms = 1, tasks = 1, splits = 1;
  int n = 0;  // examples of a task, of which counts[task] are valid (null: all)
  const int* counts = nullptr;
  const T* bias = nullptr;  // [task][o], forward only
  int64_t bias_task = 0;
  T* out = nullptr;  // with several splits [split][task], overwritten
  int64_t out_task = 0, out_split = 0;
  bool accumulate = false;
};

constexpr int kConvThreads = 128, kConvDepth = 16, kConvWarpTile = 32;
constexpr int kConvBlocks =
    264;  // wanted in a launch: two for each multiprocessor of an H100. Fixed: sums depend on it
constexpr int kConvMaxSplits = 64;

#if defined(__CUDACC__)
#define MF_UNROLL _Pragma("unroll")
#define MF_ROLLED _Pragma("unroll 1")
#else
#define MF_UNROLL
#define MF_ROLLED
#endif

// Copies kBytes to shared memory behind the caller's back, or zeros where `there` is false.
template <int kBytes>
MF_HD void copy_async(void* to, const void* from, bool there) {
#if defined(__CUDA_ARCH__)
  const unsigned address = static_cast<unsigned>(__cvta_generic_to_shared(to));
  const int bytes = there ? kBytes : 0;
  if constexpr (kBytes == 16)
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(address), "l"(from), "r"(bytes) : "memory");
  else
    asm volatile("cp.async.ca.shared.global [%0], [%1], %2, %3;" ::"r"(address), "l"(from), "n"(kBytes), "r"(bytes)
                 : "memory");
#else
  if (there) std::memcpy(to, from, kBytes);
  else std::memset(to, 0, kBytes);
#endif
}

// The upper part of x in TF32, rounded to nearest, and what is left of x.
MF_HD void split_tf32(float x, uint32_t& hi, uint32_t& lo) {
  hi = (float_bits(x) + 0x1000u) & 0xffffe000u;
  lo = float_bits(x - bits_float(hi));
}

// A tile of C of kWarpsM x kWarpsN warps, 32 x 32 each.
template <class T, ConvPass kPassOf, int kVecOf, int kWarpsMOf, int kWarpsNOf>
struct ConvTile {
  using Value = T;
  using Args = ConvArgs<T>;
  static constexpr ConvPass kPass = kPassOf;
  static constexpr int kVec = kVecOf, kWarpsM = kWarpsMOf, kWarpsN = kWarpsNOf;
  static constexpr bool kTensor = std::is_same_v<T, float>;
  static constexpr int kM = kConvWarpTile * kWarpsM, kN = kConvWarpTile * kWarpsN, kK = kConvDepth;
  static constexpr int kStages = kTensor ? 3 : 2;
  static_assert(kWarpsM * kWarpsN * 32 == kConvThreads);

  // A tile is stored as it lies in memory: along k, or along its rows. The pitches avoid bank conflicts.
  static constexpr bool kAlongA = kPass != ConvPass::weight, kAlongB = kPass == ConvPass::input;
  static constexpr int kPitchA = kAlongA ? kK + 4 : kM + 8, kPitchB = kAlongB ? kK + 4 : kN + 8;
  static constexpr int kSizeA = kAlongA ? kM * kPitchA : kK * kPitchA, kSizeB = kAlongB ? kN * kPitchB : kK * kPitchB;
  static constexpr int kCopiesA = kM * kK / kVec / kConvThreads, kCopiesB = kN * kK / kVec / kConvThreads;
  static constexpr int kPerK = kK / kVec, kPerM = kM / kVec, kPerN = kN / kVec;  // copies of one row

  struct Shared {
    alignas(16) T a[kStages][kSizeA];
    alignas(16) T b[kStages][kSizeB];
  };

  struct Thread {
    int tid, task, group, m0, n0, m_size, n_size, k_size, k_tiles, first, last, split;
    int class_y, class_x, ky0, kx0, taps_x, class_h, class_w;  // input gradient: the block's class of positions
    int row[kAlongA ? kCopiesA : 1], y[kAlongA ? kCopiesA : 1], x[kAlongA ? kCopiesA : 1];
    int tap_y, tap_x, channel;  // weight gradient: this thread's rows of C
    T sum[kConvWarpTile];
    T part[kTensor ? kConvWarpTile : 1];
  };

  struct Fragments {
    uint32_t a_hi[2][4], a_lo[2][4], b_hi[4][2], b_lo[4][2];
  };

  static MF_HD int classes(const ConvGeometry& g) { return kPass == ConvPass::input ? g.sh * g.sw : 1; }

  // Rows of C in class (0, 0), the largest.
  static MF_HD int rows(const ConvGeometry& g, int n) {
    if constexpr (kPass == ConvPass::weight) return g.kh * g.kw * g.cig;
    if constexpr (kPass == ConvPass::forward) return n * g.oh * g.ow;
    return n * ((g.h + g.sh - 1) / g.sh) * ((g.w + g.sw - 1) / g.sw);
  }
  static MF_HD int columns(const ConvGeometry& g) { return kPass == ConvPass::input ? g.cig : g.cog; }
  static MF_HD int row_tiles(const ConvGeometry& g, int n) { return (rows(g, n) + kM - 1) / kM; }
  static MF_HD int column_tiles(const ConvGeometry& g) { return (columns(g) + kN - 1) / kN; }

  // Blocks (x, y, z) of a launch: tiles of rows by class, tiles of columns by group, tasks by split.
  static int64_t blocks_x(const Args& a) { return int64_t{1} * row_tiles(a.g, a.n) * classes(a.g); }
  static int64_t blocks_y(const Args& a) { return int64_t{1} * column_tiles(a.g) * a.g.groups; }

  // False where the block has nothing to do.
  static MF_HD bool begin(const Args& a, int bx, int by, int bz, int tid, Thread& t) {
    const ConvGeometry& g = a.g;
    t.tid = tid;
    t.task = bz % a.tasks, t.split = bz / a.tasks;
    const int n = a.counts ? a.counts[t.task] : a.n;
    const int tiles_m = row_tiles(g, a.n), tiles_n = column_tiles(g);
    t.group = by / tiles_n, t.n0 = by % tiles_n * kN;
    t.n_size = columns(g);
    const int cls = bx / tiles_m;
    t.m0 = bx % tiles_m * kM;
    if constexpr (kPass == ConvPass::forward) {
      t.m_size = n * g.oh * g.ow;
      t.k_size = g.kh * g.kw * g.cig;
    } else if constexpr (kPass == ConvPass::weight) {
      t.m_size = g.kh * g.kw * g.cig;
      t.k_size = n * g.oh * g.ow;
    } else {
      t.class_y = cls / g.sw, t.class_x = cls % g.sw;
      t.class_h = t.class_y < g.h ? (g.h - t.class_y + g.sh - 1) / g.sh : 0;
      t.class_w = t.class_x < g.w ? (g.w - t.class_x + g.sw - 1) / g.sw : 0;
      t.ky0 = (t.class_y + g.ph) % g.sh, t.kx0 = (t.class_x + g.pw) % g.sw;
      const int taps_y = t.ky0 < g.kh ? (g.kh - t.ky0 + g.sh - 1) / g.sh : 0;
      t.taps_x = t.kx0 < g.kw ? (g.kw - t.kx0 + g.sw - 1) / g.sw : 0;
      t.m_size = n * t.class_h * t.class_w;
      t.k_size = taps_y * t.taps_x * g.cog;
    }
    if (t.m0 >= t.m_size) return false;
    t.k_tiles = (t.k_size + kK - 1) / kK;
    const int total = t.k_tiles * a.terms;
    t.first = static_cast<int>(int64_t{1} * total * t.split / a.splits);
    t.last = static_cast<int>(int64_t{1} * total * (t.split + 1) / a.splits);

    if constexpr (kAlongA) {
      MF_UNROLL
      for (int j = 0; j < kCopiesA; ++j) {
        const int m = t.m0 + (tid + j * kConvThreads) / kPerK;
        t.row[j] = m < t.m_size ? 0 : -1;
        if constexpr (kPass == ConvPass::forward) {
          const int i = g.by_positions.div(m), at = g.by_positions.mod(m, i), oy = g.by_ow.div(at);
          t.y[j] = oy * g.sh - g.ph, t.x[j] = g.by_ow.mod(at, oy) * g.sw - g.pw;
          if (t.row[j] >= 0) t.row[j] = i;
        } else {
          const int area = t.class_h * t.class_w, i = m / area, at = m - i * area, cy = at / t.class_w;
          t.y[j] = (t.class_y + cy * g.sh + g.ph - t.ky0) / g.sh;  // exact; may lie outside of dy
          t.x[j] = (t.class_x + (at - cy * t.class_w) * g.sw + g.pw - t.kx0) / g.sw;
          if (t.row[j] >= 0) t.row[j] = i;
        }
      }
    } else {
      const int m = t.m0 + tid % kPerM * kVec, tap = g.by_cig.div(m);
      t.channel = m < t.m_size ? g.by_cig.mod(m, tap) : -1;
      t.tap_y = g.by_kw.div(tap), t.tap_x = g.by_kw.mod(tap, t.tap_y);
    }
    MF_UNROLL
    for (int i = 0; i < kConvWarpTile; ++i) t.sum[i] = T(0);
    return true;
  }

  static MF_HD void copy_tile(const Args& a, const Thread& t, Shared& shared, int stage, int tile) {
    const ConvGeometry& g = a.g;
    const bool second = tile >= t.k_tiles;
    const ConvTerm<T>& term = a.term[second ? 1 : 0];
    const int k0 = (second ? tile - t.k_tiles : tile) * kK;
    const T* const from_a = term.a + t.task * term.a_task;
    const T* const from_b = term.b + t.task * term.b_task;
    constexpr int kBytes = kVec * static_cast<int>(sizeof(T));
    int tap_row = 0, tap_channel = 0;  // input gradient: row of the weights
    if constexpr (kAlongA) {
      const int k = k0 + t.tid % kPerK * kVec;
      T* const to = &shared.a[stage][t.tid / kPerK * kPitchA + t.tid % kPerK * kVec];
      int dy, dx, channel, height, width, channels;
      if constexpr (kPass == ConvPass::forward) {
        const int tap = g.by_cig.div(k);
        channel = t.group * g.cig + g.by_cig.mod(k, tap);
        dy = g.by_kw.div(tap), dx = g.by_kw.mod(tap, dy);
        height = g.h, width = g.w, channels = g.c;
      } else {
        const int tap = g.by_cog.div(k);
        channel = t.group * g.cog + g.by_cog.mod(k, tap);
        const int jy = t.taps_x > 1 ? tap / t.taps_x : tap, jx = t.taps_x > 1 ? tap - jy * t.taps_x : 0;
        dy = -jy, dx = -jx;
        height = g.oh, width = g.ow, channels = g.co;
        tap_row = ((t.ky0 + jy * g.sh) * g.kw + t.kx0 + jx * g.sw) * g.cig;
        tap_channel = channel;
      }
      MF_UNROLL
      for (int j = 0; j < kCopiesA; ++j) {
        const int y = t.y[j] + dy, x = t.x[j] + dx;
        const bool there = k < t.k_size && t.row[j] >= 0 && y >= 0 && y < height && x >= 0 && x < width;
        const int64_t at = there ? ((int64_t{1} * t.row[j] * height + y) * width + x) * channels + channel : 0;
        copy_async<kBytes>(to + j * (kConvThreads / kPerK) * kPitchA, from_a + at, there);
      }
    } else {
      MF_UNROLL
      for (int j = 0; j < kCopiesA; ++j) {
        const int row = t.tid / kPerM + j * (kConvThreads / kPerM), k = k0 + row;
        const int i = g.by_positions.div(k), at = g.by_positions.mod(k, i), oy = g.by_ow.div(at);
        const int y = oy * g.sh - g.ph + t.tap_y, x = g.by_ow.mod(at, oy) * g.sw - g.pw + t.tap_x;
        const bool there = k < t.k_size && t.channel >= 0 && y >= 0 && y < g.h && x >= 0 && x < g.w;
        const int64_t from = there ? ((int64_t{1} * i * g.h + y) * g.w + x) * g.c + t.group * g.cig + t.channel : 0;
        copy_async<kBytes>(&shared.a[stage][row * kPitchA + t.tid % kPerM * kVec], from_a + from, there);
      }
    }
    if constexpr (kAlongB) {
      const int k = k0 + t.tid % kPerK * kVec;
      MF_UNROLL
      for (int j = 0; j < kCopiesB; ++j) {
        const int row = t.tid / kPerK + j * (kConvThreads / kPerK), n = t.n0 + row;
        const bool there = k < t.k_size && n < t.n_size;
        const int64_t from = there ? int64_t{1} * (tap_row + n) * g.co + tap_channel : 0;
        copy_async<kBytes>(&shared.b[stage][row * kPitchB + t.tid % kPerK * kVec], from_b + from, there);
      }
    } else {
      const int column = t.tid % kPerN * kVec, n = t.n0 + column;
      MF_UNROLL
      for (int j = 0; j < kCopiesB; ++j) {
        const int row = t.tid / kPerN + j * (kConvThreads / kPerN), k = k0 + row;
        const bool there = k < t.k_size && n < t.n_size;
        const int64_t from = there ? int64_t{1} * k * g.co + t.group * g.cog + n : 0;
        copy_async<kBytes>(&shared.b[stage][row * kPitchB + column], from_b + from, there);
      }
    }
  }

  static MF_HD T element_a(const Shared& s, int stage, int m, int k) {
    return s.a[stage][kAlongA ? m * kPitchA + k : k * kPitchA + m];
  }
  static MF_HD T element_b(const Shared& s, int stage, int k, int n) {
    return s.b[stage][kAlongB ? n * kPitchB + k : k * kPitchB + n];
  }

  // This lane's share of the 8 columns of k from k0, as mma.m16n8k8 wants it.
  static MF_HD void load_fragments(const Shared& s, const Thread& t, int stage, int k0, Fragments& f) {
    const int lane = t.tid % 32, warp = t.tid / 32, row = lane / 4, k = k0 + lane % 4;
    const int m0 = warp / kWarpsN * kConvWarpTile, n0 = warp % kWarpsN * kConvWarpTile;
    MF_UNROLL
    for (int i = 0; i < 2; ++i) MF_UNROLL
    for (int r = 0; r < 4; ++r)
      split_tf32(element_a(s, stage, m0 + 16 * i + row + r % 2 * 8, k + r / 2 * 4), f.a_hi[i][r], f.a_lo[i][r]);
    MF_UNROLL
    for (int j = 0; j < 4; ++j) MF_UNROLL
    for (int r = 0; r < 2; ++r)
      split_tf32(element_b(s, stage, k + r * 4, n0 + 8 * j + row), f.b_hi[j][r], f.b_lo[j][r]);
  }

  static MF_HD void clear_part(Thread& t) {
    MF_UNROLL
    for (int i = 0; i < kConvWarpTile; ++i) t.part[i] = T(0);
  }
  static MF_HD void add_part(Thread& t) {
    MF_UNROLL
    for (int i = 0; i < kConvWarpTile; ++i) t.sum[i] += t.part[i];
  }

  // Without tensor cores: 8 rows and 4 columns (16 apart) of a 64 x 64 tile for each thread.
  static MF_HD void multiply_scalar(const Shared& s, Thread& t, int stage) {
    static_assert(kTensor || (kWarpsM == 2 && kWarpsN == 2));
    const int m0 = t.tid / 16 * 8, n0 = t.tid % 16;
    for (int k = 0; k < kK; ++k) {
      T a[8], b[4];
      MF_UNROLL
      for (int i = 0; i < 8; ++i) a[i] = element_a(s, stage, m0 + i, k);
      MF_UNROLL
      for (int j = 0; j < 4; ++j) b[j] = element_b(s, stage, k, n0 + 16 * j);
      MF_UNROLL
      for (int i = 0; i < 8; ++i) MF_UNROLL
      for (int j = 0; j < 4; ++j) t.sum[4 * i + j] += a[i] * b[j];
    }
  }

  static MF_HD void write(const Args& a, const Thread& t, int m_local, int n_local, T value) {
    const ConvGeometry& g = a.g;
    const int m = t.m0 + m_local, n = t.n0 + n_local;
    if (m >= t.m_size || n >= t.n_size) return;
    int64_t at;
    if constexpr (kPass == ConvPass::input) {
      const int area = t.class_h * t.class_w, i = m / area, in = m - i * area, cy = in / t.class_w;
      const int y = t.class_y + cy * g.sh, x = t.class_x + (in - cy * t.class_w) * g.sw;
      at = ((int64_t{1} * i * g.h + y) * g.w + x) * g.c + t.group * g.cig + n;
    } else {
      at = int64_t{1} * m * g.co + t.group * g.cog + n;
    }
    T* const to = a.out + t.split * a.out_split + t.task * a.out_task + at;
    if constexpr (kPass == ConvPass::forward)
      if (a.bias) value += a.bias[t.task * a.bias_task + t.group * g.cog + n];
    *to = a.accumulate ? *to + value : value;
  }

  static MF_HD void end(const Args& a, const Thread& t) {
    if constexpr (kTensor) {
      const int lane = t.tid % 32, warp = t.tid / 32;
      const int m0 = warp / kWarpsN * kConvWarpTile + lane / 4, n0 = warp % kWarpsN * kConvWarpTile + lane % 4 * 2;
      MF_UNROLL
      for (int i = 0; i < 2; ++i) MF_UNROLL
      for (int j = 0; j < 4; ++j) MF_UNROLL
      for (int r = 0; r < 4; ++r) write(a, t, m0 + 16 * i + r / 2 * 8, n0 + 8 * j + r % 2, t.sum[(i * 4 + j) * 4 + r]);
    } else {
      MF_UNROLL
      for (int i = 0; i < 8; ++i) MF_UNROLL
      for (int j = 0; j < 4; ++j) write(a, t, t.tid / 16 * 8 + i, t.tid % 16 + 16 * j, t.sum[4 * i + j]);
    }
  }
};

}  // namespace mf::cuda
