"""csrc/kernels/norm."""

from cuda.nn.device import EmulatedDevice
from tests.device import test_norm as tests
from tests.mutants.device.workshop import Mutant, without

FORWARD, BACKWARD, PLAN = (f"kernels/norm/{name}" for name in ("forward.cu", "backward.cu", "plan.cuh"))
NEEDS = ("array", "norm")
TRIMS = without("FLOAT16")
UNITS = {PLAN: FORWARD}


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
    Mutant(BACKWARD, "groups add to the partial sum at once",
           "        __syncthreads();\n        if (me != turn || !writes) continue;",
           "        if (me != turn || !writes) continue;", rows),
    Mutant(BACKWARD, "the last partial sums are left out", "for (int64_t i = slice; i < count; i += 8)",
           "for (int64_t i = slice; i < count - 1; i += 8)", reread),
    Mutant(BACKWARD, "a block's later rows overwrite its partial sums",
           "const bool first = row == blockIdx.x;", "const bool first = true;", many_rows),
]
