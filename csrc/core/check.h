// The only header below the registrations that sees torch: reads an op's boxed arguments through the stable C shim.
//
// A hand-written reader instead of TORCH_BOX: a list of a thousand tensors becomes a thousand pointers without a
// thousand reference-counted wrappers.
#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/headeronly/util/Exception.h>

#include <cstdint>
#include <vector>

#include "step.h"

namespace mf {

// What a kernel has to know of a tensor. A missing optional tensor has no data.
struct View {
  void* data = nullptr;
  int64_t numel = 0;
  int32_t dtype = -1;
  bool present = false;
  bool dense = true;     // one stretch of memory, in some order of the dimensions; only read for lists
  uint64_t strides = 0;  // a fingerprint: two dense tensors with the same one lie alike in memory; likewise

  explicit operator bool() const { return present; }
  template <class T>
  T* as() const {
    return static_cast<T*>(data);
  }
};

struct DTypeCodes {
  int32_t f32 = aoti_torch_dtype_float32(), f64 = aoti_torch_dtype_float64(), bf16 = aoti_torch_dtype_bfloat16(),
          f16 = aoti_torch_dtype_float16(), i64 = aoti_torch_dtype_int64(), boolean = aoti_torch_dtype_bool();
};

// A View with its sizes, for ops that take whole tensors: contiguous ones.
struct ShapedView : View {
  int64_t dims = 0;
  const int64_t* sizes = nullptr;  // as long as the tensor lives
  bool contiguous = true;

  int64_t size(int64_t d) const { return d < dims ? sizes[d] : 1; }
};

inline const DTypeCodes& dtype_codes() {
  static const DTypeCodes codes;
  return codes;
}

// Reads arguments in order, and owns every handle until it has been read.
class Args {
 public:
  Args(StableIValue* stack, uint64_t count, const char* op) : stack_(stack), count_(count), op_(op) {}
  ~Args() {
    for (AtenTensorHandle h : held_) aoti_torch_delete_tensor_object(h);
  }
  Args(const Args&) = delete;
  Args& operator=(const Args&) = delete;

  View tensor() { return hold(torch::stable::detail::to<AtenTensorHandle>(next())); }

  View optional_tensor() {
    const auto handle = torch::stable::detail::to<std::optional<AtenTensorHandle>>(next());
    return handle ? hold(*handle) : View{};
  }

  ShapedView shaped() { return look_at_shape(torch::stable::detail::to<AtenTensorHandle>(next())); }

  ShapedView optional_shaped() {
    const auto handle = torch::stable::detail::to<std::optional<AtenTensorHandle>>(next());
    return handle ? look_at_shape(*handle) : ShapedView{};
  }

  // The list's tensors stay alive through the caller, so that a pointer is all that is kept.
  void tensors(std::vector<View>& views) {
    const auto list = torch::stable::detail::to<StableListHandle>(next());
    size_t size = 0;
    TORCH_ERROR_CODE_CHECK(torch_list_size(list, &size));
    views.resize(size);
    for (size_t i = 0; i < size; ++i) {
      StableIValue item;
      TORCH_ERROR_CODE_CHECK(torch_list_get_item(list, i, &item));
      const auto handle = torch::stable::detail::to<AtenTensorHandle>(item);
      views[i] = view(handle);
      look_at_strides(handle, views[i]);
      aoti_torch_delete_tensor_object(handle);
    }
    TORCH_ERROR_CODE_CHECK(torch_delete_list(list));
  }

  double number() { return torch::stable::detail::to<double>(next()); }
  int64_t integer() { return torch::stable::detail::to<int64_t>(next()); }
  bool flag() { return torch::stable::detail::to<bool>(next()); }
  const char* op() const { return op_; }

  // The device of all tensors that were not in a list; they must share one.
  int32_t device_index() const {
    int32_t type = 0, index = 0, other_type = 0, other_index = 0;
    TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_type(held_.front(), &type));
    TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_index(held_.front(), &index));
    for (AtenTensorHandle h : held_) {
      TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_type(h, &other_type));
      TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_index(h, &other_index));
      STD_TORCH_CHECK(other_type == type && other_index == index, op_,
                      ": all tensors must be on one device, that of the states (lr, clip and grad_scale as well)");
    }
    return index;
  }

 private:
  StableIValue next() {
    STD_TORCH_CHECK(at_ < count_, op_, ": the schema has ", count_, " arguments, the kernel reads more");
    return stack_[at_++];
  }

  View hold(AtenTensorHandle handle) {
    held_.push_back(handle);
    return view(handle);
  }

  static View view(AtenTensorHandle handle) {
    View v;
    v.present = true;
    TORCH_ERROR_CODE_CHECK(aoti_torch_get_data_ptr(handle, &v.data));
    TORCH_ERROR_CODE_CHECK(aoti_torch_get_numel(handle, &v.numel));
    TORCH_ERROR_CODE_CHECK(aoti_torch_get_dtype(handle, &v.dtype));
    return v;
  }

  ShapedView look_at_shape(AtenTensorHandle handle) {
    ShapedView v;
    static_cast<View&>(v) = hold(handle);
    int64_t *sizes, *strides;
    TORCH_ERROR_CODE_CHECK(aoti_torch_get_dim(handle, &v.dims));
    TORCH_ERROR_CODE_CHECK(aoti_torch_get_sizes(handle, &sizes));
    TORCH_ERROR_CODE_CHECK(aoti_torch_get_strides(handle, &strides));
    v.sizes = sizes;
    int64_t step = 1;
    for (int64_t d = v.dims; d-- > 0; step *= sizes[d])
      v.contiguous = v.contiguous && (sizes[d] == 1 || strides[d] == step);
    v.contiguous = v.contiguous || v.numel == 0;
    return v;
  }

  static void look_at_strides(AtenTensorHandle handle, View& v) {
    int64_t dims, *sizes, *strides;
    TORCH_ERROR_CODE_CHECK(aoti_torch_get_dim(handle, &dims));
    TORCH_ERROR_CODE_CHECK(aoti_torch_get_sizes(handle, &sizes));
    TORCH_ERROR_CODE_CHECK(aoti_torch_get_strides(handle, &strides));
    int64_t last = 0;
    for (int64_t d = 0; d < dims; ++d) {
      if (sizes[d] <= 1) continue;
      last += (sizes[d] - 1) * strides[d];
      v.strides = v.strides * 0x9e3779b97f4a7c15ull + static_cast<uint64_t>(strides[d]);
    }
    v.dense = v.numel == 0 || last + 1 == v.numel;
  }

  StableIValue* stack_;
  uint64_t count_, at_ = 0;
  const char* op_;
  std::vector<AtenTensorHandle> held_;
};

inline DType storage_dtype(const View& v, const char* op, const char* name) {
  const DTypeCodes& codes = dtype_codes();
  if (v.dtype == codes.f32) return DType::f32;
  if (v.dtype == codes.bf16) return DType::bf16;
  STD_TORCH_CHECK(v.dtype == codes.f16, op, ": ", name,
                  " must be float32, bfloat16 or float16 (float64 has the reference)");
  return DType::f16;
}

inline StreamRef stream(const View& v, const char* op, const char* name) {
  return v ? StreamRef{v.data, storage_dtype(v, op, name)} : StreamRef{};
}

inline void require(const View& v, int32_t dtype, int64_t numel, const char* op, const char* name) {
  const DTypeCodes& d = dtype_codes();
  const char* wanted = dtype == d.f64 ? "float64" : (dtype == d.f32 ? "float32" : "int64");
  STD_TORCH_CHECK(v.dtype == dtype, op, ": ", name, " must be ", wanted);
  STD_TORCH_CHECK(v.numel >= numel, op, ": ", name, " has ", v.numel, " elements, needs at least ", numel);
}

}  // namespace mf
