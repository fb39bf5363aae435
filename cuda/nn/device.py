"""A device: its library, its stream, its memory.

    device = open_device("emulated", arch="sm_80", mode="check")
    x = device.asarray(np.ones((4, 8), np.float32))
    device.call("rms_norm_forward", y, rstd, x, weight, 4, 8, 1e-6, x.code)     # its stream is appended"""

import math
import os
import shlex
import shutil
import sys
import tempfile
from ctypes import byref, c_int32, c_void_p
from pathlib import Path
from typing import Any

import numpy as np

from cuda.nn.array import DeviceArray
from cuda.nn.emulator.counters import ModuleCounters, read_counters
from cuda.nn.errors import NoDeviceError
from cuda.nn.library import Library
from cuda.nn.memory import Pool


class Device:
    def __init__(self, name: str, library: Library) -> None:
        self.name, self.library = name, library
        count = c_int32()
        library.nn_device_count(byref(count))
        if not count.value:
            raise NoDeviceError("no CUDA driver or no device here; the emulated device needs none: device 'emulated'")
        self.pool = Pool(library)
        self._stream = c_void_p()
        library.nn_stream_create(byref(self._stream))

    @property
    def stream(self) -> int:
        return int(self._stream.value or 0)

    def call(self, name: str, *arguments: Any) -> None:
        """nn_<name>(*arguments, this device's stream)"""
        getattr(self.library, f"nn_{name}")(*arguments, self.stream)

    def empty(self, shape: int | tuple[int, ...], dtype: Any) -> DeviceArray:
        shape = (shape,) if isinstance(shape, int) else tuple(shape)
        dtype = np.dtype(dtype)
        return DeviceArray(self, self.pool.block(math.prod(shape) * dtype.itemsize), dtype, shape)

    def workspace(self, size: int) -> DeviceArray:
        """Scratch memory: bytes[size]"""
        return self.empty((size,), np.uint8)

    def asarray(self, values: Any, dtype: Any = None) -> DeviceArray:
        """A copy on the device; an array that is there already stays as it is."""
        if isinstance(values, DeviceArray):
            return values
        host = np.ascontiguousarray(values, dtype=dtype)
        out = self.empty(np.shape(values), host.dtype)
        self.call("memory_upload", out, host.ctypes.data, host.nbytes)
        return out

    def download(self, array: DeviceArray) -> np.ndarray:
        if not array.is_contiguous:
            raise NotImplementedError("strided download")
        host = np.empty(array.shape, array.dtype)
        self.call("memory_download", host.ctypes.data, array, host.nbytes)
        self.synchronize()
        return host

    def synchronize(self) -> None:
        self.library.nn_stream_synchronize(self.stream)


class EmulatedDevice(Device):
    """The same library on the emulator's CUDA runtime, which can also find faults and count.

    Several can be open in one process, of different architectures and modes: each has its own copy of the
    library, because the runtime translates a copy's kernels once, and the runtime is told whose turn it is."""

    def __init__(self, path: Path, arch: str = "sm_80", mode: str = "fast", **options: Any) -> None:
        from cuda.nn.emulator import native
        from cuda.nn.emulator.emulate import STARTER

        self.arch, self.mode = arch, mode
        self.runtime = native.library()
        place = str(Path(__file__).resolve().parents[2])
        os.environ["CUDA_NN_EMULATOR_TRANSLATE"] = shlex.join([sys.executable, "-c", STARTER.format(place=place)])
        self.configure(**options)
        super().__init__("emulated", _own_copy(path))

    def configure(self, **options: Any) -> None:
        """Options of the emulator (schedule, seed, threads, fail_malloc, ...; csrc/emulator/api.h); those not
        given are back at their defaults."""
        chosen = {"arch": self.arch, "check": int(self.mode != "fast"), "count": int(self.mode == "count"),
                  "schedule": "forward", "seed": 0, "fail_malloc": 0, "fail_launch": 0} | options
        self._options = ";".join(f"{key}={value}" for key, value in chosen.items())
        self.runtime.configure(self._options)

    def call(self, name: str, *arguments: Any) -> None:
        self.runtime.configure(self._options)        # costs nothing unless another device was used meanwhile
        super().call(name, *arguments)

    def reports(self) -> list[dict[str, Any]]:
        """What was found since the last clear()."""
        self.synchronize()
        return self.runtime.reports()

    def counters(self) -> ModuleCounters:
        """By kernel, since the last clear(); needs configure(count=1) in the modes check and count."""
        self.synchronize()
        return ModuleCounters(read_counters(self.runtime.counters()))

    def clear(self) -> None:
        self.runtime.clear()


def _own_copy(path: Path) -> Library:
    with tempfile.TemporaryDirectory(prefix="cuda-nn-") as folder:
        return Library(Path(shutil.copy(path, folder)))


def open_device(name: str = "emulated", **options: Any) -> Device:
    """"cuda" or "emulated"; options of the latter: arch, mode, and the emulator's own."""
    from cuda.nn import build

    folder = build.default_folder()
    if name == "emulated":
        return EmulatedDevice(folder / build.EMULATED, **options)
    return Device(name, Library(folder / build.LIBRARY))


__all__ = ["Device", "DeviceArray", "EmulatedDevice", "open_device"]
