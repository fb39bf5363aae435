#include "mma.cuh"

int nn::launch_mma_bf16(const Problem& problem, GemmTile tile, int capability, cudaStream_t stream) {
    return launch_mma<bfloat16>(problem, tile, capability, stream);
}
