"""AdamW, the sum of squares, embedding and scatter-add."""

import math

import numpy as np

from tests.conformance.naive.arithmetic import Array, accumulator


def embedding(weight: Array, ids: Array) -> Array:
    return np.stack([weight[i] for i in ids]) if ids.size else weight[:0]


def scatter_add(source: Array, index: Array, rows: int) -> Array:
    out = np.zeros((rows, *source.shape[1:]), accumulator(source.dtype))
    for n, row in enumerate(index):
        out[row] += source[n]
    return out


def adamw(param: Array, grad: Array, m: Array, v: Array, *, lr: float, beta1: float, beta2: float, eps: float,
          weight_decay: float, step: int, grad_scale: float = 1.0) -> tuple[Array, Array, Array]:
    """The new (param, m, v)"""
    c = param.dtype.type
    g = grad.astype(param.dtype) * c(grad_scale)
    m = c(beta1) * m + c(1 - beta1) * g
    v = c(beta2) * v + c(1 - beta2) * g * g
    m_hat, v_hat = m / c(1 - beta1**step), v / c(1 - beta2**step)
    return param * c(1 - lr * weight_decay) - c(lr) * m_hat / (np.sqrt(v_hat) + c(eps)), m, v


def sum_of_squares(x: Array) -> float:
    return math.fsum(float(value) ** 2 for value in x.flat)
