// Attention forward on tensor cores, float16: sm_75 (m16n8k8, loads through registers) and sm_80 on.
#include "forward_mma.cuh"

namespace nn {

int launch_forward_half(const nn_attention& a, const Device& device, cudaStream_t stream) {
    if (device.capability >= 80) return launch_forward_sm80<half>(a, stream);
    return std::max(a.width, a.value_width) <= 64 ? launch_forward_mma<half, 64, true>(a, stream)
                                                  : launch_forward_mma<half, 128, true>(a, stream);
}

}  // namespace nn
