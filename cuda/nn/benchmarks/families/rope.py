"""nn/rope.h: tables from float64 angles, and the rotation of queries and keys in one launch."""

from ctypes import byref, sizeof

import numpy as np

from cuda.nn.array import DeviceArray
from cuda.nn.benchmarks.case import Bench, Call, Check, benchmark
from cuda.nn.prototypes.rope import Rope, RopeArray

THETA = 500_000.0
TABLE = ("float32",)      # the type of tables, whatever the model's


def _frequencies(dim: int) -> np.ndarray:
    return THETA ** (-2.0 * np.arange(dim // 2) / dim)


@benchmark("rope", large={"dim": 128}, small={"dim": 64}, dtypes=TABLE)
def rope_frequencies(at: Bench, dim: int) -> Call:
    inverse = at.empty(dim // 2, dtype=np.float64)
    return Call(at.queue("rope_frequencies", inverse, dim, THETA, 1.0, 0), [], [inverse],
                [Check("inverse", inverse, lambda: _frequencies(dim))])


@benchmark("rope", large={"positions": 131072, "half": 64}, small={"positions": 256, "half": 32},
           dtypes=TABLE)
def rope_table(at: Bench, positions: int, half: int) -> Call:
    inverse, some = at.put(_frequencies(2 * half)), at.some(positions)
    cos, sin = at.empty(positions, half), at.empty(positions, half)

    def angles() -> np.ndarray:
        return some[:, None] * at.values(inverse)

    return Call(at.queue("rope_table", cos, sin, inverse, 0, positions, half, 1.0), [inverse], [cos, sin],
                [Check("cos", cos, lambda: np.cos(angles()), some),
                 Check("sin", sin, lambda: np.sin(angles()), some)])


def _rotated(x: np.ndarray, angles: np.ndarray) -> np.ndarray:
    """x[H,T,W] with pairs (i, i + W/2)"""
    a, b = np.split(x, 2, axis=-1)
    return np.concatenate([a * np.cos(angles) - b * np.sin(angles), b * np.cos(angles) + a * np.sin(angles)],
                          axis=-1)


@benchmark("rope", large={"batch": 4, "heads": 32, "groups": 8, "tokens": 2048, "width": 128},
           small={"batch": 1, "heads": 4, "groups": 2, "tokens": 64, "width": 64})
def rope_forward(at: Bench, batch: int, heads: int, groups: int, tokens: int, width: int) -> Call:
    q, k = at.normal(batch, heads, tokens, width), at.normal(batch, groups, tokens, width)
    turned = at.empty(*q.shape), at.empty(*k.shape)
    angles = np.arange(tokens)[:, None] * _frequencies(width)
    cos, sin = at.put(np.cos(angles).astype(np.float32)), at.put(np.sin(angles).astype(np.float32))
    call = Rope(size=sizeof(Rope), q=_array(turned[0], q), k=_array(turned[1], k), cos=cos.pointer,
                sin=sin.pointer, batch=batch, length=tokens, width=width, half=width // 2, table_rows=tokens,
                dtype=at.code)
    return Call(at.queue("rope_forward", byref(call)), [q, k, cos, sin], [*turned],
                [Check("q", turned[0], lambda: _rotated(at.wide(q, batch - 1), angles), batch - 1),
                 Check("k", turned[1], lambda: _rotated(at.wide(k, batch - 1), angles), batch - 1)])


def _array(y: DeviceArray, x: DeviceArray) -> RopeArray:
    return RopeArray(y.pointer, x.pointer, x.shape[1], *y.strides[:3], *x.strides[:3])
