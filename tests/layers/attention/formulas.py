"""Softmax attention in NumPy float64, pair by pair as it is defined: what the layers are held against."""

from itertools import pairwise
from typing import Any

import numpy as np

from nn.tensor import Tensor, no_grad
from tests.blocks.harness import shaken


def built(block: Any, **settings: Any) -> Any:
    """In float64, evaluating, its weights far from their start"""
    return shaken(block(block.Settings.create(**settings), dtype="float64"), seed=1)


def drawn(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape)


def run(block: Any, x: np.ndarray, **options: Any) -> np.ndarray:
    with no_grad():
        y, _ = block(Tensor(x), **options)
    return np.asarray(y.data)


def continued(block: Any, x: np.ndarray, cuts: list[int], **options: Any) -> np.ndarray:
    """The same in several calls behind a state"""
    state, parts = block.init_state(len(x)), []
    with no_grad():
        for start, end in pairwise([0, *cuts, x.shape[1]]):
            y, state = block(Tensor(x[:, start:end]), state=state, **options)
            parts.append(y.data)
    return np.concatenate(parts, axis=1)


def weights(block: Any, name: str) -> np.ndarray:
    return np.asarray(getattr(block, name).weight.data)


def heads(x: np.ndarray, matrix: np.ndarray, count: int) -> np.ndarray:
    """x[B,T,D] W[n·d,D]ᵀ -> [B,n,T,d]"""
    y = x @ matrix.T
    return y.reshape(*y.shape[:2], count, -1).transpose(0, 2, 1, 3)


def joined(o: np.ndarray) -> np.ndarray:
    """[B,H,T,d] -> [B,T,H·d]"""
    return o.transpose(0, 2, 1, 3).reshape(o.shape[0], o.shape[2], -1)


def rms(x: np.ndarray, weight: Any = 1.0, eps: float = 1e-6) -> np.ndarray:
    return x / np.sqrt((x * x).mean(axis=-1, keepdims=True) + eps) * weight


def sigmoid(x: np.ndarray) -> np.ndarray:
    return 1.0 / (1.0 + np.exp(-x))


def turned(x: np.ndarray, positions: Any, width: int = 0, interleaved: bool = False,
           theta: float = 10000.0) -> np.ndarray:
    """x[...,T,d], the first `width` channels (all: 0) turned by their positions [T]"""
    width = width or x.shape[-1]
    angle = np.asarray(positions)[:, None] * theta ** (-np.arange(0, width, 2) / width)
    cos, sin, y = np.cos(angle), np.sin(angle), x.copy()
    a, b = (slice(0, width, 2), slice(1, width, 2)) if interleaved else (slice(0, width // 2),
                                                                         slice(width // 2, width))
    y[..., a], y[..., b] = x[..., a] * cos - x[..., b] * sin, x[..., b] * cos + x[..., a] * sin
    return y


def attention(q: np.ndarray, k: np.ndarray, v: np.ndarray, visible: np.ndarray, scale: float | None = None,
              sinks: np.ndarray | None = None) -> np.ndarray:
    """q[B,H,T,d], k[B,G,S,d], v[B,G,S,e], booleans [T,S] or [B,H,T,S] -> [B,H,T,e]; nothing seen gives 0"""
    share = q.shape[1] // k.shape[1]
    k, v = np.repeat(k, share, axis=1), np.repeat(v, share, axis=1)
    scores = q @ k.swapaxes(-1, -2) * (q.shape[-1] ** -0.5 if scale is None else scale)
    powers = np.where(visible, np.exp(scores), 0.0)
    total = powers.sum(axis=-1, keepdims=True)
    if sinks is not None:
        total = total + np.exp(sinks)[:, None, None]
    return powers / np.where(total == 0.0, 1.0, total) @ v


def causal(length: int) -> np.ndarray:
    """booleans [T,T]"""
    return np.tri(length, dtype=bool)
