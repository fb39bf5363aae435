// Sums rows of a table chosen by an index list, vectors of four floats at a time; a callback chosen at compile time is applied.
struct Twice { __device__ float operator()(float x) const { return 2 * x; } };

template <class Function>
__device__ void gather_rows(float4* out, const float4* table, const int* index, int count, int width, Function f) {
    int column = threadIdx.x;
    if (column >= width) return;
    float4 sum = make_float4(0, 0, 0, 0);
    for (int i = 0; i < count; ++i) {
        float4 row = table[index[blockIdx.x * count + i] * width + column];
        sum.x += f(row.x), sum.y += f(row.y), sum.z += f(row.z), sum.w += f(row.w);
    }
    out[blockIdx.x * width + column] = sum;
}

__global__ void gather(float4* out, const float4* table, const int* index, int count, int width) {
    gather_rows(out, table, index, count, width, Twice());
}
