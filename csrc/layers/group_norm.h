// GROUP_NORM (affine per channel) and LAYER_NORM over the whole example (affine per element, [h][w][cp]).
//
// The same conventions as norm.h; statistics are per example and group.
#pragma once

#include "map.h"
#include "team.h"

namespace mf {
inline namespace MF_ISA {

template <class T>
struct GroupNorm {
  double eps = 1e-5;
  Map x, y, dy, dx;          // ẋ lies as x, ẏ as y, dẏ as dy, dẋ as dx
  int64_t groups = 1;
  bool per_element = false;  // LAYER_NORM: w, b, dw, db and tangents are [h][w][cp], and groups is 1

  int64_t param_size() const { return per_element ? x.h * x.w * x.cp : x.cp; }
  int64_t aux_size(int64_t n) const;

  void forward(const T* x, const T* w, const T* b, T* y, T* aux, int64_t n, Team& team) const;
  void backward(const T* x, const T* w, T* aux, const T* dy, T* dx, bool add, T* dw, T* db, bool add_params, int64_t n,
                Team& team) const;
  void forward_tangent(const T* x, const T* w, T* aux, const T* xt, const T* wt, const T* bt, T* yt, int64_t n,
                       Team& team) const;
  void backward_tangent(const T* x, const T* w, T* aux, const T* xt, const T* wt, const T* dy, const T* dyt, T* dxt,
                        bool add, T* dwt, T* dbt, bool add_params, int64_t n, Team& team) const;
};

}  // namespace MF_ISA
}  // namespace mf
