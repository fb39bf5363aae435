// Three ways to transpose a matrix: out[c][r] = x[r][c].  docs/4-emulator.md takes the first to the third by its counters.
// Try: cuda-nn kernels check examples/transpose.cu --driver examples/transpose.py --count
constexpr int TILE = 32, ROWS = 8;

// One value per thread and step: rows are read along the fast axis, columns are written against it.
__global__ void transpose_naive(float* out, const float* x, int rows, int cols) {
    int c = blockIdx.x * TILE + threadIdx.x;
    for (int j = 0; j < TILE; j += ROWS) {
        int r = blockIdx.y * TILE + threadIdx.y + j;
        if (r < rows && c < cols) out[c * rows + r] = x[r * cols + c];
    }
}

// Through a tile in shared memory: both sides go along the fast axis; WIDTH is the length of the tile's rows.
template <int WIDTH>
__device__ void transpose_tile(float* out, const float* x, int rows, int cols) {
    __shared__ float tile[TILE][WIDTH];
    int c = blockIdx.x * TILE + threadIdx.x;
    int r = blockIdx.y * TILE + threadIdx.y;
    for (int j = 0; j < TILE; j += ROWS)
        if (r + j < rows && c < cols) tile[threadIdx.y + j][threadIdx.x] = x[(r + j) * cols + c];
    __syncthreads();
    c = blockIdx.y * TILE + threadIdx.x;
    r = blockIdx.x * TILE + threadIdx.y;
    for (int j = 0; j < TILE; j += ROWS)
        if (r + j < cols && c < rows) out[(r + j) * rows + c] = tile[threadIdx.x][threadIdx.y + j];
}

__global__ void transpose_tiled(float* out, const float* x, int rows, int cols) {
    transpose_tile<TILE>(out, x, rows, cols);         // a column of the tile lies in one bank
}

__global__ void transpose_padded(float* out, const float* x, int rows, int cols) {
    transpose_tile<TILE + 1>(out, x, rows, cols);     // a column of the tile lies in 32 banks
}
