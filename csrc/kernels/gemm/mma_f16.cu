#include "mma.cuh"

int nn::launch_mma_f16(const Problem& problem, GemmTile tile, int capability, cudaStream_t stream) {
    return launch_mma<half>(problem, tile, capability, stream);
}
