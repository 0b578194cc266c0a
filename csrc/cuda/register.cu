// Registers the CUDA driver's ops; the only CUDA source that sees torch.
#include "inner_loop_ops.h"
#include "ops.h"

namespace mf::cuda {

Stream current_stream(int device) {
  void* stream = nullptr;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(device, &stream));
  return stream;
}

}  // namespace mf::cuda

STABLE_TORCH_LIBRARY_IMPL(metafast, CUDA, m) {
  mf::cuda::register_ops(m);
  mf::cuda::register_inner_loop_ops(m);
}
