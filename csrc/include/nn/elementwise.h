// Elementwise: activations, sums and products, casts, SwiGLU.  n elements, or rows of them.
//
// Arithmetic is in float32 and each result is rounded once.  An output may be one of the inputs (in place): a
// thread reads all that it needs before it writes.  Partly overlapping arrays are not allowed.
#pragma once

#include "types.h"

// y = x s(x),  s(x) = 1 / (1 + exp(-x));    dx = dy s (1 + x (1 - s))
NN_API int nn_silu_forward(void* y, const void* x, int64_t n, int32_t dtype, nn_stream stream);
NN_API int nn_silu_backward(void* dx, const void* dy, const void* x, int64_t n, int32_t dtype,
                            nn_stream stream);

// y = x F(x), F the normal distribution function (Hendrycks & Gimpel 2016);    dx = dy (F + x F')
NN_API int nn_gelu_forward(void* y, const void* x, int64_t n, int32_t dtype, nn_stream stream);
NN_API int nn_gelu_backward(void* dx, const void* dy, const void* x, int64_t n, int32_t dtype,
                            nn_stream stream);

// y = x (1 + tanh(u)) / 2 = x s(2u),  u = sqrt(2/pi) (x + 0.044715 x^3);    dx = dy (s + 2 x s (1 - s) u')
NN_API int nn_gelu_tanh_forward(void* y, const void* x, int64_t n, int32_t dtype, nn_stream stream);
NN_API int nn_gelu_tanh_backward(void* dx, const void* dy, const void* x, int64_t n, int32_t dtype,
                                 nn_stream stream);

// y = s(x);    dx = dy y (1 - y), from the output
NN_API int nn_sigmoid_forward(void* y, const void* x, int64_t n, int32_t dtype, nn_stream stream);
NN_API int nn_sigmoid_backward(void* dx, const void* dy, const void* y, int64_t n, int32_t dtype,
                               nn_stream stream);

// y = x, 0 where x <= 0 (NaN passes);    dx = dy, 0 where x <= 0
NN_API int nn_relu_forward(void* y, const void* x, int64_t n, int32_t dtype, nn_stream stream);
NN_API int nn_relu_backward(void* dx, const void* dy, const void* x, int64_t n, int32_t dtype,
                            nn_stream stream);

// y = a + b;    y = a b;    y = alpha x + beta
NN_API int nn_add_forward(void* y, const void* a, const void* b, int64_t n, int32_t dtype, nn_stream stream);
NN_API int nn_mul_forward(void* y, const void* a, const void* b, int64_t n, int32_t dtype, nn_stream stream);
NN_API int nn_scale_forward(void* y, const void* x, int64_t n, float alpha, float beta, int32_t dtype,
                            nn_stream stream);

// y = x in another of the types float32, float16, bfloat16, rounded to nearest, ties to even.  In place only
// between types of one size.
NN_API int nn_cast_forward(void* y, const void* x, int64_t n, int32_t y_dtype, int32_t x_dtype,
                           nn_stream stream);

// y = value
NN_API int nn_fill_forward(void* y, int64_t n, float value, int32_t dtype, nn_stream stream);

// y = SiLU(gate) up (Shazeer 2020);    dgate = dy up SiLU'(gate),  dup = dy SiLU(gate)
NN_API int nn_swiglu_forward(void* y, const void* gate, const void* up, int64_t n, int32_t dtype,
                             nn_stream stream);
NN_API int nn_swiglu_backward(void* dgate, void* dup, const void* dy, const void* gate, const void* up,
                              int64_t n, int32_t dtype, nn_stream stream);

// The same with gate and up side by side: y[rows,cols], x[rows,2 cols], the gate in the first cols columns.
// dx may be x; y may not.
NN_API int nn_swiglu_packed_forward(void* y, const void* x, int64_t rows, int64_t cols, int32_t dtype,
                                    nn_stream stream);
NN_API int nn_swiglu_packed_backward(void* dx, const void* dy, const void* x, int64_t rows, int64_t cols,
                                     int32_t dtype, nn_stream stream);
