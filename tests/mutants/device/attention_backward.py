"""csrc/kernels/attention/backward*: half precision in the bucket of 64 columns, and float."""

from cuda.nn.device import EmulatedDevice
from tests.device import test_attention_backward as tests
from tests.device.test_attention_backward import Case
from tests.mutants.device.workshop import Mutant, without

MMA, SHARED, HOST, FLOAT, HALF = (f"kernels/attention/{name}" for name in (
    "backward_mma.cuh", "backward.cuh", "backward.cu", "backward_float.cu", "backward_half.cu"))
NEEDS = ("array", "attention")
UNITS = {MMA: HALF, SHARED: HALF}
TRIMS = [
    *without("BFLOAT16"),
    *((SHARED, f"    if (width <= {n}) return f(std::integral_constant<int, {n}>());\n", "")
      for n in (96, 128)),
    (SHARED, "    return f(std::integral_constant<int, 256>());",
     "    return f(std::integral_constant<int, 64>());"),
    (FLOAT, "    return keys ? launch<16, 8, true>(call, stream) : launch<16, 8, false>(call, stream);\n",
     '    return fail(NN_ERROR_UNSUPPORTED, "left out");\n'),
]


def halves(device: EmulatedDevice) -> None:
    tests.check(device, Case(70, 75, 64, window=30), "float16")
    tests.check(device, Case(40, 70, 48, heads=16, softcap=2.0), "float16")


def windows(device: EmulatedDevice) -> None:
    tests.check(device, Case(130, 130, 64, causal=False, groups=2), "float16")
    tests.check(device, Case(130, 140, 64, window=64), "float16")


def packed(device: EmulatedDevice) -> None:
    tests.test_packed_sequences(device, "float16")


def floats(device: EmulatedDevice) -> None:
    tests.check(device, Case(40, 50, 24, 40, window=9, softcap=2.0), "float32")
    tests.check(device, Case(20, 40, 16, batch=2, lengths=(30, 3), mask=(2, 2, 20, 40), hide=True), "float32")


MUTANTS = [
    Mutant(MMA, "waits for the stage before the one it reads",
           "            copy_async_wait<0>();\n            __syncthreads();\n",
           "            copy_async_wait<1>();\n            __syncthreads();\n", halves),
    Mutant(MMA, "rows beyond the sequence are copied, not zeroed", "                       there ? 16 : 0);",
           "                       16);", packed),
    Mutant(MMA, ".trans dropped", "            ldmatrix_x4_trans(b,", "            ldmatrix_x4(b,", halves),
    Mutant(MMA, "the next stage goes where this one is read", "load(head, tile, stage ^ 1);",
           "load(head, tile, stage);", halves),
    Mutant(SHARED, "a tile on the window's edge counts as inside", "&& j0 - (i1 - 1 + shift) >=",
           "&& j0 - (i0 + shift) >=", windows),
    Mutant(HOST, "delta summed over half the lanes", "warp_reduce<Sum, LANES>(sum)",
           "warp_reduce<Sum, LANES / 2>(sum)", halves),
    Mutant(FLOAT, "a tile is overwritten while others read it",
           "__syncthreads();                                             // the tile before", "//", floats),
    Mutant(FLOAT, "P and dS are read before all lanes wrote",
           "__syncwarp();                                                // a warp reads", "//", floats),
]
