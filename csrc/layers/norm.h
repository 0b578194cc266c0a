#pragma once

// BATCH_NORM with the statistics of the task's batch, or with fixed ones: y = w x̂ + b, x̂ = (x - mean) / sqrt(var +
// eps).
//
// aux (aux_size() elements) carries statistics and means from pass to pass: call forward; then backward and
// forward_tangent in either order; then backward_tangent. aux starts with mean [cp] and biased variance [cp].
// w, b, dw, db and their tangents are [cp]. Null w is 1, null b is 0; null wt, bt, xt are 0; null dx, dxt, dw, db, dwt,
// dbt are not wanted. `fixed` takes (mean [cp], variance [cp]).
#include "layers/norm_pool_tangent.h"

namespace mf {
inline namespace MF_ISA {

template <class T>
struct BatchNorm {
  double eps = 1e-5;
  Map x, y, dy, dx;  // ẋ lies as x, ẏ as y, dẏ as dy, dẋ as dx
  bool fixed = false;

  int64_t aux_size() const { return block().aux_size(); }  // for up to x.n examples

  void forward(const T* px, const T* w, const T* b, const T* fixed_stats, T* py, T* aux, int64_t n, Team& team) const {
    block().forward(px, w, b, fixed_stats, py, aux, nullptr, n, team);
  }
  void backward(const T* px, const T* w, T* aux, const T* pdy, T* pdx, bool add, T* dw, T* db, bool add_params,
                int64_t n, Team& team) const {
    block().backward(px, w, aux, nullptr, pdy, pdx, add, dw, db, add_params, n, team);
  }
  void forward_tangent(const T* px, const T* w, T* aux, const T* xt, const T* wt, const T* bt, T* yt, int64_t n,
                       Team& team) const {
    block().forward_tangent(px, w, aux, nullptr, xt, wt, bt, yt, n, team);
  }
  void backward_tangent(const T* px, const T* w, T* aux, const T* xt, const T* wt, const T* pdy, const T* dyt, T* dxt,
                        bool add, T* dwt, T* dbt, bool add_params, int64_t n, Team& team) const {
    block().backward_tangent(px, w, aux, nullptr, xt, wt, pdy, dyt, nullptr, dxt, add, dwt, dbt, add_params, n, team);
  }

  // The batch's mean and unbiased variance, [c] each.
  void batch_stats(const T* aux, int64_t n, double* mean, double* var) const { block().batch_stats(aux, n, mean, var); }

 private:
  NormPool<T> block() const { return {eps, x, y, dy, dx, false, fixed, false}; }
};

}  // namespace MF_ISA
}  // namespace mf
