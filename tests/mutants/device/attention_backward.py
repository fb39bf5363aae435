"""csrc/kernels/attention/backward*: half precision in the bucket of 64 columns, and float."""

from typing import Any

import numpy as np

from cuda.nn.device import EmulatedDevice
from tests.device.test_attention_backward import Case, Problem, judge, problem, run
from tests.device.test_attention_backward import check as compare
from tests.mutants.device.workshop import Mutant

MMA, SHARED = "kernels/attention/backward_mma.cuh", "kernels/attention/backward.cuh"
HOST, FLOAT = "kernels/attention/backward.cu", "kernels/attention/backward_float.cu"

SOURCES = ("attention/backward.cu", "attention/backward_half.cu", "attention/backward_float.cu")
TRIMS = [
    (SHARED, "    if (width <= 32) return f(std::integral_constant<int, 32>());\n", ""),
    (SHARED, "    if (width <= 64) return f(std::integral_constant<int, 64>());\n", ""),
    (SHARED, "    if (width <= 96) return f(std::integral_constant<int, 96>());\n", ""),
    (SHARED, "    if (width <= 128) return f(std::integral_constant<int, 128>());\n", ""),
    (SHARED, "    return f(std::integral_constant<int, 256>());",
     "    return f(std::integral_constant<int, 64>());"),
    (HOST, ": launch_mma<bfloat16>(call, keys, device, stream)", ": NN_ERROR_UNSUPPORTED"),
    (FLOAT, "    return keys ? launch<16, 8, true>(call, stream) : launch<16, 8, false>(call, stream);\n",
     "    return NN_ERROR_UNSUPPORTED;\n"),
]
CASES = [
    (Case(70, 75, 64, window=30), "float16"), (Case(40, 70, 48, heads=16, softcap=2.0), "float16"),
    (Case(130, 130, 64, causal=False, groups=2), "float16"), (Case(130, 140, 64, window=64), "float16"),
    (Case(20, 80, 64, batch=2, lengths=(5, 70), mask=(2, 2, 20, 80), hide=True), "float16"),
    (Case(40, 50, 24, 40, window=9, softcap=2.0), "float32"),
    (Case(20, 40, 16, batch=2, lengths=(30, 3), mask=(2, 2, 20, 40), hide=True), "float32"),
]


def check(device: EmulatedDevice) -> None:
    for case, dtype in CASES:
        compare(device, case, dtype)
        assert not device.reports()
    for dtype in ("float16", "float32"):
        packed(device, dtype)
    same_bits(device)
    no_conflicts(device)


def packed(device: EmulatedDevice, dtype: str) -> None:
    parts = [problem(Case(n, n + 4, 16, heads=4, groups=2, window=5), dtype, n) for n in (40, 3)]
    starts = {"cu_queries": np.array([0, 40, 43], np.int32), "cu_keys": np.array([0, 44, 51], np.int32)}
    options: dict[str, Any] = parts[0].options | starts | {"batch": 2, "queries": 40, "keys": 44}
    inputs = [np.concatenate(both, axis=2) for both in zip(*(p.inputs for p in parts), strict=True)]
    found = run(device, Problem(inputs, options, [], [], dtype))
    for i, p in enumerate(parts):
        rows = [slice(*starts[name][i : i + 2]) for name in ("cu_queries", "cu_keys", "cu_keys")]
        judge(p, [x[:, :, at] for x, at in zip(found, rows, strict=True)])


def same_bits(device: EmulatedDevice) -> None:
    p = problem(Case(70, 70, 64, heads=9), "float16")
    bits = []
    for schedule, seed in (("forward", 0), ("reverse", 0), ("random", 1)):
        device.configure(schedule=schedule, seed=seed)
        bits.append([x.tobytes() for x in run(device, p)])
    device.configure()
    assert bits[0] == bits[1] == bits[2], "other bits under another schedule"


def no_conflicts(device: EmulatedDevice) -> None:
    device.configure(count=1)
    device.clear()
    run(device, problem(Case(64, 64, 64, causal=False), "float16"))
    for kernel, counts in device.counters().items():
        assert counts.bank_wavefronts == counts.ideal_wavefronts, f"bank conflicts in {kernel}"
    device.configure()


MUTANTS = [
    Mutant(MMA, "no barrier before a stage is read",
           "            copy_async_wait<0>();\n            __syncthreads();\n",
           "            copy_async_wait<0>();\n"),
    Mutant(MMA, "waits for the stage before the one it reads",
           "            copy_async_wait<0>();\n            __syncthreads();\n",
           "            copy_async_wait<1>();\n            __syncthreads();\n"),
    Mutant(MMA, "rows beyond the sequence are copied, not zeroed", "                       there ? 16 : 0);",
           "                       16);"),
    Mutant(MMA, ".trans dropped", "            ldmatrix_x4_trans(b,", "            ldmatrix_x4(b,"),
    Mutant(MMA, "fragments of B in another order", "mma_16x8x16<T>(s[m][n + 1], a[m], b[2], b[3]);",
           "mma_16x8x16<T>(s[m][n + 1], a[m], b[3], b[2]);"),
    Mutant(MMA, "rows and columns of B's addresses exchanged",
           "const int row = first + 8 * n + lane % 8 + lane / 16 * 8;",
           "const int row = first + 8 * n + lane % 8 + lane / 8 % 2 * 8;"),
    Mutant(MMA, "accumulators packed in another order",
           "pack_halves<T>(a[m][k + i / 2][i % 2 * 2], a[m][k + i / 2][i % 2 * 2 + 1])",
           "pack_halves<T>(a[m][k + i % 2][i / 2 * 2], a[m][k + i % 2][i / 2 * 2 + 1])"),
    Mutant(MMA, "dK from dO instead of Q", "accumulate<T, D>(out1, dp, one,",
           "accumulate<T, D>(out1, dp, two,"),
    Mutant(MMA, "the next stage goes where this one is read", "load(head, tile, stage ^ 1);",
           "load(head, tile, stage);"),
    Mutant(MMA, "every query head of a group is the first", "tile = 0, head++;", "tile = 0;"),
    Mutant(MMA, "the mask of the group's first head for all", "(query_head + head) * call.mask_head;",
           "query_head * call.mask_head;"),
    Mutant(MMA, "statistics of the first stage", "statistics + stage * STREAMED + c;", "statistics + c;"),
    Mutant(MMA, "lse and delta exchanged", "two[i % 2].y;", "two[i % 2].x;"),
    Mutant(MMA, "softcap without its derivative", "CAPPED ? ds * fmaf(-x, x, 1.0f) : ds;", "ds;"),
    Mutant(MMA, "rows beyond the sequence are stored", "        if (row < valid && 8 * chunk < width)",
           "        if (8 * chunk < width)"),
    Mutant(MMA, "staged rows are read before all lanes wrote", "    __syncwarp();\n    for (int i = lane;",
           "    for (int i = lane;"),
    Mutant(MMA, "no mask without a keep-mask", "if (!sight.all(i0, i1, j0, j1)) hide",
           "if (sight.mask) hide"),
    Mutant(MMA, "dK without the scale", "valid, call.width - column, owned1, out1, call.scale);",
           "valid, call.width - column, owned1, out1, 1.0f);"),
    Mutant(MMA, "splits overlap by a step", "all * (piece.split + 1) / call.splits",
           "min(all, all * (piece.split + 1) / call.splits + 1)"),
    Mutant(MMA, "no swizzle", "swizzle<2 * D>(row, chunk)", "(row * 2 * D + 16 * chunk)"),
    Mutant(SHARED, "the diagonal is hidden", "distance <= call.ahead\n", "distance < call.ahead\n"),
    Mutant(SHARED, "keys beyond the length are seen", "return i < queries && j < keys && distance",
           "return i < queries && distance"),
    Mutant(SHARED, "a tile on the window's edge counts as inside", "&& j0 - (i1 - 1 + shift) >=",
           "&& j0 - (i0 + shift) >="),
    Mutant(SHARED, "the last tile before the window is skipped", "r1 + sight.call.behind - sight.shift",
           "r1 + sight.call.behind - sight.shift - 64"),
    Mutant(SHARED, "lengths on the device are not read", "if (call.key_lengths) keys", "if (false) keys"),
    Mutant(SHARED, "queries aligned at the top left", "shift(keys - queries)", "shift(0)"),
    Mutant(SHARED, "all splits do the first one's work", "split = index % splits;", "split = 0;"),
    Mutant(HOST, "lse not in base 2", "INFINITY : lse * factor", "INFINITY : lse"),
    Mutant(HOST, "rows that are not there are read", "there ? call.value_width : 0, packs",
           "call.value_width, packs"),
    Mutant(HOST, "delta summed over half the lanes", "warp_reduce<Sum, LANES>(sum)",
           "warp_reduce<Sum, LANES / 2>(sum)"),
    Mutant(HOST, "the first split is left out", "for (int split = 0; split < call.splits; split++) {",
           "for (int split = 1; split < call.splits; split++) {"),
    Mutant(HOST, "packed sequences with a batch stride", "packed ? 0 : strides[0]", "strides[0]"),
    Mutant(HOST, "causal or not is the same", "call.ahead = a.causal ? 0 : windowed",
           "call.ahead = windowed"),
    Mutant(FLOAT, "a tile is overwritten while others read it",
           "__syncthreads();                                             // the tile before", "//"),
    Mutant(FLOAT, "P and dS are read before all lanes wrote",
           "__syncwarp();                                                // a warp reads", "//"),
    Mutant(FLOAT, "statistics beyond the sequence", "i < 2 * there ?", "i < 2 * STREAMED ?"),
    Mutant(FLOAT, "dS of hidden keys", "visible ? p * (dp[i] - delta) * slope : 0.0f;",
           "expf(x - lse) * (dp[i] - delta) * slope;"),
    Mutant(FLOAT, "columns beyond the width are stored", "            if (r < valid && c < width) out",
           "            if (r < valid) out"),
]
