"""The causal convolution of each channel."""

import numpy as np

from tests.conformance.naive.arithmetic import Array, accumulator


def causal_conv(x: Array, weight: Array, steps: int, *, dilation: int = 1) -> Array:
    wide = accumulator(x.dtype)
    y = np.zeros((x.shape[0], steps, x.shape[2]), wide)
    for t in range(steps):
        for j in range(weight.shape[1]):
            y[:, t] += x[:, t + j * dilation].astype(wide) * weight[:, j].astype(wide)
    return y.astype(x.dtype)


def causal_conv_backward(dy: Array, x: Array, weight: Array, *, dilation: int = 1) -> tuple[Array, Array]:
    wide = accumulator(x.dtype)
    dx, dweight = np.zeros(x.shape, wide), np.zeros(weight.shape, wide)
    for t in range(dy.shape[1]):
        for j in range(weight.shape[1]):
            dx[:, t + j * dilation] += dy[:, t].astype(wide) * weight[:, j].astype(wide)
            dweight[:, j] += np.sum(dy[:, t].astype(wide) * x[:, t + j * dilation].astype(wide), axis=0)
    return dx.astype(x.dtype), dweight.astype(x.dtype)
