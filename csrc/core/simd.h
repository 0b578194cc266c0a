#pragma once

// A SIMD vector of T (float or double) as wide as the instruction set that this file is compiled for: 64 bytes with
// AVX-512, 32 with AVX2, else 16. Everything here lives in the namespace of that instruction set, because the same
// headers are compiled once for each of them. Products and sums fuse under -ffp-contract=fast.
#include <cstdint>
#include <cstring>
#include <type_traits>
#include <utility>

#ifndef MF_ISA
#define MF_ISA baseline
#endif
#define MF_INLINE inline __attribute__((always_inline))

namespace mf {
inline namespace MF_ISA {

#if defined(__AVX512F__)
constexpr int64_t kVecBytes = 64;
constexpr int kVecRegisters = 32;
#elif defined(__AVX__)
constexpr int64_t kVecBytes = 32;
constexpr int kVecRegisters = 16;
#elif defined(__aarch64__)
constexpr int64_t kVecBytes = 16;
constexpr int kVecRegisters = 32;
#else
constexpr int64_t kVecBytes = 16;
constexpr int kVecRegisters = 16;
#endif

template <class T>
struct Vec {
  using Int = std::conditional_t<sizeof(T) == 4, int32_t, int64_t>;
  typedef T Native __attribute__((vector_size(kVecBytes)));
  typedef Int Mask __attribute__((vector_size(kVecBytes)));  // a lane is 0 or -1
  typedef T Loose __attribute__((vector_size(kVecBytes), aligned(sizeof(T)), may_alias));
  static constexpr int64_t kLanes = kVecBytes / static_cast<int64_t>(sizeof(T));

  Native v;

  static MF_INLINE Vec zero() { return {Native{}}; }
  static MF_INLINE Vec broadcast(T s) { return fill(s, std::make_index_sequence<kLanes>()); }
  static MF_INLINE Vec load(const T* p) { return {*reinterpret_cast<const Loose*>(p)}; }  // any alignment
  MF_INLINE void store(T* p) const { *reinterpret_cast<Loose*>(p) = v; }

  // The first n lanes of p, the others 0; n in 0..kLanes.
  static MF_INLINE Vec load_first(const T* p, int64_t n) {
    Vec r = zero();
    std::memcpy(&r.v, p, static_cast<size_t>(n) * sizeof(T));
    return r;
  }
  MF_INLINE void store_first(T* p, int64_t n) const { std::memcpy(p, &v, static_cast<size_t>(n) * sizeof(T)); }
  // Lane i is true where i < n.
  static MF_INLINE Mask first(int64_t n) {
    Mask lane;
    for (int64_t i = 0; i < kLanes; ++i) lane[i] = static_cast<Int>(i);
    return lane < (Mask{} + static_cast<Int>(n));
  }

  friend MF_INLINE Vec operator+(Vec a, Vec b) { return {a.v + b.v}; }
  friend MF_INLINE Vec operator-(Vec a, Vec b) { return {a.v - b.v}; }
  friend MF_INLINE Vec operator*(Vec a, Vec b) { return {a.v * b.v}; }
  friend MF_INLINE Vec operator/(Vec a, Vec b) { return {a.v / b.v}; }
  friend MF_INLINE Vec operator-(Vec a) { return {-a.v}; }
  friend MF_INLINE Vec operator+(Vec a, T b) { return a + broadcast(b); }
  friend MF_INLINE Vec operator-(Vec a, T b) { return a - broadcast(b); }
  friend MF_INLINE Vec operator*(Vec a, T b) { return a * broadcast(b); }
  friend MF_INLINE Vec operator*(T a, Vec b) { return broadcast(a) * b; }
  friend MF_INLINE Mask operator<(Vec a, Vec b) { return a.v < b.v; }
  friend MF_INLINE Mask operator>(Vec a, Vec b) { return a.v > b.v; }
  friend MF_INLINE Mask operator<=(Vec a, Vec b) { return a.v <= b.v; }
  friend MF_INLINE Mask operator>=(Vec a, Vec b) { return a.v >= b.v; }
  friend MF_INLINE Mask operator==(Vec a, Vec b) { return a.v == b.v; }
  MF_INLINE Vec& operator+=(Vec b) { return v += b.v, *this; }
  MF_INLINE Vec& operator-=(Vec b) { return v -= b.v, *this; }
  MF_INLINE Vec& operator*=(Vec b) { return v *= b.v, *this; }

  MF_INLINE T operator[](int64_t lane) const { return v[lane]; }

 private:
  // Written out, because `Native{} + s` costs an addition: -0.0 + 0 is not -0.0.
  template <size_t... kLane>
  static MF_INLINE Vec fill(T s, std::index_sequence<kLane...>) {
    return {Native{(static_cast<void>(kLane), s)...}};
  }
};

template <class T>
MF_INLINE Vec<T> fma(Vec<T> a, Vec<T> b, Vec<T> c) {  // a * b + c
  return {a.v * b.v + c.v};
}
template <class T>
MF_INLINE Vec<T> select(typename Vec<T>::Mask mask, Vec<T> a, Vec<T> b) {  // mask ? a : b
  return {mask ? a.v : b.v};
}
template <class T>
MF_INLINE Vec<T> max(Vec<T> a, Vec<T> b) {  // b where either is NaN, as maxps
  return {a.v > b.v ? a.v : b.v};
}
template <class T>
MF_INLINE Vec<T> min(Vec<T> a, Vec<T> b) {
  return {a.v < b.v ? a.v : b.v};
}
template <class T>
MF_INLINE T sum(Vec<T> a) {  // pairwise, so that the order is the same for every compiler
  T lane[Vec<T>::kLanes];
  a.store(lane);
  for (int64_t half = Vec<T>::kLanes / 2; half > 0; half /= 2)
    for (int64_t i = 0; i < half; ++i) lane[i] += lane[i + half];
  return lane[0];
}
template <class T>
MF_INLINE T max_lane(Vec<T> a) {
  T best = a.v[0];
  for (int64_t i = 1; i < Vec<T>::kLanes; ++i) best = a.v[i] > best ? a.v[i] : best;
  return best;
}

}  // namespace MF_ISA
}  // namespace mf
