// Copies between arrays whose dense axes differ: a matrix and its transpose, channels last to first.
//
// an element per thread, in the order of the result: reads a sector per element -> tiles of 32x32 elements
// through shared memory, both sides in whole sectors -> words of 4 bytes: small elements change places within
// squares of 2x2 or 4x4 in registers first (used)
#include "transpose.h"

#include "device/pack.cuh"
#include "layout.cuh"

namespace nn::array {

constexpr int SIDE = 32, ROWS = THREADS / SIDE;  // a tile has SIDE x SIDE squares; its threads, SIDE x ROWS
constexpr int64_t SHORT = 8;                     // elements; of fewer a sector holds several rows

template <class W> struct Transposition {
    W* y;
    const W* x;
    int64_t across, down;                        // elements along the dense axis of x, and along that of y
    int64_t x_step, y_step;                      // between neighbours along the other one's
    uint32_t tiles_across, tiles_down;           // divided by in 32 bits: tiles are at most MAX_GRID_X
    Places<2> places;                            // of all other axes
};

// `from` is a square of N x N elements, by rows; `to` is it by columns.
template <class W, int N>
__device__ __forceinline__ void turn(Pack<W, N> (&to)[N], const Pack<W, N> (&from)[N]) {
#pragma unroll
    for (int i = 0; i < N; ++i)
#pragma unroll
        for (int j = 0; j < N; ++j) to[j][i] = from[i][j];
}

// A tile per block
template <class W, int N>
__global__ void __launch_bounds__(THREADS) array_transpose(const __grid_constant__ Transposition<W> t) {
    __shared__ Pack<W, N> tile[N * SIDE][SIDE + 1];  // [across][down]; the pitch is odd: no bank conflict
    const int lane = threadIdx.x % SIDE, row = threadIdx.x / SIDE;
    const uint32_t rest = blockIdx.x / t.tiles_across, column = blockIdx.x - rest * t.tiles_across;
    const uint32_t matrix = rest / t.tiles_down, line = rest - matrix * t.tiles_down;
    const int64_t left = int64_t{column} * SIDE * N, top = int64_t{line} * SIDE * N;
    int64_t at[2];
    places(at, t.places, matrix);
    const int64_t a = left + lane * N, b = top + lane * N;
#pragma unroll
    for (int r = 0; r < SIDE; r += ROWS) {
        const int64_t down = top + (r + row) * N;
        if (a >= t.across || down >= t.down) break;
        Pack<W, N> read[N], turned[N];
#pragma unroll
        for (int k = 0; k < N; ++k) read[k] = load_global<N>(t.x + at[1] + (down + k) * t.x_step + a);
        turn(turned, read);
#pragma unroll
        for (int k = 0; k < N; ++k) tile[k * SIDE + lane][r + row] = turned[k];
    }
    __syncthreads();
#pragma unroll
    for (int r = 0; r < N * SIDE; r += ROWS) {
        const int64_t across = left + (r + row) % SIDE * N + r / SIDE;
        if (across < t.across && b < t.down)
            store_global(t.y + at[0] + across * t.y_step + b, tile[r + row][lane]);
    }
}

namespace {

// The axis along which operand k is dense, or -1.
int dense_axis(const nn_array_layout& layout, int k) {
    int axis = static_cast<int>(layout.ndim) - 1;
    while (axis >= 0 && layout.strides[k][axis] != 1) --axis;
    return axis;
}

}  // namespace

bool transposes(const nn_array_layout& layout, int64_t count) {
    const int down = dense_axis(layout, 0), across = dense_axis(layout, 1);
    return down >= 0 && across >= 0 && layout.strides[1][down] != 1 && layout.strides[0][across] != 1 &&
           layout.strides[1][down] != 0 && layout.shape[down] >= SHORT && layout.shape[across] >= SHORT &&
           count / (SHORT * SHORT) <= MAX_GRID_X;
}

namespace {

// The layout without the two axes of the tiles.
nn_array_layout others(const nn_array_layout& layout, int down, int across) {
    nn_array_layout left = layout;
    left.ndim = 0;
    for (int axis = 0; axis < layout.ndim; ++axis) {
        if (axis == down || axis == across) continue;
        left.shape[left.ndim] = layout.shape[axis];
        for (int k = 0; k < 2; ++k) left.strides[k][left.ndim] = layout.strides[k][axis];
        ++left.ndim;
    }
    if (left.ndim == 0) left.ndim = 1, left.shape[0] = 1;
    return left;
}

// Whether squares of n x n elements can be moved.
bool divides(const nn_array_layout& layout, int down, int across, const void* y, const void* x, int n,
             int64_t bytes) {
    if (layout.shape[down] % n || layout.shape[across] % n) return false;
    if (!aligned(y, n * bytes) || !aligned(x, n * bytes)) return false;
    for (int axis = 0; axis < layout.ndim; ++axis)
        if ((axis != down && layout.strides[0][axis] % n) ||
            (axis != across && layout.strides[1][axis] % n))
            return false;
    return true;
}

template <class W, int N>
int launch(void* y, const void* x, const nn_array_layout& layout, int down, int across, nn_stream stream) {
    Transposition<W> t{static_cast<W*>(y), static_cast<const W*>(x), layout.shape[across], layout.shape[down],
                       layout.strides[1][down], layout.strides[0][across], 0, 0, {}};
    t.tiles_across = static_cast<uint32_t>(ceil_div(t.across, SIDE * N));
    t.tiles_down = static_cast<uint32_t>(ceil_div(t.down, SIDE * N));
    const nn_array_layout left = others(layout, down, across);
    int64_t batch = 1;
    for (int axis = 0; axis < left.ndim; ++axis) batch *= left.shape[axis];
    t.places = as_parameter<2>(left, batch);
    const auto tiles = static_cast<unsigned>(batch * t.tiles_across * t.tiles_down);
    array_transpose<W, N><<<tiles, THREADS, 0, native(stream)>>>(t);
    return launched("array_transpose");
}

}  // namespace

int transposed_copy(void* y, const void* x, int64_t bytes, const nn_array_layout& layout, nn_stream stream) {
    const int down = dense_axis(layout, 0), across = dense_axis(layout, 1);
    const bool squares = bytes < 4 && divides(layout, down, across, y, x, static_cast<int>(4 / bytes), bytes);
    auto copy = bytes == 8   ? launch<uint64_t, 1>
                : bytes == 4 ? launch<uint32_t, 1>
                : bytes == 2 ? (squares ? launch<uint16_t, 2> : launch<uint16_t, 1>)
                             : (squares ? launch<uint8_t, 4> : launch<uint8_t, 1>);
    return copy(y, x, layout, down, across, stream);
}

}  // namespace nn::array
