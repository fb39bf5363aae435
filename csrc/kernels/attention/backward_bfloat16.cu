// The attention backward's tensor-core kernels for bfloat16.
#include "backward_mma.cuh"

namespace nn::backward {

template int launch_mma<bfloat16>(const Backward& call, bool keys, const Device& device, nn_stream stream);

}  // namespace nn::backward
