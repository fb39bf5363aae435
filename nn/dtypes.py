"""Number types by name, and the rule that fixes in which one a sum is formed.

Storage may be bfloat16 or float16; every sum, statistic and matrix product is then formed in float32 and
rounded once at the end.  float64 stays float64 (gradient checks)."""

from enum import Enum
from typing import Any

import ml_dtypes
import numpy as np

from nn.backends import kernels
from nn.backends.array_api import namespace
from nn.backends.native.dense import takes
from nn.errors import InputError

Shape = tuple[int, ...]


class DType(str, Enum):
    """A floating-point storage type.  Members are strings: `DType.float32 == "float32"`."""

    float64 = "float64"
    float32 = "float32"
    bfloat16 = "bfloat16"
    float16 = "float16"

    @property
    def numpy(self) -> np.dtype:
        return np.dtype(ml_dtypes.bfloat16) if self is DType.bfloat16 else np.dtype(self.value)

    @property
    def itemsize(self) -> int:
        """Bytes per element."""
        return self.numpy.itemsize

    @classmethod
    def of(cls, dtype: Any) -> "DType":
        """The member for a name, a NumPy dtype or a member; InputError lists the names otherwise."""
        name = dtype if isinstance(dtype, str) else np.dtype(dtype).name
        try:
            return cls(name)
        except ValueError:
            raise InputError(f"dtype: {name!r} is not a storage type; "
                             f"choose one of {', '.join(cls)}") from None


HALF = (np.dtype(ml_dtypes.bfloat16), np.dtype(np.float16))


def is_half(dtype: Any) -> bool:
    """Whether sums over this type are formed in float32 instead; never for another module's own types."""
    return isinstance(dtype, np.dtype) and dtype in HALF


def is_floating(array: Any) -> bool:
    """Whether the array holds real floating-point numbers, half precision included."""
    kind = getattr(array.dtype, "kind", "")
    if kind:
        return kind == "f" or is_half(array.dtype)
    return namespace(array).isdtype(array.dtype, "real floating")


def widen(array: Any) -> Any:
    """The array in the type its sums are formed in: float32 for bfloat16 and float16, itself otherwise."""
    return _cast(array, np.dtype(np.float32)) if is_half(array.dtype) else array


def narrow(array: Any, dtype: Any) -> Any:
    """The array rounded (to nearest, ties to even) to its storage type; itself if it has that type."""
    return array if array.dtype == dtype else _cast(array, dtype)


def accumulated(leaf: Any, gradient: Any, new: bool = False) -> Any:
    """A leaf's gradient with one more added to it, in float32 if the leaf is stored in half precision.

    The first is taken if it is `new`, else copied, for it may be another leaf's too; the next ones are added
    to it in place.  A leaf with `borrows_grad` has the first itself, and nothing is changed in place then."""
    borrows = getattr(leaf, "borrows_grad", False)
    if leaf.grad is None:
        if borrows:
            return widen(gradient)
        dtype = np.dtype(np.float32) if is_half(leaf.dtype) else leaf.dtype
        if gradient.dtype != dtype:
            return narrow(gradient, dtype)
        if new and isinstance(gradient, np.ndarray):
            return gradient
        if takes(gradient) and gradient.ndim <= 4:         # by a kernel, which is recorded
            return kernels.contiguous(gradient[(None,) * (4 - gradient.ndim)]).reshape(gradient.shape)
        return namespace(gradient).asarray(gradient, dtype=dtype, copy=True)
    if borrows:
        return leaf.grad + widen(gradient)
    if takes(leaf.grad, gradient) and leaf.grad.dtype == np.float32:
        kernels.accumulate(leaf.grad, gradient)
        return leaf.grad
    leaf.grad += gradient
    return leaf.grad


def _cast(array: Any, dtype: Any) -> Any:
    if takes(array):
        if dtype == np.float32:
            return kernels.widen(array)
        if dtype == ml_dtypes.bfloat16:
            return kernels.to_bfloat16(array)
    xp = namespace(array)
    return xp.astype(xp.asarray(array), dtype)      # asarray: NumPy's sum over all axes is no array
