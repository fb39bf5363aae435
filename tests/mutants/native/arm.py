"""Arm's own code: two rows and more with quantized weights (smmla), scales."""

from tests.mutants.native.workshop import Mutant

QUANTIZED, PACKED_ROWS = "kernels/quantized.h", "kernels/packed_rows.h"


def bug(file: str, story: str, line: str, instead: str, program: str = "packed_products") -> Mutant:
    return Mutant(file, story, line, instead, "packed_linear", "neon_bf16", program)


MUTANTS = [
    bug(QUANTIZED, "of two rows, eights of elements change places",
        "to[i] = first_halves(one, other);\n        to[i + 1] = second_halves(one, other);",
        "to[i] = second_halves(one, other);\n        to[i + 1] = first_halves(one, other);"),
    bug(QUANTIZED, "two outputs change places with the two beside them",
        "(uint8x16_t)vzip1q_u32(here, next), (uint8x16_t)vzip2q_u32(here, next)",
        "(uint8x16_t)vzip2q_u32(here, next), (uint8x16_t)vzip1q_u32(here, next)"),
    bug(QUANTIZED, "the upper four bits keep their 8",
        "to[i + 2][j] = (Int)vsubq_u8(high, vdupq_n_u8(8));", "to[i + 2][j] = (Int)high;"),
    bug(QUANTIZED, "scales that are denormal are 0", "return (Vec)vcvt_f32_f16(half);",
        "const Vec x = (Vec)vcvt_f32_f16(half);\n    return abs(x) < 0x1p-14f ? Vec{} : x;"),
    bug(PACKED_ROWS, "of eight rows together the last two stay empty",
        "for (int i = 0; i < R / 2; ++i)\n#pragma GCC unroll 2",
        "for (int i = 0; i < (R < 8 ? R / 2 : 3); ++i)\n#pragma GCC unroll 2"),
    bug(PACKED_ROWS, "of four panels read together the last two stay empty",
        "products<1, P, asks>(to, 0, x, weight, {weight.data + first * bytes_of_one, bytes_of_one});",
        "products<1, P < 2 ? 1 : 2, asks>(to, 0, x, weight,\n"
        "                                        {weight.data + first * bytes_of_one, bytes_of_one});",
        "packed_products_of_one_row"),
    bug(PACKED_ROWS, "of two rows both take the first one's scale", "Vec{one, one, other, other}",
        "Vec{one, one, one, one}"),
    bug(PACKED_ROWS, "the last two rows stay squares", "for (int i = 0; i < R; i += 2)",
        "for (int i = 0; i + 2 < R; i += 2)"),
]
