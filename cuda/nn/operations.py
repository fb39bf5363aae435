"""Operations on DeviceArrays through the generic kernels of nn/array.h: types, broadcasting, overlap.

Python numbers are weak: float16_array + 2.0 stays float16, integer_array / 2.0 becomes float32."""

from enum import IntEnum
from typing import TYPE_CHECKING, Any

import numpy as np

from cuda.nn.dtypes import (
    BOOL,
    FLOAT32,
    HALVES,
    INT64,
    code,
    is_floating,
    promoted,
    promoted_with,
)
from cuda.nn.errors import DeviceArgumentError
from cuda.nn.layout import (
    broadcast_shapes,
    plan,
    plan_into,
)

if TYPE_CHECKING:
    from cuda.nn.array import DeviceArray

EXACT = 1 << 53                 # whole numbers up to here pass as a double


class Op(IntEnum):
    """nn_array_op"""

    COPY, NEGATIVE, ABS, SIGN, SQUARE, SQRT, RSQRT, RECIPROCAL, EXP, LOG, TANH = range(11)
    FLOOR, CEIL, TRUNC, ROUND, ISFINITE, ISNAN, ISINF, LOGICAL_NOT, INVERT = range(11, 20)
    EXPM1, LOG1P, LOG2, SIN, COS, ERF = range(20, 26)
    ADD, SUBTRACT, MULTIPLY, DIVIDE, MAXIMUM, MINIMUM = range(32, 38)
    EQUAL, NOT_EQUAL, LESS, LESS_EQUAL, GREATER, GREATER_EQUAL = range(38, 44)
    AND, OR, XOR, SHIFT_LEFT, SHIFT_RIGHT = range(44, 49)
    LOGICAL_AND, LOGICAL_OR, LOGICAL_XOR, FLOOR_DIVIDE, REMAINDER, POWER = range(49, 55)


_OF_FLOATS = frozenset({Op.SQRT, Op.RSQRT, Op.RECIPROCAL, Op.EXP, Op.LOG, Op.TANH, Op.EXPM1, Op.LOG1P,
                        Op.LOG2, Op.SIN, Op.COS, Op.ERF})
_TO_BOOL = frozenset({Op.ISFINITE, Op.ISNAN, Op.ISINF, Op.LOGICAL_NOT})
_OF_INTEGERS = frozenset({Op.AND, Op.OR, Op.XOR, Op.SHIFT_LEFT, Op.SHIFT_RIGHT})
_OPPOSITE = {Op.LESS: Op.GREATER, Op.GREATER: Op.LESS, Op.LESS_EQUAL: Op.GREATER_EQUAL,
             Op.GREATER_EQUAL: Op.LESS_EQUAL}


# ---- operands ----


def is_number(x: Any) -> bool:
    return isinstance(x, bool | int | float | np.generic)


def number_for(x: Any, dtype: np.dtype) -> tuple[float, np.dtype]:
    """A Python number as the operand of a kernel: its value, and the type it is computed in."""
    value = x.item() if isinstance(x, np.generic) else x
    if isinstance(value, float):
        if dtype in HALVES:
            value = float(dtype.type(value))         # as if it were an array of that type
        return value, (dtype if is_floating(dtype) else FLOAT32)
    if is_floating(dtype):
        return float(dtype.type(value)) if dtype in HALVES else float(value), dtype
    if dtype != BOOL:
        info = np.iinfo(dtype)
        if not info.min <= value <= info.max:
            raise OverflowError(f"{value} does not fit into {dtype}")
    return float(value), INT64


def number_kind(x: Any) -> type:
    if isinstance(x, np.generic):
        x = x.item()
    return bool if isinstance(x, bool) else int if isinstance(x, int) else float


def is_large(x: Any) -> bool:
    return isinstance(x, int | np.integer) and not -EXACT <= int(x) <= EXACT


def other_operand(x: "DeviceArray", other: Any) -> Any:
    """`other` if it can stand beside x, an array of the same device or a number; None: let Python ask it."""
    if other.__class__ is x.__class__:
        if other.device is not x.device:
            raise DeviceArgumentError(f"{x!r} and {other!r} are on two devices; move one: "
                                      "device.asarray(x.numpy())")
        return other
    if is_number(other):
        return x.device.asarray(np.asarray(other, x.dtype)) if is_large(other) and x.dtype == INT64 else other
    if isinstance(other, np.ndarray):
        raise TypeError(f"a NumPy array of shape {list(other.shape)} beside {x!r}; "
                        "put it on the device first: device.asarray(array)")
    return None


def overlaps(a: "DeviceArray", b: "DeviceArray") -> bool:
    """Whether writing a can change what is still to be read of b: shared bytes, not element by element."""
    if a.pointer == b.pointer and a.strides == b.strides and a.shape == b.shape and a.dtype == b.dtype:
        return False
    (first, last), (start, stop) = extent(a), extent(b)
    return first < stop and start < last


def extent(x: "DeviceArray") -> tuple[int, int]:
    """The addresses from ... to that the array's elements lie within."""
    if not x.size:
        return 0, 0
    low = sum((n - 1) * s for n, s in zip(x.shape, x.strides, strict=True) if s < 0)
    high = sum((n - 1) * s for n, s in zip(x.shape, x.strides, strict=True) if s > 0)
    return x.pointer + low * x.dtype.itemsize, x.pointer + (high + 1) * x.dtype.itemsize


# ---- of one operand ----


def unary(op: Op, x: "DeviceArray") -> "DeviceArray":
    dtype = x.dtype
    if op in _OF_FLOATS and not is_floating(dtype):
        dtype = FLOAT32
    elif op in _TO_BOOL:
        dtype = BOOL
    elif dtype == BOOL and op == Op.NEGATIVE:
        raise TypeError("- of a boolean array; ~x inverts it")
    y = x.device.empty(x.shape, dtype)
    x.device.call("array_unary", y.pointer, x.pointer, plan(x.shape, x.shape, x.strides), op, y.code, x.code)
    return y


def invert(x: "DeviceArray") -> "DeviceArray":
    if is_floating(x.dtype):
        raise TypeError(f"~ of {x.dtype}; it is for integers and booleans")
    return unary(Op.LOGICAL_NOT if x.dtype == BOOL else Op.INVERT, x)


def cast(x: "DeviceArray", dtype: Any) -> "DeviceArray":
    """A dense copy of that type."""
    y = x.device.empty(x.shape, dtype)
    if x.is_contiguous and y.code == x.code:
        x.device.call("memory_copy", y.pointer, x.pointer, x.nbytes)
    else:
        made = plan(x.shape, x.shape, x.strides)
        x.device.call("array_unary", y.pointer, x.pointer, made, Op.COPY, y.code, x.code)
    return y


def copy_into(y: "DeviceArray", value: Any) -> None:
    """y[...] = value, broadcast and cast."""
    value_ = other_operand(y, value)
    if value_ is None:
        raise TypeError(f"{type(value).__name__} cannot be written into {y!r}")
    if is_number(value_):
        fill(y, value_)
        return
    if value_.pointer == y.pointer and value_.strides == y.strides and value_.shape == y.shape:
        return                                       # x[key] += ... ends with x[key] = itself
    while value_.ndim > y.ndim and value_.shape[0] == 1:
        value_ = value_.view(value_.shape[1:], value_.strides[1:])
    made = plan_into(y.shape, y.strides, value_.shape, value_.strides)
    if overlaps(y, value_):
        value_ = value_.copy()
        made = plan_into(y.shape, y.strides, value_.shape, value_.strides)
    y.device.call("array_unary", y.pointer, value_.pointer, made, Op.COPY, y.code, value_.code)


def fill(y: "DeviceArray", value: Any) -> None:
    if is_large(value) and not is_floating(y.dtype):
        return copy_into(y, y.device.asarray(np.asarray(value, y.dtype)))
    y.device.call("array_fill", y.pointer, plan_into(y.shape, y.strides), y.code, float(value))
    return None


# ---- of two ----


def binary(op: Op, x: "DeviceArray", other: Any, swapped: bool = False) -> Any:
    """x op other, or other op x: NumPy's type and shape."""
    other = other_operand(x, other)
    if other is None:
        return NotImplemented
    if is_number(other):
        dtype = result_type(op, promoted_with(x.dtype, number_kind(other)))
        return _with_number(op, x, other, dtype, swapped)
    a, b = (other, x) if swapped else (x, other)
    return _of_arrays(op, a, b, result_type(op, promoted(a.dtype, b.dtype)))


def compare(op: Op, x: "DeviceArray", other: Any) -> Any:
    other = other_operand(x, other)
    if other is None:
        return NotImplemented
    if is_number(other):
        return _with_number(op, x, other, BOOL, False)
    return _of_arrays(op, x, other, BOOL)


def result_type(op: Op, dtype: np.dtype) -> np.dtype:
    if op == Op.DIVIDE and not is_floating(dtype):
        return FLOAT32
    if op in _OF_INTEGERS and is_floating(dtype):
        raise TypeError(f"{op.name.lower()} of {dtype}; it is for integers and booleans")
    if dtype == BOOL and op == Op.SUBTRACT:
        raise TypeError("- of two boolean arrays; use ^")
    return dtype


def _of_arrays(op: int, a: "DeviceArray", b: "DeviceArray", dtype: np.dtype) -> "DeviceArray":
    shape = a.shape if a.shape == b.shape else broadcast_shapes(a.shape, b.shape)
    device = a.device
    y = device.empty(shape, dtype)
    made = plan(shape, a.shape, a.strides, b.shape, b.strides)
    device.call("array_binary", y.pointer, a.pointer, b.pointer, made, op, y.code, a.code, b.code, 0.0)
    return y


def _with_number(op: int, x: "DeviceArray", number: Any, dtype: np.dtype, swapped: bool) -> "DeviceArray":
    device = x.device
    y = device.empty(x.shape, dtype)
    value, kind = number_for(number, x.dtype)
    made = plan(x.shape, x.shape, x.strides, (), ())
    if swapped:
        made = plan(x.shape, (), (), x.shape, x.strides)
        device.call("array_binary", y.pointer, None, x.pointer, made, op, y.code, code(kind), x.code, value)
    else:
        device.call("array_binary", y.pointer, x.pointer, None, made, op, y.code, x.code, code(kind), value)
    return y


def binary_into(op: Op, x: "DeviceArray", other: Any) -> Any:
    """x op= other, in x's memory and x's type, computed in the common type as NumPy does."""
    other = other_operand(x, other)
    if other is None:
        return NotImplemented
    number = is_number(other)
    common = promoted_with(x.dtype, number_kind(other)) if number else promoted(x.dtype, other.dtype)
    dtype = result_type(op, common)
    if (is_floating(dtype) and not is_floating(x.dtype)) or (x.dtype == BOOL and dtype != BOOL):
        raise TypeError(f"{op.name.lower()} in place into {x.dtype}: the result is {dtype}; make a new array")
    if number:
        value, kind = number_for(other, x.dtype)
        made = plan_into(x.shape, x.strides, x.shape, x.strides, (), ())
        x.device.call("array_binary", x.pointer, x.pointer, None, made, op, x.code, x.code, code(kind), value)
        return x
    if overlaps(x, other):
        other = other.copy()
    made = plan_into(x.shape, x.strides, x.shape, x.strides, other.shape, other.strides)
    x.device.call("array_binary", x.pointer, x.pointer, other.pointer, made, op, x.code, x.code, other.code,
                  0.0)
    return x


def power(x: "DeviceArray", other: Any) -> Any:
    if is_number(other) and other == 2:
        return unary(Op.SQUARE, x)
    if is_number(other) and other == 0.5 and is_floating(x.dtype):
        return unary(Op.SQRT, x)
    return binary(Op.POWER, x, other)


# ---- of three ----


def where(condition: "DeviceArray", a: Any, b: Any) -> "DeviceArray":
    """condition ? a : b; a and b are arrays or numbers."""
    if condition.dtype != BOOL:
        condition = condition.astype(BOOL)
    a, b = _choice(condition, a), _choice(condition, b)
    dtype = choices_type(a, b)
    operands = [() if is_number(v) else v.shape for v in (a, b)]
    shape = broadcast_shapes(condition.shape, *operands)
    y = condition.device.empty(shape, dtype)
    _where_into(y, condition, a, b, plan(shape, *_where_operands(condition, a, b)))
    return y


def _choice(condition: "DeviceArray", value: Any) -> Any:
    found = other_operand(condition, value)
    if found is None:
        raise TypeError(f"where: {type(value).__name__} is neither an array of the device nor a number")
    return found


def choices_type(a: Any, b: Any) -> np.dtype:
    if is_number(a) and is_number(b):
        kinds = {number_kind(a), number_kind(b)}
        return FLOAT32 if float in kinds else INT64 if int in kinds else BOOL
    if is_number(a):
        return promoted_with(b.dtype, number_kind(a))
    return promoted_with(a.dtype, number_kind(b)) if is_number(b) else promoted(a.dtype, b.dtype)


def _where_operands(condition: "DeviceArray", a: Any, b: Any) -> tuple[Any, ...]:
    found: list[Any] = [condition.shape, condition.strides]
    for value in (a, b):
        found += [(), ()] if is_number(value) else [value.shape, value.strides]
    return tuple(found)


def _where_into(y: "DeviceArray", condition: "DeviceArray", a: Any, b: Any, made: bytes) -> None:
    (first, first_code, first_number), (second, second_code, second_number) = (
        _pointer_or_number(value, y.dtype) for value in (a, b))
    y.device.call("array_where", y.pointer, condition.pointer, first, second, made, y.code, first_code,
                  second_code, first_number, second_number)


def _pointer_or_number(value: Any, dtype: np.dtype) -> tuple[int | None, int, float]:
    """(pointer, nn_dtype, number) of an operand"""
    if is_number(value):
        number, kind = number_for(value, dtype)
        return None, code(kind), number
    return value.pointer, value.code, 0.0


def put_where(x: "DeviceArray", mask: "DeviceArray", value: Any) -> None:
    """x[mask] = value, a number or an array that broadcasts to x"""
    value = _choice(x, value)
    if mask.ndim > x.ndim or mask.shape != x.shape[: mask.ndim]:
        raise DeviceArgumentError(f"mask: shape {list(mask.shape)} is not how {list(x.shape)} begins")
    mask = mask.view(mask.shape + (1,) * (x.ndim - mask.ndim), mask.strides + (0,) * (x.ndim - mask.ndim))
    if not is_number(value) and overlaps(x, value):
        value = value.copy()
    if overlaps(x, mask):
        mask = mask.copy()
    made = plan_into(x.shape, x.strides, *_where_operands(mask, value, x))
    _where_into(x, mask, value, x, made)


def clip(x: "DeviceArray", low: Any, high: Any) -> "DeviceArray":
    y = x
    if low is not None:
        y = binary(Op.MAXIMUM, y, low)
    if high is not None:
        y = binary(Op.MINIMUM, y, high)
    return y.copy() if y is x else y


def matmul(a: "DeviceArray", b: Any) -> Any:
    """a @ b"""
    from cuda.nn import products

    b = other_operand(a, b)
    if b is None or is_number(b):
        return NotImplemented
    return products.matmul(a, b)
