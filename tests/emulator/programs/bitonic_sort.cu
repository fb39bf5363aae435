// Sorts each row of dynamic shared memory's size, a power of two, ascending: Batcher's bitonic network.
__global__ void bitonic_sort(int* rows, int n) {
    extern __shared__ int row[];
    int* mine = rows + blockIdx.x * n;
    for (int i = threadIdx.x; i < n; i += blockDim.x) row[i] = mine[i];
    __syncthreads();
    for (int size = 2; size <= n; size *= 2)
        for (int stride = size / 2; stride > 0; stride /= 2) {
            for (int i = threadIdx.x; i < n; i += blockDim.x) {
                int partner = i ^ stride;
                if (partner > i && (row[i] > row[partner]) == ((i & size) == 0)) {
                    int kept = row[i];
                    row[i] = row[partner];
                    row[partner] = kept;
                }
            }
            __syncthreads();
        }
    for (int i = threadIdx.x; i < n; i += blockDim.x) mine[i] = row[i];
}
