"""DeviceArray: an array in device memory, with what the device has of the Python array API standard.

    x = device.asarray(np.ones((4, 8), np.float32))
    y = (2.0 * x[:, ::2]).sum(axis=0)          # on the device; views share memory
    y.numpy()                                  # the way to the host, besides float(y) of one element
"""

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from cuda.nn import exchange, indexing, operations, reductions
from cuda.nn.dtypes import code
from cuda.nn.layout import Shape, broadcast_strides, dense_strides, is_dense, reshaped_strides, resolved_shape
from cuda.nn.memory import Block, Borrowed
from cuda.nn.operations import Op
from cuda.nn.reductions import Reduction

if TYPE_CHECKING:
    from cuda.nn.device import Device


class DeviceArray:
    """shape, strides (in elements), dtype, and where in which block the first element is."""

    on_device = True                 # reading a value of it makes the host wait (nn.backends.array_api)
    __slots__ = ("__weakref__", "block", "code", "device", "dtype", "is_contiguous", "pointer", "shape",
                 "strides")
    __array_ufunc__ = None             # numpy_array + x asks x, which refuses

    def __init__(self, device: "Device", block: Block | Borrowed, dtype: Any, shape: Shape,
                 strides: Shape | None = None, offset: int = 0) -> None:
        self.device, self.block, self.dtype = device, block, np.dtype(dtype)
        self.code = code(self.dtype)                                         # nn_dtype
        self.shape = tuple(shape)
        self.pointer = block.address + offset * self.dtype.itemsize          # offset in elements
        self.strides = dense_strides(self.shape) if strides is None else tuple(strides)
        self.is_contiguous = strides is None or is_dense(self.shape, self.strides)

    @classmethod
    def fresh(cls, device: "Device", block: Block, dtype: np.dtype, code: int, shape: Shape) -> "DeviceArray":
        """A dense array that fills its block; nothing left to work out."""
        out = cls.__new__(cls)
        out.device, out.block, out.dtype, out.code = device, block, dtype, code
        out.shape, out.strides = shape, dense_strides(shape)
        out.pointer, out.is_contiguous = block.address, True
        return out

    # ---- what it is ----

    @property
    def _as_parameter_(self) -> int:               # how ctypes passes it
        return self.pointer

    @property
    def ndim(self) -> int:
        return len(self.shape)

    @property
    def size(self) -> int:
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        return self.size * self.dtype.itemsize

    @property
    def itemsize(self) -> int:
        return self.dtype.itemsize

    def __len__(self) -> int:
        if not self.shape:
            raise TypeError("len() of an array without axes")
        return self.shape[0]

    def __repr__(self) -> str:
        return f"DeviceArray(shape={list(self.shape)}, dtype={self.dtype}, device={self.device.name})"

    def __array_namespace__(self, *, api_version: str | None = None) -> Any:
        return self.device.namespace

    # ---- to the host ----

    def numpy(self) -> np.ndarray:
        """A copy on the host; waits for the stream."""
        return self.device.download(self)

    def upload(self, values: np.ndarray) -> None:
        """Overwrite this dense array with values of the host, of its shape and dtype."""
        host = np.asarray(values, order="C")
        if host.shape != self.shape or host.dtype != self.dtype or not self.is_contiguous:
            raise ValueError(f"upload: {host.dtype} {list(host.shape)} into {self!r}; expected its shape and "
                             "dtype, and a dense array")
        self.device.call("memory_upload", self, host.ctypes.data, host.nbytes)

    def item(self) -> Any:
        """The value of an array of one element: a copy to the host, counted as a download."""
        if self.size != 1:
            raise ValueError(f"item: needs an array of one element, this one has shape {list(self.shape)}")
        return self.numpy().reshape(()).item()

    def __float__(self) -> float:
        return float(self.item())

    def __int__(self) -> int:
        return int(self.item())

    def __index__(self) -> int:
        if self.dtype.kind not in "iu":
            raise TypeError(f"an array of {self.dtype} is no index")
        return int(self.item())

    def __bool__(self) -> bool:
        return bool(self.item())

    def __array__(self, *_: Any, **__: Any) -> np.ndarray:
        raise TypeError("a DeviceArray is not copied to the host by accident; call .numpy()")

    def __iter__(self) -> Any:
        raise TypeError("a DeviceArray is not read element by element; call .numpy(), or take views x[i]")

    __dlpack__ = exchange.dlpack
    __dlpack_device__ = exchange.dlpack_device
    __cuda_array_interface__ = property(exchange.cuda_array_interface)

    # ---- views and copies ----

    def view(self, shape: Shape, strides: Shape, offset: int = 0) -> "DeviceArray":
        """The same memory, seen otherwise; `offset` in elements from the first one."""
        out = DeviceArray.__new__(DeviceArray)
        out.device, out.block, out.dtype, out.code = self.device, self.block, self.dtype, self.code
        out.shape, out.strides = shape, strides
        out.pointer = self.pointer + offset * self.dtype.itemsize
        out.is_contiguous = is_dense(shape, strides)
        return out

    def reshape(self, *shape: Any) -> "DeviceArray":
        """A view where the strides allow it, else a copy."""
        wanted = shape[0] if len(shape) == 1 and not isinstance(shape[0], int) else shape
        found = resolved_shape(self.size, self.shape, wanted)
        strides = reshaped_strides(self.shape, self.strides, found)
        if strides is None:
            return self.copy().view(found, dense_strides(found))
        return self.view(found, strides)

    def permute(self, axes: Any) -> "DeviceArray":
        order = [axis % self.ndim for axis in axes] if self.ndim else []
        if sorted(order) != list(range(self.ndim)) or any(not -self.ndim <= a < self.ndim for a in axes):
            raise ValueError(f"axes: {tuple(axes)} is no permutation of the axes of shape {list(self.shape)}")
        return self.view(tuple(self.shape[a] for a in order), tuple(self.strides[a] for a in order))

    @property
    def T(self) -> "DeviceArray":
        return self.view(self.shape[::-1], self.strides[::-1])

    @property
    def mT(self) -> "DeviceArray":
        if self.ndim < 2:
            raise ValueError(f"mT: needs two axes, this array has shape {list(self.shape)}")
        shape, strides = self.shape, self.strides
        return self.view((*shape[:-2], shape[-1], shape[-2]), (*strides[:-2], strides[-1], strides[-2]))

    def broadcast_to(self, shape: Shape) -> "DeviceArray":
        return self.view(tuple(shape), broadcast_strides(self.shape, self.strides, tuple(shape)))

    def contiguous(self) -> "DeviceArray":
        """Itself if it is row-major without gaps, else a copy that is."""
        return self if self.is_contiguous else self.copy()

    def copy(self) -> "DeviceArray":
        return operations.cast(self, self.dtype)

    def astype(self, dtype: Any, *, copy: bool = True) -> "DeviceArray":
        dtype = np.dtype(dtype)
        return self if not copy and dtype == self.dtype else operations.cast(self, dtype)

    def to_device(self, device: Any, /, *, stream: Any = None) -> "DeviceArray":
        if device is not self.device:
            raise ValueError(f"to_device: {self!r} goes elsewhere by .numpy() only")
        return self

    def __copy__(self) -> "DeviceArray":
        return self.copy()

    def __deepcopy__(self, _: Any) -> "DeviceArray":
        return self.copy()

    def __reduce__(self) -> Any:
        raise TypeError("a DeviceArray is not pickled: its memory stays on the device; pickle x.numpy()")

    __getitem__ = indexing.get
    __setitem__ = indexing.set_

    # ---- arithmetic ----

    def __add__(self, other: Any) -> Any:
        return operations.binary(Op.ADD, self, other)

    def __radd__(self, other: Any) -> Any:
        return operations.binary(Op.ADD, self, other, swapped=True)

    def __iadd__(self, other: Any) -> Any:
        return operations.binary_into(Op.ADD, self, other)

    def __sub__(self, other: Any) -> Any:
        return operations.binary(Op.SUBTRACT, self, other)

    def __rsub__(self, other: Any) -> Any:
        return operations.binary(Op.SUBTRACT, self, other, swapped=True)

    def __isub__(self, other: Any) -> Any:
        return operations.binary_into(Op.SUBTRACT, self, other)

    def __mul__(self, other: Any) -> Any:
        return operations.binary(Op.MULTIPLY, self, other)

    def __rmul__(self, other: Any) -> Any:
        return operations.binary(Op.MULTIPLY, self, other, swapped=True)

    def __imul__(self, other: Any) -> Any:
        return operations.binary_into(Op.MULTIPLY, self, other)

    def __truediv__(self, other: Any) -> Any:
        return operations.binary(Op.DIVIDE, self, other)

    def __rtruediv__(self, other: Any) -> Any:
        return operations.binary(Op.DIVIDE, self, other, swapped=True)

    def __itruediv__(self, other: Any) -> Any:
        return operations.binary_into(Op.DIVIDE, self, other)

    def __floordiv__(self, other: Any) -> Any:
        return operations.binary(Op.FLOOR_DIVIDE, self, other)

    def __rfloordiv__(self, other: Any) -> Any:
        return operations.binary(Op.FLOOR_DIVIDE, self, other, swapped=True)

    def __ifloordiv__(self, other: Any) -> Any:
        return operations.binary_into(Op.FLOOR_DIVIDE, self, other)

    def __mod__(self, other: Any) -> Any:
        return operations.binary(Op.REMAINDER, self, other)

    def __rmod__(self, other: Any) -> Any:
        return operations.binary(Op.REMAINDER, self, other, swapped=True)

    def __imod__(self, other: Any) -> Any:
        return operations.binary_into(Op.REMAINDER, self, other)

    def __pow__(self, other: Any) -> Any:
        return operations.power(self, other)

    def __rpow__(self, other: Any) -> Any:
        return operations.binary(Op.POWER, self, other, swapped=True)

    def __ipow__(self, other: Any) -> Any:
        return operations.binary_into(Op.POWER, self, other)

    def __and__(self, other: Any) -> Any:
        return operations.binary(Op.AND, self, other)

    def __rand__(self, other: Any) -> Any:
        return operations.binary(Op.AND, self, other, swapped=True)

    def __iand__(self, other: Any) -> Any:
        return operations.binary_into(Op.AND, self, other)

    def __or__(self, other: Any) -> Any:
        return operations.binary(Op.OR, self, other)

    def __ror__(self, other: Any) -> Any:
        return operations.binary(Op.OR, self, other, swapped=True)

    def __ior__(self, other: Any) -> Any:
        return operations.binary_into(Op.OR, self, other)

    def __xor__(self, other: Any) -> Any:
        return operations.binary(Op.XOR, self, other)

    def __rxor__(self, other: Any) -> Any:
        return operations.binary(Op.XOR, self, other, swapped=True)

    def __ixor__(self, other: Any) -> Any:
        return operations.binary_into(Op.XOR, self, other)

    def __lshift__(self, other: Any) -> Any:
        return operations.binary(Op.SHIFT_LEFT, self, other)

    def __rshift__(self, other: Any) -> Any:
        return operations.binary(Op.SHIFT_RIGHT, self, other)

    def __eq__(self, other: Any) -> Any:
        return operations.compare(Op.EQUAL, self, other)

    def __ne__(self, other: Any) -> Any:
        return operations.compare(Op.NOT_EQUAL, self, other)

    def __lt__(self, other: Any) -> Any:
        return operations.compare(Op.LESS, self, other)

    def __le__(self, other: Any) -> Any:
        return operations.compare(Op.LESS_EQUAL, self, other)

    def __gt__(self, other: Any) -> Any:
        return operations.compare(Op.GREATER, self, other)

    def __ge__(self, other: Any) -> Any:
        return operations.compare(Op.GREATER_EQUAL, self, other)

    __hash__ = None  # type: ignore[assignment]      # == is elementwise

    def __neg__(self) -> "DeviceArray":
        return operations.unary(Op.NEGATIVE, self)

    def __pos__(self) -> "DeviceArray":
        return self.copy()

    def __abs__(self) -> "DeviceArray":
        return operations.unary(Op.ABS, self)

    def __invert__(self) -> "DeviceArray":
        return operations.invert(self)

    def __matmul__(self, other: Any) -> Any:
        return operations.matmul(self, other)

    # ---- reductions, as NumPy's methods ----

    def sum(self, axis: Any = None, dtype: Any = None, keepdims: bool = False) -> "DeviceArray":
        return reductions.sum_(self, axis, dtype, keepdims)

    def mean(self, axis: Any = None, keepdims: bool = False) -> "DeviceArray":
        return reductions.mean(self, axis, keepdims)

    def max(self, axis: Any = None, keepdims: bool = False) -> "DeviceArray":
        return reductions.reduce(Reduction.MAX, self, axis, keepdims)

    def min(self, axis: Any = None, keepdims: bool = False) -> "DeviceArray":
        return reductions.reduce(Reduction.MIN, self, axis, keepdims)

    def any(self, axis: Any = None, keepdims: bool = False) -> "DeviceArray":
        return reductions.reduce(Reduction.ANY, self, axis, keepdims)

    def all(self, axis: Any = None, keepdims: bool = False) -> "DeviceArray":
        return reductions.reduce(Reduction.ALL, self, axis, keepdims)


__all__ = ["DeviceArray", "Shape", "dense_strides"]
