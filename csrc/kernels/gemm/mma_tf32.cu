#include "mma.cuh"

// One tile: tf32 is an option that is asked for by large products.
int nn::launch_mma_tf32(const Problem& problem, GemmTile, int capability, cudaStream_t stream) {
    return launch_mma_tile<TensorTile<float, 128, 128, 2, 2, 3>>(problem, capability, stream);
}
