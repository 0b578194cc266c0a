#pragma once

// EMBED_MEAN: the mean of a text's word vectors, y[n] = 1/|{l: token ≠ padding}| Σ_l w[token[n, l]]; 0 when all are
// padding.
//
// Linear in w [V][cp]: the tangent passes are forward(ẇ -> ẏ) and backward(dẏ -> dẇ).
#include "layers/spans.h"

namespace mf {
inline namespace MF_ISA {

template <class T>
struct EmbedMean {
  int64_t length = 0, words = 0, padding = -1;  // L, V, and the token that is left out (-1: none)
  Map y, dy;                                    // [n, 1, 1, D]

  void forward(const int64_t* tokens, const T* w, T* out, int64_t n, Team& team) const {
    const int64_t per_block = std::max<int64_t>(1, kBlockElements / std::max<int64_t>(1, length * y.cp));
    team.run(blocks_of(n, per_block), [&](int64_t b) {
      for (int64_t i = b * per_block; i < std::min(n, (b + 1) * per_block); ++i) {
        const int64_t* text = tokens + i * length;
        T* row = out + y.at(i, 0, 0);
        const T factor = inverse_count(text);
        for (int64_t k = 0; k < y.cp; k += V::kLanes) {
          V s = V::zero();
          for (int64_t l = 0; l < length; ++l)
            if (text[l] != padding) s += V::load(w + text[l] * y.cp + k);
          (s * factor).store(row + k);
        }
      }
    });
  }

  // dw += ; on one thread, because texts share words.
  void backward(const int64_t* tokens, const T* d, T* dw, int64_t n) const {
    for (int64_t i = 0; i < n; ++i) {
      const int64_t* text = tokens + i * length;
      const T* row = d + dy.at(i, 0, 0);
      const V factor = V::broadcast(inverse_count(text));
      for (int64_t l = 0; l < length; ++l) {
        if (text[l] == padding) continue;
        T* word = dw + text[l] * dy.cp;
        for (int64_t k = 0; k < dy.cp; k += V::kLanes) fma(factor, V::load(row + k), V::load(word + k)).store(word + k);
      }
    }
  }

 private:
  using V = Vec<T>;

  T inverse_count(const int64_t* text) const {
    int64_t count = 0;
    for (int64_t l = 0; l < length; ++l) count += text[l] != padding ? 1 : 0;
    return count > 0 ? T(1) / static_cast<T>(count) : T(0);
  }
};

}  // namespace MF_ISA
}  // namespace mf
