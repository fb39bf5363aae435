// Attention forward on tensor cores, bfloat16: sm_80 on.
#include "forward_mma.cuh"

namespace nn {

int launch_forward_bfloat16(const nn_attention& a, const Device&, cudaStream_t stream) {
    return launch_forward_sm80<bfloat16>(a, stream);
}

}  // namespace nn
