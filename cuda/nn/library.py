"""The kernel library through ctypes: loaded, checked, declared.

    library = Library(path)
    library.nn_rms_norm_forward(y, rstd, x, weight, rows, cols, 1e-6, dtype, stream)     # raises on failure
    library.nn_x_workspace_size(rows, cols)                                              # what it returns"""

import ctypes
from collections.abc import Callable
from ctypes import c_char_p, c_double, c_float, c_int32, c_int64, c_uint64, c_void_p
from pathlib import Path
from typing import Any

from cuda.nn import errors
from cuda.nn.prototypes import prototypes

ABI_VERSION = 1
REBUILD = "python -m cuda.nn.build"
FAILURES = {1: errors.DeviceArgumentError, 2: errors.UnsupportedError, 3: errors.DeviceArgumentError,
            4: errors.DeviceMemoryError, 5: errors.NoDeviceError, 6: errors.DeviceError}


class Int32(c_int32):
    """ctypes cuts what does not fit; this refuses it."""

    @classmethod
    def from_param(cls, value: Any) -> c_int32:
        if isinstance(value, int) and not -(2**31) <= value < 2**31:
            raise TypeError(f"{value} does not fit into 32 bits")
        return c_int32(value)


TYPES = {"i32": Int32, "i64": c_int64, "u64": c_uint64, "f32": c_float, "f64": c_double}
RESULTS = TYPES | {"i32": c_int32, "text": c_char_p}


class Library:
    """One attribute per function of the C ABI; each raises what FAILURES says instead of returning a code."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._c = _load(path)
        for name, text in prototypes().items():
            if hasattr(self._c, name):           # one family is enough while it is being written
                setattr(self, name, self._declared(name, text))

    def _declared(self, name: str, text: str) -> Callable[..., Any]:
        words, result = split(text)
        function = getattr(self._c, name)
        function.argtypes = [argument_type(word) for word in words]
        function.restype = RESULTS[result] if result else c_int32

        def call(*arguments: Any) -> Any:
            if len(arguments) != len(words):
                raise TypeError(f"{name}({text}): {len(arguments)} arguments instead of {len(words)}")
            try:
                found = function(*arguments)
            except ctypes.ArgumentError as error:
                raise wrong_type(name, words, arguments, error) from None
            if result:
                return found
            if found:
                raise self.failure(name, found)
            return None

        call.__name__, call.__doc__ = name, text
        return call

    def failure(self, name: str, status: int) -> errors.DeviceError:
        words = (self._c.nn_last_error() or self._c.nn_error_string(status)).decode(errors="replace")
        return FAILURES.get(status, errors.DeviceError)(f"{name.removeprefix('nn_')}: {words}")

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(f"{self.path} has no function {name}: it is older than these bindings, or was "
                             f"built with some kernel families only; build it again: {REBUILD}")


def _load(path: Path) -> ctypes.CDLL:
    """The library, if it is there and speaks these bindings' version."""
    try:
        found = ctypes.CDLL(str(path))
        version = found.nn_abi_version()
    except (OSError, AttributeError) as error:
        raise errors.NoDeviceError(f"{path}: no kernel library ({error}); build it: {REBUILD}") from None
    if version != ABI_VERSION:
        raise errors.NoDeviceError(f"{path}: its ABI is version {version}, and these bindings need "
                                   f"{ABI_VERSION}; build it again: {REBUILD}")
    found.nn_last_error.restype = found.nn_error_string.restype = c_char_p
    return found


def split(text: str) -> tuple[list[str], str]:
    """The arguments of a prototype, and what it returns: "" for a status."""
    arguments, _, result = text.partition("->")
    return arguments.split(), result.strip()


def argument_type(word: str) -> Any:
    """The ctypes type of one word of a prototype."""
    return c_void_p if word.endswith("*") else TYPES[word.partition(":")[2]]


def wrong_type(name: str, words: list[str], arguments: tuple[Any, ...], error: Exception) -> Exception:
    """ctypes counts the arguments; people name them."""
    number = int(str(error).split()[1].rstrip(":")) - 1
    given = arguments[number]
    return errors.DeviceArgumentError(f"{name.removeprefix('nn_')}: {words[number]}: {given!r} "
                                      f"({type(given).__name__}) cannot be passed for it: {error}")
