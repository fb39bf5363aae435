"""csrc/kernels/gemm/wgmma.cuh: who fills and reads a stage and when, operands, places, the end."""

from cuda.nn.device import EmulatedDevice
from tests.device import test_gemm_wgmma as tests
from tests.mutants.device.workshop import Mutant

ARCH = "sm_90a"
MAIN, PRODUCTS, BARRIERS = "kernels/gemm/wgmma.cuh", "device/wgmma.cuh", "device/mbarrier.cuh"
BF16, TF32 = "kernels/gemm/wgmma_bf16_sm90a.cu", "kernels/gemm/wgmma_tf32_sm90a.cu"
NEEDS = ("array", "gemm")
UNITS = {MAIN: BF16, PRODUCTS: BF16, BARRIERS: BF16}
TRIMS = [(MAIN, "return launch_wgmma_tile<WideWgmmaTile<T>>(p, device, stream);",
          'return fail(NN_ERROR_UNSUPPORTED, "left out");')]


def shapes(device: EmulatedDevice) -> None:
    for flags in (tests.NT, tests.NN, tests.TN):
        tests.test_any_shape(device, "bfloat16", flags, 131, 75, 45)


def long_sums(device: EmulatedDevice) -> None:
    tests.test_long_sums_go_round_the_ring(device, "bfloat16")


def batches(device: EmulatedDevice) -> None:
    tests.test_operands_may_be_the_same_for_the_whole_batch(device, tests.NT)


def splits(device: EmulatedDevice) -> None:
    tests.test_splits(device, "bfloat16", 2)


def tf32(device: EmulatedDevice) -> None:
    tests.test_floats_are_rounded_to_tf32(device)


MUTANTS = [
    Mutant(MAIN, "a stage is waited for before it was ever read",
           "barrier_wait(ring.empty + at.stage, at.phase ^ 1);",
           "barrier_wait(ring.empty + at.stage, at.phase);", shapes),
    Mutant(MAIN, "a stage is filled while it is read", "barrier_wait(ring.empty + at.stage, at.phase ^ 1);",
           "", long_sums),
    Mutant(MAIN, "a stage is read before it is full", "barrier_wait(ring.full + at.stage, at.phase);", "",
           shapes),
    Mutant(MAIN, "the bytes of B are not waited for", "barrier_expect(full, Tile::STAGE_BYTES);",
           "barrier_expect(full, Tile::A_BYTES);", shapes),
    Mutant(MAIN, "a stage is released before its products have read it", "wgmma_wait<1>(); ",
           "wgmma_wait<2>(); ", long_sums),
    Mutant(MAIN, "the last products are not waited for", "    wgmma_wait<0>();\n    wgmma_settle",
           "    wgmma_settle", shapes),
    Mutant(MAIN, "a warp of each warpgroup speaks for all", "barrier_init(empty + i, 4 * Tile::READERS);",
           "barrier_init(empty + i, Tile::READERS);", long_sums),
    Mutant(MAIN, "no fence before the products", "    wgmma_fence();\n#pragma", "#pragma", shapes),
    Mutant(MAIN, "the columns beyond 64 are the first 64", "first + 64 * i, k, z", "first, k, z", shapes),
    Mutant(MAIN, "every split begins at 0", "int k = static_cast<int>(place.k_begin); k < k_end;",
           "int k = 0; k < k_end;", splits),
    Mutant(MAIN, "one matrix for all taken for a batch", "z_b = p.stride_b ? z : 0;", "z_b = z;", batches),
    Mutant(MAIN, "warps share a part", "parts + warp * Tile::PART_BYTES", "parts", shapes),
    Mutant(MAIN, "floats are not rounded to tf32", "SIZE == 4 ? CU_TENSOR_MAP_DATA_TYPE_TFLOAT32 ",
           "SIZE == 4 ? CU_TENSOR_MAP_DATA_TYPE_FLOAT32 ", tf32, TF32, host=True),
    Mutant(PRODUCTS, "boxes 128 bytes apart", "LEADING = SWIZZLED_BOX / 16", "LEADING = 128 / 16", shapes),
    Mutant(PRODUCTS, "the next 32 bytes of k lie as across k", "(ALONG_K ? 32 : 16 * 128) / 16",
           "16 * 128 / 16", shapes),
    Mutant(PRODUCTS, "B stored as A is", '"n"(A_ALONG_K ? 0 : 1), "n"(B_ALONG_K ? 0 : 1)',
           '"n"(A_ALONG_K ? 0 : 1), "n"(A_ALONG_K ? 0 : 1)', shapes),
    Mutant(BARRIERS, "the second round has the phase of the first", "stage = 0, phase ^= 1;", "stage = 0;",
           long_sums),
]
