// Linear + cross-entropy without all logits: products and losses in turn over chunks of rows.
//
// logits of all rows -> chunks of a fixed number of logits (rows shrink as the vocabulary grows: 2x slower)
// -> chunks from a budget of bytes, at least 128 rows; float32 logits, gradients in the type of x (used)
#include <algorithm>

#include "check.h"
#include "device/launch.h"
#include "nn/gemm.h"
#include "nn/loss.h"

namespace nn {

// LINE: bytes that parts of the workspace align to
constexpr int64_t FEWEST_ROWS = 128, LINE = 256;

// Where what lies in the workspace.
struct Scratch {
    int64_t stride, logits, dlogits, lse, products, bytes;
};

static int64_t lines(int64_t bytes) { return ceil_div(bytes, LINE) * LINE; }

static int64_t bytes_per_row(int64_t vocabulary, int32_t dtype) {
    return ceil_div(vocabulary, 8) * 8 * (4 + (dtype == NN_FLOAT32 ? 0 : 2)) + 4;
}

static nn_gemm product(const nn_linear_cross_entropy& call) {
    nn_gemm gemm{};
    gemm.size = sizeof gemm, gemm.batch = 1, gemm.alpha = 1.0f;
    gemm.dtype = gemm.c_dtype = gemm.bias_dtype = call.dtype, gemm.compute = call.compute;
    return gemm;
}

// logits[rows,V] = x[rows,D] weight[V,D]^T, in float32
static nn_gemm logits_of(const nn_linear_cross_entropy& call, int64_t rows, int64_t stride) {
    nn_gemm gemm = product(call);
    gemm.m = rows, gemm.n = call.vocabulary, gemm.k = call.width, gemm.trans_b = 1;
    gemm.lda = gemm.ldb = call.width, gemm.ldc = stride, gemm.c_dtype = NN_FLOAT32;
    gemm.a = call.x, gemm.b = call.weight;
    return gemm;
}

// dx[rows,D] = dlogits[rows,V] weight[V,D]
static nn_gemm dx_of(const nn_linear_cross_entropy& call, int64_t rows, int64_t stride) {
    nn_gemm gemm = product(call);
    gemm.m = rows, gemm.n = call.width, gemm.k = call.vocabulary;
    gemm.lda = stride, gemm.ldb = gemm.ldc = call.width;
    gemm.b = call.weight, gemm.c = call.dx;
    return gemm;
}

// dweight[V,D] = beta dweight + dlogits[rows,V]^T x[rows,D], in float32
static nn_gemm dweight_of(const nn_linear_cross_entropy& call, int64_t rows, int64_t stride, bool add) {
    nn_gemm gemm = product(call);
    gemm.m = call.vocabulary, gemm.n = call.width, gemm.k = rows, gemm.trans_a = 1;
    gemm.beta = add ? 1.0f : 0.0f;
    gemm.lda = stride, gemm.ldb = gemm.ldc = call.width, gemm.c_dtype = NN_FLOAT32;
    gemm.a = gemm.b = call.x, gemm.c = call.dweight;
    return gemm;
}

// 0 or an error: sizes of a product's own workspace are found by asking it.
static int lay_out(Scratch* scratch, const nn_linear_cross_entropy& call) {
    const bool wide = call.dtype == NN_FLOAT32, gradient = call.dx != nullptr;
    const int64_t rows = std::max<int64_t>(1, std::min(call.chunk, call.rows));
    const int64_t stride = ceil_div(call.vocabulary, 8) * 8;
    scratch->stride = stride, scratch->logits = 0;
    scratch->dlogits = wide || !gradient ? 0 : lines(rows * stride * 4);
    scratch->lse = wide || !gradient ? lines(rows * stride * 4) : scratch->dlogits + lines(rows * stride * 2);
    scratch->products = scratch->lse + lines(rows * 4);
    nn_gemm gemms[3] = {logits_of(call, rows, stride), dx_of(call, rows, stride),
                        dweight_of(call, rows, stride, true)};
    int64_t most = 0;
    for (int i = 0; i < (gradient ? 3 : 1); ++i) {
        nn_gemm& gemm = gemms[i];
        // stand for pointers that are not known yet
        if (!gemm.a) gemm.a = reinterpret_cast<const void*>(LINE);
        if (!gemm.b) gemm.b = reinterpret_cast<const void*>(LINE);
        if (!gemm.c) gemm.c = reinterpret_cast<void*>(LINE);
        const int64_t bytes = nn_gemm_workspace_size(&gemm);
        if (bytes < 0) return NN_ERROR_ARGUMENT;
        most = std::max(most, bytes);
    }
    scratch->bytes = scratch->products + lines(most);
    return NN_OK;
}

static int check(const nn_linear_cross_entropy* call) {
    NN_REQUIRE(call && call->size == sizeof(nn_linear_cross_entropy),
               "call: null, or its size is not sizeof(nn_linear_cross_entropy)");
    NN_TRY(check_elements("rows", call->rows, "width", call->width));
    NN_REQUIRE(call->vocabulary > 0, "vocabulary: %lld is not positive", (long long)call->vocabulary);
    NN_TRY(check_elements("vocabulary", call->vocabulary, "width", call->width));
    NN_REQUIRE(call->chunk > 0, "chunk: %lld is not positive", (long long)call->chunk);
    NN_TRY(check_elements("chunk", std::min(call->chunk, call->rows), "vocabulary", call->vocabulary));
    NN_TRY(check_loss(call->label_smoothing, call->z_loss, call->softcap));
    NN_TRY(check_floating("dtype", call->dtype));
    NN_TRY(check_index("target_dtype", call->target_dtype));
    NN_TRY(check_flag("accumulate", call->accumulate));
    NN_TRY(check_flag("compute", call->compute));
    NN_REQUIRE(!call->dx == !call->dweight || !call->rows, "dx, dweight: give both or neither");
    return NN_OK;
}

static int check_arrays(const nn_linear_cross_entropy& call) {
    NN_TRY(check_optional(call.dx, "dx", call.dtype));
    NN_TRY(check_optional(call.dweight, "dweight", NN_FLOAT32));
    NN_TRY(check_optional(call.dloss, "dloss", NN_FLOAT32));
    if (!call.rows) return NN_OK;
    NN_TRY(check_array(call.loss, "loss", NN_FLOAT32));
    NN_TRY(check_array(call.targets, "targets", call.target_dtype));
    NN_TRY(check_array(call.weight, "weight", call.dtype));
    return call.width ? check_array(call.x, "x", call.dtype) : NN_OK;
}

template <class P> static P* shifted(P* pointer, int64_t bytes) {
    using Byte = std::conditional_t<std::is_const_v<P>, const char, char>;
    return pointer ? reinterpret_cast<P*>(reinterpret_cast<Byte*>(pointer) + bytes) : nullptr;
}

// The loss of rows start ... start + rows - 1 of the call, its gradients included.
static int one_chunk(const nn_linear_cross_entropy& whole, int64_t start, int64_t rows,
                     const Scratch& scratch, void* workspace, nn_stream stream) {
    const int64_t bytes = start * whole.width * dtype_bytes(whole.dtype);
    nn_linear_cross_entropy call = whole;
    call.x = shifted(whole.x, bytes), call.dx = shifted(whole.dx, bytes);
    void* products = shifted(workspace, scratch.products);
    const int64_t left = scratch.bytes - scratch.products;

    nn_gemm logits = logits_of(call, rows, scratch.stride);
    logits.c = workspace;
    NN_TRY(nn_gemm_forward(&logits, products, left, stream));

    nn_cross_entropy loss{};
    loss.size = sizeof loss, loss.loss = whole.loss + start;
    loss.lse = static_cast<float*>(shifted(workspace, scratch.lse));
    loss.logits = workspace, loss.dlogits = shifted(workspace, scratch.dlogits);
    loss.dloss = whole.dloss ? whole.dloss + start : nullptr;
    loss.targets = shifted(whole.targets, start * dtype_bytes(whole.target_dtype));
    loss.rows = rows, loss.vocabulary = whole.vocabulary;
    loss.stride = loss.gradient_stride = scratch.stride, loss.ignore_index = whole.ignore_index;
    loss.label_smoothing = whole.label_smoothing, loss.z_loss = whole.z_loss, loss.softcap = whole.softcap;
    loss.target_dtype = whole.target_dtype, loss.dtype = NN_FLOAT32, loss.gradient_dtype = whole.dtype;
    NN_TRY(nn_cross_entropy_forward(&loss, stream));
    if (!whole.dx) return NN_OK;
    NN_TRY(nn_cross_entropy_backward(&loss, stream));

    nn_gemm dx = dx_of(call, rows, scratch.stride);
    dx.a = loss.dlogits;
    NN_TRY(nn_gemm_forward(&dx, products, left, stream));
    nn_gemm dweight = dweight_of(call, rows, scratch.stride, start > 0 || whole.accumulate);
    dweight.a = loss.dlogits;
    return nn_gemm_forward(&dweight, products, left, stream);
}

}  // namespace nn

NN_API int64_t nn_linear_cross_entropy_chunk(int64_t rows, int64_t vocabulary, int32_t dtype,
                                             int64_t budget) {
    using nn::FEWEST_ROWS, nn::ceil_div;
    if (rows <= 0 || vocabulary <= 0) return 1;
    int64_t fit = std::max(budget / nn::bytes_per_row(vocabulary, dtype), FEWEST_ROWS);
    if (fit >= rows) return rows;
    const int64_t chunks = ceil_div(rows, fit / FEWEST_ROWS * FEWEST_ROWS);
    return ceil_div(ceil_div(rows, chunks), FEWEST_ROWS) * FEWEST_ROWS;      // of about the same size
}

NN_API int64_t nn_linear_cross_entropy_workspace_size(const nn_linear_cross_entropy* call) {
    nn::Scratch scratch;
    return nn::check(call) || nn::lay_out(&scratch, *call) ? -1 : scratch.bytes;
}

NN_API int nn_linear_cross_entropy_forward(const nn_linear_cross_entropy* call, void* workspace,
                                           int64_t workspace_bytes, nn_stream stream) {
    NN_TRY(nn::check(call));
    NN_TRY(nn::check_arrays(*call));
    nn::Scratch scratch;
    NN_TRY(nn::lay_out(&scratch, *call));
    if (!call->rows) {
        if (!call->dweight || call->accumulate) return NN_OK;
        nn_gemm nothing = nn::dweight_of(*call, 0, scratch.stride, false);               // zeros
        return nn_gemm_forward(&nothing, workspace, workspace_bytes, stream);
    }
    NN_TRY(nn::check_workspace(workspace, workspace_bytes, scratch.bytes));
    NN_REQUIRE(nn::aligned(workspace, 256), "workspace: not aligned to 256 bytes");
    for (int64_t start = 0; start < call->rows; start += call->chunk) {
        const int64_t rows = std::min(call->chunk, call->rows - start);
        NN_TRY(nn::one_chunk(*call, start, rows, scratch, workspace, stream));
    }
    return NN_OK;
}
