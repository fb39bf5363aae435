// Rotary position embedding (Su et al. 2021): pairs of channels turned by the angle position * frequency.
#pragma once

#include "types.h"

typedef enum nn_rope_scaling {
    NN_ROPE_PLAIN = 0,               // theta^(-2i/dim)
    NN_ROPE_LINEAR = 1,              // the same / factor                                 (Chen et al. 2023)
    NN_ROPE_NTK = 2                  // theta -> theta factor^(dim / (dim - 2))           (bloc97 2023)
} nn_rope_scaling;

// inverse[dim/2] in float64: radians per position.  dim is even, and above 2 for NTK.
NN_API int nn_rope_frequencies(double* inverse, int64_t dim, double theta, double factor, int32_t scaling,
                               nn_stream stream);

// cos, sin [positions, half] in float32 of the positions start ... start + positions - 1, times `factor`:
// angles formed and reduced in float64, so right at any position below 2^31.
NN_API int nn_rope_table(float* cos, float* sin, const double* inverse, int64_t start, int64_t positions,
                         int64_t half, double factor, nn_stream stream);

// One array of heads, x[batch,heads,length,width] with strides in elements for its first three axes.  y may
// be x (with equal strides); no other overlap is allowed.  heads = 0: absent.
typedef struct nn_rope_array {
    void* y;
    const void* x;
    int64_t heads;
    int64_t y_batch, y_head, y_position;
    int64_t x_batch, x_head, x_position;
} nn_rope_array;

// The first 2 half channels of q and k turned, the others copied.  Pairs are (i, i + half), as in Llama, or,
// interleaved, (2i, 2i + 1), as in GPT-J and GGUF.  inverse: turned back, which is the gradient.
// The row of the tables: sequence b at time t takes row b * table_batch + t (rows of `half` floats); with
// `positions`, row b * table_batch + positions[b * position_stride] + t.  A row outside 0 ... table_rows - 1
// (of sequence b's part) is not read: it gives NaN.
typedef struct nn_rope {
    int64_t size;                    // sizeof(nn_rope)
    nn_rope_array q, k;
    const float *cos, *sin;          // [table_rows, half]
    const void* positions;           // in device memory; null: none
    int64_t batch, length, width, half;
    int64_t table_rows;              // of one sequence
    int64_t table_batch;             // rows from one sequence's part to the next's; 0: shared
    int64_t position_stride;         // 0: one start for all sequences, 1: one for each
    int32_t position_dtype;          // int32 or int64
    int32_t interleaved, inverse;    // 0 or 1
    int32_t dtype;                   // of q and k
} nn_rope;

// q and k in one launch.
NN_API int nn_rope_forward(const nn_rope* call, nn_stream stream);
