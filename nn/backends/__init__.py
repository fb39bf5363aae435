"""Which backend runs which kernel.

`kernels.NAME(...)` calls the kernel NAME of `protocol.KERNELS` on the first backend, in order of preference,
that serves it for the kind of array it is given.  `NN_BACKEND=reference|native|cuda|emulated` forces one;
kernels the forced backend lacks are an error, never a silent fallback.        Try: cuda-nn info"""

import importlib
import logging
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np

from nn.backends import devices, native
from nn.backends.array_api import on_device
from nn.backends.devices import open_device
from nn.backends.protocol import KERNELS
from nn.errors import InputError

__all__ = ["BACKENDS", "Backend", "asked_for", "choose", "describe", "find", "forced", "kernels",
           "open_device", "use_backend"]


log = logging.getLogger("nn.backends")


@dataclass(frozen=True)
class Backend:
    name: str
    module: str                                  # one function per kernel it serves; imported on first use
    serves: Callable[[Any], bool]                # whether it takes this kind of array
    missing: Callable[[], str | None]            # why it cannot run here and how to get it; None if it can
    from_numpy: Callable[[Any], Any] = lambda array: array      # a NumPy array as the kind of array it takes

    def kernel(self, name: str) -> Callable[..., Any] | None:
        return getattr(importlib.import_module(self.module), name, None)


def _device_backend(name: str) -> Backend:
    """The kernel library on one of the devices: arrays are there already, and say so."""

    def serves(array: Any) -> bool:
        return on_device(array) and array.device.name == name and array.dtype != np.float64

    def from_numpy(array: Any) -> Any:
        return devices.open_device(name).asarray(array)

    return Backend(name, "nn.backends.device", serves, lambda: devices.missing(name), from_numpy)


def _native_backend() -> Backend:
    """Kernels in C++ for NumPy arrays of the types they are written for, where the extension is built."""

    def serves(array: Any) -> bool:
        return isinstance(array, np.ndarray) and array.dtype in native.SERVED

    return Backend("native", "nn.backends.native.kernels", serves, native.missing)


# In order of preference.  The reference comes last: it serves every kernel on whatever speaks the array API.
BACKENDS = (
    _device_backend("cuda"),
    _device_backend("emulated"),
    _native_backend(),
    Backend("reference", "nn.backends.reference", lambda array: True, lambda: None),
)


def forced() -> str | None:
    """The backend that use_backend() or NN_BACKEND asks for; None = the best for each kernel."""
    return _override.name or (_NN_BACKEND in _environment and os.environ["NN_BACKEND"]) or None


class _Override(threading.local):
    name: str | None = None


_override = _Override()
# Asked at every call: what os.environ looks up in, which has no name of its own to encode each time.
_environment: Any = getattr(os.environ, "_data", os.environ)
_NN_BACKEND: Any = getattr(os.environ, "encodekey", str)("NN_BACKEND")


@contextmanager
def use_backend(name: str) -> Iterator[None]:
    """Force one backend inside the block, in this thread (what NN_BACKEND does for a process)."""
    find(name)
    before, _override.name = _override.name, name
    try:
        yield
    finally:
        _override.name = before


def asked_for() -> str | None:
    """The backend of the innermost use_backend() in this thread; NN_BACKEND is not looked at."""
    return _override.name


def find(name: str) -> Backend:
    """The backend of that name, able to run here; InputError says what is missing and how to get it."""
    for backend in BACKENDS:
        if backend.name == name:
            reason = backend.missing()
            if reason:
                raise InputError(f"NN_BACKEND={name}: {reason}")
            return backend
    known = ", ".join(backend.name for backend in BACKENDS)
    raise InputError(f"NN_BACKEND={name}: is not a backend; this version has: {known}")


def choose(name: str, array: Any) -> tuple[Backend, Callable[..., Any]]:
    """Who runs kernel `name` on this kind of array, and the function."""
    wanted = forced()
    for backend in [find(wanted)] if wanted else BACKENDS:
        if backend.serves(array) and not backend.missing():
            function = backend.kernel(name)
            if function:
                return backend, function
    where = f"NN_BACKEND={wanted}" if wanted else "no backend here"
    way_out = (f"move the model there: model.to(open_device({wanted!r})), or --device {wanted}"
               if wanted in devices.DEVICES and not on_device(array) else "unset NN_BACKEND")
    raise InputError(f"{name}: {where} has no such kernel for {type(array).__name__} arrays; {way_out}")


class _Kernel:
    """One kernel, bound on first use to a backend per kind of array and element type."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.bound: dict[Any, Callable[..., Any]] = {}

    def __call__(self, *arguments: Any, **options: Any) -> Any:
        first = arguments[0]
        key = (_override.name or _environment.get(_NN_BACKEND), type(first), first.dtype)
        function = self.bound.get(key) or self._bind(key, first)
        return function(*arguments, **options)

    def _bind(self, key: Any, first: Any) -> Callable[..., Any]:
        backend, function = choose(self.name, first)
        if on_device(first) and backend.name == "reference":
            log.warning("%s has no kernel for %s on a device and runs there as single array operations",
                        self.name, first.dtype)
        self.bound[key] = function
        return function


class _Kernels:
    """kernels.rms_norm(x, weight, eps), one attribute per name in KERNELS."""

    def __getattr__(self, name: str) -> _Kernel:
        if name not in KERNELS:
            raise AttributeError(f"no kernel is called {name!r}; see nn/backends/protocol.py")
        kernel = _Kernel(name)
        setattr(self, name, kernel)
        return kernel


kernels = _Kernels()


def describe() -> dict[str, dict[str, str]]:
    """{"backends": {name: "ready" or what is missing}, "kernels": {kernel: the backend for NumPy arrays},
    "device kernels": {kernel: the devices' library, or "array operations"}}."""
    sample, on_devices = np.zeros(0, np.float32), BACKENDS[0]
    states = {backend.name: backend.missing() or "ready" for backend in BACKENDS}
    return {"backends": states, "kernels": {name: choose(name, sample)[0].name for name in KERNELS},
            "device kernels": {name: "the kernel library" if on_devices.kernel(name) else "array operations"
                               for name in KERNELS}}
