#include "wgmma.cuh"

int nn::launch_wgmma_f16(const Problem& problem, GemmTile tile, const Device& device, cudaStream_t stream) {
    return launch_wgmma<half>(problem, tile, device, stream);
}
