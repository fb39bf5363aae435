"""csrc/kernels/norm."""

from cuda.nn.device import EmulatedDevice
from tests.device import test_counts as counts
from tests.device import test_norm as tests
from tests.mutants.device.workshop import Mutant, without

FORWARD, BACKWARD, PLAN, PARTIAL = (f"kernels/norm/{name}" for name in ("forward.cu", "backward.cu",
                                                                        "plan.cuh", "partial.cuh"))
NEEDS = ("array", "norm")
TRIMS = without("FLOAT16")
UNITS = {PLAN: FORWARD, PARTIAL: BACKWARD}


def rows(device: EmulatedDevice) -> None:
    for cols in (68, 260):
        tests.test_every_path(device, 5, cols, tests.ROWS, tests.ROWS, "aligned")


def residual(device: EmulatedDevice) -> None:
    tests.test_residual(device, 5, "float32", "aligned")
    tests.test_in_place(device, 24)


def extremes(device: EmulatedDevice) -> None:
    tests.test_extremes(device, 64)


def cancelling(device: EmulatedDevice) -> None:
    tests.test_extremes(device, 17000)


def wide(device: EmulatedDevice) -> None:
    tests.test_every_path(device, 3, 1028, tests.ROWS, tests.ROWS, "aligned")


def reread(device: EmulatedDevice) -> None:
    tests.test_every_path(device, 3, 4097, tests.REREAD, tests.REREAD, "aligned")


def many_rows(device: EmulatedDevice) -> None:
    tests.test_more_long_rows_than_blocks(device)


def alone(device: EmulatedDevice) -> None:
    for place in ("aligned", "odd"):
        tests.test_one_block_writes_the_gradients_themselves(device, 5, 260, place)


def partial(device: EmulatedDevice) -> None:
    tests.test_several_blocks(device, "bfloat16", 130, 512, 2)
    tests.test_several_blocks(device, "bfloat16", 43, 8192, 2)


def bytes_of_blocks(device: EmulatedDevice) -> None:
    for sizes in ({"rows": 2048, "cols": 64}, {"rows": 24, "cols": 2048}, {"rows": 86, "cols": 2048}):
        counts.test_each_byte_is_moved_once(device, "layer_norm_backward", "bfloat16", sizes)


def traffic(device: EmulatedDevice) -> None:
    tests.test_counted_sectors(device, 128, "float32")


MUTANTS = [
    Mutant(FORWARD, "epsilon outside the root", "rsqrtf(row_sum(sum, width, scratch) / a.cols + a.eps);",
           "rsqrtf(row_sum(sum, width, scratch) / a.cols) + a.eps;", extremes),
    Mutant(FORWARD, "statistics of rows beyond the last are stored", "if (lane == 0 && row < a.rows) {",
           "if (lane == 0) {", rows),
    Mutant(FORWARD, "packs behind the row's end are loaded",
           "            if (p * step < end) packs[p] = load_pack<N>(a.x + begin + p * step);",
           "            packs[p] = load_pack<N>(a.x + begin + p * step);", rows),
    Mutant(FORWARD, "no barrier behind the weight",
           "        }\n        __syncthreads();\n    }\n    weight +=", "        }\n    }\n    weight +=",
           rows),
    Mutant(FORWARD, "E[x^2] - E[x]^2", "squares += squares_of_pack(load_pack<N>(x + c), mean);",
           "squares += squares_of_pack(load_pack<N>(x + c), 0.0f) - N * mean * mean;", cancelling),
    Mutant(PLAN, "no barrier before the sums of warps are used again",
           "x += scratch[first + i];\n    __syncthreads();", "x += scratch[first + i];", wide),
    Mutant(FORWARD, "the weight read from global memory for every row",
           "        weight = kept;\n        if (bias) {", "        if (bias) {", traffic),
    Mutant(BACKWARD, "the sum over x is not a mean",
           "sums.normed = row_sum(sums.normed, width, scratch) / a.cols;",
           "sums.normed = row_sum(sums.normed, width, scratch);", rows),
    Mutant(BACKWARD, "the gradient beside the norm is dropped", "for (int j = 0; j < N; ++j) g[j] += w[j];",
           "for (int j = 0; j < N; ++j) g[j] += 0.0f * w[j];", residual),
    Mutant(PARTIAL, "no barrier before sums of the upper half of the groups are read",
           "spread(memory + me * slab, sums[p], lane);\n            __syncthreads();",
           "spread(memory + me * slab, sums[p], lane);", partial),
    Mutant(PARTIAL, "no barrier before the memory of the weight is written",
           "        __syncthreads();\n        for (int half", "        for (int half", partial),
    Mutant(PARTIAL, "neighbouring fours keep their places", "? k ^ (k >> 3 & 1) : k", "? k : k", partial),
    Mutant(PARTIAL, "sums of columns beyond the last", "&& first + lane * N < cols;", "&& first < cols;",
           alone),
    Mutant(BACKWARD, "a block per turn, whatever its partial sum costs",
           "if (worth < blocks) blocks = worth;", "", bytes_of_blocks, host=True),
    Mutant(BACKWARD, "a block for a part of a share, too", "shares = rows * cols / (SHARE / element_bytes);",
           "shares = ceil_div(rows * cols, SHARE / element_bytes);", bytes_of_blocks, host=True),
    Mutant(BACKWARD, "gradients at any element are written in packs",
           "blocks == 1 && aligned(dweight, 16) && aligned(dbias, 16);", "blocks == 1;", alone, host=True),
    Mutant(BACKWARD, "the last partial sums are left out", "for (int64_t i = slice; i < count; i += 8)",
           "for (int64_t i = slice; i < count - 1; i += 8)", reread),
    Mutant(BACKWARD, "a block's later rows overwrite its partial sums",
           "const bool first = row == blockIdx.x;", "const bool first = true;", many_rows),
]
