// metafast::stream: negates `writes` in place while reading `reads`. See stream.h.
#include "stream.h"

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <cstring>
#include <vector>

namespace mf {
namespace {

typedef uint64_t Vec16 __attribute__((vector_size(16), aligned(4), may_alias));
typedef uint64_t Vec32 __attribute__((vector_size(32), aligned(4), may_alias));
typedef uint64_t Vec64 __attribute__((vector_size(64), aligned(4), may_alias));

// Plain stores: non-temporal ones were measured, and gain nothing where every written line is read first.
template <class Vec>
inline __attribute__((always_inline)) void pass(const StreamArrays& a, int64_t begin, int64_t end) {
  constexpr int kBytes = sizeof(Vec), kWords = kBytes / 8;
  Vec seen = {};
  int64_t i = begin;
  for (; i + kStreamBlock <= end; i += kStreamBlock) {
    for (int r = 0; r < a.n_reads; ++r) {
      const auto* in = reinterpret_cast<const Vec*>(static_cast<const char*>(a.reads[r]) + i * a.read_bytes[r]);
      for (int v = 0; v < kStreamBlock * a.read_bytes[r] / kBytes; ++v) seen ^= in[v];
    }
    for (int w = 0; w < a.n_writes; ++w) {
      auto* out = reinterpret_cast<Vec*>(static_cast<char*>(a.writes[w]) + i * a.write_bytes[w]);
      const Vec sign = a.signs[w] - Vec{};
      for (int v = 0; v < kStreamBlock * a.write_bytes[w] / kBytes; ++v) out[v] ^= sign;
    }
  }
  uint64_t rest = 0;
  for (int k = 0; k < kWords; ++k) rest ^= seen[k];
  for (int r = 0; r < a.n_reads; ++r) {
    const char* in = static_cast<const char*>(a.reads[r]);
    for (int64_t b = i * a.read_bytes[r]; b < end * a.read_bytes[r]; ++b) rest ^= static_cast<uint8_t>(in[b]);
  }
  for (int w = 0; w < a.n_writes; ++w) {
    char* out = static_cast<char*>(a.writes[w]);
    const int size = a.write_bytes[w];  // little endian: the sign is in an element's last byte
    for (int64_t e = i; e < end; ++e) out[e * size + size - 1] ^= static_cast<char>(0x80);
  }
  asm volatile("" ::"r"(rest));  // the reads must happen
}

#if defined(__x86_64__)
__attribute__((target("avx512f"))) void pass_avx512(const StreamArrays& a, int64_t b, int64_t e) {
  pass<Vec64>(a, b, e);
}
__attribute__((target("avx2"))) void pass_avx2(const StreamArrays& a, int64_t b, int64_t e) { pass<Vec32>(a, b, e); }
#endif
void pass_baseline(const StreamArrays& a, int64_t b, int64_t e) { pass<Vec16>(a, b, e); }

using Pass = void (*)(const StreamArrays&, int64_t, int64_t);

Pass choose_pass() {
#if defined(__x86_64__)
  if (__builtin_cpu_supports("avx512f")) return pass_avx512;
  if (__builtin_cpu_supports("avx2")) return pass_avx2;
#endif
  return pass_baseline;
}

}  // namespace

void stream_range(const StreamArrays& arrays, int64_t begin, int64_t end) {
  static const Pass chosen = choose_pass();
  chosen(arrays, begin, end);
}

}  // namespace mf

namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

int element_bytes(const Tensor& t, int64_t numel) {
  const ScalarType dtype = t.scalar_type();
  STD_TORCH_CHECK(dtype == ScalarType::Float || dtype == ScalarType::BFloat16 || dtype == ScalarType::Half ||
                      dtype == ScalarType::Double,
                  "stream: expected floating-point tensors, got ", torch::headeronly::toString(dtype));
  STD_TORCH_CHECK(t.is_contiguous(), "stream: expected contiguous tensors");
  STD_TORCH_CHECK(t.numel() == numel, "stream: expected tensors of the same number of elements, got ", numel, " and ",
                  t.numel());
  return static_cast<int>(t.element_size());
}

void stream(std::vector<Tensor> writes, std::vector<Tensor> reads) {
  if (writes.empty() && reads.empty()) return;
  const int64_t numel = (writes.empty() ? reads : writes)[0].numel();
  std::vector<void*> out;
  std::vector<const void*> in;
  std::vector<uint64_t> signs;
  std::vector<int> out_bytes, in_bytes;
  for (const Tensor& t : writes) {
    out_bytes.push_back(element_bytes(t, numel));
    signs.push_back(out_bytes.back() == 8   ? 0x8000000000000000u
                    : out_bytes.back() == 4 ? 0x8000000080000000u
                                            : 0x8000800080008000u);
    out.push_back(t.data_ptr());
  }
  for (const Tensor& t : reads) {
    in_bytes.push_back(element_bytes(t, numel));
    in.push_back(t.data_ptr());
  }
  const mf::StreamArrays arrays{out.data(), signs.data(),    out_bytes.data(),           static_cast<int>(out.size()),
                                in.data(),  in_bytes.data(), static_cast<int>(in.size())};
  constexpr int64_t kGrain = 16384;  // elements: the chunk of an optimizer step
  torch::stable::parallel_for(0, (numel + kGrain - 1) / kGrain, 1, [&](int64_t begin, int64_t end) {
    mf::stream_range(arrays, begin * kGrain, std::min(end * kGrain, numel));
  });
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(metafast, CPU, m) { m.impl("stream", TORCH_BOX(&stream)); }
