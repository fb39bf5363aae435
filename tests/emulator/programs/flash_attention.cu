// Attention of one head without the score matrix: a block of queries walks over tiles of keys and values with an online softmax.
// q, k, v, o are [T, D]; one thread per query; causal.
constexpr int D = 32, QUERIES = 64, KEYS = 16;

__global__ void flash_attention(float* o, const float* q, const float* k, const float* v, int t, float scale) {
    __shared__ float tile_k[KEYS][D];
    __shared__ float tile_v[KEYS][D];
    int query = blockIdx.x * QUERIES + threadIdx.x;
    float mine[D], sum[D] = {};
    for (int d = 0; d < D; ++d) mine[d] = query < t ? q[query * D + d] * scale : 0;
    float largest = -INFINITY, total = 0;
    int last = min(t, (int)(blockIdx.x + 1) * QUERIES);
    for (int first = 0; first < last; first += KEYS) {
        for (int i = threadIdx.x; i < KEYS * D; i += QUERIES) {
            bool inside = first + i / D < t;
            tile_k[i / D][i % D] = inside ? k[first * D + i] : 0;
            tile_v[i / D][i % D] = inside ? v[first * D + i] : 0;
        }
        __syncthreads();
        for (int key = 0; key < KEYS; ++key) {
            if (first + key > query || first + key >= t) break;
            float score = 0;
            for (int d = 0; d < D; ++d) score += mine[d] * tile_k[key][d];
            float larger = fmaxf(largest, score);
            float keep = expf(largest - larger), weight = expf(score - larger);
            total = total * keep + weight;
            for (int d = 0; d < D; ++d) sum[d] = sum[d] * keep + weight * tile_v[key][d];
            largest = larger;
        }
        __syncthreads();
    }
    if (query < t)
        for (int d = 0; d < D; ++d) o[query * D + d] = sum[d] / total;
}
