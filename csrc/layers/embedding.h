// EMBED_MEAN: the mean of a text's word vectors, y[n] = 1/|{l: tok ≠ padding}| Σ_l w[tok[n, l]], 0 when all are padding.
//
// Linear in w [V][dp]: the tangent passes are forward(ẇ -> ẏ) and backward(dẏ -> dẇ).
#pragma once

#include "map.h"
#include "team.h"

namespace mf {
inline namespace MF_ISA {

template <class T>
struct EmbedMean {
  int64_t length = 0, words = 0, padding = -1;  // L, V, and the index that is left out (-1: none)
  Map y, dy;                                    // [n, 1, 1, D]; w has rows of y.cp

  void forward(const int64_t* tokens, const T* w, T* y, int64_t n, Team& team) const;
  void backward(const int64_t* tokens, const T* dy, T* dw, int64_t n) const;  // dw += ; one thread
};

}  // namespace MF_ISA
}  // namespace mf
