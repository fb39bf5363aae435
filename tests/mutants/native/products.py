"""Matrix products, of plain and of packed weights."""

from tests.mutants.native.workshop import Mutant

PLAIN, MATRIX, PACKED, EXPERTS = (
    f"kernels/{name}" for name in ("matmul.cpp", "gemm/matrix.h", "packed.cpp", "packed_experts.cpp"))

MUTANTS = [
    Mutant(PLAIN, "a few rows lose their bias", "gemv(y, x, weight, bias.data);",
           "gemv(y, x, weight, (const T*)nullptr);", "linear"),
    Mutant(PLAIN, "dweight is its transpose's rows", "transposed(dy), plain(x), out, in, rows_here);\n}",
           "transposed(dy), plain(x), out, in, rows_here > 1 ? rows_here - 1 : rows_here);\n}",
           "linear_backward"),
    Mutant(PLAIN, "of many small products the last is left out",
           "for (int64_t i = begin; i < end; ++i) one(i + 1);",
           "for (int64_t i = begin; i + 1 < end; ++i) one(i + 1);", "matmul"),
    Mutant(MATRIX, "every piece gets the first one's bias", "get(bias + left + i, n)",
           "get(bias + i, n)", "test_products.py::test_float32_is_float32"),
    Mutant(PACKED, "the residual is that of the first row", "get(residual[row] + first + i, n)",
           "get(residual[0] + first + i, n)", "packed_linear"),
    Mutant(PACKED, "gate and up of packed weights change places",
           "put(y[row] + first + i, n, gate * sigmoid(gate) * up);",
           "put(y[row] + first + i, n, up * sigmoid(up) * gate);", "packed_swiglu"),
    Mutant(EXPERTS, "few tokens weigh all experts alike", "total += mix.weights[n][c] * load",
           "total += load", "packed_experts"),
    Mutant(EXPERTS, "many tokens keep their first choice alone",
           "for (int64_t c = 0; c < k; ++c)\n                    if (mix",
           "for (int64_t c = 0; c < 1; ++c)\n                    if (mix", "packed_experts"),
]
