"""csrc/kernels/optimizer."""

import numpy as np

from cuda.nn.device import EmulatedDevice
from tests.device import test_counts as counts
from tests.device import test_optimizer as tests
from tests.device import test_repeatable as repeatable
from tests.mutants.device.workshop import Mutant, some_bits, without

ADAMW, NORM, EMBEDDING, PLAN = (f"kernels/optimizer/{name}" for name in (
    "adamw.cu", "norm.cu", "embedding.cu", "plan.cuh"))
NEEDS = ("array", "optimizer")
TRIMS = without("FLOAT16")
UNITS = {PLAN: NORM, "device/sum64.cuh": NORM}


def steps(device: EmulatedDevice) -> None:
    tests.test_pieces_and_places(device)
    tests.test_half_parameters_without_a_master(device)
    tests.test_one_array_off_16_bytes(device, 1)


def skipped(device: EmulatedDevice) -> None:
    for bad in ([np.nan], [3e38, 3e38]):
        tests.test_a_step_without_a_norm_is_skipped(device, bad)


def norm(device: EmulatedDevice) -> None:
    tests.test_global_norm(device, "float32")
    tests.test_squares_beyond_float32(device, 6)


def scatter(device: EmulatedDevice) -> None:
    tests.test_scatter_add(device, "float32", np.int32)


def long_lists(device: EmulatedDevice) -> None:
    tests.test_scatter_add_of_more_tokens_than_a_list(device)


def embedding(device: EmulatedDevice) -> None:
    tests.test_embedding(device, "bfloat16")
    tests.test_embedding_in_a_table_of_more_than_32_bits(device)


def same_bits(device: EmulatedDevice) -> None:
    repeatable.test_same_bits(device, some_bits(device), "scatter_add_forward", {})


def traffic(device: EmulatedDevice) -> None:
    counts.test_each_byte_is_moved_once(device, "gradient_norm_forward", "float32", {"counts": (24_576,)})


MUTANTS = [
    Mutant(ADAMW, "epsilon below the root", "__fadd_rn(__fmul_rn(sqrtf(v), s.correction), s.eps);",
           "__fmul_rn(sqrtf(__fadd_rn(v, s.eps)), s.correction);", steps),
    Mutant(ADAMW, "a multiplication contracted with an addition",
           "m = __fadd_rn(__fmul_rn(m, s.keep1), __fmul_rn(g, s.take1));", "m = m * s.keep1 + g * s.take1;",
           steps),
    Mutant(ADAMW, "no barrier behind the plan's entry", "    __syncthreads();\n    if (skipped) return;",
           "    if (skipped) return;", steps),
    Mutant(ADAMW, "fours from any address", "in_fours(tensor.grad, tensor.grad_dtype) &&", "true &&", steps),
    Mutant(NORM, "squares in float", "sum += double(four[j]) * four[j];", "sum += four[j] * four[j];", norm),
    Mutant(NORM, "clipped where there is no limit", "finite && max_norm > 0.0 && clip", "finite && clip",
           norm),
    Mutant(NORM, "NaN counts as finite", "const bool finite = found <= 3.4028234663852886e38;",
           "const bool finite = !(found > 3.4028234663852886e38);", skipped),
    Mutant(NORM, "what float32 cannot hold counts as finite",
           "const bool finite = found <= 3.4028234663852886e38;",
           "const bool finite = found <= 1.7976931348623157e308;", skipped),
    Mutant(PLAN, "the last chunk as long as the others", "min(work.start + CHUNK, work.tensor.count)",
           "work.start + CHUNK", norm),
    Mutant(NORM, "every gradient read twice", "sum += double(four[j]) * four[j];\n    }",
           "sum += double(four[j]) * four[j];\n    }\n    for (int64_t i = start + threadIdx.x; i < stop; i "
           "+= PLAN_THREADS) sum += 0.0 * load_one(x, i, dtype);", traffic),
    Mutant(EMBEDDING, "tokens summed in the order of the atomics",
           "before += unsorted[j] < unsorted[i];\n        list[before] = unsorted[i];",
           "before += unsorted[j] < unsorted[i];\n        list[i + 0 * before] = unsorted[i];", same_bits),
    Mutant(EMBEDDING, "rows outside are counted", "row >= 0 && row < rows ? atomicAdd(lists.counts + row, 1)",
           "row >= 0 ? atomicAdd(lists.counts + row, 1)", scatter),
    Mutant(EMBEDDING, "the start is not read", "if (inside && accumulate) load_floats",
           "if (inside && !accumulate) load_floats", scatter),
    Mutant(EMBEDDING, "no barrier before the warps' counts are read",
           "found[warp] = __popc(hits);\n        __syncthreads();", "found[warp] = __popc(hits);",
           long_lists),
    Mutant(EMBEDDING, "the table's rows in 32 bits", "load_global<N>(table + row * width + c)",
           "load_global<N>(table + static_cast<int32_t>(row * width) + c)", embedding),
]
