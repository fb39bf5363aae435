"""Depthwise causal convolution: every channel is filtered over time, the last tap meets the present."""

from typing import Any

from nn.backends.array_api import namespace
from nn.dtypes import narrow, widen

Array = Any


def causal_conv(x: Array, weight: Array, steps: int, *, dilation: int = 1) -> Array:
    """y_t = Σ_j w_j ⊙ x_{t+jδ}: [B,T,C] for T = steps; x[B,T+(K−1)δ,C] begins with what came before"""
    wide, taps = widen(x), widen(weight)
    y = _at(wide, 0, steps) * taps[:, 0]
    for j in range(1, weight.shape[1]):
        y = y + _at(wide, j * dilation, steps) * taps[:, j]
    return narrow(y, x.dtype)


def causal_conv_backward(dy: Array, x: Array, weight: Array, *, dilation: int = 1) -> tuple[Array, Array]:
    """(dx, dweight[C,K]): dx_s = Σ_j w_j ⊙ dy_{s−jδ},  dw_j = Σ_{B,t} dy_t ⊙ x_{t+jδ}"""
    xp, g, wide, taps, steps = namespace(dy), widen(dy), widen(x), widen(weight), dy.shape[1]
    dx, dweight = xp.zeros(wide.shape, dtype=g.dtype), []
    for j in range(taps.shape[1]):
        dx[:, j * dilation : j * dilation + steps, :] += g * taps[:, j]
        dweight.append(xp.sum(g * _at(wide, j * dilation, steps), axis=(0, 1), dtype=g.dtype))
    return narrow(dx, x.dtype), xp.stack(dweight, axis=1)


def _at(x: Array, first: int, steps: int) -> Array:
    return x[:, first : first + steps, :]
