"""The generic functions behind DeviceArray."""

import math

import numpy as np

from cuda.nn.layout import Shape, dense_strides, layout
from cuda.nn.prototypes.array import ArrayLayout
from tests.device.accuracy import WIDE
from tests.device.calls.made import Arguments, Arrays, exported

HALF = {"dtype": "bfloat16"}
COPY, EXP, DIVIDE, SUM, ARGMAX = 0, 8, 35, 0, 7      # nn_array_op, nn_array_reduction
SHAPE = (7, 9, 40)


def made(shape: Shape, *strides: Shape) -> ArrayLayout:
    return ArrayLayout.from_buffer_copy(layout(shape, *strides))


def turned(shape: Shape) -> Shape:
    """The strides of x.T.T of an array that lies the other way round: every axis with gaps"""
    return dense_strides(shape[::-1])[::-1]


@exported(half=HALF, permuted={"op": COPY, "shape": (40, 3, 24)})
def array_unary(a: Arrays, shape: Shape = SHAPE, op: int = EXP) -> Arguments:
    return a.out(*shape), a(*shape), made(shape, dense_strides(shape), turned(shape)), op, a.code, a.code


@exported(half=HALF)
def array_binary(a: Arrays, shape: Shape = SHAPE) -> Arguments:
    places = made(shape, dense_strides(shape), turned(shape), dense_strides(shape))
    return a.out(*shape), a(*shape), a(*shape), places, DIVIDE, a.code, a.code, a.code, 0.0


@exported()
def array_where(a: Arrays, shape: Shape = SHAPE) -> Arguments:
    places = made(shape, *(dense_strides(shape),) * 2, turned(shape), (0, 0, 0))
    return (a.out(*shape), a.given(a.random.random(shape) < 0.5), a(*shape), None, places, a.code, a.code,
            a.code, 0.0, 2.5)


@exported()
def array_fill(a: Arrays, shape: Shape = SHAPE) -> Arguments:
    return a.out(*shape), made(shape, turned(shape)), a.code, 2.5


@exported()
def array_arange(a: Arrays, count: int = 2061) -> Arguments:
    return a.out(count), 0.5, 0.25, count, a.code


@exported(half=HALF, long={"shape": (3, 2, 20_000)}, columns={"across": True}, place={"op": ARGMAX})
def array_reduce(a: Arrays, shape: Shape = (40, 9, 33), op: int = SUM,
                 across: bool = False) -> Arguments:
    """Over the last two axes"""
    kept = np.int64 if op == ARGMAX else WIDE
    y = a.out(shape[0], dtype=kept)
    places = made(shape, (1, 0, 0), turned(shape) if across else dense_strides(shape))
    return (y, a(*shape), places, 2, op, y.code, a.code, *a.scratch("array_reduce", bytes(places), 2, op))


@exported()
def array_gather(a: Arrays, rows: int = 50, count: int = 70, width: int = 40) -> Arguments:
    places = made((count, width), (width, 1), (0, 1), (1, 0))
    return a.out(count, width), a(rows, width), a.integers(rows, count), places, rows, width, a.code, 3


@exported()
def array_scatter(a: Arrays, rows: int = 50, count: int = 70, width: int = 40) -> Arguments:
    places = made((count, width), (0, 1), (width, 1), (1, 0))
    workspace = a.keep(a.device.workspace(8 * rows))
    return (a.in_place(rows, width), a(count, width), a.integers(rows, count), places, rows, width, count,
            a.code, 3, workspace, 8 * rows)


@exported(short={"rows": 70, "n": 33})
def array_cumulative_sum(a: Arrays, rows: int = 3, n: int = 5000) -> Arguments:
    return a.floats(rows, n), a(rows, n), rows, n, 0, a.code, *a.scratch("array_cumulative_sum", rows, n)


@exported(short={"rows": 70, "n": 33})
def array_argsort(a: Arrays, rows: int = 2, n: int = 3000) -> Arguments:
    order, x = a.out(rows, n, dtype=np.int64), a.given(a.random.integers(0, 90, (rows, n)).astype(a.dtype))
    return order, x, rows, n, 1, a.code, *a.scratch("array_argsort", rows, n, a.code)


@exported()
def array_searchsorted(a: Arrays, n: int = 300, m: int = 700) -> Arguments:
    ordered = a.given(np.sort(a.random.standard_normal(n)).astype(a.dtype))
    return a.out(m, dtype=np.int64), ordered, a(m), n, m, 1, a.code


assert math.prod(SHAPE) > 2048                       # more than one block of any of them
