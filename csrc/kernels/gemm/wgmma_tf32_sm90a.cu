#include "wgmma.cuh"

int nn::launch_wgmma_tf32(const Problem& problem, GemmTile tile, const Device& device, cudaStream_t stream) {
    return launch_wgmma<float>(problem, tile, device, stream);
}
