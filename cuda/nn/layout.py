"""Shapes and strides (in elements): views, broadcasting, and the nn_array_layout of a call, made once per
combination of shapes and kept."""

import math
import struct
from collections.abc import Sequence
from functools import lru_cache

from cuda.nn.errors import DeviceArgumentError
from cuda.nn.prototypes.array import AXES, ArrayLayout

Shape = tuple[int, ...]
_PACKED = struct.Struct(f"={2 + 5 * AXES}q")
KEPT = 1 << 14                      # combinations remembered


@lru_cache(KEPT)
def dense_strides(shape: Shape) -> Shape:
    strides, step = [], 1
    for n in reversed(shape):
        strides.append(step)
        step *= max(n, 1)
    return tuple(reversed(strides))


def is_dense(shape: Shape, strides: Shape) -> bool:
    """Row-major without gaps; strides of axes with one element do not matter, nor those of empty arrays."""
    return strides == dense_strides(shape) or math.prod(shape) == 0 or all(
        n == 1 or s == d for n, s, d in zip(shape, strides, dense_strides(shape), strict=True))


@lru_cache(KEPT)
def layout(shape: Shape, *strides: Shape) -> bytes:
    """An nn_array_layout: operand 0 is the destination."""
    if len(shape) > AXES:
        raise DeviceArgumentError(f"shape {list(shape)}: {len(shape)} axes, and at most {AXES} are possible")
    rows = [_padded(row) for row in (shape, *strides)]
    rows += [(0,) * AXES] * (5 - len(rows))
    return _PACKED.pack(_PACKED.size, len(shape), *(n for row in rows for n in row))


def _padded(row: Shape) -> Shape:
    return row + (0,) * (AXES - len(row))


assert _PACKED.size == ArrayLayout.strides.offset + ArrayLayout.strides.size


@lru_cache(KEPT)
def broadcast_shapes(*shapes: Shape) -> Shape:
    """The common shape; DeviceArgumentError shows all of them."""
    ndim = max(map(len, shapes))
    padded = [(1,) * (ndim - len(shape)) + shape for shape in shapes]
    common = []
    for sizes in zip(*padded, strict=True):
        wanted = {n for n in sizes if n != 1}
        if len(wanted) > 1:
            shown = " and ".join(str(list(shape)) for shape in shapes)
            raise DeviceArgumentError(f"shapes {shown} do not broadcast to one; an axis must be equal or 1")
        common.append(wanted.pop() if wanted else 1)
    return tuple(common)


@lru_cache(KEPT)
def broadcast_strides(shape: Shape, strides: Shape, wanted: Shape) -> Shape:
    """The strides that let an array of `shape` appear as `wanted`: 0 where it repeats."""
    missing = len(wanted) - len(shape)
    if missing < 0 or any(n not in (1, m) for n, m in zip(shape, wanted[missing:], strict=True)):
        raise DeviceArgumentError(f"shape {list(shape)} does not broadcast to {list(wanted)}; "
                                  "every axis must be equal or 1")
    return (0,) * missing + tuple(
        0 if n == 1 else s for n, s in zip(shape, strides, strict=True))


@lru_cache(KEPT)
def plan(shape: Shape, *operands: Shape) -> bytes:
    """The layout of a fresh destination of `shape` with operands given as shape, strides, shape, ..."""
    pairs = zip(operands[::2], operands[1::2], strict=True)
    return layout(shape, dense_strides(shape), *(broadcast_strides(s, t, shape) for s, t in pairs))


@lru_cache(KEPT)
def plan_into(shape: Shape, strides: Shape, *operands: Shape) -> bytes:
    """The same for a destination that is there."""
    check_writable(shape, strides)
    pairs = zip(operands[::2], operands[1::2], strict=True)
    return layout(shape, strides, *(broadcast_strides(s, t, shape) for s, t in pairs))


def check_writable(shape: Shape, strides: Shape) -> None:
    """Elements that repeat are one element of memory, which many would write at once."""
    if any(s == 0 and n > 1 for n, s in zip(shape, strides, strict=True)) and 0 not in shape:
        raise DeviceArgumentError(f"shape {list(shape)}, strides {list(strides)}: a broadcast view "
                                  "cannot be written; copy() it first")


def resolved_shape(size: int, old: Shape, shape: Sequence[int]) -> Shape:
    """`shape` with its one -1 replaced, checked against the number of elements."""
    wanted = tuple(int(n) for n in shape)
    if wanted.count(-1) == 1:
        known = -math.prod(wanted)
        if known > 0 and size % known == 0:
            wanted = tuple(size // known if n == -1 else n for n in wanted)
    if any(n < 0 for n in wanted) or math.prod(wanted) != size:
        raise DeviceArgumentError(f"reshape: {list(old)} has {size} elements and cannot become {list(shape)}")
    return wanted


def reshaped_strides(shape: Shape, strides: Shape, wanted: Shape) -> Shape | None:
    """Strides under which the same memory has the wanted shape; None if there are none."""
    if is_dense(shape, strides):
        return dense_strides(wanted)
    old = [(n, s) for n, s in zip(shape, strides, strict=True) if n != 1]
    found: list[int] = []
    i = j = 0
    while i < len(old) and j < len(wanted):
        first, n, m = i, old[i][0], wanted[j]
        last = j
        while n != m:
            if n < m:
                i += 1
                n *= old[i][0]
            else:
                last += 1
                m *= wanted[last]
        if any(old[k][1] != old[k + 1][1] * old[k + 1][0] for k in range(first, i)):
            return None
        step, steps = old[i][1], []
        for size in reversed(wanted[j:last + 1]):
            steps.append(step)
            step *= size
        found += reversed(steps)
        i, j = i + 1, last + 1
    return tuple(found) + (1,) * (len(wanted) - len(found))


def normal_axis(axis: int, ndim: int, what: str = "axis") -> int:
    if not -ndim <= axis < ndim:
        raise DeviceArgumentError(f"{what}: {axis} is not an axis of an array with {ndim} axes")
    return axis % ndim if ndim else 0


def normal_axes(axis: int | Sequence[int] | None, ndim: int) -> tuple[int, ...]:
    """All of them for None; sorted, without repetition."""
    if axis is None:
        return tuple(range(ndim))
    axes = [axis] if isinstance(axis, int) else list(axis)
    found = sorted({normal_axis(int(a), ndim) for a in axes})
    if len(found) != len(axes):
        raise DeviceArgumentError(f"axis: {axes} names one axis twice")
    return tuple(found)
