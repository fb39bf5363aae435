#include "wgmma.cuh"

int nn::launch_wgmma_bf16(const Problem& problem, GemmTile tile, const Device& device, cudaStream_t stream) {
    return launch_wgmma<bfloat16>(problem, tile, device, stream);
}
