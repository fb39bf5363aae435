"""csrc/kernels/moe: the plan, rows there and back, experts' products on tensor cores and by FFMA, losses."""

import numpy as np

from cuda.nn.device import EmulatedDevice
from tests.device import test_moe_grouped as grouped
from tests.device import test_moe_losses as auxiliary
from tests.device import test_moe_plan as plan
from tests.device import test_moe_rows as moved
from tests.mutants.device.workshop import Mutant, some_bits, without

PLAN, PERMUTE, MMA, FFMA, GROUPED, PATHS, LOSSES = (
    f"kernels/moe/{name}" for name in ("plan.cu", "permute.cu", "grouped_mma.cu", "grouped_ffma.cu",
                                       "grouped.cuh", "grouped.cu", "losses.cu"))
NEEDS = ("array", "moe", "elementwise")
UNITS = {GROUPED: MMA}
TRIMS = [
    *without("FLOAT16"),
    (MMA, "return dtype == NN_FLOAT16 ? launch_product<half>(call, product, stream)\n"
     "                               : launch_product<bfloat16>", "return launch_product<bfloat16>"),
    (MMA, "    return launch_rows<LongTile<T>>(call, product, stream);\n",
     '    return fail(NN_ERROR_UNSUPPORTED, "left out");\n'),
]


def rng() -> np.random.Generator:
    return np.random.default_rng(1)


def plans(device: EmulatedDevice) -> None:
    for tokens, choices, experts, pattern in ((37, 2, 4, "dropped"), (300, 1, 7, "backwards"),
                                              (1024, 2, 64, "any")):
        plan.test_plan(device, rng(), tokens, choices, experts, pattern, "int64")
    plan.test_what_is_no_expert_is_dropped(device)


def long_plans(device: EmulatedDevice) -> None:
    plan.test_plan(device, rng(), 4097, 1, 3, "dropped", "int32")


def many_experts(device: EmulatedDevice) -> None:
    plan.test_plan(device, rng(), 40, 8, 1024, "any", "int64")


def plan_bits(device: EmulatedDevice) -> None:
    plan.test_plan_under_any_schedule(device, some_bits(device), rng(), 600, 5)


def rows(device: EmulatedDevice) -> None:
    for width in (33, 264):
        moved.test_rows_there_and_back(device, rng(), "float32", 9, 2, width)
    moved.test_rows_that_are_not_aligned(device, rng(), "float32")
    moved.test_wide_rows(device, rng(), "float32")


def products(device: EmulatedDevice) -> None:
    for case in ("uneven", "all-dropped", "sixty-four"):
        grouped.test_grouped_linear(device, rng(), "bfloat16", case)
    grouped.test_gathered_rows_are_dispatched_rows(device, rng(), "bfloat16")


def paths(device: EmulatedDevice) -> None:
    grouped.test_which_path(device)


def swiglu(device: EmulatedDevice) -> None:
    grouped.test_swiglu_in_the_same_launch(device, rng(), "bfloat16", 50, 24, 40)


def floats(device: EmulatedDevice) -> None:
    for case in ("odd-widths", "whole-quads"):
        grouped.test_grouped_linear(device, rng(), "float32", case)


def losses(device: EmulatedDevice) -> None:
    auxiliary.test_balance_loss(device, rng(), 130, 33, 4)
    auxiliary.test_z_loss(device, rng(), 65, 8, 2)
    auxiliary.test_extreme_logits(device)


MUTANTS = [
    Mutant(PLAN, "an expert one too high is no drop", "e < 0 || e > num_experts ? num_experts",
           "e > num_experts ? num_experts", plans),
    Mutant(PLAN, "lanes of an expert in the order of atomics",
           "rank[i] = seen + __popc(before);\n        __syncwarp();\n        if (expert[i] >= 0 && before "
           "== 0) mine[expert[i]] = seen + __popc(peers);",
           "rank[i] = expert[i] >= 0 ? atomicAdd(&mine[expert[i]], 1u) : 0;\n        __syncwarp();",
           plan_bits),
    Mutant(PLAN, "no warp barrier before the count is raised",
           "        rank[i] = seen + __popc(before);\n        __syncwarp();\n",
           "        rank[i] = seen + __popc(before);\n", plans),
    Mutant(PLAN, "no barrier before the scan's scratch is used again",
           "        all += part;\n    }\n    __syncthreads();\n", "        all += part;\n    }\n",
           many_experts),
    Mutant(PLAN, "every chunk begins at its expert's first row",
           "base[bin] += counts[static_cast<int64_t>(bin) * gridDim.x + blockIdx.x];", "base[bin] += 0;",
           long_plans),
    Mutant(PERMUTE, "weights of the first choice", "weights ? weights[n * choices + k] : 1.0f",
           "weights ? weights[n * choices] : 1.0f", rows),
    Mutant(GROUPED, "the dropped rows belong to the last expert", "found->expert = base + owner;",
           "found->expert = min(base + owner, call.num_experts - 1);", products),
    Mutant(GROUPED, "a tile reaches into the next group",
           "min(found->first + ROWS, __shfl_sync(ALL_LANES, end, owner));",
           "min(found->first + ROWS, call.rows);", products),
    Mutant(PATHS, "an output width of any size", "return type && inputs % 8 == 0 && outputs % 8 == 0;",
           "return type && inputs % 8 == 0;", paths, host=True),
    Mutant(MMA, "gate and up exchanged", "(r % Tile::WN < HALF ? at : half + at)",
           "(r % Tile::WN < HALF ? half + at : at)", swiglu),
    Mutant(MMA, "columns behind the width from the next expert", "r % HALF, half - 1);",
           "r % HALF, 2 * half + 1000);", swiglu),
    Mutant(FFMA, "elements behind k are summed", "const int64_t valid = row[j] ? length - at : 0;",
           "const int64_t valid = row[j] ? 4 : 0;", floats),
    Mutant(LOSSES, "shares of tokens, not of pairs", "static_cast<float>(max(pairs, int64_t(1)))",
           "static_cast<float>(max(tokens, int64_t(1)))", losses),
    Mutant(LOSSES, "no barrier before the warps' sums are read",
           "        by_warp[warp][lane] = sum;\n        __syncthreads();\n",
           "        by_warp[warp][lane] = sum;\n", losses),
]
