// The attention backward's tensor-core kernels for half.
#include "backward_mma.cuh"

namespace nn::backward {

template int launch_mma<half>(const Backward& call, bool keys, const Device& device, nn_stream stream);

}  // namespace nn::backward
