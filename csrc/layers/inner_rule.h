// The inner optimizers on packed vectors: one step, and its backward for the recursion over steps.
//
//   d = g + weight_decay θ + prox (θ - θ_0)
//   gradient descent   θ -= r d
//   momentum           v = μ v + d,  θ -= r v
//   Adam               m = β1 m + (1 - β1) d,  v = β2 v + (1 - β2) d²,
//                      θ -= r (m / (1 - β1^t)) / (sqrt(v / (1 - β2^t)) + eps)
//
// backward takes λ = dL/dθ_{k+1} to the cotangent of d, which is also that of g, and adds what reaches θ_k and θ_0
// without passing through g. The Hessian's part is the engine's.
#pragma once

#include <cmath>
#include <cstdint>

#include "core/simd.h"

namespace mf {
inline namespace MF_ISA {

enum class InnerRule : int64_t { sgd = 0, momentum = 1, adam = 2 };

// One run of packed elements that share a rate.
struct RuleSpan {
  int64_t begin, size, rate;  // rate: column of the rates
};

template <class T>
struct RuleStep {
  InnerRule rule = InnerRule::sgd;
  T momentum = 0, beta2 = 0, eps = 0, weight_decay = 0, prox = 0;
  T correction1 = 1, correction2 = 1;  // 1 / (1 - β^t), Adam
  bool first = false;                  // no state yet

  void set_step(int64_t k, double beta1, double b2) {
    first = k == 0;
    correction1 = static_cast<T>(1.0 / (1.0 - std::pow(beta1, static_cast<double>(k + 1))));
    correction2 = static_cast<T>(1.0 / (1.0 - std::pow(b2, static_cast<double>(k + 1))));
  }
};

// Where the vectors of one step lie, all at the same span. Null where a rule has no use for it.
template <class T>
struct RuleVectors {
  const T *theta, *start;  // θ_k, θ_0
  const T* g;              // forward: the gradient
  T* next;                 // θ_{k+1}; may be theta
  const T *m_before, *v_before;
  T *d, *m, *v;  // kept for backward: d (gradient descent, Adam), m (momentum's v, Adam's m), v
};

namespace rule_detail {

template <class T, bool kElement>
MF_INLINE T rate_at(const T* rate, int64_t i) {
  return kElement ? rate[i] : *rate;
}

// m̂ / (sqrt(v̂) + eps); 0 / 0 is 0, so that padded lanes stay 0 even without eps.
template <class T>
MF_INLINE T adam_direction(const RuleStep<T>& s, T m, T v) {
  const T root = std::sqrt(v * s.correction2) + s.eps, up = m * s.correction1;
  return up == T(0) && root == T(0) ? T(0) : up / root;
}

template <class T, bool kElement, bool kDecay>
void forward(const RuleStep<T>& s, const RuleVectors<T>& a, const T* rate, int64_t n) {
  const T *theta = a.theta, *start = a.start, *g = a.g, *m0 = a.m_before, *v0 = a.v_before;
  T *next = a.next, *d_out = a.d, *m_out = a.m, *v_out = a.v;
  const T wd = s.weight_decay, prox = s.prox;
  const auto direction = [&](int64_t i) { return kDecay ? g[i] + wd * theta[i] + prox * (theta[i] - start[i]) : g[i]; };
  if (s.rule == InnerRule::sgd) {
    if (d_out) {
#pragma omp simd
      for (int64_t i = 0; i < n; ++i) {
        const T d = direction(i);
        d_out[i] = d;
        next[i] = theta[i] - rate_at<T, kElement>(rate, i) * d;
      }
    } else {
#pragma omp simd
      for (int64_t i = 0; i < n; ++i) next[i] = theta[i] - rate_at<T, kElement>(rate, i) * direction(i);
    }
  } else if (s.rule == InnerRule::momentum) {
    const T mu = s.first ? T(0) : s.momentum;
    if (s.first) m0 = g;  // times 0, but of memory that is there
#pragma omp simd
    for (int64_t i = 0; i < n; ++i) {
      const T v = s.first ? direction(i) : mu * m0[i] + direction(i);
      m_out[i] = v;
      next[i] = theta[i] - rate_at<T, kElement>(rate, i) * v;
    }
  } else {
    const T b1 = s.momentum, b2 = s.beta2;
    for (int64_t i = 0; i < n; ++i) {
      const T d = direction(i);
      const T m = (s.first ? T(0) : b1 * m0[i]) + (1 - b1) * d, v = (s.first ? T(0) : b2 * v0[i]) + (1 - b2) * d * d;
      if (d_out) d_out[i] = d;
      m_out[i] = m;
      v_out[i] = v;
      next[i] = theta[i] - rate_at<T, kElement>(rate, i) * adam_direction(s, m, v);
    }
  }
}

}  // namespace rule_detail

template <class T>
void rule_forward(const RuleStep<T>& s, RuleVectors<T> a, const T* rate, bool element, int64_t n) {
  using namespace rule_detail;
  const bool decay = s.weight_decay != 0 || s.prox != 0;
  if (element) decay ? forward<T, true, true>(s, a, rate, n) : forward<T, true, false>(s, a, rate, n);
  else decay ? forward<T, false, true>(s, a, rate, n) : forward<T, false, false>(s, a, rate, n);
}

// The vectors of one step of the recursion.
template <class T>
struct RuleCotangents {
  T* lambda;           // in: dL/dθ_{k+1}; out: plus what reaches θ_k through weight decay and prox
  T* u;                // out: cotangent of d_k
  T *mu, *nu;          // cotangents of the states m, v after this step from later steps; out: of those before it
  const T *d, *m, *v;  // of this step, as rule_forward kept them
  T* start;            // accumulates what reaches θ_0 through prox; null: not wanted
  T* grad_rate;        // elementwise rates: += ; null: not wanted
};

// Returns the sum of -u ⊙ λ, the gradient of a rate that the span shares, when `want_rate`.
template <class T>
double rule_backward(const RuleStep<T>& s, const RuleCotangents<T>& a, const T* rate, bool element, bool want_rate,
                     bool states_are_zero, int64_t n) {
  constexpr int64_t kBlock = 512;  // summed in T, blocks in double
  const T pull = s.weight_decay + s.prox;
  double total = 0;
  for (int64_t at = 0; at < n; at += kBlock) {
    const int64_t end = at + kBlock < n ? at + kBlock : n;
    T sum = 0;
    const T *d = a.d, *m = a.m, *v = a.v;
    T *lambda = a.lambda, *u = a.u;
    if (want_rate) {
      if (s.rule == InnerRule::adam) {
        for (int64_t i = at; i < end; ++i) {
          const T part = -lambda[i] * rule_detail::adam_direction(s, m[i], v[i]);
          if (a.grad_rate) a.grad_rate[i] += part;
          else sum += part;
        }
      } else {
        const T* step = s.rule == InnerRule::sgd ? d : m;
        if (a.grad_rate) {
#pragma omp simd
          for (int64_t i = at; i < end; ++i) a.grad_rate[i] -= lambda[i] * step[i];
        } else {
#pragma omp simd reduction(+ : sum)
          for (int64_t i = at; i < end; ++i) sum -= lambda[i] * step[i];
        }
      }
    }
    if (s.rule == InnerRule::sgd) {
      if (element) {
#pragma omp simd
        for (int64_t i = at; i < end; ++i) u[i] = -rate[i] * lambda[i];
      } else {
        const T r = -*rate;
#pragma omp simd
        for (int64_t i = at; i < end; ++i) u[i] = r * lambda[i];
      }
    } else if (s.rule == InnerRule::momentum) {
      for (int64_t i = at; i < end; ++i) {
        const T b = (states_are_zero ? T(0) : a.mu[i]) - rate[element ? i : 0] * lambda[i];
        u[i] = b;
        a.mu[i] = s.momentum * b;
      }
    } else {
      for (int64_t i = at; i < end; ++i) {
        const T root_v = std::sqrt(v[i] * s.correction2), root = root_v + s.eps;
        const T cot = -rate[element ? i : 0] * lambda[i];
        const T up = m[i] * s.correction1;
        T mbar = states_are_zero ? T(0) : a.mu[i], vbar = states_are_zero ? T(0) : a.nu[i];
        if (root > T(0)) {
          mbar += cot * s.correction1 / root;
          if (root_v > T(0)) vbar -= cot * up / (root * root) * s.correction2 / (2 * root_v);
        } else if (!(root == T(0))) {  // NaN stays NaN
          mbar += root;
        }
        u[i] = (1 - s.momentum) * mbar + 2 * (1 - s.beta2) * d[i] * vbar;
        a.mu[i] = s.momentum * mbar;
        a.nu[i] = s.beta2 * vbar;
      }
    }
    if (pull != 0) {
#pragma omp simd
      for (int64_t i = at; i < end; ++i) lambda[i] += pull * u[i];
    }
    if (s.prox != 0 && a.start) {
      T* start = a.start;
      const T p = s.prox;
#pragma omp simd
      for (int64_t i = at; i < end; ++i) start[i] -= p * u[i];
    }
    total += sum;
  }
  return total;
}

}  // namespace MF_ISA
}  // namespace mf
