"""Packed weights: nn/packed/layout.py, read one output at a time."""

from collections.abc import Iterator

import numpy as np

from tests.conformance.naive.activation import swiglu
from tests.conformance.naive.arithmetic import Array, accumulator

PACKED = {0: "f32", 2: "q4_0", 8: "q8_0", 30: "bf16"}


def unpacked(data: Array, format: int, outputs: int, inputs: int) -> Array:
    """float64 [O,I] of a packed weight's bytes"""
    weight = np.zeros((outputs, inputs))
    for o, row in enumerate(weight):
        panel = data.reshape(-(-outputs // 16), -1)[o // 16]
        row[:] = _READ[PACKED[format]](panel, o % 16, inputs)
    return weight


def _bf16_row(panel: Array, lane: int, inputs: int) -> Array:
    halves = panel[: -(-inputs // 32) * 1024].view(np.uint16).reshape(-1, 16, 2)[:, lane].reshape(-1)
    return (halves[:inputs].astype(np.uint32) << 16).view(np.float32)


def _q8_0_row(panel: Array, lane: int, inputs: int) -> Array:
    row = [q.view(np.int8).reshape(8, 16, 4)[:, lane].reshape(-1) * scale
           for q, scale in _blocks(panel, 512, lane, inputs)]
    return np.concatenate([np.zeros(0), *row])


def _q4_0_row(panel: Array, lane: int, inputs: int) -> Array:
    row = []
    for q, scale in _blocks(panel, 256, lane, inputs):
        both = q.reshape(4, 16, 4)[:, lane].reshape(-1)
        row.append((np.concatenate([both % 16, both // 16]) - 8.0) * scale)
    return np.concatenate([np.zeros(0), *row])


def _blocks(panel: Array, size: int, lane: int, inputs: int) -> Iterator[tuple[Array, float]]:
    """Bytes of the quants of each block of 32, of all 16 outputs, and its scale of this one"""
    count, at = inputs // 32, 0
    for first in range(0, count, 2):
        together = min(2, count - first)
        scales = at + together * size
        for i in range(together):
            own = panel[scales + 32 * i : scales + 32 * i + 32].view(np.float16)
            yield panel[at + i * size : at + (i + 1) * size], float(own[lane])
        at = scales + together * 32


_READ = {"f32": lambda panel, lane, inputs: panel[: inputs * 64].view(np.float32).reshape(-1, 16)[:, lane],
         "bf16": _bf16_row, "q8_0": _q8_0_row, "q4_0": _q4_0_row}


def met_by_quants(x: Array, format: int) -> Array:
    """x as quantized weights meet it: exact in float64, else rounded to int8 in blocks of 32."""
    if PACKED[format] in ("f32", "bf16") or x.dtype == np.float64 or not x.size:
        return x.astype(accumulator(x.dtype))
    blocks = x.astype(np.float32).reshape(-1, 32)
    scale = np.abs(blocks).max(axis=1, keepdims=True) / np.float32(127.0)
    q = np.round(blocks / np.where(scale == 0, np.float32(1.0), scale))
    return (q * scale).reshape(x.shape)


def packed_linear(x: Array, weight: Array, format: int, outputs: int, *, bias: Array | None = None,
                  residual: Array | None = None) -> Array:
    met = met_by_quants(x, format)
    y = met @ unpacked(weight, format, outputs, x.shape[1]).astype(met.dtype).T
    y = y if bias is None else y + bias
    return (y if residual is None else y + residual).astype(x.dtype)


def ungated(weight: Array, format: int, features: int, inputs: int) -> tuple[Array, Array]:
    """(gate[F,I], up[F,I]): their panels alternate"""
    if not features:
        return np.zeros((0, inputs)), np.zeros((0, inputs))
    panels = weight.reshape(-(-features // 16), 2, -1)
    gate, up = (unpacked(panels[:, half].reshape(-1), format, features, inputs) for half in range(2))
    return gate, up


def packed_swiglu(x: Array, weight: Array, format: int, features: int) -> Array:
    met = met_by_quants(x, format)
    gate, up = (met @ part.astype(met.dtype).T for part in ungated(weight, format, features, x.shape[1]))
    return swiglu(gate, up).astype(x.dtype)


def packed_experts(x: Array, gate_up: Array, down: Array, weights: Array, experts: Array, num_experts: int,
                   features: int, format: int) -> Array:
    y, width = np.zeros(x.shape, accumulator(x.dtype)), x.shape[1]
    for n, chosen in enumerate(experts):
        for k, e in enumerate(chosen):
            if e < num_experts:
                one = np.split(gate_up, num_experts)[e], np.split(down, num_experts)[e]
                hidden = packed_swiglu(x[n : n + 1], one[0], format, features)
                y[n] += weights[n, k] * packed_linear(hidden, one[1], format, width)[0]
    return y.astype(x.dtype)
