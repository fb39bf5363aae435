"""Matrix products."""

import numpy as np

from tests.conformance.naive.arithmetic import Array, accumulator, product


def matmul(a: Array, b: Array) -> Array:
    return product(a, b)


def linear(x: Array, weight: Array, *, bias: Array | None = None) -> Array:
    y = np.matmul(x.astype(accumulator(x.dtype)), weight.T.astype(accumulator(x.dtype)))
    return (y if bias is None else y + bias).astype(x.dtype)


def linear_backward(dy: Array, x: Array, weight: Array) -> tuple[Array, Array]:
    return product(dy, weight), product(dy.T, x)
