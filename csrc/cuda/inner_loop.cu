// Inner loops in float.
#include "inner_loop_device.cuh"

namespace mf::cuda {

template void run_inner_loop<float>(const InnerLoopRequest&, const Place&);
template void run_task_grad<float>(const TaskRequest&, const Place&);
template void run_task_hvp<float>(const TaskRequest&, const Place&);

}  // namespace mf::cuda
