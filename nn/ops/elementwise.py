"""Elementwise operations with broadcasting; an input's gradient is summed over the axes stretched for it."""

import operator
from typing import Any

from nn import arithmetic
from nn.arithmetic import computed
from nn.backends import array_api, kernels
from nn.backends.array_api import namespace
from nn.dtypes import is_floating, narrow, widen
from nn.tensor import Array, Op, Tensor

Operand = Any      # Tensor, array or Python number


def unbroadcast(gradient: Array, like: Array) -> Array:
    """Σ over the axes along which `like`'s shape was stretched to the gradient's; the sum is not rounded."""
    shape = tuple(getattr(like, "shape", ()))
    return gradient if tuple(gradient.shape) == shape else arithmetic.sum_to(gradient, shape)


def number_is_weak(y: Array, a: Operand, b: Operand) -> Array:
    """y in the type of the array operand if the other one is a number: ml_dtypes makes bfloat16 · 2.0 a
    float32, and NumPy float32 · numpy.float64(2.0) a float64."""
    for x, number in ((a, b), (b, a)):
        if isinstance(number, int | float) and hasattr(x, "dtype") and is_floating(x):
            return narrow(y, x.dtype)
    return y


class Add(Op):
    """y = a + b:  da = dy,  db = dy"""

    integers = True

    def forward(self, a: Array, b: Array) -> Array:
        self.a, self.b = _shape_only(a), _shape_only(b)
        return number_is_weak(arithmetic.add(a, b), a, b)

    def backward(self, dy: Array) -> Any:
        return (unbroadcast(dy, self.a) if self.needs[0] else None,
                unbroadcast(dy, self.b) if self.needs[1] else None)


class Sub(Op):
    """y = a − b:  da = dy,  db = −dy"""

    integers = True

    def forward(self, a: Array, b: Array) -> Array:
        self.a, self.b = _shape_only(a), _shape_only(b)
        return number_is_weak(computed(operator.sub, a, b), a, b)

    def backward(self, dy: Array) -> Any:
        return (unbroadcast(dy, self.a) if self.needs[0] else None,
                unbroadcast(arithmetic.mul(dy, -1.0), self.b) if self.needs[1] else None)


class Mul(Op):
    """y = a ⊙ b:  da = dy ⊙ b,  db = dy ⊙ a"""

    integers = True

    def forward(self, a: Array, b: Array) -> Array:
        self.a, self.b = a, b
        return number_is_weak(arithmetic.mul(a, b), a, b)

    def backward(self, dy: Array) -> Any:
        return (unbroadcast(arithmetic.mul(dy, self.b), self.a) if self.needs[0] else None,
                unbroadcast(arithmetic.mul(dy, self.a), self.b) if self.needs[1] else None)


class Div(Op):
    """y = a / b:  da = dy / b,  db = −dy ⊙ y / b"""

    def forward(self, a: Array, b: Array) -> Array:
        self.a, self.b, self.y = _shape_only(a), b, number_is_weak(computed(operator.truediv, a, b), a, b)
        return self.y

    def backward(self, dy: Array) -> Any:
        da = computed(operator.truediv, dy, self.b)
        db = arithmetic.mul(arithmetic.mul(da, self.y), -1.0) if self.needs[1] else None
        return (unbroadcast(da, self.a) if self.needs[0] else None,
                unbroadcast(db, self.b) if self.needs[1] else None)


class Power(Op):
    """y = xᵖ for a number p:  dx = dy p xᵖ⁻¹"""

    def forward(self, x: Array, *, exponent: float) -> Array:
        self.x, self.exponent = x, exponent
        return narrow(widen(x) ** exponent, x.dtype)

    def backward(self, dy: Array) -> Array:
        if self.exponent == 0:
            return namespace(dy).zeros_like(dy)
        return widen(dy) * (self.exponent * widen(self.x) ** (self.exponent - 1))


class Exp(Op):
    """y = eˣ:  dx = dy ⊙ y"""

    def forward(self, x: Array) -> Array:
        self.y = computed(namespace(x).exp, x)
        return self.y

    def backward(self, dy: Array) -> Array:
        return arithmetic.mul(dy, self.y)


class Log(Op):
    """y = ln x:  dx = dy / x"""

    def forward(self, x: Array) -> Array:
        self.x = x
        return computed(namespace(x).log, x)

    def backward(self, dy: Array) -> Array:
        return computed(operator.truediv, dy, self.x)


class Sqrt(Op):
    """y = √x:  dx = dy / 2y"""

    def forward(self, x: Array) -> Array:
        self.y = computed(namespace(x).sqrt, x)
        return self.y

    def backward(self, dy: Array) -> Array:
        return 0.5 * dy / self.y


class Tanh(Op):
    """y = tanh x:  dx = dy (1 − y²)"""

    def forward(self, x: Array) -> Array:
        self.y = computed(namespace(x).tanh, x)
        return self.y

    def backward(self, dy: Array) -> Array:
        return dy * (1.0 - self.y * self.y)


class Sigmoid(Op):
    """y = σ(x):  dx = dy y (1 − y)"""

    def forward(self, x: Array) -> Array:
        self.y = narrow(array_api.sigmoid(widen(x)), x.dtype)
        return self.y

    def backward(self, dy: Array) -> Array:
        return dy * (self.y * (1.0 - self.y))


class Abs(Op):
    """y = |x|:  dx = dy sign(x)"""

    integers = True

    def forward(self, x: Array) -> Array:
        xp = namespace(x)
        self.sign = xp.sign(x)
        return xp.abs(x)

    def backward(self, dy: Array) -> Array:
        return dy * self.sign


class Maximum(Op):
    """y = max(a, b):  the larger one gets dy; at a tie each gets half"""

    integers = True

    def forward(self, a: Array, b: Array) -> Array:
        xp = namespace(a, b)
        self.a, self.b = _shape_only(a), _shape_only(b)
        self.share = xp.astype(a > b, xp.float32) + 0.5 * xp.astype(a == b, xp.float32)
        return number_is_weak(xp.maximum(a, b), a, b)

    def backward(self, dy: Array) -> Any:
        share = namespace(dy).astype(self.share, dy.dtype)
        return (unbroadcast(dy * share, self.a) if self.needs[0] else None,
                unbroadcast(dy * (1.0 - share), self.b) if self.needs[1] else None)


class ReLU(Op):
    """y = max(x, 0):  dx = dy where x > 0, else 0"""

    def forward(self, x: Array) -> Array:
        self.cut = x <= 0                                    # false for NaN, which passes
        return namespace(x).where(self.cut, namespace(x).zeros_like(x), x)

    def backward(self, dy: Array) -> Array:
        return namespace(dy).where(self.cut, namespace(dy).zeros_like(dy), dy)


class Clip(Op):
    """y = min(max(x, low), high):  dx = dy strictly inside, 0 outside"""

    integers = True

    def forward(self, x: Array, *, low: float, high: float) -> Array:
        self.inside = (x > low) & (x < high)
        return number_is_weak(namespace(x).clip(x, low, high), x, low)

    def backward(self, dy: Array) -> Array:
        return namespace(dy).where(self.inside, dy, namespace(dy).zeros_like(dy))


class Where(Op):
    """y = a where the condition holds, b elsewhere:  each gets dy where it was chosen"""

    integers = True

    def forward(self, a: Array, b: Array, *, condition: Array) -> Array:
        self.a, self.b, self.condition = _shape_only(a), _shape_only(b), condition
        return number_is_weak(namespace(condition).where(condition, a, b), a, b)

    def backward(self, dy: Array) -> Any:
        xp = namespace(dy)
        zero = xp.zeros_like(dy)
        return (unbroadcast(xp.where(self.condition, dy, zero), self.a) if self.needs[0] else None,
                unbroadcast(xp.where(self.condition, zero, dy), self.b) if self.needs[1] else None)


class Cast(Op):
    """y = x in another floating-point type:  dx = dy in x's type"""

    integers = True

    def forward(self, x: Array, *, dtype: Any) -> Array:
        self.dtype = x.dtype
        return _copied_to(x, dtype)

    def backward(self, dy: Array) -> Array:
        return narrow(dy, self.dtype)


class SiLU(Op):
    """y = x σ(x):  dx = dy σ (1 + x (1 − σ))"""

    def forward(self, x: Array) -> Array:
        self.x = x
        return kernels.silu(x)

    def backward(self, dy: Array) -> Array:
        return kernels.silu_backward(dy, self.x)


class GELU(Op):
    """y = x Φ(x):  dx = dy (Φ(x) + x φ(x)); with approximate=True the tanh form of GPT-2"""

    def forward(self, x: Array, *, approximate: bool) -> Array:
        self.x, self.approximate = x, approximate
        return kernels.gelu_tanh(x) if approximate else kernels.gelu(x)

    def backward(self, dy: Array) -> Array:
        backward = kernels.gelu_tanh_backward if self.approximate else kernels.gelu_backward
        return backward(dy, self.x)


class SwiGLU(Op):
    """y = SiLU(gate) ⊙ up:  dgate = dy ⊙ up ⊙ SiLU'(gate),  dup = dy ⊙ SiLU(gate)"""

    new_gradients = True

    def forward(self, gate: Array, up: Array) -> Array:
        self.gate, self.up = gate, up
        return kernels.swiglu(gate, up)

    def backward(self, dy: Array) -> Any:
        return kernels.swiglu_backward(dy, self.gate, self.up)


class SwiGLUPacked(Op):
    """SwiGLU of x = [gate, up]:  dx = [dgate, dup]"""

    new_gradients = True

    def forward(self, x: Array) -> Array:
        self.x = x
        return kernels.swiglu_packed(x)

    def backward(self, dy: Array) -> Array:
        return kernels.swiglu_packed_backward(dy, self.x)


def _copied_to(x: Array, dtype: Any) -> Array:
    """x in another type, a copy of it if it has that type already"""
    same = x.dtype == dtype or not is_floating(x)
    return namespace(x).astype(x, dtype) if same else narrow(x, dtype)


class _ShapeOnly:
    def __init__(self, shape: tuple[int, ...]) -> None:
        self.shape = shape


def _shape_only(array: Array) -> _ShapeOnly:
    """What unbroadcast needs of an input, without keeping the input alive."""
    return _ShapeOnly(tuple(getattr(array, "shape", ())))


def add(a: Operand, b: Operand) -> Tensor:
    return Add.apply(a, b)


def sub(a: Operand, b: Operand) -> Tensor:
    return Sub.apply(a, b)


def mul(a: Operand, b: Operand) -> Tensor:
    return Mul.apply(a, b)


def div(a: Operand, b: Operand) -> Tensor:
    return Div.apply(a, b)


def neg(x: Operand) -> Tensor:
    return Mul.apply(x, -1.0)


def power(x: Operand, exponent: float) -> Tensor:
    return Power.apply(x, exponent=exponent)


def exp(x: Operand) -> Tensor:
    return Exp.apply(x)


def log(x: Operand) -> Tensor:
    return Log.apply(x)


def sqrt(x: Operand) -> Tensor:
    return Sqrt.apply(x)


def tanh(x: Operand) -> Tensor:
    return Tanh.apply(x)


def sigmoid(x: Operand) -> Tensor:
    return Sigmoid.apply(x)


def absolute(x: Operand) -> Tensor:
    return Abs.apply(x)


def maximum(a: Operand, b: Operand) -> Tensor:
    return Maximum.apply(a, b)


def relu(x: Operand) -> Tensor:
    return ReLU.apply(x)


def clip(x: Operand, low: float, high: float) -> Tensor:
    return Clip.apply(x, low=low, high=high)


def where(condition: Array, a: Operand, b: Operand) -> Tensor:
    return Where.apply(a, b, condition=condition)


def cast(x: Operand, dtype: Any) -> Tensor:
    return Cast.apply(x, dtype=dtype)


def silu(x: Operand) -> Tensor:
    return SiLU.apply(x)


def gelu(x: Operand, approximate: bool = False) -> Tensor:
    return GELU.apply(x, approximate=approximate)


def swiglu(gate: Operand, up: Operand) -> Tensor:
    """SiLU(gate) ⊙ up (Shazeer 2020), both of one shape"""
    if tuple(gate.shape) != tuple(up.shape):
        raise ValueError(f"swiglu: gate {list(gate.shape)} and up {list(up.shape)} differ in shape")
    return SwiGLU.apply(gate, up)


def swiglu_packed(x: Operand) -> Tensor:
    """SiLU(gate) ⊙ up [R,F] of x[R,2F], whose rows hold gate, then up"""
    if len(x.shape) != 2 or x.shape[1] % 2:
        raise ValueError(f"swiglu_packed: x {list(x.shape)} is not [R,2F]")
    return SwiGLUPacked.apply(x)
