"""Sums and products of arrays, by kernels where those pay and by the arrays' own operators elsewhere.

Half-precision arrays in NumPy (ml_dtypes) are added up one element at a time; here large ones are widened,
computed in float32 and rounded once, which gives the same bits."""

import math
import operator
from collections.abc import Callable
from typing import Any

import numpy as np

from nn.backends import kernels
from nn.backends.array_api import namespace
from nn.backends.native.dense import served, small, takes
from nn.dtypes import is_half, narrow, widen

Array = Any
Operand = Any      # array or Python number


def add(a: Operand, b: Operand) -> Any:
    """a + b with broadcasting"""
    if small(a, b):
        return a + b
    return _combined(operator.add, kernels.add, kernels.add_row, a, b)


def mul(a: Operand, b: Operand) -> Any:
    """a ⊙ b with broadcasting"""
    if small(a, b):
        return a * b
    for x, number in ((a, b), (b, a)):
        if type(number) in (int, float) and takes(x):
            return kernels.scale(x, number)
    return _combined(operator.mul, kernels.mul, kernels.mul_row, a, b)


def total(a: Array, b: Array) -> Array:
    """The sum of two gradients of one shape, in the type that sums are formed in"""
    wide = widen(a)
    if wide is not a and takes(wide, b):           # nobody else has it
        kernels.accumulate(wide, b)
        return wide
    return add(wide, widen(b))


def computed(function: Callable[..., Any], *operands: Operand) -> Any:
    """function of one or two operands, NumPy's or an operator; large half-precision ones in float32."""
    if small(*operands):
        return function(*operands)
    halves = {x.dtype for x in operands if type(x) is np.ndarray and is_half(x.dtype)}
    if len(halves) != 1:
        return function(*operands)
    if any(hasattr(x, "dtype") and x.dtype not in halves for x in operands):
        return function(*operands)
    y = function(*(widen(x) if hasattr(x, "dtype") else x for x in operands))
    return narrow(y, halves.pop())


def sum_to(gradient: Array, shape: tuple[int, ...]) -> Array:
    """Σ over the axes along which `shape` was stretched to the gradient's; the sum is not rounded."""
    if (matrix := _as_rows(gradient, shape)) is not None:
        return kernels.column_sum(matrix).reshape(shape)
    xp, extra = namespace(gradient), gradient.ndim - len(shape)
    stretched = tuple(extra + i for i, n in enumerate(shape) if n == 1 and gradient.shape[extra + i] != 1)
    wide = widen(gradient)
    return xp.reshape(xp.sum(wide, axis=(*range(extra), *stretched), keepdims=True, dtype=wide.dtype), shape)


def _combined(function: Callable[..., Any], alike: Any, with_row: Any, a: Operand, b: Operand) -> Any:
    if takes(a, b) and a.dtype == b.dtype:
        if a.shape == b.shape:
            return alike(a, b)
        for x, row in ((a, b), (b, a)):
            if row.ndim <= x.ndim and is_tail(row.shape, x.shape):
                return with_row(x.reshape(-1, row.size), row.reshape(-1)).reshape(x.shape)
    return computed(function, a, b)


def _as_rows(gradient: Array, shape: tuple[int, ...]) -> Any:
    """The gradient as [R,D], if D elements were stretched along axes before theirs; None otherwise."""
    size = math.prod(shape)
    wide = shape and shape[-1] >= 16 and is_tail(shape, gradient.shape)
    return gradient.reshape(-1, size) if wide and takes(gradient) else None


def is_tail(shape: tuple[int, ...], whole: tuple[int, ...]) -> bool:
    """Whether `shape`, but for axes of 1 in front, is how `whole` ends; none of them empty"""
    tail = shape
    while tail and tail[0] == 1:
        tail = tail[1:]
    return 0 not in whole and len(tail) > 0 and tuple(whole[-len(tail):]) == tuple(tail)


def reshaped(x: Array, shape: tuple[int, ...]) -> Array:
    """x in another shape: a view where its strides allow that, else a copy, by a kernel where one pays"""
    if type(x) is not np.ndarray or x.flags.c_contiguous or x.ndim > 4 or not served(x):
        return namespace(x).reshape(x, shape)
    try:
        return np.reshape(x, shape, copy=False)
    except ValueError:
        return kernels.contiguous(x[(None,) * (4 - x.ndim)]).reshape(shape)
