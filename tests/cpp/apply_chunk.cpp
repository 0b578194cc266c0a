// Runs the CUDA kernel body on the host, lane by lane, and compares it bit for bit with a plain loop of the same rule:
// every rule, storage, size and alignment, with sentinels around everything that may be written.
#include "check.h"

#include "cuda/launch.h"

#include <random>
#include <vector>

using namespace mf;
using namespace mf::cuda;

namespace {

constexpr int kGuard = 64;  // elements before and after an array that must not change
constexpr uint16_t kSentinel = 0x7b5a;

int bytes_of(DType t) { return t == DType::f32 ? 4 : 2; }

float decode(const char* data, DType t) {
  if (t == DType::f32) {
    float x;
    std::memcpy(&x, data, sizeof x);
    return x;
  }
  uint16_t bits;
  std::memcpy(&bits, data, sizeof bits);
  if (t == DType::bf16) return bits_float(static_cast<uint32_t>(bits) << 16);
  _Float16 h;
  std::memcpy(&h, &bits, sizeof h);
  return static_cast<float>(h);
}

void encode(char* data, DType t, float x, bool stochastic, uint32_t key, int64_t element, int stream) {
  if (t == DType::f32) {
    std::memcpy(data, &x, sizeof x);
  } else if (t == DType::f16) {
    const _Float16 h = static_cast<_Float16>(x);
    std::memcpy(data, &h, sizeof h);
  } else {
    const uint32_t word = rounding_word(key, static_cast<uint64_t>(element));
    const uint16_t b = float_to_bf16(x, stochastic ? rounding_bits(word, stream) : nearest_even_bits(x));
    std::memcpy(data, &b, sizeof b);
  }
}

// One tensor's stream, with guards, at an offset that can be odd.
struct Array {
  std::vector<uint16_t> store;
  DType dtype = DType::f32;
  int64_t numel = 0, offset = 0;

  Array() = default;
  Array(DType t, int64_t n, int64_t shift, std::mt19937& random, bool positive)
      : store(static_cast<size_t>(2 * (n + shift + 2 * kGuard) + 8), kSentinel), dtype(t), numel(n), offset(shift) {
    std::normal_distribution<float> normal;
    for (int64_t i = 0; i < n; ++i) {
      const float x = normal(random);
      encode(at(i), t, positive ? 1e-3f + x * x : x, false, 0, 0, 0);
    }
  }

  char* at(int64_t i) {
    auto base = reinterpret_cast<uintptr_t>(store.data());
    base = (base + 15) / 16 * 16;  // so that an offset of 0 is a 16-byte boundary
    return reinterpret_cast<char*>(base) + (i + offset + kGuard) * bytes_of(dtype);
  }
  StreamRef ref(int64_t i) { return store.empty() ? StreamRef{} : StreamRef{at(i), dtype}; }

  bool guards_hold() {
    const char* low = reinterpret_cast<const char*>(store.data());
    const char* high = reinterpret_cast<const char*>(store.data() + store.size());
    for (const char* p = low; p + 1 < high; p += 2) {
      if (p >= at(0) && p < at(numel)) continue;
      uint16_t bits;
      std::memcpy(&bits, p, sizeof bits);
      if (bits != kSentinel) return false;
    }
    return true;
  }
};

struct Storages {
  const char* name;
  DType param, grad, state, rate;
  bool master;
};

constexpr DType F = DType::f32, B = DType::bf16, H = DType::f16;

struct Tensor {
  Array p, copy, g, s[kMaxStates];

  Tensor(const Storages& t, int64_t n, int64_t shift, unsigned seed) {
    std::mt19937 random(seed);
    if (t.master) copy = Array(t.param, n, shift, random, false);
    p = Array(t.master ? F : t.param, n, t.master ? 0 : shift, random, false);
    g = Array(t.grad, n, shift, random, false);
    for (int k = 0; k < kMaxStates; ++k) s[k] = Array(k == 3 ? t.rate : t.state, n, 0, random, k > 0);
  }

  Chunk chunk(int64_t first, bool stochastic) {
    Chunk c;
    c.p = p.ref(first);
    c.copy = copy.ref(first);
    c.g = g.ref(first);
    for (int k = 0; k < kMaxStates; ++k) c.s[k] = s[k].ref(first);
    c.n = std::min<int64_t>(kChunk, p.numel - first);
    c.first = first;
    c.key = 0x1234567u;
    c.stochastic = stochastic;
    return c;
  }

  bool same(Tensor& other) {
    bool equal = p.store.size() == other.p.store.size();
    const auto alike = [](Array& a, Array& b) {
      return a.store.empty() == b.store.empty() &&
             (a.store.empty() || std::memcmp(a.at(0), b.at(0), static_cast<size_t>(a.numel * bytes_of(a.dtype))) == 0);
    };
    equal = equal && alike(p, other.p) && alike(copy, other.copy) && alike(g, other.g);
    for (int k = 0; k < kMaxStates; ++k) equal = equal && alike(s[k], other.s[k]);
    return equal;
  }
  bool guards_hold() {
    bool hold = p.guards_hold() && g.guards_hold() && (copy.store.empty() || copy.guards_hold());
    for (int k = 0; k < kMaxStates; ++k) hold = hold && s[k].guards_hold();
    return hold;
  }
};

struct Sums {
  double value[kStatCount] = {}, size[kStatCount] = {};

  void add(int k, double x) {
    value[k] += x;
    size[k] += std::abs(x);
  }
};

template <class R>
Sums plain_loop(Tensor& t, const typename R::Hyper& h, bool stochastic) {
  Sums sums;
  for (int64_t i = 0; i < t.p.numel; ++i) {
    const Chunk c = t.chunk(i / kChunk * kChunk, stochastic);
    float g = decode(t.g.at(i), t.g.dtype), p = decode(t.p.at(i), t.p.dtype), u = 0, s[kMaxStates];
    for (int k = 0; k < kMaxStates; ++k) s[k] = decode(t.s[k].at(i), t.s[k].dtype);
    const float old = p;
    R::step(h, g, u, p, s[0], s[1], s[2], s[3]);
    if (R::kReads & kP) sums.add(3, static_cast<double>(old) * old);
    if (R::kStats) {
      sums.add(0, static_cast<double>(g) * g);
      sums.add(1, static_cast<double>(g) * u);
      sums.add(2, static_cast<double>(u) * u);
    }
    if (R::kWrites & kP) {
      encode(t.p.at(i), t.p.dtype, p, stochastic, c.key, i, 0);
      if (!t.copy.store.empty()) encode(t.copy.at(i), t.copy.dtype, p, false, 0, 0, 0);
    }
    for (int k = 0; k < kMaxStates; ++k)
      if (R::kWrites & (kS0 << k)) encode(t.s[k].at(i), t.s[k].dtype, s[k], stochastic, c.key, i, k + 1);
  }
  return sums;
}

template <class R, class T>
Sums all_lanes(Tensor& t, const typename R::Hyper& h, bool stochastic, int lanes) {
  Sums sums;
  for (int64_t first = 0; first < t.p.numel; first += kChunk) {
    const Chunk c = t.chunk(first, stochastic);
    for (int lane = lanes; lane-- > 0;) {  // backwards: lanes must not depend on one another
      const LaneSums part = apply_chunk<R, T>(c, h, lane, lanes);
      sums.value[0] += part.gg;
      sums.value[1] += part.gu;
      sums.value[2] += part.uu;
      sums.value[3] += part.pp;
    }
  }
  return sums;
}

template <class Hyper>
Hyper make_hyper_of() {
  RuleOptions options;
  if constexpr (std::is_base_of_v<AdamHyper, Hyper>) options.set(AdamOptions{{0.9, 0.999, 1e-8, 1e-2, false}, 1e-2});
  else options.set(SgdOptions{{0.9, 0.1, 1e-2, false, true}, 1e-2});
  options.element = make_element_rate(kNormalized, 0.02, 1e-8, 10.0);
  Hyper h;
  make_hyper(options, 7.0, 0.5, -0.25, h);
  return h;
}

template <class R, class T>
void compare(const char* rule, const Storages& storages) {
  const auto h = make_hyper_of<typename R::Hyper>();
  for (const int64_t n : {0, 1, 63, 4097, 16385})
    for (const int64_t shift : {0, 1, 8})
      for (const bool stochastic : {false, true})
        for (const int lanes : {kLanes, 32}) {
          if (n > kChunk && (shift == 8 || lanes != kLanes)) continue;  // time
          const unsigned seed = static_cast<unsigned>(n + 7 * shift);
          Tensor expected(storages, n, shift, seed), got(storages, n, shift, seed);
          const Sums want = plain_loop<R>(expected, h, stochastic);
          const Sums have = all_lanes<R, T>(got, h, stochastic, lanes);
          CHECK(expected.same(got), "%s %s n=%ld shift=%ld stochastic=%d lanes=%d", rule, storages.name, long(n),
                long(shift), stochastic, lanes);
          CHECK(got.guards_hold(), "%s %s n=%ld shift=%ld wrote outside", rule, storages.name, long(n), long(shift));
          for (int k = R::kStats ? 0 : 3; k < (R::kReads & kP ? 4 : 3); ++k) {
            CHECK(std::abs(want.value[k] - have.value[k]) <= 1e-6 * want.size[k], "%s %s n=%ld sum %d: %g, not %g",
                  rule, storages.name, long(n), k, have.value[k], want.value[k]);
          }
        }
}

template <class R>
void compare_storages(const char* rule) {
  compare<R, AllFloat>(rule, {"all fp32", F, F, F, F, false});
  compare<R, AllBfloat>(rule, {"all bf16", B, B, B, B, false});
  compare<R, BfloatParam>(rule, {"bf16, fp32 states", B, B, F, F, false});
  compare<R, AnyStorage>(rule, {"any: fp16, fp32 states", H, H, F, F, false});
  compare<R, AnyStorage>(rule, {"any: fp32, bf16 states", F, F, B, B, false});
  compare<R, AnyStorage>(rule, {"any: bf16 with a master", B, B, F, B, true});
  compare<R, AnyStorage>(rule, {"any: fp16 with a master", H, H, B, F, true});
  compare<R, AnyStorage>(rule, {"any: fp32, bf16 gradients", F, B, F, F, false});
}

void compare_squares() {
  std::mt19937 random(3);
  for (const DType t : {F, B, H})
    for (const int64_t n : {1, 63, 4097, 16384})
      for (const int64_t shift : {0, 1}) {
        Array g(t, n, shift, random, false);
        double want = 0, have = 0;
        for (int64_t i = 0; i < n; ++i) want += static_cast<double>(decode(g.at(i), t)) * decode(g.at(i), t);
        for (int lane = 0; lane < kLanes; ++lane) have += squares_chunk(g.ref(0), static_cast<int>(n), lane, kLanes);
        CHECK(std::abs(want - have) <= 1e-6 * want, "squares of %ld: %g, not %g", long(n), have, want);
      }
}

// Every tensor and chunk belongs to exactly one launch, in order, whatever the sizes.
void cut_into_launches() {
  std::mt19937 random(5);
  std::vector<int64_t> numels(4501);
  for (int64_t& n : numels) n = random() % 5 == 0 ? 0 : random() % 70000;
  numels[4000] = (int64_t{1} << 31) + 5;  // more elements than 32 bits count
  int64_t next_item = 0, next_chunk = 0, launches = 0;
  for_batches(
      4501, kTensors, [&](int64_t i) { return numels[i]; },
      [&](int64_t first, int64_t count, int64_t chunk, int64_t chunks) {
        CHECK(first == next_item && chunk == next_chunk && count <= kTensors, "launch %ld", long(launches));
        int64_t expected = 0;
        for (int64_t i = first; i < first + count; ++i) expected += (numels[i] + kChunk - 1) / kChunk;
        CHECK(chunks == expected, "launch %ld has %ld chunks, not %ld", long(launches), long(chunks), long(expected));
        next_item += count;
        next_chunk += chunks;
        ++launches;
      });
  CHECK(next_item == 4501 && launches == 3, "%ld tensors in %ld launches", long(next_item), long(launches));
}

// Address arithmetic past 2^31 elements, without the memory: the pointers are only compared.
void beyond_32_bits() {
  const int64_t start = ((int64_t{1} << 33) / kChunk) * kChunk;
  const StreamRef f = advance({reinterpret_cast<void*>(64), F}, start),
                  b = advance({reinterpret_cast<void*>(64), B}, start);
  CHECK(reinterpret_cast<uintptr_t>(f.data) == 64 + 4 * static_cast<uint64_t>(start), "%p", f.data);
  CHECK(reinterpret_cast<uintptr_t>(b.data) == 64 + 2 * static_cast<uint64_t>(start), "%p", b.data);
  CHECK(advance({}, start).data == nullptr, "a missing stream stays missing");

  const Item items[] = {{3, int64_t{1} << 34, start + 10}};
  const ChunkRow rows[] = {{0, start, start}};
  const Tables tables{items, rows, nullptr, 1, 1, 4, nullptr};
  const Located at = locate(tables, 0, 0, 1);
  CHECK(length(at) == 10, "%d", length(at));
  static StepLaunch launch;
  StepArgs& a = launch.args;
  a.tables = tables;
  a.state[0] = {reinterpret_cast<void*>(4096), F};
  a.arena_size = int64_t{1} << 35;
  const float steps[] = {0, 0, 0, 41};
  a.step = steps;
  a.counts_step = true;
  a.seed = 9;
  a.param_dtype = a.grad_dtype = B;
  launch.param[0] = reinterpret_cast<void*>(128);
  launch.grad[0] = reinterpret_cast<void*>(256);
  const Chunk c = open_chunk(launch, at);
  CHECK(c.first == start && c.n == 10, "%ld", long(c.first));
  CHECK(reinterpret_cast<uintptr_t>(c.p.data) == 128 + 2 * static_cast<uint64_t>(start), "%p", c.p.data);
  CHECK(reinterpret_cast<uintptr_t>(c.s[0].data) == 4096 + 4 * static_cast<uint64_t>(start + (int64_t{1} << 34)), "%p",
        c.s[0].data);
  CHECK(c.key == rounding_key(9, 3, 42), "the key belongs to the step that is being taken");
}

}  // namespace

int main() {
#define X(name, ...) compare_storages<__VA_ARGS__>(#name);
  MF_RULES(X)
#undef X
  compare_squares();
  cut_into_launches();
  beyond_32_bits();
  return check_result();
}
