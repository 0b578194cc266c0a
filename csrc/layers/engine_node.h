// What a node of a program is: one layer between values and parameters, and the four passes through it.
#pragma once

#include <algorithm>
#include <cstdint>

#include "layers/conv2d.h"
#include "layers/map.h"
#include "layers/team.h"

namespace mf {
inline namespace MF_ISA {

// Everything that a node reads and writes while one task's examples go through it.
template <class T>
struct Pass {
  int64_t n = 0;                      // valid examples
  const int64_t* examples = nullptr;  // their positions in the task's original order
  const int64_t* tokens = nullptr;
  T** x = nullptr;    // values
  T** dx = nullptr;   // their cotangents
  T** xt = nullptr;   // tangents; null where a value does not depend on adapted weights
  T** dxt = nullptr;  // tangents of the cotangents
  T** aux = nullptr;  // by node
  uint8_t** bytes = nullptr;
  const T* w = nullptr;      // θ_k, adapted parameters
  const T* w0 = nullptr;     // θ_0, all parameters: where the frozen ones are read
  const T* wt = nullptr;     // tangent of the adapted parameters
  T* dw = nullptr;           // what backward passes write or add to
  const T* stats = nullptr;  // fixed statistics
  uint64_t seed = 0, task = 0, step = 0;
  T* scratch = nullptr;
  Team* team = nullptr;
};

// A parameter in the packed vector. Adapted ones come first, so that θ_k holds no frozen ones.
struct Slot {
  int64_t at = -1;
  bool adapted = false;

  explicit operator bool() const { return at >= 0; }
  template <class T>
  const T* value(const Pass<T>& p) const {
    return at < 0 ? nullptr : (adapted ? p.w : p.w0) + at;
  }
  template <class T>
  const T* tangent(const Pass<T>& p) const {
    return at < 0 || !adapted ? nullptr : p.wt + at;
  }
  template <class T>
  T* grad(const Pass<T>& p, bool wanted) const {
    return at < 0 || !wanted ? nullptr : p.dw + at;
  }
};

// What one node's backward has to give in one kind of pass, and whether it adds to what others gave.
struct Want {
  bool x0 = false, x1 = false, w = false, b = false, gamma = false, beta = false;
  bool add_x0 = false, add_x1 = false, add_params = false;
  bool x0_passes = false;  // the input's cotangent is not kept: backward_tangent writes it again
};

template <class T>
class Node {
 public:
  int in0 = 0, in1 = -1, out = 0, index = 0;  // index: which of the pass's aux and bytes are its own
  int instruction = 0;
  Slot weight, bias, gamma, beta;  // the latter two: of the norm in a node that has both
  int weight_param = -1, bias_param = -1, gamma_param = -1, beta_param = -1;
  int kept = -1;  // a value of its own between forward and backward
  // What its passes read of its input after forward, so that others' memory may be reused.
  bool backward_reads_x = true, tangent_reads_x = true;
  // Its backward_tangent can write the input's cotangent anew, and nobody else contributes to that one.
  bool writes_dx_again = false;

  virtual ~Node() = default;
  virtual int64_t aux_size() const { return 0; }  // for as many examples as the maps have
  virtual int64_t byte_size() const { return 0; }
  virtual int64_t scratch_size() const { return 0; }
  virtual bool is_random() const { return false; }
  virtual bool has_batch_stats() const { return false; }
  virtual void batch_stats(const Pass<T>&, double*, double*) const {}
  virtual int64_t stats_at() const { return -1; }  // where its fixed or running statistics lie
  virtual int64_t stats_channels() const { return 0; }
  virtual const Conv2d<T>* convolution() const { return nullptr; }

  virtual void forward(const Pass<T>& p) const = 0;
  // d is the pass's table of cotangents: dx, or dxt where nothing upstream has a tangent.
  virtual void backward(const Pass<T>& p, const Want& want, T** d) const = 0;
  virtual void tangent(const Pass<T>& p) const = 0;
  virtual void backward_tangent(const Pass<T>& p, const Want& want) const = 0;

 protected:
  T* wanted_x0(T** d, const Want& want) const { return want.x0 ? d[in0] : nullptr; }
};

}  // namespace MF_ISA
}  // namespace mf
