"""The kernel library through ctypes: found, loaded, checked, declared.

    library = load(path)
    library.nn_rms_norm_forward(y, rstd, x, weight, rows, cols, 1e-6, dtype, stream)     # raises on failure"""

import ctypes
from collections.abc import Callable
from ctypes import c_char_p, c_double, c_float, c_int32, c_int64, c_uint64, c_void_p
from pathlib import Path
from typing import Any

from cuda.nn import errors
from cuda.nn.prototypes import prototypes

ABI_VERSION = 1
TYPES = {"i32": c_int32, "i64": c_int64, "u64": c_uint64, "f32": c_float, "f64": c_double}
FAILURES = {1: errors.DeviceArgumentError, 2: errors.UnsupportedError, 3: errors.DeviceArgumentError,
            4: errors.DeviceMemoryError, 5: errors.NoDeviceError, 6: errors.DeviceError}


class Library:
    """One attribute per function of the C ABI; each raises what FAILURES says instead of returning a code."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._c = ctypes.CDLL(str(path))
        self._c.nn_last_error.restype = self._c.nn_error_string.restype = c_char_p
        if (found := self._c.nn_abi_version()) != ABI_VERSION:
            raise errors.NoDeviceError(f"{path}: its ABI is version {found}, these bindings need {ABI_VERSION}; build it again")
        for name, text in prototypes().items():
            if hasattr(self._c, name):
                setattr(self, name, self._declared(name, text))

    def _declared(self, name: str, text: str) -> Callable[..., None]:
        function = getattr(self._c, name)
        function.argtypes = [argument_type(word) for word in text.split()]
        function.restype = c_int32

        def call(*arguments: Any) -> None:
            status = function(*arguments)
            if status:
                raise self.failure(name, status)

        call.__name__, call.__doc__ = name, text
        return call

    def failure(self, name: str, status: int) -> errors.DeviceError:
        words = (self._c.nn_last_error() or self._c.nn_error_string(status)).decode(errors="replace")
        return FAILURES.get(status, errors.DeviceError)(f"{name.removeprefix('nn_')}: {words}")

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(f"{self.path} exports no {name}; build it again")


def argument_type(word: str) -> Any:
    """The ctypes type of one word of a prototype."""
    return c_void_p if word.endswith("*") else TYPES[word.partition(":")[2]]
