// BATCH_NORM -> RELU -> (MAX_POOL 2x2, stride 2, no padding) as one block. Normalized values are recomputed from x and the
// statistics, never stored; the pool keeps one byte of argmax and the chosen x per output.
//
// The same conventions as norm.h (w, b not null here). Whole-map passes, or, where an image is larger than a cache, in
// rows: a convolution hands over rows of x right after it wrote them, and takes rows of dx right before it uses them.
//   forward:           forward_rows for all rows of all images, then forward_finish
//   backward:          backward_sums, then backward_rows for whichever rows are wanted
//   forward tangent:   forward_tangent_rows for all rows, then forward_tangent_finish
//   backward tangent:  backward_tangent_sums, then backward_tangent_rows
// Row ranges [r0, r1) of image i: r0 is even; r1 is even or h. Rows of one chunk of images (image_chunk(i): one image, or
// several small ones) must be handed over in order and by one thread; different chunks may run in parallel.
#pragma once

#include "map.h"
#include "team.h"

namespace mf {
inline namespace MF_ISA {

template <class T>
struct NormPool {
  double eps = 1e-5;
  Map x, y, dy, dx;  // ẋ lies as x, ẏ as y, dẏ as dy, dẋ as dx
  bool pool = true;  // false: BATCH_NORM -> RELU only
  bool fixed = false;

  int64_t aux_size(int64_t n) const;   // elements of T
  int64_t byte_size(int64_t n) const;  // bytes

  void forward(const T* x, const T* w, const T* b, const T* fixed_stats, T* y, T* aux, uint8_t* bytes, int64_t n,
               Team& team) const;
  void backward(const T* x, const T* w, T* aux, const uint8_t* bytes, const T* dy, T* dx, bool add, T* dw, T* db,
                bool add_params, int64_t n, Team& team) const;
  void forward_tangent(const T* x, const T* w, T* aux, const uint8_t* bytes, const T* xt, const T* wt, const T* bt, T* yt,
                       int64_t n, Team& team) const;
  // dx (null: not wanted) is written again beside dẋ, with the same `add`: one sweep gives both.
  void backward_tangent(const T* x, const T* w, T* aux, const uint8_t* bytes, const T* xt, const T* wt, const T* dy,
                        const T* dyt, T* dx, T* dxt, bool add, T* dwt, T* dbt, bool add_params, int64_t n,
                        Team& team) const;

  int64_t image_chunk(int64_t i) const;  // images of one number belong together
  void forward_rows(const T* x, const T* w, T* aux, uint8_t* bytes, int64_t i, int64_t r0, int64_t r1) const;
  void forward_finish(const T* x, const T* w, const T* b, const T* fixed_stats, T* y, T* aux, uint8_t* bytes, int64_t n,
                      Team& team) const;
  void backward_sums(const T* x, const T* w, T* aux, const uint8_t* bytes, const T* dy, T* dw, T* db, bool add_params,
                     int64_t n, Team& team) const;
  // out: the first element (channel 0 of column 0) of row r0 in any buffer with `row` elements from row to row.
  void backward_rows(const T* x, const T* w, const T* aux, const uint8_t* bytes, const T* dy, T* out, int64_t row, bool add,
                     int64_t i, int64_t r0, int64_t r1) const;
  void forward_tangent_rows(const T* x, T* aux, const uint8_t* bytes, const T* xt, int64_t i, int64_t r0,
                            int64_t r1) const;
  void forward_tangent_finish(const T* x, const T* w, T* aux, const uint8_t* bytes, const T* xt, const T* wt, const T* bt,
                              T* yt, int64_t n, Team& team) const;
  void backward_tangent_sums(const T* x, const T* w, T* aux, const uint8_t* bytes, const T* xt, const T* wt, const T* dy,
                             const T* dyt, T* dwt, T* dbt, bool add_params, int64_t n, Team& team) const;
  // out (null: not wanted) receives dx, out_t dẋ.
  void backward_tangent_rows(const T* x, const T* w, const T* aux, const uint8_t* bytes, const T* xt, const T* wt,
                             const T* dy, const T* dyt, T* out, T* out_t, int64_t row, bool add, int64_t i, int64_t r0,
                             int64_t r1) const;

  // The batch's mean and unbiased variance, [c] each.
  void batch_stats(const T* aux, int64_t n, double* mean, double* var) const;
};

}  // namespace MF_ISA
}  // namespace mf
