"""Formulas of the specification in float64 NumPy, which the tests of the layers share."""

from typing import Any

import numpy as np

from nn.tensor import Tensor, no_grad

Weights = dict[str, np.ndarray]


def weights_of(layer: Any) -> Weights:
    return {name: p.data for name, p in layer.named_parameters().items()}


def output(layer: Any, x: np.ndarray, mode: str) -> np.ndarray:
    with no_grad():
        return np.asarray(layer(Tensor(x), mode=mode)[0].data)


def sigmoid(x: np.ndarray) -> np.ndarray:
    return 1.0 / (1.0 + np.exp(-x))


def silu(x: np.ndarray) -> np.ndarray:
    return x * sigmoid(x)


def rms(x: np.ndarray, weight: np.ndarray, eps: float) -> np.ndarray:
    return weight * x / np.sqrt(np.mean(x**2, axis=-1, keepdims=True) + eps)


def unit(x: np.ndarray) -> np.ndarray:
    return x / np.sqrt(np.sum(x**2, axis=-1, keepdims=True) + 1e-6)


def conv_silu(x: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """SiLU(Σ_j w_j ⊙ x_{t − (K−1−j)}) of x[T,C], weight [C,K]"""
    taps = weight.shape[1]
    long = np.concatenate([np.zeros((taps - 1, x.shape[1])), x])
    return silu(sum(weight[:, j] * long[j : j + len(x)] for j in range(taps)))


def delta_rule(q: np.ndarray, k: np.ndarray, v: np.ndarray, g: np.ndarray, beta: np.ndarray) -> np.ndarray:
    """o[T,Dv] of one head: S̄ = e^g S, S = S̄ + β k (v − S̄ᵀ k)ᵀ, o = Sᵀ q / √Dk"""
    s, o = np.zeros((q.shape[1], v.shape[1])), np.zeros(v.shape)
    for t in range(len(q)):
        s = np.exp(g[t]) * s
        s = s + beta[t] * np.outer(k[t], v[t] - s.T @ k[t])
        o[t] = s.T @ q[t] / np.sqrt(q.shape[1])
    return o
