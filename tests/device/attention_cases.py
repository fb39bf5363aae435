"""What the attention tests share: the formula in any type, the accuracy rule, and arrays in other layouts."""

from typing import Any

import numpy as np

from cuda.nn.array import DeviceArray
from cuda.nn.device import EmulatedDevice
from tests.conformance.compare import compare
from tests.device.accuracy import DTYPES, draw

__all__ = ["DTYPES", "Triple", "accurate", "draw", "formula", "heads_inside", "up", "visible"]
Triple = tuple[np.ndarray, np.ndarray, np.ndarray]


def visible(queries: int, keys: int, causal: bool = True, window: int = 0,
            mask: np.ndarray | None = None) -> np.ndarray:
    """[T,S], or the mask's shape"""
    position, key = np.arange(queries)[:, None] + keys - queries, np.arange(keys)[None, :]
    see = np.ones((queries, keys), bool)
    if causal:
        see &= key <= position
    if window:
        see &= key > position - window
        see &= causal | (key < position + window)
    return see if mask is None else see & mask


def formula(dtype: Any, q: np.ndarray, k: np.ndarray, v: np.ndarray, see: np.ndarray, *, scale: float,
            softcap: float = 0.0) -> tuple[np.ndarray, np.ndarray]:
    """(o, lse) with every step rounded to the type; lse in float32 at least."""
    wide = np.float64 if np.dtype(dtype) == np.float64 else np.float32

    def rounded(x: np.ndarray) -> np.ndarray:
        return x.astype(dtype).astype(wide)

    q, k, v = (x.astype(wide) for x in (q, k, v))
    k, v = (np.repeat(x, q.shape[1] // x.shape[1], axis=1) for x in (k, v))
    with np.errstate(all="ignore"):
        exact = (q @ k.swapaxes(2, 3)) * wide(scale)
        scores = rounded(exact)
        if softcap:
            exact = wide(softcap) * np.tanh(exact / wide(softcap))
            scores = rounded(wide(softcap) * rounded(np.tanh(scores / wide(softcap))))
        p, _ = _softmax(np.where(see, scores, -np.inf))
        return rounded(rounded(p) @ v), _softmax(np.where(see, exact, -np.inf))[1]


def _softmax(s: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    largest = np.max(s, axis=-1, keepdims=True, initial=-np.inf)
    largest = np.where(np.isneginf(largest), np.zeros_like(largest), largest)
    e = np.exp(s - largest)
    total = e.sum(axis=-1, keepdims=True, dtype=e.dtype)
    safe = np.where(total == 0, np.ones_like(total), total)
    return e / safe, np.where(total == 0, -np.inf, largest + np.log(safe))[..., 0]


def accurate(dtype: str, o: np.ndarray, lse: np.ndarray, q: np.ndarray, k: np.ndarray, v: np.ndarray,
             see: np.ndarray, **options: Any) -> None:
    right, rough = (formula(t, q, k, v, see, **options) for t in (np.float64, DTYPES[dtype]))
    compare("o", o, right[0], rough[0], dtype, scale=np.max(np.abs(v.astype(np.float64)), initial=0.0) * 0.25)
    compare("lse", lse, right[1], rough[1], "float32", scale=4.0)


def heads_inside(device: EmulatedDevice, x: np.ndarray) -> DeviceArray:
    """[B,H,T,D] as a view of memory laid out [B,T,H,D]"""
    return device.asarray(np.ascontiguousarray(x.transpose(0, 2, 1, 3))).permute((0, 2, 1, 3))


def up(device: EmulatedDevice, arrays: Triple) -> tuple[DeviceArray, DeviceArray, DeviceArray]:
    q, k, v = arrays
    return device.asarray(q), device.asarray(k), device.asarray(v)
