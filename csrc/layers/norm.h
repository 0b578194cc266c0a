// BATCH_NORM with the statistics of the task's batch, or with fixed ones: y = w x̂ + b, x̂ = (x - mean) / sqrt(var + eps).
//
// aux (aux_size(n) elements) carries statistics and means from forward on: call forward; then backward and
// forward_tangent in either order; then backward_tangent. aux starts with mean [cp] and biased variance [cp].
// w, b, dw, db and their tangents are [cp]; null w is 1, null b is 0; null wt, bt, xt, dyt are 0; null dx, dxt, dw, db, dwt,
// dbt are not wanted. fixed is (mean [cp], variance [cp]) or null for batch statistics; the other passes look at aux.
#pragma once

#include "map.h"
#include "team.h"

namespace mf {
inline namespace MF_ISA {

template <class T>
struct BatchNorm {
  double eps = 1e-5;
  Map x, y, dy, dx;  // ẋ lies as x, ẏ as y, dẏ as dy, dẋ as dx
  bool fixed = false;

  int64_t aux_size(int64_t n) const;

  void forward(const T* x, const T* w, const T* b, const T* fixed_stats, T* y, T* aux, int64_t n, Team& team) const;
  void backward(const T* x, const T* w, T* aux, const T* dy, T* dx, bool add, T* dw, T* db, bool add_params, int64_t n,
                Team& team) const;
  void forward_tangent(const T* x, const T* w, T* aux, const T* xt, const T* wt, const T* bt, T* yt, int64_t n,
                       Team& team) const;
  void backward_tangent(const T* x, const T* w, T* aux, const T* xt, const T* wt, const T* dy, const T* dyt, T* dxt,
                        bool add, T* dwt, T* dbt, bool add_params, int64_t n, Team& team) const;

  // The batch's mean and unbiased variance, [c] each.
  void batch_stats(const T* aux, int64_t n, double* mean, double* var) const;
};

}  // namespace MF_ISA
}  // namespace mf
