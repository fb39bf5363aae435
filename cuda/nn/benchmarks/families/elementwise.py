"""nn/elementwise.h: bound by memory; each element is read and written once."""

import math
from collections.abc import Callable

import numpy as np

from cuda.nn.benchmarks.case import DTYPES, Bench, Call, Check, benchmark

LARGE, SMALL = {"n": 1 << 25}, {"n": 1 << 16}
GATED, GATED_SMALL = {"rows": 4096, "cols": 14336}, {"rows": 32, "cols": 1024}
SEEN = 4096               # elements compared
Formula = Callable[[np.ndarray], np.ndarray]


def sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


def _normal_distribution(x: np.ndarray) -> np.ndarray:
    return np.vectorize(lambda z: math.erfc(-z / math.sqrt(2)) / 2, otypes=[np.float64])(x)


def silu(x: np.ndarray) -> np.ndarray:
    return x * sigmoid(x)


def d_silu(x: np.ndarray) -> np.ndarray:
    return sigmoid(x) * (1 + x * (1 - sigmoid(x)))


def _gelu_tanh(x: np.ndarray) -> np.ndarray:
    return x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))) / 2


def _d_gelu_tanh(x: np.ndarray) -> np.ndarray:
    t = np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))
    return (1 + t) / 2 + x * (1 - t * t) / 2 * math.sqrt(2 / math.pi) * (1 + 3 * 0.044715 * x * x)


# {function: (of the input, its derivative by what the backward is given)}
UNARY: dict[str, tuple[Formula, Formula]] = {
    "silu": (silu, d_silu),
    "gelu": (lambda x: x * _normal_distribution(x),
             lambda x: _normal_distribution(x) + x * np.exp(-x * x / 2) / math.sqrt(2 * math.pi)),
    "gelu_tanh": (_gelu_tanh, _d_gelu_tanh),
    "sigmoid": (sigmoid, lambda y: y * (1 - y)),
    "relu": (lambda x: np.maximum(x, 0), lambda x: (x > 0).astype(np.float64)),
}
BINARY: dict[str, Callable[[np.ndarray, np.ndarray], np.ndarray]] = {"add": np.add, "mul": np.multiply}


def _unary(name: str, forward: Formula, slope: Formula) -> None:
    @benchmark("elementwise", large=LARGE, small=SMALL, function=f"{name}_forward")
    def build_forward(at: Bench, n: int) -> Call:
        x, y, some = at.normal(n), at.empty(n), at.some(n, SEEN)
        return Call(at.queue(f"{name}_forward", y, x, n, at.code), [x], [y],
                    [Check("y", y, lambda: forward(at.wide(x, some)), some)])

    @benchmark("elementwise", large=LARGE, small=SMALL, function=f"{name}_backward")
    def build_backward(at: Bench, n: int) -> Call:
        dy, x, dx, some = at.normal(n), at.normal(n), at.empty(n), at.some(n, SEEN)
        return Call(at.queue(f"{name}_backward", dx, dy, x, n, at.code), [dy, x], [dx],
                    [Check("dx", dx, lambda: at.wide(dy, some) * slope(at.wide(x, some)), some)])


def _binary(name: str, formula: Callable[[np.ndarray, np.ndarray], np.ndarray]) -> None:
    @benchmark("elementwise", large=LARGE, small=SMALL, function=f"{name}_forward")
    def build(at: Bench, n: int) -> Call:
        a, b, y, some = at.normal(n), at.normal(n), at.empty(n), at.some(n, SEEN)
        return Call(at.queue(f"{name}_forward", y, a, b, n, at.code), [a, b], [y],
                    [Check("y", y, lambda: formula(at.wide(a, some), at.wide(b, some)), some)],
                    vendor=(name, (y, a, b)))


for _name, _formulas in UNARY.items():
    _unary(_name, *_formulas)
for _name, _formula in BINARY.items():
    _binary(_name, _formula)


@benchmark("elementwise", large=LARGE, small=SMALL)
def scale_forward(at: Bench, n: int) -> Call:
    x, y, some = at.normal(n), at.empty(n), at.some(n, SEEN)
    return Call(at.queue("scale_forward", y, x, n, 0.5, -1.25, at.code), [x], [y],
                [Check("y", y, lambda: 0.5 * at.wide(x, some) - 1.25, some)])


@benchmark("elementwise", large=LARGE, small=SMALL)
def cast_forward(at: Bench, n: int) -> Call:
    """From float32 to a half; from bfloat16 to float32."""
    source = "bfloat16" if at.dtype == DTYPES["float32"] else "float32"
    x, y, some = at.normal(n, dtype=DTYPES[source]), at.empty(n), at.some(n, SEEN)
    return Call(at.queue("cast_forward", y, x, n, at.code, x.code), [x], [y],
                [Check("y", y, lambda: at.wide(x, some), some)])


@benchmark("elementwise", large=LARGE, small=SMALL)
def fill_forward(at: Bench, n: int) -> Call:
    y, some = at.empty(n), at.some(n, SEEN)
    return Call(at.queue("fill_forward", y, n, 1.5, at.code), [], [y],
                [Check("y", y, lambda: np.full(len(some), 1.5), some)])


# ---- SwiGLU ----


@benchmark("elementwise", large=LARGE, small=SMALL)
def swiglu_forward(at: Bench, n: int) -> Call:
    gate, up, y, some = at.normal(n), at.normal(n), at.empty(n), at.some(n, SEEN)
    return Call(at.queue("swiglu_forward", y, gate, up, n, at.code), [gate, up], [y],
                [Check("y", y, lambda: silu(at.wide(gate, some)) * at.wide(up, some), some)])


@benchmark("elementwise", large=LARGE, small=SMALL)
def swiglu_backward(at: Bench, n: int) -> Call:
    dy, gate, up, some = at.normal(n), at.normal(n), at.normal(n), at.some(n, SEEN)
    dgate, dup = at.empty(n), at.empty(n)

    def d_gate() -> np.ndarray:
        return at.wide(dy, some) * at.wide(up, some) * d_silu(at.wide(gate, some))

    return Call(at.queue("swiglu_backward", dgate, dup, dy, gate, up, n, at.code), [dy, gate, up],
                [dgate, dup],
                [Check("dgate", dgate, d_gate, some),
                 Check("dup", dup, lambda: at.wide(dy, some) * silu(at.wide(gate, some)), some)])


@benchmark("elementwise", large=GATED, small=GATED_SMALL)
def swiglu_packed_forward(at: Bench, rows: int, cols: int) -> Call:
    x, y, some = at.normal(rows, 2 * cols), at.empty(rows, cols), at.some(rows)

    def formula() -> np.ndarray:
        gate, up = np.split(at.wide(x, some), 2, axis=1)
        return silu(gate) * up

    return Call(at.queue("swiglu_packed_forward", y, x, rows, cols, at.code), [x], [y],
                [Check("y", y, formula, some)])


@benchmark("elementwise", large=GATED, small=GATED_SMALL)
def swiglu_packed_backward(at: Bench, rows: int, cols: int) -> Call:
    dy, x, some = at.normal(rows, cols), at.normal(rows, 2 * cols), at.some(rows)
    dx = at.empty(rows, 2 * cols)

    def formula() -> np.ndarray:
        gate, up = np.split(at.wide(x, some), 2, axis=1)
        d = at.wide(dy, some)
        return np.concatenate([d * up * d_silu(gate), d * silu(gate)], axis=1)

    return Call(at.queue("swiglu_packed_backward", dx, dy, x, rows, cols, at.code), [dy, x], [dx],
                [Check("dx", dx, formula, some)])
