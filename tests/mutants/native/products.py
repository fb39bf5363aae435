"""Matrix products, of plain and of packed weights."""

from tests.mutants.native.workshop import Mutant

PLAIN, PACKED, EXPERTS = (f"kernels/{name}.cpp" for name in ("matmul", "packed", "packed_experts"))
GEMV, MATRIX, PRODUCT, REGISTERS = (
    f"kernels/{name}.h" for name in ("gemv", "gemm/matrix", "gemm/product", "gemm/registers"))
LAYOUT, PACKED_ROWS, PACKED_PAIRS, PACKED_PRODUCT = (
    f"kernels/{name}.h" for name in ("packed", "packed_rows", "packed_pairs", "packed_product"))

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
    Mutant(PRODUCT, "every register of a tile gets the first one's bias", "get(with.bias + col, n)",
           "get(with.bias, n)", "linear"),
    Mutant(REGISTERS, "the last of an odd number of elements is dropped",
           "if (k % 2 && u < pairs) to[u++ * size + i] = row[(k - 1) * from.inner].bits;", "",
           "linear"),
    Mutant(GEMV, "every other register of a row counts twice", "y[o] = sum(sums[o][0] + sums[o][1]);",
           "y[o] = sum(sums[o][0] + sums[o][0]);", "linear"),
    Mutant(LAYOUT, "activations are cut where they should be rounded",
           "round_to_integer(values[i] * inverse), Int)", "values[i] * inverse, Int)", "packed_linear"),
    Mutant(PACKED_ROWS, "odd elements meet even ones of the weight",
           "sum_here += two[1] * float_of(v & 0xffff0000u);",
           "sum_here += two[0] * float_of(v & 0xffff0000u);", "packed_linear"),
    Mutant(PACKED_ROWS, "of four panels read together the last is the third again",
           "memcpy(&some, at + p * w.bytes + l", "memcpy(&some, at + (p == 3 ? 2 : p) * w.bytes + l",
           "packed_linear"),
    Mutant(PACKED_PAIRS, "of many rows of pairs the last block of k counts alone",
           "own[i][v] = add ? load(to + i", "own[i][v] = false ? load(to + i",
           "test_products.py::test_packed_bfloat16_row_alone_and_among_others"),
    Mutant(PACKED_PRODUCT, "rows that go together are written in the first one's place",
           "row_products(sums, activations.inputs.from(r), here, weight, at * pair, count);\n"
           "                for (int64_t i = 0; i < here; ++i) write(r + i,",
           "row_products(sums, activations.inputs.from(r), here, weight, at * pair, count);\n"
           "                for (int64_t i = 0; i < here; ++i) write(r,", "packed_linear"),
]
