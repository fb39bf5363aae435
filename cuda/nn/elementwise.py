"""The array API's functions of one element, or of two that stand at one place."""

from typing import Any

from cuda.nn import operations
from cuda.nn.array import DeviceArray
from cuda.nn.operations import Op

Array = Any


class Elementwise:
    def abs(self, x: Array, /) -> Array:
        return operations.unary(Op.ABS, x)

    def negative(self, x: Array, /) -> Array:
        return operations.unary(Op.NEGATIVE, x)

    def sign(self, x: Array, /) -> Array:
        return operations.unary(Op.SIGN, x)

    def square(self, x: Array, /) -> Array:
        return operations.unary(Op.SQUARE, x)

    def sqrt(self, x: Array, /) -> Array:
        return operations.unary(Op.SQRT, x)

    def reciprocal(self, x: Array, /) -> Array:
        return operations.unary(Op.RECIPROCAL, x)

    def exp(self, x: Array, /) -> Array:
        return operations.unary(Op.EXP, x)

    def expm1(self, x: Array, /) -> Array:
        return operations.unary(Op.EXPM1, x)

    def log(self, x: Array, /) -> Array:
        return operations.unary(Op.LOG, x)

    def log1p(self, x: Array, /) -> Array:
        return operations.unary(Op.LOG1P, x)

    def log2(self, x: Array, /) -> Array:
        return operations.unary(Op.LOG2, x)

    def tanh(self, x: Array, /) -> Array:
        return operations.unary(Op.TANH, x)

    def sin(self, x: Array, /) -> Array:
        return operations.unary(Op.SIN, x)

    def cos(self, x: Array, /) -> Array:
        return operations.unary(Op.COS, x)

    def floor(self, x: Array, /) -> Array:
        return operations.unary(Op.FLOOR, x)

    def ceil(self, x: Array, /) -> Array:
        return operations.unary(Op.CEIL, x)

    def trunc(self, x: Array, /) -> Array:
        return operations.unary(Op.TRUNC, x)

    def round(self, x: Array, /) -> Array:
        return operations.unary(Op.ROUND, x)

    def isfinite(self, x: Array, /) -> Array:
        return operations.unary(Op.ISFINITE, x)

    def isnan(self, x: Array, /) -> Array:
        return operations.unary(Op.ISNAN, x)

    def isinf(self, x: Array, /) -> Array:
        return operations.unary(Op.ISINF, x)

    def logical_not(self, x: Array, /) -> Array:
        return operations.unary(Op.LOGICAL_NOT, x)

    def bitwise_invert(self, x: Array, /) -> Array:
        return ~x

    def add(self, a: Any, b: Any, /) -> Array:
        return a + b

    def subtract(self, a: Any, b: Any, /) -> Array:
        return a - b

    def multiply(self, a: Any, b: Any, /) -> Array:
        return a * b

    def divide(self, a: Any, b: Any, /) -> Array:
        return a / b

    def floor_divide(self, a: Any, b: Any, /) -> Array:
        return a // b

    def remainder(self, a: Any, b: Any, /) -> Array:
        return a % b

    def pow(self, a: Any, b: Any, /) -> Array:
        return a**b

    def maximum(self, a: Any, b: Any, /) -> Array:
        return self._binary(Op.MAXIMUM, a, b)

    def minimum(self, a: Any, b: Any, /) -> Array:
        return self._binary(Op.MINIMUM, a, b)

    def _binary(self, op: Op, a: Any, b: Any) -> Array:
        swapped = not isinstance(a, DeviceArray)
        found = operations.binary(op, b, a, swapped=True) if swapped else operations.binary(op, a, b)
        if found is NotImplemented:
            raise TypeError(f"{op.name.lower()}: {type(a).__name__} and {type(b).__name__}")
        return found

    def equal(self, a: Any, b: Any, /) -> Array:
        return a == b

    def not_equal(self, a: Any, b: Any, /) -> Array:
        return a != b

    def less(self, a: Any, b: Any, /) -> Array:
        return a < b

    def less_equal(self, a: Any, b: Any, /) -> Array:
        return a <= b

    def greater(self, a: Any, b: Any, /) -> Array:
        return a > b

    def greater_equal(self, a: Any, b: Any, /) -> Array:
        return a >= b

    def bitwise_and(self, a: Any, b: Any, /) -> Array:
        return a & b

    def bitwise_or(self, a: Any, b: Any, /) -> Array:
        return a | b

    def bitwise_xor(self, a: Any, b: Any, /) -> Array:
        return a ^ b

    def logical_and(self, a: Any, b: Any, /) -> Array:
        return operations.compare(Op.LOGICAL_AND, a, b)

    def logical_or(self, a: Any, b: Any, /) -> Array:
        return operations.compare(Op.LOGICAL_OR, a, b)

    def logical_xor(self, a: Any, b: Any, /) -> Array:
        return operations.compare(Op.LOGICAL_XOR, a, b)

    def clip(self, x: Array, /, min: Any = None, max: Any = None) -> Array:
        return operations.clip(x, min, max)

    def where(self, condition: Array, a: Any, b: Any, /) -> Array:
        return operations.where(condition, a, b)
