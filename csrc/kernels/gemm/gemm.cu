// nn/gemm.h: checks a call, chooses its kernel, launches it; and the ordered sum of a product cut along k.
//
// Paths, first that applies (AUTO; nn_gemm_path tells):
//     FFMA     float32 without NN_GEMM_TF32, m > 16
//     SKINNY   m <= 16, op(A) = A, rows aligned to 16 bytes
//     WGMMA    as MMA, on sm_90, where C fills a tile and k a ring of stages; tf32: A B^T only
//     MMA      the device has tensor cores for the type, rows aligned to 16 bytes, not A^T B^T
//     FFMA     everything else
// A kernel for a later architecture enters here: PATHS, obstacle(), path_of(), tile_of(), launch().
#include <algorithm>
#include <cstddef>
#include <cstdio>
#include <cstring>

#include "device/launch.h"
#include "device/tensor_map.h"
#include "problem.cuh"

namespace nn {

// C = the epilogue of the sum over splits, in order.
__global__ void __launch_bounds__(256) gemm_ordered_sum(const Problem p) {
    Epilogue end = p.end;
    end.begin();
    const int64_t size = end.m * end.n, step = int64_t(gridDim.x) * 256;
    for (int64_t i = int64_t(blockIdx.x) * 256 + threadIdx.x; i < size * p.batch; i += step) {
        const int64_t problem = i / size, at = i % size;
        const float* from = p.partials + problem * p.splits * size + at;
        float sum = from[0];
        for (int split = 1; split < p.splits; split++) sum += from[split * size];
        Epilogue e = end;
        e.c = static_cast<char*>(e.c) + problem * p.stride_c * (e.c_dtype == NN_FLOAT32 ? 4 : 2);
        e.store(sum, at / end.n, at % end.n);
    }
}

int launch_ordered_sum(const Problem& p, cudaStream_t stream) {
    const int64_t blocks = ceil_div(p.end.m * p.end.n * p.batch, 256);
    gemm_ordered_sum<<<static_cast<unsigned>(std::min<int64_t>(blocks, 1 << 20)), 256, 0, stream>>>(p);
    return launched("gemm_ordered_sum");
}

namespace {

constexpr int64_t MAX_SPLITS = 32;            // chosen; up to 1024 when asked for
constexpr int64_t K_PER_SPLIT = 256;          // at least, where the number is chosen
constexpr int64_t K_GRAIN = 64;               // a split's length is a multiple, so that its rows stay aligned

const char* const PATHS[] = {"auto", "tiled", "ffma", "skinny", "mma", "wgmma"};

// ---- arguments --------------------------------------------------------------------------------------------

// The caller's struct, whichever version it is of.
int read_call(nn_gemm* full, const nn_gemm* call) {
    NN_REQUIRE(call, "call: a null pointer");
    NN_REQUIRE(call->size >= int64_t(offsetof(nn_gemm, splits) + sizeof(int32_t)) && call->size < 1 << 16,
               "call->size: %lld is not sizeof(nn_gemm)", (long long)call->size);
    *full = nn_gemm{};
    std::memcpy(full, call, std::min<size_t>(sizeof *full, static_cast<size_t>(call->size)));
    return NN_OK;
}

bool floating(int32_t dtype) { return dtype == NN_FLOAT32 || dtype == NN_FLOAT16 || dtype == NN_BFLOAT16; }

// From the first element of an array to one beyond its last: more than an address space holds, and so few
// that bytes of C times 1024 splits stay below 2^63.
constexpr int64_t SPAN = int64_t(1) << 50;

bool fits(int64_t count, int64_t stride) { return stride <= SPAN / std::max<int64_t>(count, 1); }

int check_sizes(const nn_gemm& g) {
    const struct {
        const char* name;
        int64_t value;
    } sizes[] = {{"m", g.m}, {"n", g.n}, {"k", g.k}, {"batch", g.batch},
                 {"stride_a", g.stride_a}, {"stride_b", g.stride_b}, {"stride_c", g.stride_c}};
    for (const auto& size : sizes)
        NN_REQUIRE(size.value >= 0 && size.value < int64_t(1) << 48, "%s: %lld is not in 0 ... 2^48",
                   size.name, (long long)size.value);
    const struct {
        const char *name, *what;
        int64_t value, rows, least;
    } strides[] = {{"lda", g.trans_a ? "m" : "k", g.lda, g.trans_a ? g.k : g.m, g.trans_a ? g.m : g.k},
                   {"ldb", g.trans_b ? "k" : "n", g.ldb, g.trans_b ? g.n : g.k, g.trans_b ? g.k : g.n},
                   {"ldc", "n", g.ldc, g.m, g.n}};
    for (const auto& s : strides) {
        NN_REQUIRE(s.value >= s.least, "%s: %lld is less than %s = %lld", s.name, (long long)s.value, s.what,
                   (long long)s.least);
        NN_REQUIRE(fits(s.rows, s.value), "%s: %lld with %lld rows is too large", s.name, (long long)s.value,
                   (long long)s.rows);
    }
    const struct {
        const char* name;
        int64_t value;
    } steps[] = {{"stride_a", g.stride_a}, {"stride_b", g.stride_b}, {"stride_c", g.stride_c}};
    for (const auto& s : steps)
        NN_REQUIRE(fits(g.batch, s.value), "%s: %lld with %lld problems is too large", s.name,
                   (long long)s.value, (long long)g.batch);
    // C's problems must not write the same elements
    NN_REQUIRE(g.batch <= 1 || g.m == 0 || g.n == 0 || g.stride_c >= (g.m - 1) * g.ldc + g.n,
               "stride_c: %lld lets problems overlap; at least %lld", (long long)g.stride_c,
               (long long)((g.m - 1) * g.ldc + g.n));
    return NN_OK;
}

int check_options(const nn_gemm& g) {
    NN_REQUIRE(floating(g.dtype), "dtype: %s (%d); expected float32, float16 or bfloat16",
               dtype_name(g.dtype), g.dtype);
    NN_REQUIRE(g.c_dtype == g.dtype || g.c_dtype == NN_FLOAT32, "c_dtype: %s (%d); expected %s or float32",
               dtype_name(g.c_dtype), g.c_dtype, dtype_name(g.dtype));
    NN_REQUIRE(!g.bias || floating(g.bias_dtype),
               "bias_dtype: %s (%d); expected float32, float16 or bfloat16", dtype_name(g.bias_dtype),
               g.bias_dtype);
    NN_REQUIRE(g.trans_a == 0 || g.trans_a == 1, "trans_a: %d; expected 0 or 1", g.trans_a);
    NN_REQUIRE(g.trans_b == 0 || g.trans_b == 1, "trans_b: %d; expected 0 or 1", g.trans_b);
    NN_REQUIRE(g.activation >= NN_ACTIVATION_NONE && g.activation <= NN_ACTIVATION_RELU,
               "activation: %d is not in 0 ... %d", g.activation, NN_ACTIVATION_RELU);
    NN_REQUIRE(g.compute == NN_GEMM_EXACT || g.compute == NN_GEMM_TF32, "compute: %d; expected 0 or 1",
               g.compute);
    NN_REQUIRE(g.path >= NN_GEMM_AUTO && g.path <= NN_GEMM_WGMMA, "path: %d is not in 0 ... %d", g.path,
               NN_GEMM_WGMMA);
    NN_REQUIRE(g.splits >= 0 && g.splits <= 1024, "splits: %d is not in 0 ... 1024", g.splits);
    return NN_OK;
}

bool empty(const nn_gemm& g) { return g.m == 0 || g.n == 0 || g.batch == 0; }

int check_pointers(const nn_gemm& g) {
    if (empty(g)) return NN_OK;
    NN_REQUIRE(g.c, "c: a null pointer");
    NN_REQUIRE(g.k == 0 || (g.a && g.b), "a or b: a null pointer");
    const struct {
        const char* name;
        const void* pointer;
        int64_t bytes;
    } pointers[] = {{"a", g.a, dtype_bytes(g.dtype)}, {"b", g.b, dtype_bytes(g.dtype)},
                    {"c", g.c, dtype_bytes(g.c_dtype)},
                    {"bias", g.bias, g.bias ? dtype_bytes(g.bias_dtype) : 1},
                    {"alpha_device", g.alpha_device, 4}, {"beta_device", g.beta_device, 4}};
    for (const auto& p : pointers)
        NN_REQUIRE(aligned(p.pointer, static_cast<size_t>(p.bytes)), "%s: %p is not a multiple of %lld bytes",
                   p.name, p.pointer, (long long)p.bytes);
    return NN_OK;
}

int checked_call(nn_gemm* full, const nn_gemm* call) {
    NN_TRY(read_call(full, call));
    NN_TRY(check_options(*full));
    NN_TRY(check_sizes(*full));
    return check_pointers(*full);
}

// ---- the choice -------------------------------------------------------------------------------------------

// Rows of a matrix, of every problem, start at multiples of that many bytes.
bool rows_aligned(const void* data, int64_t stride, int64_t batch_stride, int64_t batch, int32_t dtype,
                  int64_t bytes) {
    const int64_t size = dtype_bytes(dtype);
    return aligned(data, static_cast<size_t>(bytes)) && stride * size % bytes == 0 &&
           (batch <= 1 || batch_stride * size % bytes == 0);
}

bool operands_aligned(const nn_gemm& g, int64_t bytes) {
    if (g.k == 0) return true;                         // nothing is read
    return rows_aligned(g.a, g.lda, g.stride_a, g.batch, g.dtype, bytes) &&
           rows_aligned(g.b, g.ldb, g.stride_b, g.batch, g.dtype, bytes);
}

// What a tensor map can hold: sizes and coordinates of 32 bits, strides below 2^40 bytes.
bool tensor_map_holds(const nn_gemm& g) {
    constexpr int64_t SIZE = (int64_t(1) << 31) - 256, STRIDE = int64_t(1) << 38;         // elements
    for (const int64_t size : {g.m, g.n, g.k, g.batch})
        if (size > SIZE) return false;
    for (const int64_t stride : {g.lda, g.ldb, g.stride_a, g.stride_b})
        if (stride >= STRIDE) return false;
    return true;
}

// Why tensor cores cannot take a call at all, by either instruction; null if they can.
const char* tensor_obstacle(const nn_gemm& g) {
    if (g.dtype == NN_FLOAT32 && g.compute != NN_GEMM_TF32) return "float32 without the option tf32";
    if (g.trans_a && g.trans_b) return "both operands are transposed";
    if (!operands_aligned(g, 16)) return "rows of A or B do not start at multiples of 16 bytes";
    return nullptr;
}

const char* wgmma_obstacle(const nn_gemm& g, const Device& device) {
    if (device.capability != 90) return "the device is not of sm_90, and the code is for sm_90a alone";
    if (const char* reason = tensor_obstacle(g)) return reason;
    if (g.dtype == NN_FLOAT32 && (g.trans_a || !g.trans_b)) return "tf32 operands must have rows along k";
    if (g.k == 0) return "k is 0";
    if (!tensor_map_holds(g)) return "a size or a stride is more than a tensor map holds";
    if (!tensor_maps_exist()) return "the driver has no cuTensorMapEncodeTiled";
    return nullptr;
}

// Why a path cannot take a call; null if it can.
const char* obstacle(const nn_gemm& g, int path, const Device& device) {
    switch (path) {
        case NN_GEMM_SKINNY:
            if (g.m > 16) return "m is over 16";
            if (g.m > 8 && !g.trans_b) return "m is over 8 and B is not transposed";
            if (g.trans_a) return "A is transposed";
            if (g.splits > 1) return "it does not cut k";
            if (!operands_aligned(g, 16)) return "rows of A or B do not start at multiples of 16 bytes";
            return nullptr;
        case NN_GEMM_MMA:
            if (device.capability < (g.dtype == NN_FLOAT16 ? 75 : 80)) return "no tensor cores for the type";
            return tensor_obstacle(g);
        case NN_GEMM_WGMMA: return wgmma_obstacle(g, device);
    }
    return nullptr;
}

int64_t tiles_of(const nn_gemm& g, GemmTile tile) { return ceil_div(g.m, tile.m) * ceil_div(g.n, tile.n); }

// The larger tile reads less; it is taken once it gives every multiprocessor a block.
GemmTile tile_of(const nn_gemm& g, int path, const Device& device) {
    if (path == NN_GEMM_TILED) return {32, 32};
    if (path == NN_GEMM_SKINNY) return {16, g.trans_b ? 4 : 8 * int(16 / dtype_bytes(g.dtype))};
    if (path == NN_GEMM_MMA && g.dtype == NN_FLOAT32) return {128, 128};
    if (path == NN_GEMM_FFMA && g.dtype != NN_FLOAT32) return {64, 64};
    const int64_t batch = std::max<int64_t>(g.batch, 1);
    if (path == NN_GEMM_WGMMA)
        return {128, tiles_of(g, {128, 256}) * batch >= device.multiprocessors ? 256 : 128};
    const int64_t blocks = tiles_of(g, {128, 128}) * batch;
    return blocks >= device.multiprocessors ? GemmTile{128, 128} : GemmTile{64, 64};
}

// Cut k where C has too few tiles for the device: up to the blocks that a multiprocessor holds (two; of WGMMA
// one), K_PER_SPLIT each at least.
int64_t splits_of(const nn_gemm& g, int path, GemmTile tile, const Device& device) {
    if (path == NN_GEMM_SKINNY || g.splits == 1 || g.k == 0) return 1;
    if (g.splits) return std::min<int64_t>(g.splits, ceil_div(g.k, K_GRAIN));
    const int64_t blocks = tiles_of(g, tile) * g.batch;
    const int64_t room = (path == NN_GEMM_WGMMA ? 1 : 2) * device.multiprocessors / blocks;
    return std::max<int64_t>(1, std::min({MAX_SPLITS, g.k / K_PER_SPLIT, room}));
}

struct Choice {
    int path;
    GemmTile tile;
    int64_t splits, k_per_split;
    const char* why;                                   // what kept a faster path away, or why this one
};

// More than half of a tile of 128 x 128 each way, and stages enough to be ahead.
bool fills_wgmma(const nn_gemm& g) { return g.m > 64 && g.n > 64 && g.k >= 256; }

int path_of(const nn_gemm& g, const Device& device, const char** why) {
    *why = "few rows: B is read once";
    if (g.m <= 16 && !(*why = obstacle(g, NN_GEMM_SKINNY, device))) {
        *why = "few rows: B is read once";
        return NN_GEMM_SKINNY;
    }
    *why = obstacle(g, NN_GEMM_MMA, device);
    if (*why) return NN_GEMM_FFMA;
    *why = "tensor cores";
    if (device.capability != 90) return NN_GEMM_MMA;
    *why = obstacle(g, NN_GEMM_WGMMA, device);
    if (!*why && !fills_wgmma(g)) *why = "too small for the tiles of wgmma";
    if (*why) return NN_GEMM_MMA;
    *why = "tensor cores, fed by tensor copies";
    return NN_GEMM_WGMMA;
}

int choose(Choice* choice, const nn_gemm& g, const Device& device) {
    if (g.path == NN_GEMM_AUTO) {
        choice->path = path_of(g, device, &choice->why);
    } else {
        const char* reason = obstacle(g, g.path, device);
        NN_SUPPORT(!reason, "path: %s (%d) cannot take this call: %s", PATHS[g.path], g.path, reason);
        choice->path = g.path, choice->why = "asked for";
    }
    choice->tile = tile_of(g, choice->path, device);
    choice->splits = empty(g) ? 1 : splits_of(g, choice->path, choice->tile, device);
    choice->k_per_split = ceil_div(ceil_div(g.k, choice->splits), K_GRAIN) * K_GRAIN;
    if (choice->splits > 1) choice->splits = ceil_div(g.k, choice->k_per_split);
    if (choice->splits == 1) choice->k_per_split = g.k;
    const int64_t blocks = empty(g) ? 0 : tiles_of(g, choice->tile) * g.batch * choice->splits;
    NN_REQUIRE(blocks <= MAX_GRID_X, "m, n, batch: %lld tiles of %d x %d are over 2^31 - 1",
               (long long)blocks, choice->tile.m, choice->tile.n);
    return NN_OK;
}

int64_t partial_bytes(const nn_gemm& g, int64_t splits) {
    return splits <= 1 ? 0 : splits * g.batch * g.m * g.n * 4;
}

// ---- launch -----------------------------------------------------------------------------------------------

Problem problem_of(const nn_gemm& g, const Choice& choice, void* workspace) {
    Problem p{};
    p.a = g.a, p.b = g.b, p.k = g.k, p.lda = g.lda, p.ldb = g.ldb;
    p.stride_a = g.stride_a, p.stride_b = g.stride_b, p.stride_c = g.stride_c;
    p.tiles_m = ceil_div(g.m, choice.tile.m), p.tiles_n = ceil_div(g.n, choice.tile.n), p.batch = g.batch;
    p.k_per_split = choice.k_per_split, p.splits = static_cast<int32_t>(choice.splits);
    p.partials = static_cast<float*>(workspace), p.trans_a = g.trans_a, p.trans_b = g.trans_b;
    const int64_t bytes = choice.path == NN_GEMM_FFMA ? 4 * dtype_bytes(g.dtype) : 16;
    p.wide_a = rows_aligned(g.a, g.lda, g.stride_a, g.batch, g.dtype, bytes);
    p.wide_b = rows_aligned(g.b, g.ldb, g.stride_b, g.batch, g.dtype, bytes);
    p.end = {g.c, g.bias, g.alpha_device, g.beta_device, g.m, g.n, g.ldc, g.alpha, g.beta, g.c_dtype,
             g.bias_dtype, g.activation, rows_aligned(g.c, g.ldc, g.stride_c, g.batch, g.c_dtype, 16),
             g.bias && aligned(g.bias, static_cast<size_t>(4 * dtype_bytes(g.bias_dtype)))};
    return p;
}

int launch(const Problem& p, const nn_gemm& g, const Choice& choice, const Device& device,
           cudaStream_t stream) {
    switch (choice.path) {
        case NN_GEMM_TILED: return launch_tiled(p, g.dtype, stream);
        case NN_GEMM_SKINNY: return launch_skinny(p, g.dtype, stream);
        case NN_GEMM_MMA:
            if (g.dtype == NN_FLOAT16) return launch_mma_f16(p, choice.tile, device.capability, stream);
            if (g.dtype == NN_BFLOAT16) return launch_mma_bf16(p, choice.tile, device.capability, stream);
            return launch_mma_tf32(p, choice.tile, device.capability, stream);
        case NN_GEMM_WGMMA:
            if (g.dtype == NN_FLOAT16) return launch_wgmma_f16(p, choice.tile, device, stream);
            if (g.dtype == NN_BFLOAT16) return launch_wgmma_bf16(p, choice.tile, device, stream);
            return launch_wgmma_tf32(p, choice.tile, device, stream);
    }
    return launch_ffma(p, g.dtype, choice.tile, stream);
}

}  // namespace
}  // namespace nn

NN_API int nn_gemm_forward(const nn_gemm* call, void* workspace, int64_t workspace_bytes, nn_stream stream) {
    nn_gemm g;
    nn::Device device;
    nn::Choice choice;
    NN_TRY(nn::checked_call(&g, call));
    if (nn::empty(g)) return NN_OK;
    NN_TRY(nn::current_device(&device));
    NN_TRY(nn::choose(&choice, g, device));
    const int64_t needed = nn::partial_bytes(g, choice.splits);
    if (needed > (workspace ? workspace_bytes : 0))
        return nn::fail(NN_ERROR_WORKSPACE, "workspace_bytes: %lld, but %lld are needed for %lld splits",
                        (long long)workspace_bytes, (long long)needed, (long long)choice.splits);
    NN_REQUIRE(needed == 0 || nn::aligned(workspace, 16), "workspace: %p is not a multiple of 16 bytes",
               workspace);
    const nn::Problem problem = nn::problem_of(g, choice, workspace);
    NN_TRY(nn::launch(problem, g, choice, device, nn::native(stream)));
    return choice.splits > 1 ? nn::launch_ordered_sum(problem, nn::native(stream)) : NN_OK;
}

NN_API int64_t nn_gemm_workspace_size(const nn_gemm* call) {
    nn_gemm g;
    nn::Device device;
    if (nn::checked_call(&g, call) || nn::current_device(&device)) return -1;
    if (g.splits == 1 || g.path == NN_GEMM_SKINNY || nn::empty(g)) return 0;
    if (g.splits) return nn::partial_bytes(g, std::min<int64_t>(g.splits, nn::ceil_div(g.k, nn::K_GRAIN)));
    // no more than the chosen splits of this k can need, nor than two tiles of the largest per multiprocessor
    const int64_t splits = std::min(nn::MAX_SPLITS, g.k / nn::K_PER_SPLIT);
    const int64_t most = int64_t(2) * device.multiprocessors * 128 * 128 * 4;
    return std::min(nn::partial_bytes(g, splits), most);
}

NN_API int nn_gemm_path(nn_gemm_choice* choice, const nn_gemm* call) {
    NN_REQUIRE(choice && choice->size > 0, "choice: null, or its size is not set");
    nn_gemm g;
    nn::Device device;
    nn::Choice found;
    NN_TRY(nn::checked_call(&g, call));
    NN_TRY(nn::current_device(&device));
    NN_TRY(nn::choose(&found, g, device));
    nn_gemm_choice full{};
    full.size = std::min<int64_t>(choice->size, sizeof full);
    full.workspace_bytes = nn::partial_bytes(g, found.splits);
    full.path = found.path, full.tile_m = found.tile.m, full.tile_n = found.tile.n;
    full.splits = static_cast<int32_t>(found.splits);
    std::snprintf(full.why, sizeof full.why, "%s: %s", nn::PATHS[found.path], found.why);
    std::memcpy(choice, &full, static_cast<size_t>(full.size));
    return NN_OK;
}
