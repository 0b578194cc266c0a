// Cross-entropy (label smoothing, class count per task) and mean squared error, each as the mean over the n examples.
//
// Logits are a map [n, 1, 1, C]. Losses come back in double. `scale` multiplies gradients (a query weight, say).
#pragma once

#include "map.h"
#include "team.h"

namespace mf {
inline namespace MF_ISA {

template <class T>
struct CrossEntropy {
  double smoothing = 0.0;
  Map x, dx;  // logits and their gradients; ẋ lies as x, dẋ as dx

  int64_t aux_size(int64_t n) const { return n * x.cp; }  // probabilities; later logits than `classes` have none

  double forward(const T* x, const int64_t* labels, int64_t classes, T* aux, int64_t n) const;
  void backward(const T* aux, const int64_t* labels, int64_t classes, double scale, T* dx, int64_t n) const;
  double forward_tangent(const T* aux, const int64_t* labels, int64_t classes, const T* xt, int64_t n) const;
  void backward_tangent(const T* aux, int64_t classes, double scale, const T* xt, T* dxt, int64_t n) const;
};

// Mean over n and all c outputs; targets [n][c], rows without padding.
template <class T>
struct MeanSquaredError {
  Map x, dx;

  double forward(const T* x, const T* targets, int64_t n) const;
  void backward(const T* x, const T* targets, double scale, T* dx, int64_t n) const;
  double forward_tangent(const T* x, const T* targets, const T* xt, int64_t n) const;
  void backward_tangent(double scale, const T* xt, T* dxt, int64_t n) const;
};

}  // namespace MF_ISA
}  // namespace mf
