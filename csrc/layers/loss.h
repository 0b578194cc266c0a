#pragma once

// Cross-entropy (label smoothing, class count per task) and mean squared error, each as the mean over the n examples.
//
// Logits are a map [n, 1, 1, C]. Losses come back in double. `scale` multiplies gradients (a query weight, say).
#include <cmath>

#include "layers/map.h"

namespace mf {
inline namespace MF_ISA {

// z: logits, p = softmax(z) over the first `classes`, q the smoothed target:
//   loss = -1/n Σ q log p,   dz = (p - q) / n,   dż = p (ż - Σ p ż) / n
template <class T>
struct CrossEntropy {
  double smoothing = 0.0;
  Map x, dx;  // logits and their gradients; ẋ lies as x, dẋ as dx

  int64_t aux_size(int64_t n) const { return n * x.cp; }  // p, 0 beyond `classes`

  double forward(const T* z, const int64_t* labels, int64_t classes, T* aux, int64_t n) const {
    double total = 0.0;
    const double even = smoothing / static_cast<double>(classes);
    for (int64_t i = 0; i < n; ++i) {
      const T* row = z + x.at(i, 0, 0);
      T* p = aux + i * x.cp;
      T top = row[0];
      for (int64_t k = 1; k < classes; ++k) top = row[k] > top ? row[k] : top;
      double sum = 0.0, logits = 0.0;
      for (int64_t k = 0; k < classes; ++k) {
        const T e = std::exp(row[k] - top);
        p[k] = e;
        sum += static_cast<double>(e);
        logits += static_cast<double>(row[k] - top);
      }
      const T inverse = static_cast<T>(1.0 / sum);
      for (int64_t k = 0; k < classes; ++k) p[k] *= inverse;
      for (int64_t k = classes; k < x.cp; ++k) p[k] = T(0);
      total += std::log(sum) - (1.0 - smoothing) * static_cast<double>(row[labels[i]] - top) - even * logits;
    }
    return n > 0 ? total / static_cast<double>(n) : 0.0;
  }

  void backward(const T* aux, const int64_t* labels, int64_t classes, double scale, T* dz, int64_t n) const {
    const T factor = static_cast<T>(scale / static_cast<double>(n));
    const T even = static_cast<T>(smoothing / static_cast<double>(classes));
    for (int64_t i = 0; i < n; ++i) {
      const T* p = aux + i * x.cp;
      T* d = dz + dx.at(i, 0, 0);
      for (int64_t k = 0; k < classes; ++k) d[k] = factor * (p[k] - even);
      for (int64_t k = classes; k < dx.cp; ++k) d[k] = T(0);
      d[labels[i]] = factor * (p[labels[i]] - even - static_cast<T>(1.0 - smoothing));
    }
  }

  // The directional derivative of the loss: <dz, ż>.
  double forward_tangent(const T* aux, const int64_t* labels, int64_t classes, const T* zt, int64_t n) const {
    double total = 0.0;
    const double even = smoothing / static_cast<double>(classes);
    for (int64_t i = 0; i < n; ++i) {
      const T* p = aux + i * x.cp;
      const T* t = zt + x.at(i, 0, 0);
      for (int64_t k = 0; k < classes; ++k) total += (static_cast<double>(p[k]) - even) * static_cast<double>(t[k]);
      total -= (1.0 - smoothing) * static_cast<double>(t[labels[i]]);
    }
    return n > 0 ? total / static_cast<double>(n) : 0.0;
  }

  void backward_tangent(const T* aux, int64_t classes, double scale, const T* zt, T* dzt, int64_t n) const {
    const T factor = static_cast<T>(scale / static_cast<double>(n));
    for (int64_t i = 0; i < n; ++i) {
      const T* p = aux + i * x.cp;
      const T* t = zt + x.at(i, 0, 0);
      T* d = dzt + dx.at(i, 0, 0);
      T mean = T(0);
      for (int64_t k = 0; k < classes; ++k) mean += p[k] * t[k];
      for (int64_t k = 0; k < classes; ++k) d[k] = factor * p[k] * (t[k] - mean);
      for (int64_t k = classes; k < dx.cp; ++k) d[k] = T(0);
    }
  }
};

// Mean over n and all c outputs; targets [n][c], rows without padding.
template <class T>
struct MeanSquaredError {
  Map x, dx;

  double forward(const T* y, const T* targets, int64_t n) const {
    double total = 0.0;
    for (int64_t i = 0; i < n; ++i)
      for (int64_t k = 0; k < x.c; ++k) {
        const double e = static_cast<double>(y[x.at(i, 0, 0) + k]) - static_cast<double>(targets[i * x.c + k]);
        total += e * e;
      }
    return n > 0 ? total / static_cast<double>(n * x.c) : 0.0;
  }

  void backward(const T* y, const T* targets, double scale, T* d, int64_t n) const {
    const T factor = static_cast<T>(2.0 * scale / static_cast<double>(n * x.c));
    for (int64_t i = 0; i < n; ++i)
      for (int64_t k = 0; k < x.c; ++k) d[dx.at(i, 0, 0) + k] = factor * (y[x.at(i, 0, 0) + k] - targets[i * x.c + k]);
  }

  double forward_tangent(const T* y, const T* targets, const T* yt, int64_t n) const {
    double total = 0.0;
    for (int64_t i = 0; i < n; ++i)
      for (int64_t k = 0; k < x.c; ++k) {
        const int64_t at = x.at(i, 0, 0) + k;
        total += static_cast<double>(y[at] - targets[i * x.c + k]) * static_cast<double>(yt[at]);
      }
    return n > 0 ? 2.0 * total / static_cast<double>(n * x.c) : 0.0;
  }

  void backward_tangent(double scale, const T* yt, T* dt, int64_t n) const {
    const T factor = static_cast<T>(2.0 * scale / static_cast<double>(n * x.c));
    for (int64_t i = 0; i < n; ++i)
      for (int64_t k = 0; k < x.c; ++k) dt[dx.at(i, 0, 0) + k] = factor * yt[x.at(i, 0, 0) + k];
  }
};

}  // namespace MF_ISA
}  // namespace mf
