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
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from ctypes import byref, c_int32, c_void_p, sizeof
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from cuda.nn import exchange, operations
from cuda.nn.array import DeviceArray
from cuda.nn.dtypes import CODES, code
from cuda.nn.emulator.counters import ModuleCounters, read_counters
from cuda.nn.errors import DeviceArgumentError, DeviceError, NoDeviceError
from cuda.nn.library import Library, split
from cuda.nn.memory import Pool
from cuda.nn.namespace import Namespace
from cuda.nn.prototypes import prototypes
from cuda.nn.prototypes import runtime as prototypes_runtime
from cuda.nn.prototypes.runtime import DeviceInfo


@dataclass(frozen=True)
class Counts:
    """What the library did since it was loaded (nn_counts)."""

    allocations: int
    allocated_bytes: int
    frees: int
    uploads: int
    uploaded_bytes: int
    downloads: int
    downloaded_bytes: int
    copies: int
    copied_bytes: int
    synchronizations: int
    graph_launches: int

    def __sub__(self, before: "Counts") -> "Counts":
        return Counts(*(getattr(self, f.name) - getattr(before, f.name) for f in fields(self)))


@dataclass(frozen=True)
class Info:
    """What decides a kernel's choices (nn_device_info)."""

    name: str
    capability: int                 # 80 for sm_80
    multiprocessors: int
    memory: int                     # bytes
    free_memory: int
    l2_bytes: int
    shared_bytes_per_block: int     # opt-in maximum
    shared_bytes_per_sm: int
    registers_per_sm: int
    threads_per_sm: int
    clock_khz: int
    memory_clock_khz: int
    memory_bus_bits: int


class Device:
    """Arrays of one device belong together; work is queued on one stream, in order."""

    capturing = False               # a graph is being recorded: nothing may be read or waited for
    dlpack_type = exchange.CUDA

    def __init__(self, name: str, library: Library) -> None:
        self.name, self.library = name, library
        count = c_int32()
        library.nn_device_count(byref(count))
        if not count.value:
            raise NoDeviceError("no CUDA driver or no device here; the device 'emulated' needs none")
        self.pool = Pool(library)
        self._stream = c_void_p()
        library.nn_stream_create(byref(self._stream))
        self.stream = int(self._stream.value or 0)

    def __repr__(self) -> str:
        return f"<device {self.name}>"

    @cached_property
    def namespace(self) -> Namespace:
        """The functions of the array API standard on this device."""
        return Namespace(self)

    def call(self, name: str, *arguments: Any) -> None:
        """nn_<name>(*arguments, this device's stream)"""
        for i, argument in enumerate(arguments):
            if argument.__class__ is DeviceArray and argument.device is not self:
                word = split(prototypes()[f"nn_{name}"])[0][i].rstrip("*")
                raise DeviceArgumentError(f"{name}: {word}: {argument!r} is on another device than {self!r}")
        getattr(self.library, f"nn_{name}")(*arguments, self.stream)

    # ---- arrays ----

    def empty(self, shape: int | tuple[int, ...], dtype: Any) -> DeviceArray:
        """Whatever the memory held before."""
        if shape.__class__ is not tuple:
            shape = (shape,) if isinstance(shape, int) else tuple(shape)
        dtype = np.dtype(dtype)
        number = CODES[dtype] if dtype in CODES else code(dtype)             # code() says what there is
        block = self.pool.block(math.prod(shape) * dtype.itemsize)
        return DeviceArray.fresh(self, block, dtype, number, shape)

    def zeros(self, shape: int | tuple[int, ...], dtype: Any) -> DeviceArray:
        return self.full(shape, 0, dtype)

    def full(self, shape: int | tuple[int, ...], value: Any, dtype: Any) -> DeviceArray:
        out = self.empty(shape, dtype)
        operations.fill(out, value)
        return out

    def workspace(self, size: int) -> DeviceArray:
        """Scratch memory: bytes[size]"""
        return self.empty((size,), np.uint8)

    def asarray(self, values: Any, dtype: Any = None) -> DeviceArray:
        """A copy on the device; an array that is there already stays as it is, but for its dtype."""
        if isinstance(values, DeviceArray):
            if values.device is not self:
                raise DeviceArgumentError(f"{values!r} is on another device; move it by asarray(x.numpy())")
            return values if dtype is None else values.astype(dtype, copy=False)
        host = np.ascontiguousarray(values, dtype=dtype)
        if dtype is None and host.dtype == np.float64 and not isinstance(values, np.ndarray | np.generic):
            host = host.astype(np.float32)           # Python floats have no type of their own
        out = self.empty(np.shape(values), host.dtype)
        self._not_capturing("an upload")
        self.call("memory_upload", out, host.ctypes.data, host.nbytes)
        return out

    def download(self, array: DeviceArray) -> np.ndarray:
        """A copy on the host; waits for the stream."""
        self._not_capturing("a download")
        array = array.contiguous()
        host = np.empty(array.shape, array.dtype)
        self.call("memory_download", host.ctypes.data, array, host.nbytes)
        self.synchronize()
        return host

    def from_dlpack(self, x: Any) -> DeviceArray:
        """The memory of another library's array, without a copy (cuda/nn/exchange.py)."""
        return exchange.from_dlpack(self, x)

    def from_cuda_array_interface(self, x: Any) -> DeviceArray:
        return exchange.from_cuda_array_interface(self, x)

    def synchronize(self) -> None:
        """Wait until everything queued is done."""
        self._not_capturing("synchronize")
        self.library.nn_stream_synchronize(self.stream)

    def _not_capturing(self, what: str) -> None:
        if self.capturing:
            raise DeviceError(f"{what}: not while a graph is captured; do it before, and keep the array")

    # ---- memory ----

    @contextmanager
    def using_pool(self, pool: Pool) -> Iterator[Pool]:
        """Arrays made inside the block come from that pool (a captured graph has its own)."""
        before, self.pool = self.pool, pool
        try:
            yield pool
        finally:
            self.pool = before

    @contextmanager
    def using_stream(self, stream: int, pool: Pool | None = None) -> Iterator[None]:
        """Work inside the block is queued on that stream (a handle of the C ABI), and memory comes from the
        stream's pool, or from one of this block: blocks are reused in the order of one stream only.  No pool
        is found by its handle: the next stream may get the same, while the last one's work still runs."""
        before = self.stream, self.pool
        self.stream, self.pool = stream, self.new_pool() if pool is None else pool
        try:
            yield
        finally:
            self.stream, self.pool = before

    def new_pool(self) -> Pool:
        return Pool(self.library)

    # ---- facts ----

    @property
    def info(self) -> Info:
        found = DeviceInfo(size=sizeof(DeviceInfo))
        self.library.nn_device_query(byref(found), 0)
        values = {f.name: getattr(found, f.name) for f in fields(Info)}
        return Info(**values | {"name": found.name.decode(errors="replace")})

    def counts(self) -> Counts:
        found = prototypes_runtime.Counts(size=sizeof(prototypes_runtime.Counts))
        self.library.nn_count(byref(found))
        return Counts(*(getattr(found, f.name) for f in fields(Counts)))


class EmulatedDevice(Device):
    """The same library on the emulator's CUDA runtime, which can also find faults and count.

    Several can be open in one process, of different architectures and modes: each has its own copy of the
    library, because the runtime translates a copy's kernels once, and it is told whose turn it is."""

    dlpack_type = exchange.CPU      # its memory is the host's

    def __init__(self, path: Path, arch: str = "sm_80", mode: str = "fast", exact_memory: bool = True,
                 **options: Any) -> None:
        from cuda.nn.emulator import native
        from cuda.nn.emulator.emulate import STARTER

        self.arch, self.mode = arch, mode
        self.runtime = native.library()
        place = str(Path(__file__).resolve().parents[2])
        starter = [sys.executable, "-c", STARTER.format(place=place)]
        os.environ["CUDA_NN_EMULATOR_TRANSLATE"] = shlex.join(starter)
        self.configure(**options)
        super().__init__("emulated", _own_copy(path))
        if mode != "fast" and exact_memory:
            self.pool = Pool(self.library, exact=True)

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

    @property
    def info(self) -> Info:
        self.runtime.configure(self._options)
        return super().info

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
    """A new "cuda" or "emulated"; options of the latter: arch, mode, and the emulator's own."""
    from cuda.nn import build

    if name == "emulated":
        return EmulatedDevice(build.emulated_library(), **options)
    if name != "cuda" or options:
        raise DeviceArgumentError(f"device {name!r} with options {options}: there are 'cuda', with none, "
                                  "and 'emulated' with arch, mode, schedule, seed, ...")
    return Device(name, Library(build.gpu_library()))


_opened: dict[tuple[str, tuple[tuple[str, Any], ...]], Device] = {}
_opening = threading.Lock()


def device(name: str = "emulated", **options: Any) -> Device:
    """The process's device of that name and options: opened at the first call, the same one ever after."""
    key = name, tuple(sorted(options.items()))
    with _opening:
        if key not in _opened:
            _opened[key] = open_device(name, **options)
        return _opened[key]


__all__ = ["Counts", "Device", "DeviceArray", "EmulatedDevice", "Info", "device", "open_device"]
