"""Norms of rows."""

import numpy as np

from tests.conformance.naive.arithmetic import Array, total


def _mean(x: Array) -> Array:
    return total(x) / x.dtype.type(max(1, x.shape[-1]))


def rms_norm(x: Array, weight: Array, eps: float) -> tuple[Array, Array]:
    rstd = x.dtype.type(1) / np.sqrt(_mean(x * x) + x.dtype.type(eps))
    return x * rstd * weight, rstd


def rms_norm_residual(x: Array, residual: Array, weight: Array, eps: float) -> tuple[Array, Array, Array]:
    y, rstd = rms_norm(x + residual, weight, eps)
    return y, x + residual, rstd


def rms_norm_backward(dy: Array, x: Array, weight: Array, rstd: Array, *,
                      dresidual: Array | None = None) -> tuple[Array, Array]:
    rstd = rstd.astype(x.dtype)
    a, x_hat = dy * weight, x * rstd
    dx = rstd * (a - x_hat * _mean(a * x_hat))
    return dx if dresidual is None else dx + dresidual, total(dy * x_hat, axis=0, keepdims=False)


def layer_norm(x: Array, weight: Array, bias: Array, eps: float) -> tuple[Array, Array, Array]:
    mean = _mean(x)
    centred = x - mean
    rstd = x.dtype.type(1) / np.sqrt(_mean(centred * centred) + x.dtype.type(eps))
    return centred * rstd * weight + bias, mean, rstd


def layer_norm_backward(dy: Array, x: Array, weight: Array, mean: Array,
                        rstd: Array) -> tuple[Array, Array, Array]:
    rstd = rstd.astype(x.dtype)
    a, x_hat = dy * weight, (x - mean.astype(x.dtype)) * rstd
    dx = rstd * (a - _mean(a) - x_hat * _mean(a * x_hat))
    return dx, total(dy * x_hat, axis=0, keepdims=False), total(dy, axis=0, keepdims=False)
