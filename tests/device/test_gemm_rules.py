"""Matrix products: refusals, choices, and counts of bytes, sectors, conflicts, tensor work."""

import itertools
import subprocess
from ctypes import byref, c_int64, memmove, sizeof
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from cuda.nn import build, products
from cuda.nn.device import EmulatedDevice
from cuda.nn.emulator.counters import KernelCounters
from cuda.nn.errors import DeviceArgumentError, UnsupportedError
from cuda.nn.prototypes.gemm import Gemm, GemmChoice

Arrays = dict[str, Any]
TYPES = {"float32": np.float32, "float16": np.float16, "bfloat16": ml_dtypes.bfloat16}


@pytest.fixture
def arrays(device: EmulatedDevice) -> Arrays:
    return {name: device.asarray(np.ones((16, 16), np.float32)) for name in "abc"}


def good(arrays: Arrays, **changes: Any) -> Gemm:
    """A product of 16 x 16 matrices that nothing is wrong with, but for the changes"""
    fields = {"size": sizeof(Gemm), "m": 16, "n": 16, "k": 16, "batch": 1, "lda": 16, "ldb": 16, "ldc": 16,
              "alpha": 1.0, "splits": 1} | {name: array.pointer for name, array in arrays.items()}
    return Gemm(**(fields | changes))


# ---- what is refused ---------------------------------------------------------------------------------------

WRONG = [
    ({"size": 8}, "size: 8 is not sizeof"), ({"m": -1}, "m: -1 is not in"), ({"k": -5}, "k: -5"),
    ({"n": 2**50}, "n: 1125899906842624"), ({"batch": -1}, "batch: -1"), ({"stride_a": -16}, "stride_a: -16"),
    ({"lda": 15}, "lda: 15 is less than k = 16"), ({"ldb": 3}, "ldb: 3 is less than n = 16"),
    ({"ldc": 8}, "ldc: 8 is less than n = 16"), ({"trans_a": 1, "m": 17}, "lda: 16 is less than m = 17"),
    ({"batch": 2}, "stride_c: 0 lets problems overlap; at least 256"), ({"dtype": 3}, r"dtype: int64 \(3\)"),
    ({"dtype": 1, "c_dtype": 2}, r"c_dtype: bfloat16 \(2\); expected float16 or float32"),
    ({"c_dtype": 1}, "c_dtype: float16"), ({"trans_b": 2}, "trans_b: 2; expected 0 or 1"),
    ({"activation": 9}, "activation: 9 is not in 0"), ({"compute": 2}, "compute: 2"),
    ({"path": 77}, "path: 77"), ({"splits": -1}, "splits: -1"), ({"c": None}, "c: a null pointer"),
    ({"a": None}, "a or b: a null pointer"),
    ({"ldb": 2**47}, "ldb: 140737488355328 with 16 rows is too large"),
    ({"batch": 2**20, "stride_c": 2**40}, "stride_c: 1099511627776 with 1048576 problems is too large"),
    ({"batch": 2**20, "stride_a": 2**40}, "stride_a: 1099511627776 with 1048576 problems is too large"),
]


@pytest.mark.parametrize(("changes", "words"), WRONG)
def test_wrong_arguments(device: EmulatedDevice, arrays: Arrays, changes: dict[str, Any], words: str) -> None:
    call = good(arrays, **changes)
    with pytest.raises(DeviceArgumentError, match=words):
        device.call("gemm_forward", byref(call), None, 0)
    assert device.library.nn_gemm_workspace_size(byref(call)) == -1
    with pytest.raises(DeviceArgumentError, match=words):
        products.which(device, call)


def test_pointers(device: EmulatedDevice, arrays: Arrays) -> None:
    with pytest.raises(DeviceArgumentError, match="call: a null pointer"):
        device.call("gemm_forward", None, None, 0)
    call = good(arrays, a=arrays["a"].pointer + 2)
    with pytest.raises(DeviceArgumentError, match="a: 0x.* is not a multiple of 4 bytes"):
        device.call("gemm_forward", byref(call), None, 0)
    call = good(arrays, bias=arrays["a"].pointer, bias_dtype=5)
    with pytest.raises(DeviceArgumentError, match=r"bias_dtype: uint8 \(5\)"):
        device.call("gemm_forward", byref(call), None, 0)
    with pytest.raises(DeviceArgumentError, match="choice: null"):
        device.library.nn_gemm_path(None, byref(good(arrays)))
    nothing = good(arrays, m=0, a=None, b=None, c=None)
    device.call("gemm_forward", byref(nothing), None, 0)


def test_workspace(device: EmulatedDevice, arrays: Arrays) -> None:
    call = good(arrays, k=128, lda=128, trans_b=1, ldb=128, splits=2)
    big = {name: device.asarray(np.ones((16, 128), np.float32)) for name in "ab"}
    call.a, call.b = big["a"].pointer, big["b"].pointer
    needed = device.library.nn_gemm_workspace_size(byref(call))
    assert needed == 2 * 16 * 16 * 4
    with pytest.raises(DeviceArgumentError, match="workspace_bytes: 2047, but 2048 are needed for 2 splits"):
        device.call("gemm_forward", byref(call), device.workspace(needed), needed - 1)
    with pytest.raises(DeviceArgumentError, match="2048 are needed"):
        device.call("gemm_forward", byref(call), None, needed)
    with pytest.raises(DeviceArgumentError, match="workspace: .* 16 bytes"):
        device.call("gemm_forward", byref(call), device.workspace(needed + 8).pointer + 8, needed)
    device.call("gemm_forward", byref(call), device.workspace(needed), needed)
    assert (arrays["c"].numpy() == 128).all()


def test_structs_may_be_of_another_version(device: EmulatedDevice, arrays: Arrays) -> None:
    later: Any = type("Later", (Gemm,), {"_fields_": [("more", c_int64)]})
    call = later(more=7)
    memmove(byref(call), byref(good(arrays)), sizeof(Gemm))
    call.size = sizeof(later)
    device.call("gemm_forward", byref(call), None, 0)
    assert (arrays["c"].numpy() == 16).all()
    short = GemmChoice(size=24)
    device.library.nn_gemm_path(byref(short), byref(call))
    assert (short.size, short.path, short.tile_m, short.why) == (24, products.PATHS["ffma"], 64, b"")


IMPOSSIBLE = [
    ("mma", "float32", {}, "float32 without the option tf32"), ("mma", "bfloat16", {"lda": 17}, "16 bytes"),
    ("mma", "float16", {"trans_a": 1, "trans_b": 1}, "both"), ("wgmma", "float16", {}, "not of sm_90"),
    ("skinny", "float16", {"m": 9}, "m is over 8 and B is not transposed"),
    ("skinny", "float16", {"m": 17, "lda": 24}, "m is over 16"),
    ("skinny", "float16", {"m": 8, "trans_a": 1}, "A is transposed"),
    ("skinny", "float16", {"m": 8, "splits": 2}, "cut"),
]


@pytest.mark.parametrize(("path", "dtype", "changes", "words"), IMPOSSIBLE)
def test_a_kernel_that_cannot_says_why(device: EmulatedDevice, arrays: Arrays, path: str, dtype: str,
                                       changes: dict[str, Any], words: str) -> None:
    code = device.empty((1,), TYPES[dtype]).code
    call = good(arrays, **({"path": products.PATHS[path], "dtype": code, "c_dtype": code} | changes))
    with pytest.raises(UnsupportedError, match=f"{path}.*cannot take this call: .*{words}"):
        device.call("gemm_forward", byref(call), None, 0)


@pytest.mark.parametrize("arch", ["sm_75"])
def test_sm_75_has_no_tensor_cores_for_bfloat16(device: EmulatedDevice, arrays: Arrays) -> None:
    call = good(arrays, path=products.PATHS["mma"], dtype=2, c_dtype=2)
    with pytest.raises(UnsupportedError, match="no tensor cores for the type"):
        device.call("gemm_forward", byref(call), None, 0)


# ---- what is chosen ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("arch", "dtype", "m", "n", "k", "expected"), [
    ("sm_80", "bfloat16", 4096, 4096, 4096, ("mma", 128, 1)),
    ("sm_80", "bfloat16", 512, 512, 512, ("mma", 64, 2)),
    ("sm_80", "bfloat16", 1, 4096, 4096, ("skinny", 16, 1)),
    ("sm_80", "bfloat16", 512, 512, 65, ("ffma", 64, 1)),
    ("sm_80", "float32", 4096, 4096, 4096, ("ffma", 128, 1)),
    ("sm_80", "float32", 256, 256, 8192, ("ffma", 64, 13)),
    ("sm_75", "bfloat16", 512, 512, 512, ("ffma", 64, 1)),
    ("sm_75", "float16", 512, 512, 512, ("mma", 64, 1))])
def test_choice(device: EmulatedDevice, dtype: str, m: int, n: int, k: int,
                expected: tuple[str, int, int]) -> None:
    x, w = device.empty((m, k), TYPES[dtype]), device.empty((n, k), TYPES[dtype])
    choice = products.which(device, products.call(x, w, trans_b=True)[0])
    assert (choice.why.decode().partition(":")[0], choice.tile_m, choice.splits) == expected


@pytest.mark.parametrize(("arch", "dtype", "batch", "sizes", "expected"), [
    # tiny: few rows, rows that are not aligned, one row too many
    *((arch, "float16", 0, (8, 8, 8), ("skinny", 4, 1)) for arch in ("sm_75", "sm_80", "sm_90a")),
    *((arch, "float16", 0, (1, 1, 1), ("skinny", 4, 1)) for arch in ("sm_75", "sm_80", "sm_90a")),
    *((arch, "float16", 0, (5, 5, 5), ("ffma", 64, 1)) for arch in ("sm_75", "sm_80", "sm_90a")),
    *((arch, "float16", 0, (17, 8, 8), ("mma", 64, 1)) for arch in ("sm_75", "sm_80", "sm_90a")),
    *((arch, "float32", 0, (17, 8, 8), ("ffma", 64, 1)) for arch in ("sm_75", "sm_80", "sm_90a")),
    # a batch counts: the large tile comes once every multiprocessor has one (40, 108, 132 of them)
    ("sm_75", "float16", 39, (128, 128, 64), ("mma", 64, 1)),
    ("sm_75", "float16", 40, (128, 128, 64), ("mma", 128, 1)),
    ("sm_80", "bfloat16", 107, (128, 128, 64), ("mma", 64, 1)),
    ("sm_80", "bfloat16", 108, (128, 128, 64), ("mma", 128, 1)),
    ("sm_80", "float32", 108, (128, 128, 64), ("ffma", 128, 1)),
    ("sm_90a", "bfloat16", 131, (128, 256, 256), ("wgmma", 128, 1)),
    ("sm_90a", "bfloat16", 132, (128, 256, 256), ("wgmma", 256, 1)),
    ("sm_90a", "bfloat16", 0, (65, 65, 256), ("wgmma", 128, 1)),
    ("sm_90a", "bfloat16", 0, (64, 65, 256), ("mma", 64, 1)),
    ("sm_86", "bfloat16", 0, (4096, 4096, 4096), ("mma", 128, 1)),
    ("sm_89", "bfloat16", 0, (4096, 4096, 4096), ("mma", 128, 1))])
def test_choice_of_batches(device: EmulatedDevice, dtype: str, batch: int, sizes: tuple[int, int, int],
                           expected: tuple[str, int, int]) -> None:
    m, n, k = sizes
    lead = (batch,) if batch else ()
    x, w = device.empty((*lead, m, k), TYPES[dtype]), device.empty((*lead, n, k), TYPES[dtype])
    choice = products.which(device, products.call(x, w, trans_b=True)[0])
    assert (choice.why.decode().partition(":")[0], choice.tile_n, choice.splits) == expected


def test_a_choice_says_why(device: EmulatedDevice) -> None:
    x, odd = device.empty((2, 64, 64), np.float16), device.empty((2, 64, 65), np.float16)
    assert b"16 bytes" in products.which(device, products.call(odd, odd, trans_b=True)[0]).why
    assert products.which(device, products.call(x, x)[0]).why == b"mma: tensor cores"
    assert b"both operands" in products.which(device, products.call(x, x, trans_a=True, trans_b=True)[0]).why


def test_the_workspace_of_the_largest_serves_all(device: EmulatedDevice, arrays: Arrays) -> None:
    def bound(m: int, n: int, k: int, batch: int) -> int:
        call = sized(m, n, k, batch)
        size = device.library.nn_gemm_workspace_size(byref(call))
        assert products.which(device, call).workspace_bytes <= size
        return int(size)

    def sized(m: int, n: int, k: int, batch: int) -> Gemm:
        return good(arrays, m=m, n=n, k=k, batch=batch, lda=k, ldb=k, ldc=n, trans_b=1, stride_c=m * n,
                    splits=0)

    sizes = [bound(n, n, n, 1) for n in (1, 63, 64, 100, 129, 256, 511, 512, 700, 1024, 2000, 5000)]
    assert sizes == sorted(sizes)
    sizes = [bound(64, 100, k, 3) for k in (1, 255, 256, 511, 512, 1024, 5000, 100_000)]
    assert sizes == sorted(sizes)
    assert sizes[-1] > 0


# ---- what is counted ---------------------------------------------------------------------------------------


def counted(device: EmulatedDevice, dtype: str, m: int, n: int, k: int, *, trans_a: bool = False,
            trans_b: bool = False, batch: int = 0, **options: Any) -> KernelCounters:
    left = device.asarray(np.ones((k, m) if trans_a else (m, k), TYPES[dtype]))
    right = device.asarray(np.ones((n, k) if trans_b else (k, n), TYPES[dtype]))
    if batch:
        left = left.broadcast_to((batch, *left.shape))
    device.configure(count=1)
    device.clear()
    products.gemm(left, right, trans_a=trans_a, trans_b=trans_b, splits=1, **options)
    (found,) = device.counters().values()
    return found


def conflicts(found: KernelCounters) -> list[tuple[str, int]]:
    return [(Path(file).name, line) for (file, line), c in found.places.items()
            if c.bank_wavefronts > c.ideal_wavefronts]


FLAGS = [(False, False), (False, True), (True, False)]


@pytest.mark.parametrize("tile", [64, 128])
@pytest.mark.parametrize(("trans_a", "trans_b"), FLAGS)
@pytest.mark.parametrize(("arch", "dtype", "kind"), [
    ("sm_80", "bfloat16", "tensor_bf16"), ("sm_80", "float16", "tensor_f16"),
    ("sm_75", "float16", "tensor_f16")])
def test_tensor_cores_without_conflicts(device: EmulatedDevice, dtype: str, kind: str, tile: int,
                                        trans_a: bool, trans_b: bool) -> None:
    """All products on tensor cores; a tile's operands are read once, C is written once, in whole sectors."""
    m, n, k = (128, 128, 32) if tile == 128 else (64, 64, 64)
    batch = device.info.multiprocessors if tile == 128 else 1
    found = counted(device, dtype, m, n, k, trans_a=trans_a, trans_b=trans_b, batch=batch, path="mma")
    assert found.flops[kind] == 2 * m * n * k * batch
    assert not conflicts(found)
    assert found.sectors == found.ideal_sectors
    assert found.bytes_read == 2 * (m * k + k * n) * batch
    assert found.bytes_written == 2 * m * n * batch


@pytest.mark.parametrize(("trans_a", "trans_b"), FLAGS)
def test_tf32_without_conflicts(device: EmulatedDevice, trans_a: bool, trans_b: bool) -> None:
    found = counted(device, "float32", 128, 128, 32, trans_a=trans_a, trans_b=trans_b, tf32=True)
    assert found.flops["tensor_tf32"] == 2 * 128 * 128 * 32
    assert not conflicts(found)
    assert found.sectors == found.ideal_sectors


@pytest.mark.parametrize("tile", [64, 128])
@pytest.mark.parametrize(("trans_a", "trans_b"), [*FLAGS, (True, True)])
def test_float32_without_conflicts(device: EmulatedDevice, tile: int, trans_a: bool, trans_b: bool) -> None:
    batch = device.info.multiprocessors if tile == 128 else 1
    m, n, k = tile, tile, 32
    found = counted(device, "float32", m, n, k, trans_a=trans_a, trans_b=trans_b, batch=batch)
    assert found.flops["f32"] >= 2 * m * n * k * batch
    assert not conflicts(found)
    assert found.sectors == found.ideal_sectors
    assert found.bytes_read == 4 * (m * k + k * n) * batch
    assert found.bytes_written == 4 * m * n * batch


@pytest.mark.parametrize("trans_b", [False, True])
@pytest.mark.parametrize("dtype", TYPES)
def test_few_rows_read_the_weights_once(device: EmulatedDevice, dtype: str, trans_b: bool) -> None:
    m, n, k = 3, 128, 256
    found = counted(device, dtype, m, n, k, trans_b=trans_b, path="skinny")
    size = np.dtype(TYPES[dtype]).itemsize
    blocks = n // 4 if trans_b else n // (8 * 16 // size)                # each reads the few rows of A
    assert found.bytes_read == size * (n * k + blocks * m * k)
    assert found.distinct_bytes_read == size * (n * k + m * k)


@pytest.mark.parametrize("kind", TYPES)
@pytest.mark.parametrize(("path", "dtype"), [("mma", "float16"), ("ffma", "float32")])
def test_a_fused_end_moves_no_more(device: EmulatedDevice, path: str, dtype: str, kind: str) -> None:
    """beta C reads C once, the bias in whole sectors"""
    bias, out = device.asarray(np.ones(64, TYPES[kind])), device.asarray(np.ones((64, 64), TYPES[dtype]))
    found = counted(device, dtype, 64, 64, 32, path=path, bias=bias, out=out, beta=1.0, activation="gelu")
    size = np.dtype(TYPES[dtype]).itemsize
    assert not conflicts(found)
    assert found.sectors == found.ideal_sectors
    assert found.distinct_bytes_read == size * (2 * 64 * 32 + 64 * 64) + bias.nbytes
    assert found.bytes_written == size * 64 * 64


# ---- where chunks lie --------------------------------------------------------------------------------------

SWIZZLE = """
#include "device/swizzle.cuh"
#include <cstdio>
template <int BYTES> void map() {
    for (int row = 0; row < 16; row++)
        for (int chunk = 0; chunk < BYTES / 16; chunk++)
            std::printf("%d %d %d %d\\n", BYTES, row, chunk, nn::swizzle<BYTES>(row, chunk));
}
int main() { map<32>(), map<64>(), map<96>(), map<128>(), map<192>(), map<256>(); }
"""


def test_swizzle(tmp_path: Path) -> None:
    """The map on the host: a permutation within each row; 8 rows of a column of chunks meet all banks; rows
    of 128 bytes as the hardware's 128-byte mode has them."""
    (tmp_path / "map.cpp").write_text(SWIZZLE)
    command = ["g++", "-std=c++17", f"-I{build.source_folder()}", "map.cpp", "-o", "map"]
    subprocess.run(command, cwd=tmp_path, check=True)
    lines = subprocess.run([tmp_path / "map"], capture_output=True, text=True, check=True).stdout.splitlines()
    places = {(size, row, chunk): at for size, row, chunk, at in (map(int, line.split()) for line in lines)}
    for size in (32, 64, 96, 128, 192, 256):
        chunks = size // 16
        for row in range(16):
            here = sorted(places[size, row, chunk] for chunk in range(chunks))
            assert here == [row * size + 16 * chunk for chunk in range(chunks)]
        for chunk in range(chunks):
            for first in (0, 8):
                banks = {places[size, row, chunk] // 16 % 8 for row in range(first, first + 8)}
                assert len(banks) == 8, (size, chunk)
    for row, chunk in itertools.product(range(16), range(8)):
        assert places[128, row, chunk] == 128 * row + 16 * (chunk ^ row % 8)
