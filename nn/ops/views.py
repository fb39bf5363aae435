"""Shape changes: their gradients are the inverse shape changes."""

from typing import Any

from nn.arithmetic import reshaped
from nn.backends.array_api import namespace
from nn.dtypes import Shape
from nn.ops.elementwise import unbroadcast
from nn.tensor import Array, Op, Tensor


class Reshape(Op):
    """y = x in another shape:  dx = dy in x's shape"""

    integers = True

    def forward(self, x: Array, *, shape: Shape) -> Array:
        self.shape = tuple(x.shape)
        return reshaped(x, shape)

    def backward(self, dy: Array) -> Array:
        return reshaped(dy, self.shape)


class Permute(Op):
    """y = x with its axes in another order:  dx = dy in the old order"""

    integers = True

    def forward(self, x: Array, *, axes: tuple[int, ...]) -> Array:
        self.axes = tuple(a % x.ndim for a in axes)
        return namespace(x).permute_dims(x, self.axes)

    def backward(self, dy: Array) -> Array:
        back = tuple(self.axes.index(i) for i in range(len(self.axes)))
        return namespace(dy).permute_dims(dy, back)


class BroadcastTo(Op):
    """y = x stretched to a shape:  dx = Σ dy over the stretched axes"""

    integers = True

    def forward(self, x: Array, *, shape: Shape) -> Array:
        self.x = x
        return namespace(x).broadcast_to(x, shape)

    def backward(self, dy: Array) -> Array:
        return unbroadcast(dy, self.x)


class GetItem(Op):
    """y = x[index], index of integers, slices, None and ...:  dx = 0 with dx[index] = dy"""

    integers = True

    def forward(self, x: Array, *, index: Any) -> Array:
        self.shape, self.index, self.dtype = tuple(x.shape), index, x.dtype
        return namespace(x).asarray(x[index])

    def backward(self, dy: Array) -> Array:
        dx = namespace(dy).zeros(self.shape, dtype=dy.dtype)
        dx[self.index] = dy
        return dx


class Concat(Op):
    """y = the inputs one after the other along an axis:  each gets its part of dy"""

    integers = True

    def forward(self, *parts: Array, axis: int) -> Array:
        self.axis, self.lengths = axis % parts[0].ndim, [p.shape[axis] for p in parts]
        return namespace(parts[0]).concat(list(parts), axis=axis)

    def backward(self, dy: Array) -> Any:
        parts, start = [], 0
        for length in self.lengths:
            parts.append(dy[(slice(None),) * self.axis + (slice(start, start + length), ...)])
            start += length
        return tuple(parts)


class Split(Op):
    """(y₁, y₂, ...) = x cut into parts along the last axis:  dx = the parts' gradients one after the other"""

    integers = True

    def forward(self, x: Array, *, widths: tuple[int, ...]) -> Any:
        self.rows, self.widths, self.xp = tuple(x.shape[:-1]), widths, namespace(x)
        ends = [sum(widths[: i + 1]) for i in range(len(widths))]
        return tuple(x[..., end - width : end] for end, width in zip(ends, widths, strict=True))

    def backward(self, *dys: Array | None) -> Array:
        dtype = next(dy.dtype for dy in dys if dy is not None)
        pairs = zip(dys, self.widths, strict=True)
        return self.xp.concat([self.xp.zeros((*self.rows, width), dtype=dtype) if dy is None else dy
                               for dy, width in pairs], axis=-1)


def reshape(x: Tensor, *shape: Any) -> Tensor:
    """reshape(x, 2, 3) or reshape(x, (2, 3)); one entry may be −1."""
    whole = len(shape) == 1 and isinstance(shape[0], tuple | list)
    return Reshape.apply(x, shape=tuple(shape[0]) if whole else shape)


def permute(x: Tensor, *axes: int) -> Tensor:
    """The axes in another order, each named once; −1 is the last."""
    if sorted(axis + x.ndim if axis < 0 else axis for axis in axes) != list(range(x.ndim)):
        raise ValueError(f"permute: {list(axes)} does not name each axis of {list(x.shape)} once")
    return Permute.apply(x, axes=axes)


def transpose(x: Tensor) -> Tensor:
    """The last two axes exchanged."""
    return Permute.apply(x, axes=(*range(x.ndim - 2), x.ndim - 1, x.ndim - 2))


def broadcast_to(x: Tensor, shape: Shape) -> Tensor:
    return BroadcastTo.apply(x, shape=shape)


def getitem(x: Tensor, index: Any) -> Tensor:
    """Integers, slices, None and ... only; for index arrays see nn.ops.take."""
    parts = index if isinstance(index, tuple) else (index,)
    if not all(isinstance(p, slice) or p is None or p is ... or _is_integer(p) for p in parts):
        raise TypeError("x[...]: integers, slices, None and ... only; "
                        "use nn.ops.take(x, indices) for index arrays")
    return GetItem.apply(x, index=index)


def _is_integer(index: Any) -> bool:
    return hasattr(index, "__index__") and not isinstance(index, bool) and getattr(index, "shape", ()) == ()


def concat(parts: list[Tensor], axis: int = 0) -> Tensor:
    return Concat.apply(*parts, axis=axis)


def stack(parts: list[Tensor], axis: int = 0) -> Tensor:
    """The inputs along a new axis."""
    if not -parts[0].ndim - 1 <= axis <= parts[0].ndim:
        raise ValueError(f"stack: axis {axis} is not a place among the axes of {list(parts[0].shape)}")
    place = axis % (parts[0].ndim + 1)
    return concat([reshape(p, (*p.shape[:place], 1, *p.shape[place:])) for p in parts], axis=place)


def split(x: Tensor, *widths: int) -> tuple[Tensor, ...]:
    """x[..., C] cut into parts of the given widths, which add up to C."""
    if sum(widths) != x.shape[-1]:
        raise ValueError(f"split: widths {list(widths)} do not add up to the last axis of {list(x.shape)}")
    return Split.apply(x, widths=widths)
