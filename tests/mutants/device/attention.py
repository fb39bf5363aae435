"""csrc/kernels/attention, the forward: half precision in the bucket of 64 columns, and float."""

from typing import Any

import numpy as np

from cuda.nn.device import EmulatedDevice
from tests.device import test_attention as tests
from tests.device.attention_cases import accurate, visible
from tests.device.test_attention import forward, inputs
from tests.mutants.device.workshop import Mutant

FLASH, SHARED = "kernels/attention/flash.cuh", "kernels/attention/problem.cuh"
MMA, FLOAT = "kernels/attention/forward_mma.cuh", "kernels/attention/forward_float.cu"
HALF, HOST = "kernels/attention/forward_half.cu", "kernels/attention/forward.cu"

SOURCES = ("attention/forward.cu", "attention/forward_half.cu", "attention/forward_float.cu")
TRIMS = [
    (MMA, "    if (width <= 32) return launch_forward_mma<T, 32, false>(a, stream);\n", ""),
    (MMA, "    if (width <= 64) return launch_forward_mma<T, 64, false>(a, stream);\n", ""),
    (MMA, "    if (width <= 96) return launch_forward_mma<T, 96, false>(a, stream);\n", ""),
    (MMA, "    if (width <= 128) return launch_forward_mma<T, 128, false>(a, stream);\n", ""),
    (MMA, "return launch_forward_mma<T, 256, false>(a, stream);",
     "return launch_forward_mma<T, 64, false>(a, stream);"),
    (HALF, "launch_forward_mma<half, 64, true>(a, stream)", "int(NN_ERROR_UNSUPPORTED)"),
    (HALF, "launch_forward_mma<half, 128, true>(a, stream)", "int(NN_ERROR_UNSUPPORTED)"),
    (HOST, "nn::launch_forward_bfloat16(a, device, nn::native(stream))", "int(NN_ERROR_UNSUPPORTED)"),
    (FLOAT, "return narrow ? launch<T, 1>(a, device, stream) : launch<T, 4>(a, device, stream)",
     "return sizeof(T) == 4 ? launch<float, 1>(a, device, stream) : NN_ERROR_UNSUPPORTED"),
]
CASES: list[tuple[dict[str, Any], dict[str, Any]]] = [
    ({"queries": 70, "keys": 90, "width": 40}, {"softcap": 2.0}),
    ({"queries": 70, "keys": 200, "width": 64}, {"window": 60}),
    ({"queries": 150, "keys": 150, "width": 64}, {"causal": False, "window": 20}),
    ({"queries": 5, "keys": 70, "heads": 4, "groups": 2}, {}), ({"queries": 30, "keys": 7}, {}),
]


def check(device: EmulatedDevice) -> None:
    for dtype in ("float16", "float32"):
        for sizes, options in CASES:
            tests.check(device, dtype, inputs(dtype, **sizes), **options)
            assert not device.reports()
        mask = np.random.default_rng(0).random((2, 1, 20, 70)) < 0.5
        tests.check(device, dtype, inputs(dtype, batch=2, queries=20, keys=70), mask=mask)
        tests.test_packed_sequences(device, dtype)
        tests.test_key_lengths_from_device_memory(device, dtype)
    same_bits(device)
    no_conflicts(device)


def same_bits(device: EmulatedDevice) -> None:
    arrays = inputs("float16", queries=70, keys=90)
    bits = []
    for schedule, seed in (("forward", 0), ("reverse", 0), ("random", 1)):
        device.configure(schedule=schedule, seed=seed)
        bits.append([x.tobytes() for x in forward(device, *arrays, scale=0.25)])
    device.configure()
    assert bits[0] == bits[1] == bits[2], "other bits under another schedule"


def no_conflicts(device: EmulatedDevice) -> None:
    q, k, v = inputs("float16", queries=64, keys=64, width=64)
    device.configure(count=1)
    device.clear()
    o, lse = forward(device, q, k, v, scale=0.125)
    accurate("float16", o, lse, q, k, v, visible(64, 64), scale=0.125)
    for kernel, counts in device.counters().items():
        assert counts.bank_wavefronts == counts.ideal_wavefronts, f"bank conflicts in {kernel}"
    device.configure()


MUTANTS = [
    Mutant(FLASH, "no barrier when V has landed",
           "__syncthreads();                                     // V is here", "//"),
    Mutant(FLASH, "no barrier when K has landed",
           "__syncthreads();                                     // K is here", "//"),
    Mutant(FLASH, "a copy is not waited for", "            copy_async_wait<0>();\n        }\n    }",
           "        }\n    }"),
    Mutant(FLASH, "rows beyond the last key are copied",
           "source,\n                               inside ? 16 : 0);", "source, 16);"),
    Mutant(FLASH, "fragments of K in another order", "mma_16x8x16<T>(s[m][n + 1], a[m], b[2], b[3]);",
           "mma_16x8x16<T>(s[m][n + 1], a[m], b[3], b[2]);"),
    Mutant(FLASH, ".trans dropped", "from_v.load_transposed(b,", "from_v.load(b,"),
    Mutant(FLASH, "P packed in another order", "pack_halves<T>(s[m][2 * k + e / 2][e % 2 * 2],",
           "pack_halves<T>(s[m][2 * k + e % 2][e / 2 * 2],"),
    Mutant(FLASH, "the sum is not rescaled", "sum[m][side] = fmaf(sum[m][side], factor[side], total);",
           "sum[m][side] += total;"),
    Mutant(FLASH, "o is not rescaled", "o[m][n][e] *= factor[e / 2];", "o[m][n][e] *= 1.0f;"),
    Mutant(FLASH, "the maximum of half a row", "now = fmaxf(now, __shfl_xor_sync(ALL_LANES, now, 2));\n", ""),
    Mutant(FLASH, "a tile on the diagonal counts as inside", "j0 + KEYS > all_to ||", "j0 >= all_to ||"),
    Mutant(FLASH, "a tile on the window's edge counts as inside", "if (j0 < all_from ||",
           "if (j0 + KEYS < all_from ||"),
    Mutant(SHARED, "the diagonal is hidden", "causal ? first + i + 1 :", "causal ? first + i :"),
    Mutant(SHARED, "a window one too wide", "first + i - window + 1)", "first + i - window)"),
    Mutant(SHARED, "lengths on the device are not read", "if (a.key_lengths) s.keys", "if (false) s.keys"),
    Mutant(SHARED, "packed sequences with a batch stride",
           "(a.cu_queries ? first * strides[2] : b * strides[0])",
           "(first * strides[2] + b * strides[0])"),
    Mutant(MMA, "rows beyond the last query are stored", "if (row + r >= rows || chunk", "if (chunk"),
    Mutant(MMA, "lse in base 2", "(t.largest[m][side] + log2f(sum)) * LN_2;",
           "(t.largest[m][side] + log2f(sum));"),
    Mutant(MMA, "a row that sees nothing has a finite lse", "sum == 0.0f ? -INFINITE : (t.", "(t."),
    Mutant(FLOAT, "P is read before all lanes wrote",
           "            __syncwarp();\n        }\n        if (!layout.apart)",
           "        }\n        if (!layout.apart)"),
    Mutant(FLOAT, "the largest of half a row", "warp_reduce<Max, 16>", "warp_reduce<Max, 8>"),
    Mutant(FLOAT, "columns beyond the width are stored", "if (column + e < value_width) line",
           "if (true) line"),
]
