"""Norms, softmax, losses, activations, sums and casts: kernels that go over rows."""

from tests.mutants.native.workshop import Mutant

LOSS_MATH, LINEAR_LOSS = "kernels/loss_math.h", "kernels/linear_cross_entropy.cpp"
NORM, SOFTMAX, LOSS, ACTIVATION, ELEMENTWISE, CAST, REDUCE, COPY = (
    f"kernels/{name}.cpp"
    for name in ("rms_norm", "softmax", "cross_entropy", "activation", "elementwise", "cast", "reduce",
                 "copy"))

MUTANTS = [
    Mutant(NORM, "the gradient of the residual is dropped", "if (dresidual) d += get(dresidual + i, n);",
           "", "rms_norm_backward"),
    Mutant(NORM, "epsilon is added to the root", "(float)(cols ? cols : 1) + (float)eps)",
           "(float)(cols ? cols : 1)) + (float)eps", "rms_norm"),
    Mutant(SOFTMAX, "a row's maximum is not subtracted", "Vec e = exp(get(x + i, n) - most);",
           "Vec e = exp(get(x + i, n));", "softmax"),
    Mutant(SOFTMAX, "log-softmax's gradient is softmax's",
           "get(dy[r] + i, n) - exp(get(y[r] + i, n)) * total",
           "exp(get(y[r] + i, n)) * (get(dy[r] + i, n) - total)", "log_softmax_backward"),
    Mutant(LOSS_MATH, "the z-loss has no slope", "(1.0f + 2.0f * o.z_loss * lse)",
           "1.0f", "cross_entropy_backward"),
    Mutant(LOSS_MATH, "smoothing takes nothing from the target", "lse - (1.0f - o.smoothing) * own",
           "lse - own", "cross_entropy"),
    Mutant(LOSS, "an ignored row keeps its loss", "loss[r] = 0.0f;",
           "loss[r] = l;", "cross_entropy"),
    Mutant(LINEAR_LOSS, "the last chunk's dweight takes the place of the sum", "count, first > 0);",
           "count, false);", "test_losses.py::test_chunks_of_rows_add_up"),
    Mutant(LINEAR_LOSS, "the scale is not that of the target's own slope",
           "own_slope = (o.smoothing - 1.0f) * upstream", "own_slope = o.smoothing - 1.0f",
           "linear_cross_entropy"),
    Mutant(LINEAR_LOSS, "an ignored row keeps its gradient", "return zero(d, cols), 0.0f;",
           "return 0.0f;", "linear_cross_entropy"),
    Mutant(LOSS_MATH, "the gradient ignores the soft cap", "softcap != 0.0f ? d * (1.0f - t * t) : d",
           "d", "cross_entropy_backward"),
    Mutant(ACTIVATION, "SiLU's slope is the sigmoid's", "return s * (1.0f + x * (1.0f - s));",
           "return s * (1.0f - s);", "silu_backward"),
    Mutant(ACTIVATION, "gate and up change places", "swiglu_row(y[r], x[r], x[r] + half, half)",
           "swiglu_row(y[r], x[r] + half, x[r], half)", "swiglu_packed"),
    Mutant(ELEMENTWISE, "a product is a sum", "return a * b;",
           "return a + b;", "mul"),
    Mutant(ELEMENTWISE, "accumulate overwrites", "put(total + i, n, get(total + i, n) + get(x + i, n));",
           "put(total + i, n, get(x + i, n));", "accumulate"),
    Mutant(COPY, "heads and positions change places", "r / length % heads, r % length",
           "r % heads, r / heads % length", "contiguous"),
    Mutant(COPY, "every text is the first", "x(r / (heads * length),", "x(0,", "contiguous"),
    Mutant(REDUCE, "the rows left over from fours are not summed", "for (; r < end; ++r)",
           "for (; r + 1 < end; ++r)", "column_sum"),
    Mutant(REDUCE, "the first block of rows counts twice", "for (int64_t b = 0; b < blocks; ++b) total",
           "total = get(partial + i, n);\n        for (int64_t b = 0; b < blocks; ++b) total", "column_sum"),
]
