"""Matrix products by wgmma and tensor copies (sm_90a): types, transpositions, edges, epilogues, batches,
splits, captures, counts, refusals."""

import itertools
from ctypes import byref
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from cuda.nn import products
from cuda.nn.device import EmulatedDevice
from cuda.nn.emulator.counters import KernelCounters
from cuda.nn.errors import UnsupportedError
from cuda.nn.graph import Graph
from cuda.nn.prototypes.gemm import Gemm
from tests.device.test_gemm import ACTIVATIONS, TYPES, aligned_rows, draw, judge, stored

NT, NN, TN = (False, True), (False, False), (True, False)
FORMS = [*itertools.product(("float16", "bfloat16"), (NT, NN, TN)), ("float32", NT)]
Flags = tuple[bool, bool]


@pytest.fixture
def arch() -> str:
    return "sm_90a"


def multiply(device: EmulatedDevice, a: Any, b: Any, flags: Flags = NT, **options: Any) -> Any:
    """op(A) op(B) by wgmma: of arrays of the host, as they are stored, or of the device"""
    left, right = (device.asarray(x) if isinstance(x, np.ndarray) else x for x in (a, b))
    options = {"path": "wgmma", "tf32": left.dtype == np.float32} | options
    return products.gemm(left, right, trans_a=flags[0], trans_b=flags[1], **options)


def operands(dtype: str, m: int, n: int, k: int) -> tuple[np.ndarray, np.ndarray]:
    """[m, k] and [k, n]; floats are numbers of tf32, so that the oracle's products are the device's"""
    rng = np.random.default_rng([m, n, k])
    a, b = draw(rng, (m, k), dtype), draw(rng, (k, n), dtype)
    return (tf32(a), tf32(b)) if dtype == "float32" else (a, b)


def tf32(x: np.ndarray) -> np.ndarray:
    """Nearest, ties to even"""
    bits = x.view(np.uint32)
    return ((bits + 0xFFF + (bits >> 13 & 1)) & np.uint32(0xFFFFE000)).view(np.float32)


def many(device: EmulatedDevice, x: np.ndarray, columns: int) -> Any:
    """One matrix for as many problems as give every multiprocessor a tile of 256 columns, and one a second"""
    return device.asarray(x).broadcast_to((device.info.multiprocessors // -(-columns // 256) + 1, *x.shape))


# ---- types, transpositions, shapes -------------------------------------------------------------------------


@pytest.mark.parametrize(("dtype", "flags"), FORMS)
@pytest.mark.parametrize(("m", "n", "k"), [(72, 136, 72), (131, 75, 45), (1, 3, 200), (64, 128, 1)])
def test_any_shape(device: EmulatedDevice, dtype: str, flags: Flags, m: int, n: int, k: int) -> None:
    """Sizes that fill neither tiles nor stages; NaN beyond the rows' ends"""
    a, b = operands(dtype, m, n, k)
    left, right = aligned_rows(device, stored(a, flags[0])), aligned_rows(device, stored(b, flags[1]))
    judge(multiply(device, left, right, flags, splits=1).numpy(), a, b, dtype)


@pytest.mark.parametrize("dtype", TYPES)
def test_long_sums_go_round_the_ring(device: EmulatedDevice, dtype: str) -> None:
    a, b = operands(dtype, 72, 40, 1032 if dtype != "float32" else 520)
    judge(multiply(device, a, stored(b, True), splits=1).numpy(), a, b, dtype)


@pytest.mark.parametrize(("dtype", "flags"), FORMS)
def test_wide_tiles(device: EmulatedDevice, dtype: str, flags: Flags) -> None:
    """128 x 256, taken when it gives every multiprocessor one; the bits are those of the other tile."""
    a, b = operands(dtype, 72, 248, 24)
    left, right = many(device, stored(a, flags[0]), 248), device.asarray(stored(b, flags[1]))
    made, y, kept = products.call(left, right, trans_a=flags[0], trans_b=flags[1], path="wgmma", tf32=True)
    assert products.which(device, made).tile_n == 256
    products.run(device, made)
    del kept
    first, last = y.numpy()[[0, -1]]
    judge(first, a, b, dtype)
    assert first.tobytes() == last.tobytes()
    alone = multiply(device, stored(a, flags[0]), right, flags, splits=1)
    assert alone.numpy().tobytes() == first.tobytes()


@pytest.mark.parametrize("splits", [1, 2])
def test_blocks_that_take_a_second_tile(device: EmulatedDevice, splits: int) -> None:
    """It begins in the middle of the ring: three stages after the first (two or one, where k is cut); other
    rows and columns than those"""
    a, b = operands("bfloat16", 40, 300, 136)
    y = multiply(device, many(device, a, 300), stored(b, True), splits=splits).numpy()
    for problem in (0, len(y) // 2, -1):
        judge(y[problem], a, b, "bfloat16")


def test_floats_are_rounded_to_tf32(device: EmulatedDevice) -> None:
    """Not cut off: the errors of 136 products do not add up to one side"""
    rng = np.random.default_rng(5)
    a, b = (rng.uniform(0.5, 1, (rows, 136)).astype(np.float32) for rows in (68, 132))
    y = multiply(device, a, b).numpy()
    judge(y, tf32(a), tf32(b).T, "float32")
    error = y - a.astype(np.float64) @ b.astype(np.float64).T
    assert 1e-4 < np.max(np.abs(error)) < 136 * 2.0**-11
    assert abs(np.mean(error)) < 0.1 * np.std(error) + 1e-4


# ---- the end -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize(("dtype", "out"), [("float16", "float16"), ("bfloat16", "float32"),
                                            ("float32", "float32")])
def test_epilogue(device: EmulatedDevice, dtype: str, out: str, activation: str) -> None:
    """activation(alpha a b + beta c + bias), with the bias in another type"""
    a, b = operands(dtype, 66, 76, 40)
    rng = np.random.default_rng(6)
    c, bias = draw(rng, (66, 76), out), draw(rng, (76,), "float32" if dtype == "float16" else "bfloat16")
    y = device.asarray(c)
    multiply(device, a, stored(b, True), out=y, alpha=0.5, beta=-2.0, bias=device.asarray(bias),
             activation=activation)
    judge(y.numpy(), a, b, out, lambda x: ACTIVATIONS[activation](
        0.5 * x - 2.0 * c.astype(np.float64) + bias.astype(np.float64)))


def test_alpha_and_beta_from_the_device(device: EmulatedDevice) -> None:
    a, b = operands("float16", 6, 48, 40)
    c = draw(np.random.default_rng(7), (6, 48), "float16")
    y, scales = device.asarray(c), device.asarray(np.array([0.25, 3.0], np.float32))
    made, y, kept = products.call(device.asarray(a), device.asarray(b), out=y, alpha=2.0, beta=1.0,
                                  path="wgmma")
    made.alpha_device, made.beta_device = scales.pointer, scales.pointer + 4
    products.run(device, made)
    del kept
    judge(y.numpy(), a, b, "float16", lambda x: 0.5 * x + 3.0 * c.astype(np.float64))


def test_nan_and_infinity_come_out(device: EmulatedDevice) -> None:
    a, b = np.ones((8, 64), np.float16), np.ones((64, 64), np.float16)
    a[2, 33], a[3, 5], b[:, 7] = np.nan, np.inf, 0
    with np.errstate(invalid="ignore"):
        expected = a.astype(np.float32) @ b.astype(np.float32)
    np.testing.assert_array_equal(multiply(device, a, b, NN, activation="relu").numpy(), expected)


@pytest.mark.parametrize("gap", [8, 3])
def test_nothing_between_rows_is_read_or_written(device: EmulatedDevice, gap: int) -> None:
    """A batch in larger arrays: NaN around A and B, a pattern around C, whose rows need no alignment"""
    rng = np.random.default_rng(10)
    m, n, k = 67, 40, 48
    a, b = draw(rng, (3, m, k), "float16"), draw(rng, (3, n, k), "float16")
    around = ((0, 0), (0, 2), (0, 8))
    left, right = (device.asarray(np.pad(x, around, constant_values=np.nan)) for x in (a, b))
    c = device.asarray(np.full((3, m + 2, n + gap), 7.0, np.float16))
    multiply(device, left[:, :m, :k], right[:, :n, :k], out=c[:, :m, :n])
    y = c.numpy()
    judge(np.ascontiguousarray(y[:, :m, :n]), a, np.swapaxes(b, 1, 2), "float16")
    assert (y[:, m:] == 7).all()
    assert (y[:, :, n:] == 7).all()


@pytest.mark.parametrize("flags", [NT, NN, TN])
def test_operands_may_be_the_same_for_the_whole_batch(device: EmulatedDevice, flags: Flags) -> None:
    rng = np.random.default_rng(12)
    a, b = draw(rng, (3, 24, 32), "bfloat16"), draw(rng, (32, 40), "bfloat16")
    y = multiply(device, stored(a, flags[0]), stored(b, flags[1]), flags).numpy()
    judge(y, a, b, "bfloat16")
    two = np.stack([b, 2 * b])
    y = multiply(device, stored(a[1], flags[0]), stored(two, flags[1]), flags)
    judge(y.numpy(), np.broadcast_to(a[1], (2, 24, 32)), two, "bfloat16")


# ---- splits, and the same bits -----------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
@pytest.mark.parametrize("splits", [2, 3])
def test_splits(device: EmulatedDevice, dtype: str, splits: int) -> None:
    """Also with parts that have less to sum than the others, and in a batch"""
    rng = np.random.default_rng(9)
    a, b, c = (draw(rng, shape, dtype) for shape in ((2, 20, 150), (40, 150), (2, 20, 40)))
    if dtype == "float32":
        a, b = tf32(a), tf32(b)
    left = device.asarray(np.pad(a, ((0, 0), (0, 0), (0, 2)), constant_values=np.nan))[:, :, :150]
    made, y, kept = products.call(left, aligned_rows(device, b), trans_b=True, out=device.asarray(c),
                                  alpha=2.0, beta=1.0, path="wgmma", splits=splits, tf32=True)
    choice = products.which(device, made)
    assert (choice.splits, choice.workspace_bytes) == (splits, splits * 2 * 20 * 40 * 4)
    products.run(device, made)
    del kept
    judge(y.numpy(), a, b.T, dtype, lambda x: 2.0 * x + c.astype(np.float64))


@pytest.mark.parametrize(("dtype", "splits"), [("bfloat16", 1), ("float16", 3), ("float32", 2)])
def test_same_bits(device: EmulatedDevice, same_bits: Any, dtype: str, splits: int) -> None:
    a, b = (device.asarray(x) for x in operands(dtype, 70, 136, 136))
    b = device.asarray(stored(b.numpy(), True))
    same_bits(lambda: [multiply(device, a, b, splits=splits).numpy().view(np.uint8)])


@pytest.mark.parametrize("completion", ["lazy", "eager"])
def test_whenever_copies_land(device: EmulatedDevice, completion: str) -> None:
    a, b = operands("float16", 40, 72, 520)
    device.configure(cp_async=completion)
    judge(multiply(device, a, b, NN, splits=1).numpy(), a, b, "float16")


def test_a_row_does_not_depend_on_the_others(device: EmulatedDevice) -> None:
    a, b = operands("bfloat16", 140, 40, 72)
    full = multiply(device, a, b, NN, splits=1).numpy()
    for m in (1, 5):
        assert multiply(device, a[3 : 3 + m], b, NN, splits=1).numpy().tobytes() == full[3 : 3 + m].tobytes()


# ---- capture -----------------------------------------------------------------------------------------------


def test_a_captured_call_follows_its_operands(device: EmulatedDevice) -> None:
    """Maps are in the graph: they say where the operands are, not what is in them."""
    a, b = operands("bfloat16", 40, 72, 264)
    left, right = device.asarray(a), device.asarray(stored(b, True))
    made, y, kept = products.call(left, right, trans_b=True, path="wgmma", splits=2)
    device.workspace(products.which(device, made).workspace_bytes)
    before = device.counts()
    with Graph.capture(device) as graph:
        products.run(device, made)
    after = device.counts()
    assert (after.synchronizations, after.uploads) == (before.synchronizations, before.uploads)
    for scale in (1.0, -0.5):
        new = (scale * a).astype(a.dtype)
        device.call("memory_upload", left, new.ctypes.data, new.nbytes)
        graph.replay()
        judge(y.numpy(), new, b, "bfloat16")
    del kept


# ---- what is chosen and refused ----------------------------------------------------------------------------


@pytest.mark.parametrize(("dtype", "flags", "sizes", "expected"), [
    ("bfloat16", NT, (4096, 4096, 4096), ("wgmma", 256, 1)),
    ("float16", TN, (4096, 4096, 4096), ("wgmma", 256, 1)),
    ("bfloat16", NN, (1024, 1024, 1024), ("wgmma", 128, 2)),
    ("bfloat16", NT, (256, 512, 8192), ("wgmma", 128, 16)),
    ("float32", NT, (4096, 4096, 4096), ("wgmma", 256, 1)),
    ("float32", NN, (4096, 4096, 4096), ("mma", 128, 1)),
    ("bfloat16", NT, (64, 4096, 4096), ("mma", 64, 4)), ("bfloat16", NT, (512, 512, 128), ("mma", 64, 1)),
    ("bfloat16", NT, (512, 512, 260), ("ffma", 64, 1)), ("bfloat16", NT, (3, 4096, 4096), ("skinny", 4, 1)),
    ("bfloat16", (True, True), (512, 512, 512), ("ffma", 64, 2))])
def test_choice(device: EmulatedDevice, dtype: str, flags: Flags, sizes: tuple[int, int, int],
                expected: tuple[str, int, int]) -> None:
    m, n, k = sizes
    a, b = (device.empty(shape[::-1] if turn else shape, TYPES[dtype])
            for shape, turn in (((m, k), flags[0]), ((k, n), flags[1])))
    made, _, kept = products.call(a, b, trans_a=flags[0], trans_b=flags[1], tf32=True)
    choice = products.which(device, made)
    del kept
    assert (choice.why.decode().partition(":")[0], choice.tile_n, choice.splits) == expected


def test_float32_is_exact_unless_tf32_is_asked_for(device: EmulatedDevice) -> None:
    x = device.empty((512, 512), np.float32)
    assert products.which(device, products.call(x, x, trans_b=True)[0]).why.startswith(b"ffma")


REFUSED: list[tuple[dict[str, int], str]] = [
    ({"trans_a": 1, "trans_b": 1}, "both operands are transposed"), ({"lda": 17}, "16 bytes"),
    ({"ldb": 20}, "16 bytes"), ({"a": 2}, "16 bytes"), ({"k": 0}, "k is 0"),
    ({"dtype": 0, "c_dtype": 0}, "float32 without the option tf32"),
    ({"dtype": 0, "c_dtype": 0, "compute": 1}, "tf32 operands must have rows along k"),
    ({"batch": 2, "stride_a": 2**38, "stride_c": 256}, "more than a tensor map holds"),
    ({"batch": 2, "stride_a": 12, "stride_c": 256}, "16 bytes"),
]


def small(device: EmulatedDevice, changes: dict[str, int]) -> tuple[Gemm, Any]:
    """A product of 16 x 16 matrices; "a" is added to the pointer"""
    x = device.asarray(np.ones((40, 40), np.float32))
    made, _, kept = products.call(*(device.asarray(np.ones((16, 16), np.float16)) for _ in range(2)),
                                  path="wgmma", splits=1)
    for name, value in changes.items():
        setattr(made, name, x.pointer + value if name == "a" else value)
    return made, (x, kept)


@pytest.mark.parametrize(("changes", "words"), REFUSED)
def test_what_it_cannot_take(device: EmulatedDevice, changes: dict[str, int], words: str) -> None:
    made, kept = small(device, changes)
    with pytest.raises(UnsupportedError, match=rf"path: wgmma \(5\) cannot take this call: .*{words}"):
        device.call("gemm_forward", byref(made), None, 0)
    del kept


@pytest.mark.parametrize("arch", ["sm_80"])
def test_other_devices_do_not_have_it(device: EmulatedDevice) -> None:
    made, kept = small(device, {})
    with pytest.raises(UnsupportedError, match="wgmma .* not of sm_90"):
        device.call("gemm_forward", byref(made), None, 0)
    del kept


# ---- what is counted ---------------------------------------------------------------------------------------


def counted(device: EmulatedDevice, dtype: str, flags: Flags, m: int, n: int, k: int,
            **options: Any) -> KernelCounters:
    a, b = (device.asarray(np.ones(shape[::-1] if turn else shape, TYPES[dtype]))
            for shape, turn in (((m, k), flags[0]), ((k, n), flags[1])))
    device.configure(count=1)
    device.clear()
    multiply(device, a, b, flags, splits=1, **options)
    (found,) = device.counters().values()
    return found


def conflicts(found: KernelCounters) -> list[tuple[str, int]]:
    return [(Path(file).name, line) for (file, line), c in found.places.items()
            if c.bank_wavefronts > c.ideal_wavefronts]


@pytest.mark.parametrize(("dtype", "flags"), FORMS)
def test_work_and_bytes(device: EmulatedDevice, dtype: str, flags: Flags) -> None:
    """All products on tensor cores; operands read once per tile, C written once, in whole sectors, and no
    bank conflict in the end (tensor copies and wgmma share a swizzle that has none)"""
    m, n, k = 128, 256, 128
    found = counted(device, dtype, flags, m, n, k)
    kind = {"float16": "tensor_f16", "bfloat16": "tensor_bf16", "float32": "tensor_tf32"}[dtype]
    size = np.dtype(TYPES[dtype]).itemsize
    assert found.flops[kind] == 2 * m * n * k
    assert not conflicts(found)
    assert found.sectors == found.ideal_sectors
    assert found.bytes_read == size * (2 * m * k + k * n)                # two tiles of 128 columns
    assert found.distinct_bytes_read == size * (m * k + k * n)
    assert (found.bytes_written, found.distinct_bytes_written) == (size * m * n, size * m * n)


def test_a_fused_end_moves_no_more(device: EmulatedDevice) -> None:
    bias = device.asarray(np.ones(128, np.float32))
    out = device.asarray(np.ones((128, 128), ml_dtypes.bfloat16))
    found = counted(device, "bfloat16", NT, 128, 128, 64, bias=bias, out=out, beta=1.0, activation="gelu")
    assert not conflicts(found)
    assert found.sectors == found.ideal_sectors
    assert found.distinct_bytes_read == 2 * (2 * 128 * 64 + 128 * 128) + 4 * 128
    assert found.bytes_written == 2 * 128 * 128
