"""Zero-copy exchange with other libraries: DLPack (both capsules) and the CUDA array interface, version 3.

    cupy.from_dlpack(x);  device.from_dlpack(cupy_array)              # device "cuda"
    np.from_dlpack(x)                                                  # device "emulated"

The emulated device's memory is memory of the host, and is exported as such (kDLCPU): NumPy sees it without a
copy, and what NumPy writes there is not seen by the checks.  It has no __cuda_array_interface__, because no
CUDA library could use its addresses.  The other way round, host memory that the emulated device did not
allocate can be imported, but its checks report kernels that touch it; device.asarray copies it."""

from ctypes import (
    CFUNCTYPE,
    POINTER,
    PYFUNCTYPE,
    Structure,
    byref,
    c_char_p,
    c_int,
    c_int32,
    c_int64,
    c_uint8,
    c_uint16,
    c_uint32,
    c_uint64,
    c_void_p,
    pythonapi,
    sizeof,
)
from typing import TYPE_CHECKING, Any

import numpy as np

from cuda.nn.dtypes import BFLOAT16, BOOL, CODES
from cuda.nn.errors import DeviceArgumentError
from cuda.nn.layout import Shape, dense_strides
from cuda.nn.memory import Borrowed

if TYPE_CHECKING:
    from cuda.nn.array import DeviceArray
    from cuda.nn.device import Device

CPU, CUDA = 1, 2                                     # kDLCPU, kDLCUDA
VERSION = (1, 0)
READ_ONLY, COPIED = 1, 2                             # flags
KINDS = {"i": 0, "u": 1, "f": 2}
LEGACY_STREAM = 1                                    # cudaStreamLegacy


class DLTensor(Structure):
    _fields_ = [("data", c_void_p), ("device_type", c_int32), ("device_id", c_int32), ("ndim", c_int32),
                ("code", c_uint8), ("bits", c_uint8), ("lanes", c_uint16), ("shape", POINTER(c_int64)),
                ("strides", POINTER(c_int64)), ("byte_offset", c_uint64)]


class Managed(Structure):
    _fields_ = [("tensor", DLTensor), ("context", c_void_p), ("deleter", c_void_p)]


class ManagedVersioned(Structure):
    _fields_ = [("major", c_uint32), ("minor", c_uint32), ("context", c_void_p), ("deleter", c_void_p),
                ("flags", c_uint64), ("tensor", DLTensor)]


NAMES = {Managed: b"dltensor", ManagedVersioned: b"dltensor_versioned"}
Deleter = CFUNCTYPE(None, c_void_p)

# The addresses of objects, not the objects.
_is_valid = PYFUNCTYPE(c_int, c_void_p, c_char_p)(("PyCapsule_IsValid", pythonapi))
_pointer = PYFUNCTYPE(c_void_p, c_void_p, c_char_p)(("PyCapsule_GetPointer", pythonapi))
_set_name = PYFUNCTYPE(c_int, c_void_p, c_char_p)(("PyCapsule_SetName", pythonapi))


# ---- DLPack, to others ----


def dlpack_device(x: "DeviceArray") -> tuple[int, int]:
    return x.device.dlpack_type, 0


def dlpack(x: "DeviceArray", *, stream: Any = None, max_version: tuple[int, int] | None = None,
           dl_device: tuple[int, int] | None = None, copy: bool | None = None) -> Any:
    """A capsule that keeps the memory alive until its consumer lets go of it."""
    if dl_device is not None and tuple(dl_device) != dlpack_device(x):
        raise BufferError(f"dl_device: {x!r} does not go to {tuple(dl_device)}; call .numpy() for the host")
    if copy:
        x = x.copy()
    _ready_for(x.device, stream)
    capsule = np.asarray(_Memory(x)).__dlpack__(max_version=max_version)
    for kind, name in NAMES.items():
        if _is_valid(id(capsule), name):
            _describe(kind.from_address(_pointer(id(capsule), name)), x, copied=bool(copy))
    return capsule


class _Memory:
    """The device's memory as NumPy takes it, without looking at it.

    NumPy makes the capsule, and what frees it, in C.  A destructor in Python would run with an exception set
    where a consumer refuses the capsule, and CPython ends every call then with a SystemError of its own."""

    def __init__(self, x: "DeviceArray") -> None:
        dtype = np.dtype(np.uint16) if x.dtype == BFLOAT16 else x.dtype
        self.kept = x
        self.__array_interface__ = {
            "version": 3, "shape": x.shape, "typestr": dtype.str, "data": (x.pointer, False),
            "strides": tuple(s * dtype.itemsize for s in x.strides)}


def _describe(managed: Any, x: "DeviceArray", copied: bool) -> None:
    """What NumPy could not know: where the memory is, and a type that it does not have"""
    tensor = managed.tensor
    tensor.data, tensor.byte_offset = x.pointer, 0
    tensor.device_type, tensor.device_id = dlpack_device(x)
    if x.dtype == BFLOAT16:
        tensor.code = 4
    if isinstance(managed, ManagedVersioned) and copied:
        managed.flags |= COPIED


def _ready_for(device: "Device", stream: Any) -> None:
    """The consumer sees finished work: the host waits, or its stream does."""
    if device.dlpack_type == CPU:
        device.synchronize()
    elif stream != -1:                               # -1: the consumer asks for no order
        wait(device, LEGACY_STREAM if stream is None else int(stream), device.stream)


def wait(device: "Device", later: int, earlier: int) -> None:
    """What is queued on `later` from here on runs after what is queued on `earlier`."""
    if later == earlier:
        return
    event = c_void_p()
    device.library.nn_event_create(byref(event), 0)
    device.library.nn_event_record(event, earlier)
    device.library.nn_stream_wait(later, event)
    device.library.nn_event_destroy(event)


# ---- DLPack, from others ----


class _Consumed:
    """Somebody's managed tensor; its deleter is called when the last array on it goes."""

    def __init__(self, address: int, deleter: int | None) -> None:
        self.address, self.deleter = address, deleter

    def __del__(self) -> None:
        if self.deleter:
            Deleter(self.deleter)(self.address)


def from_dlpack(device: "Device", x: Any) -> "DeviceArray":
    """x's memory as an array of the device; x is kept alive."""
    kind, number = x.__dlpack_device__()
    if kind != device.dlpack_type or number != 0:
        raise BufferError(f"from_dlpack: {type(x).__name__} is on device ({int(kind)}, {number}); {device!r} "
                          f"takes ({device.dlpack_type}, 0) without a copy; copy by asarray()")
    stream = device.stream if kind == CUDA else None
    try:
        capsule = x.__dlpack__(stream=stream, max_version=VERSION)
    except TypeError:                                # from before 2024
        capsule = x.__dlpack__(stream=stream)
    return _consume(device, capsule)


def _consume(device: "Device", capsule: Any) -> "DeviceArray":
    for kind, name in NAMES.items():
        if _is_valid(id(capsule), name):
            address = int(_pointer(id(capsule), name))
            _set_name(id(capsule), _USED[kind])
            managed = kind.from_address(address)
            return _array(device, managed, _Consumed(address, managed.deleter))
    raise BufferError("from_dlpack: no fresh DLPack capsule; one can be consumed once")


_USED = {Managed: b"used_dltensor", ManagedVersioned: b"used_dltensor_versioned"}


def _array(device: "Device", managed: Any, owner: _Consumed) -> "DeviceArray":
    if isinstance(managed, ManagedVersioned) and managed.major != VERSION[0]:
        raise BufferError(f"from_dlpack: DLPack {managed.major}.{managed.minor}; known is {VERSION[0]}.x")
    if isinstance(managed, ManagedVersioned) and managed.flags & READ_ONLY:
        raise BufferError("from_dlpack: the memory is read-only, and a DeviceArray is not; export a copy")
    tensor = managed.tensor
    dtype = _dtype(tensor.code, tensor.bits, tensor.lanes)
    shape = tuple(tensor.shape[:tensor.ndim]) if tensor.ndim else ()
    strides = tuple(tensor.strides[:tensor.ndim]) if tensor.ndim and tensor.strides else dense_strides(shape)
    return borrowed(device, (tensor.data or 0) + tensor.byte_offset, dtype, shape, strides, owner)


def _dtype(code: int, bits: int, lanes: int) -> np.dtype:
    for dtype in CODES:
        known = 4 if dtype == BFLOAT16 else 6 if dtype == BOOL else KINDS.get(dtype.kind, -1)
        if (known, 8 * dtype.itemsize, 1) == (code, bits, lanes):
            return dtype
    raise BufferError(f"from_dlpack: type {code}, {bits} bits, {lanes} lanes: no type of the device")


# ---- the CUDA array interface ----


def cuda_array_interface(x: "DeviceArray") -> dict[str, Any]:
    if x.device.dlpack_type != CUDA:
        raise AttributeError("__cuda_array_interface__: the emulated device has no CUDA memory; use DLPack")
    return interface(x)


def interface(x: "DeviceArray") -> dict[str, Any]:
    """The dictionary, version 3.  bfloat16 has no name in it; DLPack has."""
    if x.dtype == BFLOAT16:
        raise AttributeError("__cuda_array_interface__: knows no bfloat16; use DLPack")
    strides = None if x.is_contiguous else tuple(s * x.dtype.itemsize for s in x.strides)
    return {"shape": x.shape, "typestr": x.dtype.str, "data": (x.pointer if x.size else 0, False),
            "strides": strides, "version": 3, "stream": x.device.stream or LEGACY_STREAM}


def from_cuda_array_interface(device: "Device", x: Any) -> "DeviceArray":
    """x's memory as an array of the device; x is kept alive, and its stream is waited for."""
    found = x.__cuda_array_interface__
    if found.get("mask") is not None:
        raise BufferError("__cuda_array_interface__: masked arrays are not taken")
    address, read_only = found["data"]
    if read_only:
        raise BufferError("__cuda_array_interface__: the memory is read-only, and a DeviceArray is not")
    dtype, shape = np.dtype(found["typestr"]), tuple(found["shape"])
    if dtype not in CODES:
        name = found["typestr"]
        raise DeviceArgumentError(f"__cuda_array_interface__: typestr {name!r} is no type of the device")
    steps = found.get("strides")
    if steps is not None and any(s % dtype.itemsize for s in steps):
        raise BufferError(f"__cuda_array_interface__: strides {steps}: no multiples of {dtype.itemsize}")
    strides = dense_strides(shape) if steps is None else tuple(s // dtype.itemsize for s in steps)
    if found.get("stream") is not None:
        wait(device, device.stream, int(found["stream"]))
    return borrowed(device, int(address), dtype, shape, strides, x)


def borrowed(device: "Device", address: int, dtype: np.dtype, shape: Shape, strides: Shape,
             owner: object) -> "DeviceArray":
    from cuda.nn.array import DeviceArray

    if address % dtype.itemsize:
        raise BufferError(f"address {address:#x} is not a multiple of the {dtype.itemsize} bytes of {dtype}")
    return DeviceArray(device, Borrowed(address, owner), dtype, shape, strides)


assert sizeof(DLTensor) == 48
