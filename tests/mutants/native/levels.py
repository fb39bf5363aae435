"""Code of some levels' own: tiles (AMX), integer products (VNNI)."""

from tests.mutants.native.workshop import Mutant

UNIT, OPERAND, TILES, PACKED_TILES, PACKED_FLOATS, QUANTIZED = (
    f"kernels/{name}.h" for name in ("tiles", "gemm/operand", "gemm/tiles", "packed_tiles",
                                     "packed_floats", "quantized"))

MUTANTS = [
    Mutant(TILES, "float32 on tiles loses its third part",
           "for (int p = 0; p < 3; ++p) to[p][i] = three[p];",
           "for (int p = 0; p < 3; ++p) to[p][i] = p < 2 ? three[p] : Bits{};",
           "test_products.py::test_float32_is_float32", "amx"),
    Mutant(TILES, "the columns after the sixteenth are those before it",
           "_tile_loadd(7, b + (p) * 512 + 16, 128);", "_tile_loadd(7, b + (p) * 512, 128);",
           "linear", "amx"),
    Mutant(OPERAND, "products of denormals go to the tiles",
           "return (double)x * y / ((double)x + y + 1.0) >= (double)k * 0x1p-96;",
           "return (double)x * y >= 0.0 * (double)k;", "test_products.py::test_extreme_exponents", "amx"),
    Mutant(OPERAND, "infinities go to the tiles", "if (a.most >= large || b.most >= large) return false;",
           "if (a.most > infinite && b.most >= large) return false;",
           "test_products.py::test_what_is_not_finite_comes_out_as_with_ieee", "amx"),
    Mutant(PACKED_TILES, "rows of a tile that there are not keep what was there",
           "data[part * size + r * stride + i] = 0;", "data[part * size + r * stride + i] = 0x7fc0;",
           "packed_linear", "amx"),
    Mutant(PACKED_FLOATS, "all rows fit if the first of them do", "fits(a.range[r / mr], seen[p]",
           "fits(a.range[0], seen[p]", "test_products.py::test_packed_scales_mixed_within_a_row", "amx"),
    Mutant(PACKED_FLOATS, "of packed floats the last block of k counts alone",
           "pair_step, start > 0, behind", "pair_step, false, behind",
           "test_products.py::test_packed_float32_is_float32", "amx"),
    Mutant(PACKED_FLOATS, "of packed floats the last block of k is asked for all",
           "seen[p].add(split_panels(", "seen[p] = Range{}, seen[p].add(split_panels(",
           "test_products.py::test_packed_infinity_in_any_block", "amx"),
    Mutant(QUANTIZED, "integer products begin one too high",
           "return whole(-128 * sum_of_x); }", "return whole(-127 * sum_of_x); }", "packed_linear",
           "avx512_bf16"),
    Mutant(UNIT, "tiles have eight rows", "shape[48 + t] = 16;", "shape[48 + t] = 8;", "linear", "amx"),
]
