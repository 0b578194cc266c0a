// What a core can do at most: fused multiply-adds on registers, in as many independent chains as hide their latency.
#include <thread>
#include <vector>

#if defined(__AVX512F__)
constexpr int kBytes = 64;
#elif defined(__AVX2__)
constexpr int kBytes = 32;
#else
constexpr int kBytes = 16;
#endif
typedef float Vec __attribute__((vector_size(kBytes)));
constexpr int kLanes = kBytes / 4, kChains = 12;

static float chains(long rounds) {
  Vec a = {}, b = {}, sum = {};
  for (int i = 0; i < kLanes; ++i) a[i] = 0.999f, b[i] = 1e-3f;
  Vec x[kChains] = {};
  // Values are opaque to the compiler, so that nothing is folded away.
  asm volatile("" : "+m"(a), "+m"(b));
  for (long r = 0; r < rounds; ++r) {
#pragma GCC unroll 12
    for (int c = 0; c < kChains; ++c) x[c] = x[c] * a + b;
  }
  for (int c = 0; c < kChains; ++c) sum += x[c];
  float total = 0;
  for (int i = 0; i < kLanes; ++i) total += sum[i];
  return total;
}

// Runs on `threads` threads; returns the floating-point operations that were done. `sink` keeps the results alive.
extern "C" double fma_burst(long rounds, int threads, float* sink) {
  std::vector<std::thread> others;
  std::vector<float> results(threads);
  for (int t = 1; t < threads; ++t) others.emplace_back([&, t] { results[t] = chains(rounds); });
  results[0] = chains(rounds);
  for (auto& o : others) o.join();
  *sink = 0;
  for (float r : results) *sink += r;
  return 2.0 * kLanes * kChains * static_cast<double>(rounds) * threads;
}
