"""Matrix products against float64: every kernel, type and transposition; edges, epilogues, batches."""

import itertools
import math
from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from cuda.nn import products
from cuda.nn.device import EmulatedDevice
from nn.backends.device import activation as activations
from nn.backends.device.matmul import linear, linear_backward, matmul

TYPES = {"float32": np.float32, "float16": np.float16, "bfloat16": ml_dtypes.bfloat16}
UNIT = {"float32": 2.0**-24, "float16": 2.0**-11, "bfloat16": 2.0**-8}
ACTIVATIONS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "silu": lambda x: x / (1 + np.exp(-x)),
    "gelu": lambda x: 0.5 * x * (1 + np.vectorize(math.erf)(x / math.sqrt(2))),
    "gelu_tanh": lambda x: 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))),
    "relu": lambda x: np.maximum(x, 0),
}
Shape = tuple[int, ...]
TRANSPOSITIONS = list(itertools.product((False, True), repeat=2))
PATHS = [   # path, type, transpositions that it takes
    *(("tiled", dtype, TRANSPOSITIONS) for dtype in TYPES),
    *(("ffma", dtype, TRANSPOSITIONS) for dtype in TYPES),
    *(("mma", dtype, TRANSPOSITIONS[:3]) for dtype in ("float16", "bfloat16")),
    *(("skinny", dtype, TRANSPOSITIONS[:2]) for dtype in TYPES),
]
EVERY = [(path, dtype, *flags) for path, dtype, known in PATHS for flags in known]


def draw(rng: np.random.Generator, shape: tuple[int, ...], dtype: str) -> np.ndarray:
    return rng.uniform(-1, 1, shape).astype(TYPES[dtype])


def turned(x: np.ndarray, turn: bool) -> np.ndarray:
    return np.swapaxes(x, -1, -2) if turn else x


def plain(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """One term after the other, in float32."""
    a, b = a.astype(np.float32), b.astype(np.float32)
    y = np.zeros((*np.broadcast_shapes(a.shape[:-2], b.shape[:-2]), a.shape[-2], b.shape[-1]), np.float32)
    for k in range(a.shape[-1]):
        y += a[..., :, k, None] * b[..., k, None, :]
    return y


def judge(result: np.ndarray, a: np.ndarray, b: np.ndarray, dtype: str,
          end: Callable[[np.ndarray], np.ndarray] = lambda x: x) -> None:
    """At most twice the error of a plain product of the same type, and a few units in the last place."""
    exact = end(a.astype(np.float64) @ b.astype(np.float64))
    rough = end(plain(a, b).astype(np.float64)).astype(TYPES[dtype]).astype(np.float64)
    assert (result.shape, result.dtype) == (exact.shape, np.dtype(TYPES[dtype]))
    error, known = np.abs(result.astype(np.float64) - exact), np.abs(rough - exact)
    size = max(1.0, np.max(np.abs(exact), initial=0.0))
    limit = 2 * np.max(known, initial=0.0) + (8 if dtype == "float32" else 1) * UNIT[dtype] * size
    assert np.all(error <= limit), f"error {np.max(error):.3g}, allowed {limit:.3g}"


def stored(x: np.ndarray, turn: bool) -> np.ndarray:
    """x, or its transpose, in memory of its own"""
    return np.ascontiguousarray(turned(x, turn))


def check(device: EmulatedDevice, m: int, n: int, k: int, dtype: str, trans_a: bool = False,
          trans_b: bool = False, **options: Any) -> None:
    rng = np.random.default_rng([m, n, k])
    a, b = draw(rng, (m, k), dtype), draw(rng, (k, n), dtype)
    y = products.gemm(device.asarray(stored(a, trans_a)), device.asarray(stored(b, trans_b)), trans_a=trans_a,
                      trans_b=trans_b, **options)
    judge(y.numpy(), a, b, dtype)


def check_large(device: EmulatedDevice, m: int, n: int, k: int, dtype: str, trans_a: bool,
                trans_b: bool) -> None:
    """128 x 128, taken when it gives every multiprocessor a block: a batch of problems that share operands"""
    rng = np.random.default_rng([m, n, k])
    a, b = draw(rng, (m, k), dtype), draw(rng, (k, n), dtype)
    tiles = -(-m // 128) * -(-n // 128)
    batch = -(-device.info.multiprocessors // tiles)
    left = device.asarray(stored(a, trans_a))
    made, y, kept = products.call(left.broadcast_to((batch, *left.shape)), device.asarray(stored(b, trans_b)),
                                  trans_a=trans_a, trans_b=trans_b)
    assert products.which(device, made).tile_m == 128
    products.run(device, made)
    judge(y.numpy()[[0, batch - 1]], np.broadcast_to(a, (2, m, k)), b, dtype)
    del kept


# ---- every kernel, type and transposition ------------------------------------------------------------------


@pytest.mark.parametrize(("path", "dtype", "trans_a", "trans_b"), EVERY)
def test_aligned(device: EmulatedDevice, path: str, dtype: str, trans_a: bool, trans_b: bool) -> None:
    check(device, 8 if path == "skinny" else 72, 136, 72, dtype, trans_a, trans_b, path=path)


@pytest.mark.parametrize(("path", "dtype", "trans_a", "trans_b"), EVERY)
def test_ragged(device: EmulatedDevice, path: str, dtype: str, trans_a: bool, trans_b: bool) -> None:
    """Sizes that fill neither tiles nor chunks; rows that begin where they may."""
    rng = np.random.default_rng(1)
    m, n, k = 7 if path == "skinny" else 67, 75, 45
    a, b = draw(rng, (m, k), dtype), draw(rng, (k, n), dtype)
    left, right = aligned_rows(device, stored(a, trans_a)), aligned_rows(device, stored(b, trans_b))
    judge(products.gemm(left, right, trans_a=trans_a, trans_b=trans_b, path=path).numpy(), a, b, dtype)


def aligned_rows(device: EmulatedDevice, x: np.ndarray) -> Any:
    """Rows that begin at multiples of 8 elements, with NaN between them"""
    return device.asarray(np.pad(x, ((0, 0), (0, -x.shape[1] % 8)), constant_values=np.nan))[:, : x.shape[1]]


@pytest.mark.parametrize(("m", "n", "k"), [(1, 1, 1), (129, 1, 3), (1, 65, 130), (17, 63, 33), (130, 129, 31),
                                           (16, 4, 257)])
@pytest.mark.parametrize("dtype", TYPES)
def test_any_shape(device: EmulatedDevice, m: int, n: int, k: int, dtype: str) -> None:
    """Unaligned rows take the kernel that they can."""
    check(device, m, n, k, dtype)
    check(device, m, n, k, dtype, trans_b=True)


@pytest.mark.parametrize("trans_b", [False, True])
def test_few_rows_and_a_long_sum(device: EmulatedDevice, trans_b: bool) -> None:
    """Every warp of a block has its share of k."""
    check(device, 5, 12 if trans_b else 16, 1096, "float16", trans_b=trans_b, path="skinny")


LARGE = [(dtype, *flags) for dtype in TYPES for flags in TRANSPOSITIONS[: 4 if dtype == "float32" else 3]]


@pytest.mark.parametrize(("dtype", "trans_a", "trans_b"), LARGE)
def test_large_tiles(device: EmulatedDevice, dtype: str, trans_a: bool, trans_b: bool) -> None:
    check_large(device, 136, 136, 24, dtype, trans_a, trans_b)


@pytest.mark.parametrize("arch", ["sm_75"])
@pytest.mark.parametrize(("trans_a", "trans_b"), TRANSPOSITIONS[:3])
def test_tensor_cores_of_sm_75(device: EmulatedDevice, trans_a: bool, trans_b: bool) -> None:
    check(device, 72, 136, 72, "float16", trans_a, trans_b, path="mma")
    check_large(device, 136, 144, 40, "float16", trans_a, trans_b)


@pytest.mark.parametrize("arch", ["sm_75"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_other_types_on_sm_75(device: EmulatedDevice, dtype: str) -> None:
    x = device.asarray(np.ones((40, 48), TYPES[dtype]))
    assert chosen(device, x, x, trans_b=True) == "ffma"
    check(device, 40, 48, 56, dtype)
    check(device, 3, 48, 56, dtype, trans_b=True)


@pytest.mark.parametrize(("trans_a", "trans_b"), TRANSPOSITIONS[:3])
def test_tf32_rounds_operands_to_ten_bits(device: EmulatedDevice, trans_a: bool, trans_b: bool) -> None:
    rng = np.random.default_rng(5)
    a, b = draw(rng, (68, 76), "float32"), draw(rng, (76, 132), "float32")
    y = products.gemm(device.asarray(stored(a, trans_a)), device.asarray(stored(b, trans_b)), trans_a=trans_a,
                      trans_b=trans_b, path="mma", tf32=True).numpy()
    judge(y, tf32(a), tf32(b), "float32")
    assert np.max(np.abs(y - a @ b)) > 1e-4


def tf32(x: np.ndarray) -> np.ndarray:
    """Nearest, ties away from zero"""
    return ((x.view(np.uint32) + 0x1000) & np.uint32(0xFFFFE000)).view(np.float32)


def test_float32_is_exact_unless_tf32_is_asked_for(device: EmulatedDevice) -> None:
    x = device.asarray(np.ones((64, 64), np.float32))
    assert [chosen(device, x, x), chosen(device, x, x, tf32=True)] == ["ffma", "mma"]


# ---- the end -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize(("path", "dtype", "out"), [
    ("tiled", "float32", "float32"), ("ffma", "float32", "float32"), ("ffma", "bfloat16", "bfloat16"),
    ("mma", "float16", "float16"), ("mma", "bfloat16", "float32"), ("skinny", "float16", "float16")])
def test_epilogue(device: EmulatedDevice, path: str, dtype: str, out: str, activation: str) -> None:
    """activation(alpha a b + beta c + bias), with the bias in the other type"""
    rng = np.random.default_rng(6)
    m, n, k = 7 if path == "skinny" else 66, 76, 40
    a, b, c = draw(rng, (m, k), dtype), draw(rng, (n, k), dtype), draw(rng, (m, n), out)
    bias = draw(rng, (n,), "float32" if dtype == "float16" else dtype)
    y = device.asarray(c)
    products.gemm(device.asarray(a), device.asarray(b), trans_b=True, out=y, alpha=0.5, beta=-2.0,
                  bias=device.asarray(bias), activation=activation, path=path)
    judge(y.numpy(), a, b.T, out, lambda x: ACTIVATIONS[activation](
        0.5 * x - 2.0 * c.astype(np.float64) + bias.astype(np.float64)))


@pytest.mark.parametrize("path", ["tiled", "ffma", "mma", "skinny"])
@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("shift", [0, 1, 2, 4])
def test_a_bias_may_begin_anywhere(device: EmulatedDevice, path: str, dtype: str, shift: int) -> None:
    """It is read in packs where it may be; NaN before and behind it, and columns that fill no pack"""
    rng = np.random.default_rng(21)
    a, b, bias = draw(rng, (5, 16), "float16"), draw(rng, (38, 16), "float16"), draw(rng, (38,), dtype)
    around = device.asarray(np.pad(bias, (shift, 8), constant_values=np.nan))
    y = products.gemm(device.asarray(a), device.asarray(b), trans_b=True, bias=around[shift : shift + 38],
                      path=path)
    judge(y.numpy(), a, b.T, "float16", lambda x: x + bias.astype(np.float64))


@pytest.mark.parametrize("path", ["tiled", "ffma", "mma", "skinny"])
@pytest.mark.parametrize("activation", ["silu", "gelu", "gelu_tanh"])
def test_an_activation_has_the_bits_of_its_own_kernel(device: EmulatedDevice, path: str,
                                                      activation: str) -> None:
    a, b = (device.asarray(8 * draw(np.random.default_rng(22), (8, 64), "bfloat16")) for _ in range(2))
    options: dict[str, Any] = {"trans_b": True, "out_dtype": np.float32, "path": path}
    y = products.gemm(a, b, activation=activation, **options)
    alone = getattr(activations, activation)(products.gemm(a, b, **options))
    assert y.numpy().tobytes() == alone.numpy().tobytes()


@pytest.mark.parametrize("path", ["tiled", "ffma", "mma", "skinny"])
def test_alpha_and_beta_from_the_device(device: EmulatedDevice, path: str) -> None:
    rng = np.random.default_rng(7)
    a, b, c = draw(rng, (6, 40), "float16"), draw(rng, (40, 48), "float16"), draw(rng, (6, 48), "float16")
    y, scales = device.asarray(c), device.asarray(np.array([0.25, 3.0], np.float32))
    made, y, kept = products.call(device.asarray(a), device.asarray(b), out=y, alpha=2.0, beta=1.0, path=path)
    made.alpha_device, made.beta_device = scales.pointer, scales.pointer + 4
    products.run(device, made)
    del kept
    judge(y.numpy(), a, b, "float16", lambda x: 0.5 * x + 3.0 * c.astype(np.float64))


@pytest.mark.parametrize(("path", "dtype", "_", "__"), [e for e in EVERY if not e[2] and not e[3]])
def test_nothing_to_sum(device: EmulatedDevice, path: str, dtype: str, _: bool, __: bool) -> None:
    """k = 0 gives beta C + bias; beta = 0 does not read C"""
    rng = np.random.default_rng(8)
    a, b = device.empty((5, 0), TYPES[dtype]), device.empty((0, 9), TYPES[dtype])
    c, bias = draw(rng, (5, 9), dtype), draw(rng, (9,), dtype)
    y = products.gemm(a, b, out=device.asarray(c), beta=2.0, bias=device.asarray(bias), path=path).numpy()
    np.testing.assert_allclose(y.astype(np.float64), (2.0 * c.astype(np.float64) + bias.astype(np.float64)),
                               atol=4 * UNIT[dtype])
    full = device.asarray(np.full((5, 9), np.nan, TYPES[dtype]))
    assert (products.gemm(a, b, out=full, path=path).numpy() == 0).all()


@pytest.mark.parametrize(("m", "n"), [(0, 5), (5, 0), (0, 0)])
def test_nothing_to_write(device: EmulatedDevice, m: int, n: int) -> None:
    a, b = device.empty((m, 3), np.float32), device.empty((3, n), np.float32)
    assert products.gemm(a, b).shape == (m, n)
    assert matmul(device.empty((0, m, 3), np.float32), b).shape == (0, m, n)


@pytest.mark.parametrize("path", ["tiled", "ffma", "mma", "skinny"])
def test_nan_and_infinity_come_out(device: EmulatedDevice, path: str) -> None:
    a, b = np.ones((8, 64), np.float16), np.ones((64, 64), np.float16)
    a[2, 33], a[3, 5], b[:, 7] = np.nan, np.inf, 0
    with np.errstate(invalid="ignore"):
        expected = a.astype(np.float32) @ b.astype(np.float32)
    y = products.gemm(device.asarray(a), device.asarray(b), path=path, activation="relu").numpy()
    np.testing.assert_array_equal(y, expected)


# ---- splits ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("path", "dtype"), [("tiled", "float32"), ("ffma", "float32"), ("mma", "bfloat16")])
@pytest.mark.parametrize("splits", [2, 3])
def test_splits(device: EmulatedDevice, path: str, dtype: str, splits: int) -> None:
    """Also with parts that have less to sum than the others, and in a batch."""
    rng = np.random.default_rng(9)
    a, b, c = (draw(rng, shape, dtype) for shape in ((2, 20, 150), (40, 150), (2, 20, 40)))
    left = device.asarray(np.pad(a, ((0, 0), (0, 0), (0, 2)), constant_values=np.nan))[:, :, :150]
    made, y, kept = products.call(left, aligned_rows(device, b), trans_b=True, out=device.asarray(c),
                                  alpha=2.0, beta=1.0, path=path, splits=splits)
    choice = products.which(device, made)
    assert (choice.splits, choice.workspace_bytes) == (splits, splits * 2 * 20 * 40 * 4)
    products.run(device, made)
    del kept
    judge(y.numpy(), a, b.T, dtype, lambda x: 2.0 * x + c.astype(np.float64))


def test_splits_are_chosen_for_few_tiles_and_long_sums(device: EmulatedDevice) -> None:
    a = device.empty((64, 4096), np.float32)
    made, *_ = products.call(a, a, trans_b=True)
    assert products.which(device, made).splits == 16
    made, *_ = products.call(a, a, trans_b=True, splits=1)
    assert products.which(device, made).splits == 1
    made, *_ = products.call(a[:, :256], a[:, :256], trans_b=True)
    assert products.which(device, made).splits == 1


def test_a_chosen_split_sums(device: EmulatedDevice) -> None:
    check(device, 20, 24, 1024, "float16", trans_b=True)
    check(device, 20, 24, 1024, "float32", trans_a=True)


# ---- memory ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["tiled", "ffma", "mma", "skinny"])
@pytest.mark.parametrize("gap", [8, 3])
def test_nothing_between_rows_is_read_or_written(device: EmulatedDevice, path: str, gap: int) -> None:
    """Leading dimensions larger than the width: NaN between rows of A and B, a pattern between those of C"""
    rng = np.random.default_rng(10)
    m, n, k = 8, 40, 48
    a, b = draw(rng, (3, m, k), "float16"), draw(rng, (3, n, k), "float16")
    around = ((0, 0), (0, 2), (0, 8))
    left, right = (device.asarray(np.pad(x, around, constant_values=np.nan)) for x in (a, b))
    c = device.asarray(np.full((3, m + 2, n + gap), 7.0, np.float16))
    products.gemm(left[:, :m, :k], right[:, :n, :k], trans_b=True, out=c[:, :m, :n], path=path)
    y = c.numpy()
    judge(np.ascontiguousarray(y[:, :m, :n]), a, np.swapaxes(b, 1, 2), "float16")
    assert (y[:, m:] == 7).all()
    assert (y[:, :, n:] == 7).all()


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("shift", [1, 2, 3])
def test_unaligned_pointers(device: EmulatedDevice, dtype: str, shift: int) -> None:
    rng = np.random.default_rng(11)
    a, b = draw(rng, (24, 32), dtype), draw(rng, (32, 40), dtype)

    def shifted(x: np.ndarray) -> Any:
        flat = np.concatenate([np.zeros(shift, x.dtype), x.reshape(-1)])
        return device.asarray(flat)[shift:].reshape(x.shape)

    out = shifted(np.zeros((24, 40), TYPES[dtype]))
    products.gemm(shifted(a), shifted(b), out=out)
    judge(out.numpy(), a, b, dtype)
    x, y = device.asarray(a), device.asarray(b)                          # C alone is unaligned
    judge(products.gemm(x, y, out=out).numpy(), a, b, dtype)
    assert chosen(device, shifted(a), y) == "ffma"


def test_operands_may_be_the_same_for_the_whole_batch(device: EmulatedDevice) -> None:
    rng = np.random.default_rng(12)
    a, b = draw(rng, (24, 32), "bfloat16"), draw(rng, (3, 32, 40), "bfloat16")
    y = products.gemm(device.asarray(a), device.asarray(b))
    judge(y.numpy(), np.broadcast_to(a, (3, 24, 32)), b, "bfloat16")


# ---- the same bits -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("arch", ["sm_75"])
def test_same_bits_on_sm_75(device: EmulatedDevice, same_bits: Any) -> None:
    rng = np.random.default_rng(13)
    a, b = (device.asarray(draw(rng, shape, "float16")) for shape in ((72, 72), (72, 72)))
    same_bits(lambda: [products.gemm(a, b, path="mma").numpy()])


@pytest.mark.parametrize(("path", "dtype"), [("tiled", "float32"), ("ffma", "float32"), ("mma", "float16"),
                                             ("mma", "bfloat16"), ("skinny", "bfloat16")])
def test_a_row_does_not_depend_on_the_others(device: EmulatedDevice, path: str, dtype: str) -> None:
    """Nor on their number, nor on the size of the tiles; with a path given and k not cut."""
    rng = np.random.default_rng(14)
    rows = 16 if path == "skinny" else 200
    a, b = draw(rng, (rows, 72), dtype), device.asarray(draw(rng, (40, 72), dtype))
    full = products.gemm(device.asarray(a), b, trans_b=True, path=path, splits=1).numpy()
    for m in (1, 5):
        part = products.gemm(device.asarray(a[3 : 3 + m]), b, trans_b=True, path=path, splits=1).numpy()
        assert part.tobytes() == full[3 : 3 + m].tobytes()
    if path in ("ffma", "mma"):
        many = device.asarray(a).broadcast_to((60, rows, 72))
        large = products.gemm(many, b, trans_b=True, path=path, splits=1)
        assert large.numpy()[59].tobytes() == full.tobytes()


def test_float32_kernels_agree_bit_by_bit(device: EmulatedDevice) -> None:
    """Both sum along k, one product after the other."""
    rng = np.random.default_rng(15)
    a, b = device.asarray(draw(rng, (70, 50), "float32")), device.asarray(draw(rng, (50, 70), "float32"))
    found = [products.gemm(a, b, path=path, splits=1).numpy().tobytes() for path in ("tiled", "ffma")]
    assert found[0] == found[1]


# ---- the protocol's functions ------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("rows", [1, 33])
def test_linear_and_its_gradients(device: EmulatedDevice, dtype: str, rows: int) -> None:
    rng = np.random.default_rng(19)
    x, w, bias, dy = (draw(rng, shape, dtype) for shape in ((rows, 48), (65, 48), (65,), (rows, 65)))
    there = [device.asarray(v) for v in (x, w, bias, dy)]
    y = linear(there[0], there[1], bias=there[2])
    judge(y.numpy(), x, w.T, dtype, lambda v: v + bias.astype(np.float64))
    judge(linear(there[0], there[1]).numpy(), x, w.T, dtype)
    dx, dw = linear_backward(there[3], there[0], there[1])
    judge(dx.numpy(), dy, w, dtype)
    judge(dw.numpy(), dy.T, x, "float32")


def chosen(device: EmulatedDevice, a: Any, b: Any, **options: Any) -> str:
    made, *_ = products.call(a, b, **options)
    return products.which(device, made).why.decode().partition(":")[0]
