// Inner loops in double, to check the others with.
#include "inner_loop_device.cuh"

namespace mf::cuda {

template void run_inner_loop<double>(const InnerLoopRequest&, const Place&);
template void run_task_grad<double>(const TaskRequest&, const Place&);
template void run_task_hvp<double>(const TaskRequest&, const Place&);

}  // namespace mf::cuda
