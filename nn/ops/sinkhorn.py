"""Sinkhorn and Knopp's scaling: the doubly stochastic matrix of a matrix of logits (Sinkhorn & Knopp 1967;
in residual streams: mHC, arXiv 2512.24880).

What every variant tends to is the same: D₁ e^L D₂ with diagonal D₁, D₂, rows and columns adding up to 1.
Small matrices, many of them: matrix entries stand in front, so every step is a few long rows."""

from typing import Any

from nn.backends.array_api import namespace
from nn.dtypes import narrow, widen
from nn.names import check_name
from nn.tensor import Array, Op, Tensor

VARIANTS = ("A", "B", "C")
ROWS, COLUMNS = 1, 0          # the axis of [o,i,N] that a sum over a row, or over a column, runs along


class Sinkhorn(Op):
    """Variant A: softmax of the rows, + ε, then columns and t − 1 times (rows, columns) divided by their sum
    + ε.

    A step Y = X / s, s = Σ_axis X + ε, has dX = (dY − Σ_axis dY ⊙ Y) / s; only the sums are kept, as X = Y s.
    Before the first step, X = P + ε, dL = P ⊙ (dX − Σ_row dX ⊙ P)."""

    def forward(self, logits: Array, *, iterations: int, eps: float) -> Array:
        xp, self.shape = namespace(logits), logits.shape
        x = in_front(widen(logits))
        x = xp.exp(x - xp.max(x, axis=ROWS, keepdims=True))
        x = x / xp.sum(x, axis=ROWS, keepdims=True, dtype=x.dtype)
        self.p, x, self.axes = x, x + eps, (COLUMNS, *(ROWS, COLUMNS) * (iterations - 1))
        self.sums = []
        for axis in self.axes:
            self.sums.append(xp.sum(x, axis=axis, keepdims=True, dtype=x.dtype) + eps)
            x = x / self.sums[-1]
        self.y = x
        return narrow(behind(x, self.shape), logits.dtype)

    def backward(self, dy: Array) -> Array:
        xp, g, y = namespace(dy), in_front(widen(dy)), self.y
        for axis, s in zip(reversed(self.axes), reversed(self.sums), strict=True):
            g = (g - xp.sum(g * y, axis=axis, keepdims=True, dtype=g.dtype)) / s
            y = y * s
        g = self.p * (g - xp.sum(g * self.p, axis=ROWS, keepdims=True, dtype=g.dtype))
        return narrow(behind(g, self.shape), dy.dtype)


class LogSinkhorn(Op):
    """Variant C: t times L ← L − LSE_row L, L ← L − LSE_column L, and then e^L: no entry is ever lost.
    Variant B: the same, columns before rows; e^L divided by its sums would be 0 / 0 where a row underflows.

    A step L' = L − LSE L has dL = dL' − e^L' Σ_axis dL'; the LSE are kept, as L = L' + LSE L."""

    def forward(self, logits: Array, *, iterations: int, order: tuple[int, int]) -> Array:
        xp, self.shape = namespace(logits), logits.shape
        x, self.axes = in_front(widen(logits)), order * iterations
        self.sums = []
        for axis in self.axes:
            top = xp.max(x, axis=axis, keepdims=True)
            self.sums.append(top + xp.log(xp.sum(xp.exp(x - top), axis=axis, keepdims=True, dtype=x.dtype)))
            x = x - self.sums[-1]
        self.log = x
        return narrow(behind(xp.exp(x), self.shape), logits.dtype)

    def backward(self, dy: Array) -> Array:
        xp, log = namespace(dy), self.log
        g = in_front(widen(dy)) * xp.exp(log)
        for axis, s in zip(reversed(self.axes), reversed(self.sums), strict=True):
            g = g - xp.exp(log) * xp.sum(g, axis=axis, keepdims=True, dtype=g.dtype)
            log = log + s
        return narrow(behind(g, self.shape), dy.dtype)


def in_front(x: Array) -> Array:
    """[...,n,n] -> [n,n,N], contiguous"""
    xp, n = namespace(x), x.shape[-1]
    count = x.size // (n * n)
    rows = xp.reshape(x, (count, n * n))
    return xp.reshape(xp.stack([rows[:, k] for k in range(n * n)], axis=0), (n, n, count))


def behind(x: Array, shape: Any) -> Array:
    """[n,n,N] -> [...,n,n], the shape given"""
    xp, n = namespace(x), x.shape[0]
    return xp.reshape(xp.stack([x[i, j, :] for i in range(n) for j in range(n)], axis=-1), shape)


def sinkhorn(logits: Tensor, iterations: int = 20, eps: float = 1e-6, variant: str = "A") -> Tensor:
    """logits[...,n,n] -> matrices[...,n,n], entries positive, rows and columns adding up to 1: columns (B:
    rows) up to eps, the others as far as the iterations have come.  eps is A's alone."""
    check_name("sinkhorn", variant, VARIANTS)
    if logits.ndim < 2 or logits.shape[-1] != logits.shape[-2] or not logits.shape[-1]:
        raise ValueError(f"sinkhorn: square matrices are needed: logits {list(logits.shape)}")
    if iterations < 1:
        raise ValueError(f"sinkhorn: {iterations} iterations; 1 or more are needed")
    if variant == "A":
        return Sinkhorn.apply(logits, iterations=iterations, eps=eps)
    order = (COLUMNS, ROWS) if variant == "B" else (ROWS, COLUMNS)
    return LogSinkhorn.apply(logits, iterations=iterations, order=order)
