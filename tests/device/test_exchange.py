"""DLPack and the CUDA array interface.  The emulated device's memory is the host's, so NumPy is the other
side; CuPy needs a GPU, and is tried by whoever has one."""

import gc
import weakref
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from cuda.nn import exchange
from cuda.nn.array import DeviceArray
from cuda.nn.device import EmulatedDevice


@pytest.mark.parametrize("dtype", [np.float32, np.float16, np.float64, np.int64, np.int32, np.uint32,
                                   np.uint8, np.bool_])
def test_numpy_sees_the_memory(device: EmulatedDevice, dtype: Any) -> None:
    a = (np.arange(24) % 7).astype(dtype).reshape(4, 6)
    x = device.asarray(a)
    for view in (lambda x: x, lambda x: x[1:, ::-2], lambda x: x.T, lambda x: x[2, 3], lambda x: x[:0],
                 lambda x: x[2:2, 1:]):
        seen = np.from_dlpack(view(x))
        assert seen.dtype == dtype
        np.testing.assert_array_equal(seen, view(a))
    x[0] = 1
    assert (np.from_dlpack(x)[0] == 1).all()
    assert np.from_dlpack(x).ctypes.data == x.pointer


def test_the_memory_lives_as_long_as_the_other_side(device: EmulatedDevice) -> None:
    x = device.asarray(np.arange(5, dtype=np.int32))
    block = weakref.ref(x.block)
    seen = np.from_dlpack(x)
    del x
    gc.collect()
    assert block() is not None
    assert seen.tolist() == [0, 1, 2, 3, 4]
    del seen
    gc.collect()
    assert block() is None


@pytest.mark.parametrize("max_version", [None, (1, 0)])
def test_a_capsule_that_nobody_takes_frees_its_array(device: EmulatedDevice, max_version: Any) -> None:
    x = device.asarray(np.zeros(3, np.float32))
    block = weakref.ref(x.block)
    capsule = x.__dlpack__(max_version=max_version)
    del x
    gc.collect()
    assert block() is not None
    del capsule
    gc.collect()
    assert block() is None


@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16])
def test_who_refuses_a_capsule_says_why_and_frees_it(monkeypatch: pytest.MonkeyPatch, device: EmulatedDevice,
                                                     dtype: Any) -> None:
    """Its destructor runs with the consumer's exception set, and must leave it as it is."""
    x = device.zeros((3,), dtype)
    block = weakref.ref(x.block)
    monkeypatch.setattr(type(device), "dlpack_type", exchange.CUDA)
    with pytest.raises((BufferError, RuntimeError), match=r"(?i)unsupported device"):
        np.from_dlpack(x)
    del x
    gc.collect()
    assert block() is None


def test_what_a_capsule_says(monkeypatch: pytest.MonkeyPatch, device: EmulatedDevice) -> None:
    monkeypatch.setattr(type(device), "dlpack_type", exchange.CUDA)
    x = device.zeros((3, 4), ml_dtypes.bfloat16)[::-1, 1:]
    capsule = x.__dlpack__(max_version=(1, 0), copy=False)
    found = exchange.ManagedVersioned.from_address(
        exchange._pointer(id(capsule), b"dltensor_versioned"))
    tensor = found.tensor
    assert (found.major, found.flags, tensor.device_type, tensor.device_id) == (1, 0, exchange.CUDA, 0)
    assert (tensor.data + tensor.byte_offset, tensor.code, tensor.bits, tensor.lanes) == (x.pointer, 4, 16, 1)
    assert (tensor.shape[:2], tensor.strides[:2]) == ([3, 3], [-4, 1])
    copied = x.__dlpack__(max_version=(1, 0), copy=True)
    assert exchange.ManagedVersioned.from_address(
        exchange._pointer(id(copied), b"dltensor_versioned")).flags == exchange.COPIED


class Exporter:
    """Another library's array: speaks the protocols, is no DeviceArray."""

    def __init__(self, array: DeviceArray, old: bool = False) -> None:
        self.array, self.old = array, old

    def __dlpack_device__(self) -> tuple[int, int]:
        return self.array.__dlpack_device__()

    def __dlpack__(self, **options: Any) -> Any:
        if self.old and "max_version" in options:
            raise TypeError("unexpected keyword max_version")
        return self.array.__dlpack__(**options)

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        return exchange.interface(self.array)


@pytest.mark.parametrize("old", [False, True])
def test_import_by_dlpack(device: EmulatedDevice, old: bool) -> None:
    a = np.arange(12, dtype=np.float32).reshape(3, 4).astype(ml_dtypes.bfloat16)
    x = device.asarray(a)
    block = weakref.ref(x.block)
    y = device.from_dlpack(Exporter(x[:, ::-1], old))
    assert (y.pointer, y.dtype, y.shape, y.strides) == (x.pointer + 6, a.dtype, (3, 4), (4, -1))
    del x
    gc.collect()
    np.testing.assert_array_equal((y + y).numpy(), a[:, ::-1] + a[:, ::-1])
    del y
    gc.collect()
    assert block() is None


def test_a_capsule_is_consumed_once(device: EmulatedDevice) -> None:
    capsule = device.zeros((3,), np.float32).__dlpack__()
    exchange._consume(device, capsule)
    with pytest.raises(BufferError, match="consumed once"):
        exchange._consume(device, capsule)


def test_import_by_cuda_array_interface(device: EmulatedDevice) -> None:
    a = np.arange(12, dtype=np.int32).reshape(3, 4)
    x = device.asarray(a)
    y = device.from_cuda_array_interface(Exporter(x.T[::2]))
    block = weakref.ref(x.block)
    del x
    gc.collect()
    np.testing.assert_array_equal((y * 2).numpy(), a.T[::2] * 2)
    y[0] = 9
    del y
    gc.collect()
    assert block() is None
    assert not hasattr(device.zeros((1,), np.float32), "__cuda_array_interface__")
    with pytest.raises(AttributeError, match="bfloat16"):
        exchange.interface(device.zeros((1,), ml_dtypes.bfloat16))


def test_what_does_not_fit_is_refused(device: EmulatedDevice) -> None:
    x = device.zeros((4,), np.float32)

    class Other(Exporter):
        def __dlpack_device__(self) -> tuple[int, int]:
            return 2, 0

        @property
        def __cuda_array_interface__(self) -> dict[str, Any]:
            return exchange.interface(self.array) | {"typestr": "<c8"}

    with pytest.raises(BufferError, match=r"is on device \(2, 0\)"):
        device.from_dlpack(Other(x))
    with pytest.raises(ValueError, match="<c8"):
        device.from_cuda_array_interface(Other(x))
    with pytest.raises(BufferError, match=r"\.numpy\(\)"):
        x.__dlpack__(dl_device=(2, 0))
    assert np.from_dlpack(x, copy=True).ctypes.data != x.pointer
