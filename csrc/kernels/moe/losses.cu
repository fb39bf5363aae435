// The router's auxiliary losses, in float32, each in two launches: partial sums of chunks of tokens, then
// their sum in order. How tokens are cut into chunks depends on their number alone, so the bits do too.
#include "device/arguments.h"
#include "device/launch.h"
#include "device/reduce.cuh"
#include "nn/moe.h"

namespace nn {

constexpr int LOSS_THREADS = 256, LOSS_WARPS = LOSS_THREADS / 32;
constexpr int LOSS_ROWS = 64;                                    // tokens per block, at least
constexpr int LOSS_BLOCKS = 256;                                 // at most
constexpr int LOSS_EXPERTS = 1024;

// Tokens per block.
inline int64_t loss_chunk(int64_t tokens) { return ceil_div(ceil_div(tokens, LOSS_ROWS),
                                                            LOSS_BLOCKS) * LOSS_ROWS; }
inline int loss_blocks(int64_t tokens) {
    return tokens == 0 ? 0 : static_cast<int>(ceil_div(tokens, loss_chunk(tokens)));
}

// Per block: sums[block][E] of the probabilities, counts[block][E] of the pairs. A warp's lanes read
// neighbouring experts of one token; the block's warps take the tokens in turns and are summed in order.
__global__ void __launch_bounds__(LOSS_THREADS) moe_balance_partial(
    float* sums, uint32_t* counts, const float* probs, const void* experts, bool wide, int64_t tokens,
    int choices,
    int num_experts, int64_t chunk) {
    __shared__ float by_warp[LOSS_WARPS][33];
    extern __shared__ uint32_t count[];
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    const int64_t begin = blockIdx.x * chunk, end = min(begin + chunk, tokens);
    for (int e = threadIdx.x; e < num_experts; e += LOSS_THREADS) count[e] = 0;
    __syncthreads();
    for (int64_t pair = begin * choices + threadIdx.x; pair < end * choices; pair += LOSS_THREADS) {
        int64_t e = wide ? static_cast<const int64_t*>(experts)[pair]
                         : static_cast<const int32_t*>(experts)[pair];
        if (e >= 0 && e < num_experts) atomicAdd(&count[e], 1u);
    }
    for (int first = 0; first < num_experts; first += 32) {
        float sum = 0.0f;
        if (first + lane < num_experts)
            for (int64_t n = begin + warp; n < end; n += LOSS_WARPS)
                sum += probs[n * num_experts + first + lane];
        by_warp[warp][lane] = sum;
        __syncthreads();
        if (warp == 0 && first + lane < num_experts) {
            for (int w = 1; w < LOSS_WARPS; ++w) sum += by_warp[w][lane];
            sums[static_cast<int64_t>(blockIdx.x) * num_experts + first + lane] = sum;
        }
        __syncthreads();
    }
    for (int e = threadIdx.x; e < num_experts; e += LOSS_THREADS)
        counts[static_cast<int64_t>(blockIdx.x) * num_experts + e] = count[e];
}

__global__ void __launch_bounds__(LOSS_THREADS) moe_balance_total(float* loss, float* load, const float* sums,
                                                                  const uint32_t* counts, int blocks,
                                                                  int64_t tokens, int64_t pairs,
                                                                  int num_experts, float coefficient) {
    __shared__ float scratch[32];
    float total = 0.0f;
    for (int e = threadIdx.x; e < num_experts; e += LOSS_THREADS) {
        float sum = 0.0f;
        uint32_t count = 0;
        for (int b = 0; b < blocks; ++b) {
            sum += sums[static_cast<int64_t>(b) * num_experts + e];
            count += counts[static_cast<int64_t>(b) * num_experts + e];
        }
        const float share = static_cast<float>(count) / static_cast<float>(max(pairs, int64_t(1)));
        load[e] = share;
        total += share * (sum / static_cast<float>(max(tokens, int64_t(1))));
    }
    total = block_reduce<Sum>(total, scratch);
    if (threadIdx.x == 0) *loss = total * (coefficient * num_experts);
}

__global__ void __launch_bounds__(LOSS_THREADS) moe_balance_loss_backward(float* dprobs, const float* dloss,
                                                                          const float* load, int64_t tokens,
                                                                          int num_experts,
                                                                          float coefficient) {
    extern __shared__ float row[];                               // [E], the same for every token
    const float scale = *dloss * (coefficient * num_experts) / static_cast<float>(tokens);
    for (int e = threadIdx.x; e < num_experts; e += LOSS_THREADS) row[e] = scale * load[e];
    __syncthreads();
    const int64_t size = tokens * num_experts, step = static_cast<int64_t>(gridDim.x) * LOSS_THREADS;
    for (int64_t i = blockIdx.x * static_cast<int64_t>(LOSS_THREADS) + threadIdx.x; i < size; i += step)
        dprobs[i] = row[i % num_experts];
}

// One warp per token.
__device__ __forceinline__ float row_lse(const float* logits, int num_experts) {
    const int lane = threadIdx.x % 32;
    float largest = Max::identity, sum = 0.0f;
    for (int e = lane; e < num_experts; e += 32) largest = Max()(largest, logits[e]);
    largest = warp_reduce<Max>(largest);
    const float shift = largest == Max::identity ? 0.0f : largest;       // all -inf: lse is -inf, not NaN
    for (int e = lane; e < num_experts; e += 32) sum += expf(logits[e] - shift);
    return shift + logf(warp_reduce<Sum>(sum));
}

__global__ void __launch_bounds__(LOSS_THREADS) moe_z_partial(float* squares, float* lse, const float* logits,
                                                              int64_t tokens, int num_experts,
                                                              int64_t chunk) {
    __shared__ float scratch[32];
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    const int64_t begin = blockIdx.x * chunk, end = min(begin + chunk, tokens);
    float sum = 0.0f;
    for (int64_t n = begin + warp; n < end; n += LOSS_WARPS) {
        const float value = row_lse(logits + n * num_experts, num_experts);
        if (lane == 0) {
            lse[n] = value;
            sum += value * value;
        }
    }
    sum = block_reduce<Sum>(sum, scratch);
    if (threadIdx.x == 0) squares[blockIdx.x] = sum;
}

__global__ void __launch_bounds__(LOSS_THREADS) moe_z_total(float* loss, const float* squares, int blocks,
                                                            int64_t tokens, float coefficient) {
    __shared__ float scratch[32];
    float sum = threadIdx.x < blocks ? squares[threadIdx.x] : 0.0f;
    sum = block_reduce<Sum>(sum, scratch);
    if (threadIdx.x == 0) *loss = sum * (coefficient / static_cast<float>(max(tokens, int64_t(1))));
}

__global__ void __launch_bounds__(LOSS_THREADS) moe_z_loss_backward(float* dlogits, const float* dloss,
                                                                    const float* logits, const float* lse,
                                                                    int64_t tokens, int num_experts,
                                                                    float coefficient) {
    const int lane = threadIdx.x % 32;
    const int64_t step = static_cast<int64_t>(gridDim.x) * LOSS_WARPS;
    const float scale = *dloss * (2.0f * coefficient) / static_cast<float>(tokens);
    const int64_t start = blockIdx.x * static_cast<int64_t>(LOSS_WARPS) + threadIdx.x / 32;
    for (int64_t n = start; n < tokens; n += step) {
        const float z = lse[n], g = scale * z;
        for (int e = lane; e < num_experts; e += 32)
            dlogits[n * num_experts + e] = g * expf(logits[n * num_experts + e] - z);
    }
}

namespace {

int check_router(int64_t tokens, int64_t num_experts) {
    NN_TRY(check_int("tokens", tokens));
    NN_REQUIRE(num_experts >= 1 && num_experts <= LOSS_EXPERTS, "num_experts: %lld is not in 1 ... %d",
               (long long)num_experts, LOSS_EXPERTS);
    return NN_OK;
}

unsigned few_blocks(int64_t work) { return blocks_for(work, LOSS_THREADS, 4096); }

}  // namespace
}  // namespace nn

using namespace nn;

// At most LOSS_BLOCKS chunks, and never fewer for more tokens.
static int64_t most_blocks(int64_t tokens) {
    if (tokens <= 0) return 0;
    int64_t blocks = ceil_div(tokens, LOSS_ROWS);
    return blocks < LOSS_BLOCKS ? blocks : LOSS_BLOCKS;
}

NN_API int64_t nn_moe_balance_loss_workspace_size(int64_t tokens, int64_t num_experts) {
    return num_experts < 0 ? 0 : most_blocks(tokens) * num_experts * 8;
}

NN_API int64_t nn_moe_z_loss_workspace_size(int64_t tokens) { return most_blocks(tokens) * 4; }

NN_API int nn_moe_balance_loss_forward(float* loss, float* load, const float* probs, const void* experts,
                                       int64_t tokens, int64_t choices, int64_t num_experts,
                                       float coefficient, int32_t index_dtype, void* workspace,
                                       int64_t workspace_bytes, nn_stream stream) {
    NN_TRY(check_router(tokens, num_experts));
    NN_REQUIRE(choices >= 1 && choices <= num_experts, "choices: %lld is not in 1 ... num_experts = %lld",
               (long long)choices, (long long)num_experts);
    NN_REQUIRE(tokens * choices <= MAX_GRID_X, "tokens * choices: %lld is more than 2^31 - 1",
               (long long)(tokens * choices));
    NN_TRY(check_index("index_dtype", index_dtype));
    NN_TRY(check_array(loss, "loss", NN_FLOAT32));
    NN_TRY(check_array(load, "load", NN_FLOAT32));
    if (tokens > 0) {
        NN_TRY(check_array(probs, "probs", NN_FLOAT32));
        NN_TRY(check_array(experts, "experts", index_dtype));
    }
    NN_TRY(check_workspace(workspace, workspace_bytes,
                           nn_moe_balance_loss_workspace_size(tokens, num_experts)));
    const int blocks = loss_blocks(tokens), experts_here = static_cast<int>(num_experts);
    float* sums = static_cast<float*>(workspace);
    uint32_t* counts = static_cast<uint32_t*>(workspace) + blocks * num_experts;
    if (blocks > 0) {
        moe_balance_partial<<<blocks, LOSS_THREADS, experts_here * 4, native(stream)>>>(
            sums, counts, probs, experts, index_dtype == NN_INT64, tokens, static_cast<int>(choices),
            experts_here, loss_chunk(tokens));
        NN_TRY(launched("moe_balance_partial"));
    }
    moe_balance_total<<<1, LOSS_THREADS, 0, native(stream)>>>(loss, load, sums, counts, blocks, tokens,
                                                              tokens * choices, experts_here, coefficient);
    return launched("moe_balance_total");
}

NN_API int nn_moe_balance_loss_backward(float* dprobs, const float* dloss, const float* load, int64_t tokens,
                                        int64_t num_experts, float coefficient, nn_stream stream) {
    NN_TRY(check_router(tokens, num_experts));
    if (tokens == 0) return NN_OK;
    NN_TRY(check_array(dprobs, "dprobs", NN_FLOAT32));
    NN_TRY(check_array(dloss, "dloss", NN_FLOAT32));
    NN_TRY(check_array(load, "load", NN_FLOAT32));
    const int experts_here = static_cast<int>(num_experts);
    moe_balance_loss_backward<<<few_blocks(tokens * num_experts), LOSS_THREADS, experts_here * 4,
                                native(stream)>>>(dprobs, dloss, load, tokens, experts_here, coefficient);
    return launched("moe_balance_loss_backward");
}

NN_API int nn_moe_z_loss_forward(float* loss, float* lse, const float* logits, int64_t tokens,
                                 int64_t num_experts, float coefficient, void* workspace,
                                 int64_t workspace_bytes, nn_stream stream) {
    NN_TRY(check_router(tokens, num_experts));
    NN_TRY(check_array(loss, "loss", NN_FLOAT32));
    if (tokens > 0) {
        NN_TRY(check_array(lse, "lse", NN_FLOAT32));
        NN_TRY(check_array(logits, "logits", NN_FLOAT32));
    }
    NN_TRY(check_workspace(workspace, workspace_bytes,
                           nn_moe_z_loss_workspace_size(tokens)));
    const int blocks = loss_blocks(tokens);
    float* squares = static_cast<float*>(workspace);
    if (blocks > 0) {
        moe_z_partial<<<blocks, LOSS_THREADS, 0, native(stream)>>>(
            squares, lse, logits, tokens, static_cast<int>(num_experts), loss_chunk(tokens));
        NN_TRY(launched("moe_z_partial"));
    }
    moe_z_total<<<1, LOSS_THREADS, 0, native(stream)>>>(loss, squares, blocks, tokens, coefficient);
    return launched("moe_z_total");
}

NN_API int nn_moe_z_loss_backward(float* dlogits, const float* dloss, const float* logits, const float* lse,
                                  int64_t tokens, int64_t num_experts, float coefficient, nn_stream stream) {
    NN_TRY(check_router(tokens, num_experts));
    if (tokens == 0) return NN_OK;
    NN_TRY(check_array(dlogits, "dlogits", NN_FLOAT32));
    NN_TRY(check_array(dloss, "dloss", NN_FLOAT32));
    NN_TRY(check_array(logits, "logits", NN_FLOAT32));
    NN_TRY(check_array(lse, "lse", NN_FLOAT32));
    moe_z_loss_backward<<<few_blocks(tokens * 32), LOSS_THREADS, 0, native(stream)>>>(
        dlogits, dloss, logits, lse, tokens, static_cast<int>(num_experts), coefficient);
    return launched("moe_z_loss_backward");
}
