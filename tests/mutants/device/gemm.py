"""csrc/kernels/gemm: tensor cores with tiles of 64, few rows, FFMA, the readable one, sums of splits."""

from cuda.nn.device import EmulatedDevice
from tests.device import test_gemm as tests
from tests.device import test_gemm_rules as rules
from tests.mutants.device.workshop import Mutant

MAIN, MMA, END, PROBLEM, FFMA, SKINNY, TILED, SUM = (
    f"kernels/gemm/{name}" for name in ("mainloop.cuh", "mma.cuh", "epilogue.cuh", "problem.cuh", "ffma.cuh",
                                        "skinny.cu", "tiled.cu", "gemm.cu"))
F16, TF32, FFMA_UNIT = "kernels/gemm/mma_f16.cu", "kernels/gemm/mma_tf32.cu", "kernels/gemm/ffma.cu"
NEEDS = ("array", "gemm")
UNITS = {MAIN: F16, MMA: F16, END: F16, PROBLEM: F16, "device/mma.cuh": F16, "device/swizzle.cuh": F16,
         FFMA: FFMA_UNIT}
LEFT_OUT = 'fail(NN_ERROR_UNSUPPORTED, "left out")'
LARGE = "return launch_mma_tile<TensorTile<T, 128, 128, 2, 2, 3>>(p, capability, stream);"
TRIMS = [
    (MMA, f"    if (tile.m == 128) {LARGE}\n    return",
     f"    if constexpr (sizeof(T) == 4) {LARGE}\n    else if (tile.m == 128) return {LEFT_OUT};\n"
     "    else return"),
    (FFMA_UNIT, "gemm_ffma<float, Big><<<blocks, 256, 0, stream>>>(p);", f"return {LEFT_OUT};"),
    (FFMA_UNIT, "gemm_ffma<bfloat16, Small><<<blocks, 256, 0, stream>>>(p);", f"return {LEFT_OUT};"),
]


def aligned(device: EmulatedDevice) -> None:
    for flags in tests.TRANSPOSITIONS[:3]:
        tests.test_aligned(device, "mma", "float16", *flags)


def tf32(device: EmulatedDevice) -> None:
    for flags in tests.TRANSPOSITIONS[:2]:
        tests.test_tf32_rounds_operands_to_ten_bits(device, *flags)


def linear(device: EmulatedDevice) -> None:
    tests.test_linear_and_its_gradients(device, "float16", 33)


def ends(device: EmulatedDevice) -> None:
    tests.test_epilogue(device, "mma", "float16", "float16", "gelu")
    tests.test_nan_and_infinity_come_out(device, "mma")
    tests.test_alpha_and_beta_from_the_device(device, "mma")


def biases(device: EmulatedDevice) -> None:
    tests.test_a_bias_may_begin_anywhere(device, "mma", "float16", 1)


def splits(device: EmulatedDevice) -> None:
    tests.test_a_chosen_split_sums(device)


def skinny(device: EmulatedDevice) -> None:
    for turned in (False, True):
        tests.test_aligned(device, "skinny", "float16", False, turned)
        tests.test_ragged(device, "skinny", "float16", False, turned)
        tests.test_few_rows_and_a_long_sum(device, turned)


def ffma(device: EmulatedDevice) -> None:
    for path in ("ffma", "tiled"):
        for flags in tests.TRANSPOSITIONS[:2]:
            tests.test_ragged(device, path, "float32", *flags)


def conflicts(device: EmulatedDevice) -> None:
    for flags in rules.FLAGS:
        rules.test_tensor_cores_without_conflicts(device, "float16", "tensor_f16", 64, *flags)


MUTANTS = [
    Mutant(MAIN, "waits for the stage before the one it reads", "copy_async_wait<AHEAD - 1>();",
           "copy_async_wait<AHEAD>();", aligned),
    Mutant(MAIN, "no barrier before a stage is read",
           "__syncthreads();                               // this stage is there, the one before it is free",
           "", aligned),
    Mutant(MAIN, "the next stage goes where this one is read", "copy(next, k + AHEAD * Tile::BK);",
           "copy(now, k + AHEAD * Tile::BK);", splits),
    Mutant(MAIN, "groups beyond the end are not counted",
           "if (k < k_end) fill_a.copy(stage, k), fill_b.copy(stage + Tile::A_BYTES, k);\n        "
           "copy_async_commit();",
           "if (k >= k_end) return;\n        fill_a.copy(stage, k), fill_b.copy(stage + Tile::A_BYTES, k);\n"
           "        copy_async_commit();", aligned),
    Mutant(MAIN, ".trans dropped", "ldmatrix_x4_trans(r, stage", "ldmatrix_x4(r, stage", aligned),
    Mutant(MAIN, "B's addresses as A's", "const int line = ALONG_K == IS_A ? lane % 16",
           "const int line = ALONG_K ? lane % 16", aligned),
    Mutant(MAIN, "a part is read before all lanes wrote", "        __syncwarp();\n        visit(Part{mine",
           "        visit(Part{mine", aligned),
    Mutant(END, "bias behind the last column", "e.bias_dtype, count, e.wide_bias && count == 4);",
           "e.bias_dtype, 4, e.wide_bias);", linear),
    Mutant(END, "a bias is read in packs wherever it begins", "e.wide_bias && count == 4", "count == 4",
           biases),
    Mutant(END, "NaN becomes 0", "return x > 0.0f || x != x ? x : 0.0f;", "return x > 0.0f ? x : 0.0f;",
           ends),
    Mutant(SUM, "the last split is left out", "split < p.splits; split++) sum",
           "split < p.splits - 1; split++) sum", splits),
    Mutant(FFMA, "no barrier between two stages", "quad_b.put(next + B, held_b);\n        __syncthreads();",
           "quad_b.put(next + B, held_b);", ffma),
    Mutant(TILED, "a piece is overwritten while others read it", "sums[i]);\n        __syncthreads();",
           "sums[i]);", ffma),
    Mutant(MAIN, "no swizzle", "return swizzle<LINE_BYTES>(line, chunk);",
           "return line * LINE_BYTES + chunk * CHUNK_BYTES;", conflicts),
    Mutant("device/mma.cuh", "registers of A in another order",
           '"r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));\n#endif\n}\n\ntemplate <>',
           '"r"(a[0]), "r"(a[2]), "r"(a[1]), "r"(a[3]), "r"(b0), "r"(b1));\n#endif\n}\n\ntemplate <>',
           aligned),
    Mutant(MAIN, "tf32: operands are cut, not rounded", "r[i] = to_tf32(__uint_as_float(r[i]));",
           "r[i] = r[i];", tf32, TF32),
    Mutant(SKINNY, "sums of the first warps alone", "for (int warp = 1; warp < WARPS; warp++)",
           "for (int warp = 1; warp < 2; warp++)", skinny),
]
