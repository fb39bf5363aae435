"""What several families share: sums and products in their accumulator, erf, the logistic function, Philox."""

import math
from typing import Any

import numpy as np

Array = np.ndarray


def accumulator(dtype: Any) -> Any:
    return np.float64 if dtype == np.float64 else np.float32


def total(x: Array, axis: int = -1, keepdims: bool = True) -> Array:
    return np.sum(x.astype(accumulator(x.dtype)), axis=axis, keepdims=keepdims).astype(x.dtype)


def product(a: Array, b: Array) -> Array:
    wide = accumulator(a.dtype)
    return np.matmul(a.astype(wide), b.astype(wide)).astype(a.dtype)


def erf(x: Array) -> Array:
    return np.array([math.erf(float(value)) for value in x.flat]).reshape(x.shape).astype(x.dtype)


def logistic(x: Array) -> Array:
    one = x.dtype.type(1)
    with np.errstate(over="ignore"):
        return one / (one + np.exp(-x))


def philox_word(place: Array, index: int) -> int:
    """Word `index` of Philox 4x32-10 (Salmon et al. 2011) under a counter's key and its three stream words"""
    key, c = int(place[0]) % 2**64, [index // 4, *(int(word) for word in place[1:])]
    k = [key % 2**32, key // 2**32]
    for _ in range(10):
        a, b = 0xD2511F53 * c[0], 0xCD9E8D57 * c[2]
        c = [b // 2**32 ^ c[1] ^ k[0], b % 2**32, a // 2**32 ^ c[3] ^ k[1], a % 2**32]
        k = [(k[0] + 0x9E3779B9) % 2**32, (k[1] + 0xBB67AE85) % 2**32]
    return c[index % 4]
