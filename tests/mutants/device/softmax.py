"""csrc/kernels/softmax."""

from cuda.nn.device import EmulatedDevice
from tests.device import test_counts as counts
from tests.device import test_softmax as tests
from tests.mutants.device.workshop import Mutant, without

FORWARD, BACKWARD = "kernels/softmax/forward.cu", "kernels/softmax/backward.cu"
NEEDS = ("array", "softmax")
TRIMS = without("FLOAT16", "BFLOAT16")
UNITS = {"device/reduce.cuh": FORWARD}


def rows(device: EmulatedDevice) -> None:
    for cols in (64, 65):
        tests.test_every_path(device, 9, cols, tests.ROWS, "aligned")


def kept(device: EmulatedDevice) -> None:
    tests.test_every_path(device, 3, 257, tests.KEPT, "aligned")


def split(device: EmulatedDevice) -> None:
    tests.test_every_path(device, 1, 16132, tests.FINISH, "aligned")


def causal(device: EmulatedDevice) -> None:
    tests.test_causal(device, 6, 7, 3, 2, "aligned")
    tests.test_causal(device, 3, 300, 3, 170, "aligned")


def extremes(device: EmulatedDevice) -> None:
    for cols in (64, 300):
        tests.test_extremes(device, cols)


def traffic(device: EmulatedDevice) -> None:
    counts.test_each_byte_is_moved_once(device, "softmax_backward", "float32", {"rows": 4, "cols": 4096})


def triangle(device: EmulatedDevice) -> None:
    for sizes in counts.CAUSAL[1:]:
        counts.test_each_byte_is_moved_once(device, "softmax_causal_forward", "float32", sizes)


MUTANTS = [
    Mutant(FORWARD, "rows beyond the last are stored",
           "if (row >= rows || p * step >= cols - lane * N) break;",
           "if (p * step >= cols - lane * N) break;", rows),
    Mutant(FORWARD, "the largest of a row is not subtracted", "const float shifted = v[p][j] - largest,",
           "const float shifted = v[p][j],", extremes),
    Mutant(FORWARD, "a row that sees nothing divides by 0", "const float one = sum == 0.0f ? 1.0f : sum,",
           "const float one = sum,", extremes),
    Mutant(FORWARD, "the diagonal is hidden", "(device_offset ? *device_offset : 0) + 1;",
           "(device_offset ? *device_offset : 0);", causal),
    Mutant(FORWARD, "the offset in device memory is not read", "(device_offset ? *device_offset : 0) + 1;",
           "1;", causal),
    Mutant(FORWARD, "packs that a row does not see are loaded", "if (p * step < left) packs[p] =",
           "if (row < rows && p * step < cols - lane * N) packs[p] =", triangle),
    Mutant(FORWARD, "a long row is read to its end, whatever it sees",
           "        for (int c = threadIdx.x * N; c < end; c += step) {\n            Pack<T, N> pack =",
           "        for (int c = threadIdx.x * N; c < cols; c += step) {\n            Pack<T, N> pack =",
           triangle),
    Mutant(FORWARD, "a sum is not rescaled when its maximum rises",
           "    s.sum *= exp_fast(s.largest - largest);\n", "", split),
    Mutant("device/reduce.cuh", "no barrier before the block's sum is read",
           "    if (lane == 0) scratch[warp] = x;\n    __syncthreads();\n",
           "    if (lane == 0) scratch[warp] = x;\n", kept),
    Mutant("device/reduce.cuh", "no barrier before the scratch is used again", "op);\n    __syncthreads();\n",
           "op);\n", kept),
    Mutant(BACKWARD, "the last part of a row summed as a whole one",
           "        const int64_t end = begin + CHUNK < cols ? begin + CHUNK : cols;\n        float sum = "
           "0.0f;\n#pragma unroll 2",
           "        const int64_t end = begin + CHUNK;\n        float sum = 0.0f;\n#pragma unroll 2", split),
    Mutant(BACKWARD, "y read again for every element", "load_pack<N>(kept_dy + c), load_pack<N>(kept_y + c)",
           "load_pack<N>(kept_dy + c), load_pack<N>(y + begin + c)", traffic),
]
