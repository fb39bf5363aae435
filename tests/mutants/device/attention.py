"""csrc/kernels/attention: forward and decode, half precision in the bucket of 64 (128) columns, and float."""

from cuda.nn.device import EmulatedDevice
from tests.device import test_attention as tests
from tests.device import test_decode_attention as decode
from tests.device.test_attention import inputs
from tests.mutants.device.workshop import Mutant, without

FLASH, SHARED, MMA, HALF, FLOAT, DECODE, DECODE_MMA, DECODE_SHARED, CACHE = (
    f"kernels/attention/{name}" for name in (
        "flash.cuh", "problem.cuh", "forward_mma.cuh", "forward_half.cu", "forward_float.cu", "decode.cu",
        "decode_mma.cu", "decode.h", "cache.cu"))
NEEDS = ("array", "attention")
UNITS = {FLASH: HALF, SHARED: HALF, MMA: HALF, DECODE_SHARED: DECODE}
LEFT_OUT = 'fail(NN_ERROR_UNSUPPORTED, "left out")'
TRIMS = [
    *without("BFLOAT16"),
    (DECODE_MMA, ": launch<half, 256>(d, c, grid, blocks, stream);", f": {LEFT_OUT};"),
    (DECODE_MMA, "    return narrow ? launch<bfloat16, 128>(d, c, grid, blocks, stream)\n"
     "                  : launch<bfloat16, 256>(d, c, grid, blocks, stream);", f"    return {LEFT_OUT};"),
    *((MMA, f"    if (width <= {n}) return launch_forward_mma<T, {n}, false>(a, stream);\n", "")
      for n in (96, 128)),
    (MMA, "return launch_forward_mma<T, 256, false>(a, stream);", f"return {LEFT_OUT};"),
    (HALF, "launch_forward_mma<half, 64, true>(a, stream)", LEFT_OUT),
    (HALF, "launch_forward_mma<half, 128, true>(a, stream)", LEFT_OUT),
    (FLOAT, "return narrow ? launch<T, 1>(a, device, stream) : launch<T, 4>(a, device, stream)",
     f"return sizeof(T) == 4 ? launch<float, 1>(a, device, stream) : {LEFT_OUT}"),
]


def halves(device: EmulatedDevice) -> None:
    tests.check(device, "float16", inputs("float16", queries=70, keys=90, width=40), softcap=2.0)
    tests.check(device, "float16", inputs("float16", queries=5, keys=70, heads=4, groups=2))
    tests.check(device, "float16", inputs("float16", queries=30, keys=7))


def windows(device: EmulatedDevice) -> None:
    tests.check(device, "float16", inputs("float16", queries=70, keys=200, width=64), window=60)
    tests.check(device, "float16", inputs("float16", queries=150, keys=150, width=64), causal=False,
                window=20)


def lengths(device: EmulatedDevice) -> None:
    tests.test_packed_sequences(device, "float16")
    tests.test_key_lengths_from_device_memory(device, "float16")


def floats(device: EmulatedDevice) -> None:
    tests.check(device, "float32", inputs("float32", queries=70, keys=90, width=40, value_width=21))
    tests.check(device, "float32", inputs("float32", queries=30, keys=7))


def decoding(device: EmulatedDevice) -> None:
    decode.check(device, "float32", decode.inputs("float32", batch=3, heads=4, queries=3, capacity=600),
                 [600, 290, 5], window=300)
    decode.check(device, "float32", decode.inputs("float32", heads=1, capacity=70, width=40), [67])
    narrow = decode.inputs("float32", heads=3, capacity=30, width=7, value_width=5)
    decode.check(device, "float32", narrow, [21])


def decode_halves(device: EmulatedDevice) -> None:
    decode.check(device, "float16", decode.inputs("float16", heads=12, capacity=300, width=40), [299])
    decode.test_paged_equals_contiguous(device, "float16", 64)


def pages(device: EmulatedDevice) -> None:
    decode.test_paged_equals_contiguous(device, "float32", 64)


def far(device: EmulatedDevice) -> None:
    decode.test_pools_of_more_than_32_bits(device, "float32")


def decode_traffic(device: EmulatedDevice) -> None:
    decode.test_counts(device, "float32", 1)


MUTANTS = [
    Mutant(FLASH, "no barrier when V has landed",
           "__syncthreads();                                     // V is here, K has been used", "", halves),
    Mutant(FLASH, "no barrier when K has landed",
           "__syncthreads();                                     // K is here, V has been used", "", halves),
    Mutant(FLASH, "rows beyond the last key are copied",
           "bool inside = first + row < end && chunk < from.chunks;", "bool inside = chunk < from.chunks;",
           lengths),
    Mutant(FLASH, "the registers of K exchanged", "mma_16x8x16<T>(s[m][n + 1], a[m], b[2], b[3]);",
           "mma_16x8x16<T>(s[m][n + 1], a[m], b[3], b[2]);", halves),
    Mutant(FLASH, ".trans dropped", "from_v.load_transposed(b,", "from_v.load(b,", halves),
    Mutant(FLASH, "a tile on the diagonal counts as inside", "j0 + KEYS > all_to ||", "j0 >= all_to ||",
           halves),
    Mutant(FLASH, "a tile on the window's edge counts as inside", "if (j0 < all_from ||",
           "if (j0 + KEYS < all_from ||", windows),
    Mutant(SHARED, "a window one too wide", "first + i - window + 1)", "first + i - window)", windows),
    Mutant(FLOAT, "P is read before all lanes wrote",
           "            __syncwarp();\n        }\n        if (!layout.apart)",
           "        }\n        if (!layout.apart)", floats),
    Mutant(DECODE, "no barrier behind the scores", "= sum;\n        }\n    }\n    __syncthreads();\n",
           "= sum;\n        }\n    }\n", decoding),
    Mutant(DECODE, "pages in 32 bits", "table[row >> page_shift] * page_stride",
           "table[row >> page_shift] * static_cast<int32_t>(page_stride)", far),
    Mutant(CACHE, "a new key's page in 32 bits", "to += page * part.to_strides[0] +",
           "to += static_cast<int32_t>(page * part.to_strides[0]) +", far),
    Mutant(DECODE, "every lane reads what its neighbours read", "chunk += LANES_PER_KEY) {", "chunk += 1) {",
           decode_traffic),
    Mutant(DECODE_MMA, "rows beyond the last are stored", "            if (r >= at.rows) continue;\n", "",
           decode_halves),
]
