"""Elementwise kernels: values, both ways through memory, in place, extremes, errors."""

import numpy as np
import pytest

from cuda.nn.device import EmulatedDevice
from cuda.nn.errors import DeviceArgumentError
from nn.backends.device import activation
from tests.conformance import naive
from tests.conformance.cases import cases
from tests.conformance.compare import check, in_layout, to_numpy
from tests.device.accuracy import DTYPES, PLACES, accurate, draw, name_of

ONE = ("silu", "gelu", "gelu_tanh", "sigmoid", "relu")
KERNELS = ("silu", "silu_backward", "gelu", "gelu_backward", "gelu_tanh", "gelu_tanh_backward", "swiglu",
           "swiglu_backward")
SIZES = (1, 7, 8, 255, 2047, 2048, 2049, 4111)        # around a pack, a block's width and a tile
CODE = {"float32": 0, "float16": 1, "bfloat16": 2}


def sigmoid_backward(dy: np.ndarray, y: np.ndarray) -> np.ndarray:
    return dy * y * (y.dtype.type(1) - y)


# formulas that tests/conformance has not, because no kernel of the protocol computes them
EXTRA = {"sigmoid": naive.logistic, "sigmoid_backward": sigmoid_backward,
         "relu": lambda x: np.where(x <= 0, x.dtype.type(0), x),
         "relu_backward": lambda dy, x: np.where(x <= 0, x.dtype.type(0), dy),
         "add": lambda a, b: a + b, "mul": lambda a, b: a * b,
         "scale": lambda x: x * x.dtype.type(1.5) + x.dtype.type(-0.25)}


@pytest.fixture(autouse=True)
def formulas(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, formula in EXTRA.items():
        monkeypatch.setattr(naive, name, formula, raising=False)


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_conformance(device: EmulatedDevice, kernel: str, dtype: str) -> None:
    for case in cases(kernel, dtype):
        check(getattr(activation, kernel), case, device.asarray, to_numpy)
        if case.name == "33x65":
            check(getattr(activation, kernel), in_layout(case, "transposed"), device.asarray, to_numpy)


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", [*ONE, "scale"])
def test_one_operand(device: EmulatedDevice, name: str, dtype: str, place: str) -> None:
    extra = (1.5, -0.25) if name == "scale" else ()
    for n in SIZES if name in ("silu", "scale") else (4111,):
        x = draw(dtype, n, scale=3.0)
        given, y = PLACES[place](device, x), PLACES[place](device, np.zeros_like(x))
        device.call(f"{name}_forward", y, given, n, *extra, CODE[dtype])
        accurate(name, dtype, [y], x)
        device.call(f"{name}_forward", given, given, n, *extra, CODE[dtype])                   # in place
        assert given.numpy().tobytes() == y.numpy().tobytes()


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", [*(f"{name}_backward" for name in ONE), "add_forward", "mul_forward"])
def test_two_operands(device: EmulatedDevice, name: str, dtype: str, place: str) -> None:
    for n in SIZES if name == "add_forward" else (4111,):
        a, b = draw(dtype, n, scale=2.0), draw(dtype, n, seed=1, scale=2.0)
        first, second = PLACES[place](device, a), PLACES[place](device, b)
        y = device.empty((n,), a.dtype)
        device.call(name, y, first, second, n, CODE[dtype])
        accurate(name.removesuffix("_forward"), dtype, [y], a, b)
        device.call(name, second, first, second, n, CODE[dtype])
        assert second.numpy().tobytes() == y.numpy().tobytes()


@pytest.mark.parametrize("dtype", DTYPES)
def test_extremes(device: EmulatedDevice, dtype: str) -> None:
    largest = 6e4 if dtype == "float16" else 3e38
    x = np.array([np.nan, largest, -largest, 0.0, -0.0, 1e-5, -1e-5], np.float64).astype(DTYPES[dtype])
    for name in (*ONE, *(f"{name}_backward" for name in ONE if name != "sigmoid")):
        y = device.empty(x.shape, x.dtype)
        inputs = (device.asarray(x),) if name in ONE else (device.asarray(np.ones_like(x)), device.asarray(x))
        device.call(name if name not in ONE else f"{name}_forward", y, *inputs, x.size, CODE[dtype])
        found = y.numpy().astype(np.float64)
        assert np.isnan(found[0]) or name == "relu_backward"
        ends = {"sigmoid": (1.0, 0.0)}.get(name, (float(x[1]), 0.0) if name in ONE else (1.0, 0.0))
        assert tuple(found[1:3]) == ends, name


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("source", DTYPES)
@pytest.mark.parametrize("target", DTYPES)
def test_cast(device: EmulatedDevice, source: str, target: str, place: str) -> None:
    x = draw(source, 1027, scale=50.0)
    x[:5] = np.array([np.inf, -np.inf, np.nan, 1.00048828125, -0.0]).astype(x.dtype)
    y = PLACES[place](device, np.zeros(1027, DTYPES[target]))
    device.call("cast_forward", y, PLACES[place](device, x), 1027, CODE[target], CODE[source])
    np.testing.assert_array_equal(y.numpy().astype(np.float32), x.astype(DTYPES[target]).astype(np.float32))


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_fill(device: EmulatedDevice, dtype: str, place: str) -> None:
    for n, value in ((1, 0.0), (9, -1.5), (4099, 0.1)):
        y = PLACES[place](device, np.ones(n, DTYPES[dtype]))
        device.call("fill_forward", y, n, value, CODE[dtype])
        assert (y.numpy() == np.float32(value).astype(DTYPES[dtype])).all()


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("rows", "cols"), [(1, 1), (3, 5), (5, 64), (33, 72), (2, 2056)])
def test_swiglu_packed(device: EmulatedDevice, rows: int, cols: int, dtype: str, place: str) -> None:
    x, dy = draw(dtype, rows, 2 * cols, scale=2.0), draw(dtype, rows, cols, seed=1)
    gate, up = np.ascontiguousarray(x[:, :cols]), np.ascontiguousarray(x[:, cols:])
    packed, gradient = PLACES[place](device, x), PLACES[place](device, dy)
    y, dx = device.empty((rows, cols), x.dtype), device.empty(x.shape, x.dtype)
    device.call("swiglu_packed_forward", y, packed, rows, cols, CODE[dtype])
    accurate("swiglu", dtype, [y], gate, up)
    device.call("swiglu_packed_backward", dx, gradient, packed, rows, cols, CODE[dtype])
    device.call("swiglu_packed_backward", packed, gradient, packed, rows, cols, CODE[dtype])  # in place
    assert packed.numpy().tobytes() == dx.numpy().tobytes()
    split = activation.swiglu_backward(device.asarray(dy), device.asarray(gate), device.asarray(up))
    np.testing.assert_array_equal(dx.numpy(), np.concatenate([part.numpy() for part in split], axis=1))


def test_swiglu_in_place(device: EmulatedDevice) -> None:
    gate, up, dy = (draw("float32", 2051, seed=i) for i in range(3))
    right = activation.swiglu_backward(*map(device.asarray, (dy, gate, up)))
    a, b, g = map(device.asarray, (gate, up, dy))
    device.call("swiglu_backward", a, g, g, a, b, gate.size, 0)
    assert [a.numpy().tobytes(), g.numpy().tobytes()] == [part.numpy().tobytes() for part in right]


@pytest.mark.parametrize("arch", ["sm_75", "sm_90"])
def test_other_architectures(device: EmulatedDevice, arch: str) -> None:
    for dtype in DTYPES:
        x, dy = draw(dtype, 300), draw(dtype, 300, seed=1)
        accurate("gelu_backward", dtype, [activation.gelu_backward(device.asarray(dy), device.asarray(x))],
                 dy, x)
        accurate("swiglu", dtype, [activation.swiglu(device.asarray(dy), device.asarray(x))], dy, x)


def test_errors(device: EmulatedDevice) -> None:
    x = device.empty((8,), np.float32)
    for arguments, words in (
            (("silu_forward", x, x, -1, 0), "n: -1 is not in"),
            (("silu_forward", x, x, 2**61, 0), "n: 2305843"),
            (("silu_forward", None, x, 8, 0), "y: a null pointer"),
            (("silu_forward", x, None, 8, 0), "x: a null"),
            (("silu_forward", x, x, 8, 3), r"dtype: int64 \(3\)"),
            (("gelu_backward", x, None, x, 8, 0), "dy: a null"),
            (("silu_forward", x, x.pointer + 2, 4, 0), "x: .* is not aligned to float32"),
            (("add_forward", x, x, None, 8, 0), "b: a null"),
            (("cast_forward", x, x, 8, 9, 0), "y_dtype: no type"),
            (("cast_forward", x, x, 8, 0, 4), "x_dtype: int32"),
            (("fill_forward", None, 8, 0.0, 0), "y: a null"),
            (("swiglu_forward", x, x, None, 8, 0), "up: a null"),
            (("swiglu_backward", x, None, x, x, x, 8, 0), "dup: a null"),
            (("swiglu_packed_forward", x, x, 1, 4, 0), "y: is x"),
            (("swiglu_packed_forward", x, x, 2**40, 2**40, 0), "rows: .* is over"),
            (("swiglu_packed_backward", x, x, None, 1, 4, 0), "x: a null"),
            (("sigmoid_backward", x, x, None, 8, 0), "y: a null")):
        with pytest.raises(DeviceArgumentError, match=words):
            device.call(*arguments)
    for empty in (("silu_forward", None, None, 0, 0), ("swiglu_packed_backward", None, None, None, 0, 4, 1),
                  ("fill_forward", None, 0, 1.0, 2), ("cast_forward", None, None, 0, 1, 2)):
        device.call(*empty)


def test_name_of() -> None:
    assert name_of("_ZN2nn12softmax_rowsIfLi4ELi2EEEvPT_") == "softmax_rows"
    assert name_of("_ZN2nn5array15array_transposeItLi2EEEvNS0_13TranspositionIT_EE") == "array_transpose"
