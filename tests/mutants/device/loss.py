"""csrc/kernels/loss."""

import numpy as np

from cuda.nn.device import EmulatedDevice
from nn.backends.device import loss as device_loss
from tests.device import test_counts as counts
from tests.device import test_loss as tests
from tests.mutants.device.workshop import Mutant, some_bits, without

CROSS, LINEAR, MEAN = (f"kernels/loss/{name}.cu" for name in ("cross_entropy", "linear", "mean"))
NEEDS = ("array", "loss", "gemm")
TRIMS = without("FLOAT16", "BFLOAT16")
UNITS: dict[str, str] = {}


def vocabularies(device: EmulatedDevice) -> None:
    for vocabulary in (7, 33, 1031):
        tests.test_vocabularies(device, "float32", vocabulary)


def extremes(device: EmulatedDevice) -> None:
    tests.test_extremes(device)
    tests.test_targets_outside_are_nan_and_read_nothing(device, np.int64)


def chunks(device: EmulatedDevice) -> None:
    tests.test_chunks_of_linear_cross_entropy(device, "float32")


def same_bits(device: EmulatedDevice) -> None:
    logits, targets = device.asarray(tests.draw("float32", 3, 1100)), tests.draw_targets(3, 1100)
    some_bits(device)(lambda: [x.numpy() for x in device_loss.cross_entropy(logits, targets)])


def means(device: EmulatedDevice) -> None:
    tests.test_means(device)
    tests.test_the_mean_over_no_token_is_0(device)
    tests.test_the_mean_of_equal_losses_is_that_loss(device)


def traffic(device: EmulatedDevice) -> None:
    counts.test_each_byte_is_moved_once(device, "cross_entropy_forward", "float32",
                                        {"rows": 4, "vocabulary": 8192})


MUTANTS = [
    Mutant(CROSS, "packs from the row's beginning, wherever it is",
           "head = int64_t((16 - (reinterpret_cast<uintptr_t>(row) & 15)) & 15) / int64_t(sizeof(T));",
           "head = 0;", vocabularies),
    Mutant(CROSS, "elements before the packs are left out",
           "float z[1] = {to_float(row[i < head ? i : i + packs * N])};",
           "float z[1] = {to_float(row[i + packs * N < count ? i + packs * N : i])};", vocabularies),
    Mutant(CROSS, "the sum keeps its old maximum", "exponentials = exponentials * expf(top - base) + more;",
           "exponentials += more;", vocabularies),
    Mutant(CROSS, "a row's sum by atomics",
           "const float log_sum = logf(row_reduce<Sum>(seen.exponentials * expf(seen.top - base), scratch));",
           "__shared__ float all;\n    if (threadIdx.x == 0) all = 0.0f;\n    __syncthreads();\n    "
           "atomicAdd(&all, seen.exponentials * expf(seen.top - base));\n    __syncthreads();\n    const "
           "float log_sum = logf(all);", same_bits),
    Mutant(CROSS, "softcap without its derivative",
           "        if (softcap != 0.0f) dz *= 1.0f - (z / softcap) * (z / softcap);\n", "", vocabularies),
    Mutant(CROSS, "a target outside is read", "if (target >= 0 && target < count) {", "if (target < count) {",
           extremes),
    Mutant(CROSS, "the row's logits read twice",
           "    const int64_t single = count - packs * N;                    // before",
           "    for (int64_t p = threadIdx.x; p < packs; p += blockDim.x) {\n        const Pack<T, N> pack "
           "= load_global<N>(row + head + p * N);\n        if (to_float(pack[0]) > 1e38f) seen.total += "
           "1.0f;\n    }\n    const int64_t single = count - packs * N;                    // before",
           traffic),
    Mutant(LINEAR, "every chunk overwrites dweight", "start > 0 || whole.accumulate", "whole.accumulate",
           chunks, host=True),
    Mutant(LINEAR, "an accumulated dweight is overwritten", "start > 0 || whole.accumulate", "start > 0",
           chunks, host=True),
    Mutant(LINEAR, "targets of the first chunk for all",
           "shifted(whole.targets, start * dtype_bytes(whole.target_dtype))", "whole.targets", chunks,
           host=True),
    Mutant(MEAN, "sums in float", "__shared__ double scratch[32];\n    double total = 0.0, number = 0.0;",
           "__shared__ float scratch[32];\n    float total = 0.0f, number = 0.0f;", means),
    Mutant(MEAN, "the mean over no token is NaN", "*mean = number > 0.0 ? float(total / number) : 0.0f;",
           "*mean = float(total / number);", means),
]
