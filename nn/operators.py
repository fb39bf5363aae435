"""The operators and methods that `nn.ops` gives to Tensor, declared for type checkers and readers to find."""

from typing import Any


class Operators:
    """Base of Tensor.  Filled in by `nn.ops`, where each method's forward stands beside its backward."""

    __slots__ = ()

    __add__: Any
    __radd__: Any
    __sub__: Any
    __rsub__: Any
    __mul__: Any
    __rmul__: Any
    __truediv__: Any
    __rtruediv__: Any
    __matmul__: Any
    __rmatmul__: Any
    __neg__: Any
    __pow__: Any
    __abs__: Any
    __getitem__: Any
    __len__: Any
    __float__: Any
    __bool__: Any
    sum: Any
    mean: Any
    max: Any
    reshape: Any
    view: Any
    permute: Any
    cast: Any
    exp: Any
    log: Any
    sqrt: Any
    tanh: Any
    sigmoid: Any
    silu: Any
    softmax: Any
