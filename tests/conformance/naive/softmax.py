"""Softmax and its logarithm; a row that is masked whole gives zeros."""

import numpy as np

from tests.conformance.naive.arithmetic import Array, total


def _shifted(x: Array) -> Array:
    largest = np.max(x, axis=-1, keepdims=True, initial=-np.inf).astype(x.dtype)
    return x - np.where(np.isneginf(largest), np.zeros_like(largest), largest)


def softmax(x: Array) -> Array:
    e = np.exp(_shifted(x))
    s = total(e)
    return e / np.where(s == 0, np.ones_like(s), s)


def softmax_backward(dy: Array, y: Array) -> Array:
    return y * (dy - total(y * dy))


def log_softmax(x: Array) -> Array:
    z = _shifted(x)
    s = total(np.exp(z))
    return z - np.log(np.where(s == 0, np.ones_like(s), s))


def log_softmax_backward(dy: Array, y: Array) -> Array:
    return dy - np.exp(y) * total(dy)
