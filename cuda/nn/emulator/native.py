"""The runtime library through ctypes (csrc/emulator/api.h).  One library per process; it is loaded at first
use.

library = native.library()
library.configure("arch=sm_80;check=1")
handle = library.load(path)                       # a translated module
address = library.allocate(1024, "argument 0")"""

import ctypes
import json
import threading
from ctypes import POINTER, byref, c_char_p, c_int, c_size_t, c_uint32, c_void_p
from functools import lru_cache
from pathlib import Path
from typing import Any

from cuda.nn.emulator.build import runtime_library
from cuda.nn.emulator.errors import EmulatorError

Dim3 = c_uint32 * 3
SIGNATURES: dict[str, tuple[Any, ...]] = {  # result, arguments; as in api.h
    "emu_abi": (c_int,),
    "emu_error": (c_char_p,),
    "emu_configure": (c_int, c_char_p),
    "emu_module_load": (c_void_p, c_char_p),
    "emu_module_unload": (None, c_void_p),
    "emu_module_symbol": (c_int, c_void_p, c_char_p, POINTER(c_void_p), POINTER(c_size_t)),
    "emu_malloc": (c_void_p, c_size_t, c_char_p),
    "emu_free": (c_int, c_void_p),
    "emu_copy": (c_int, c_void_p, c_void_p, c_size_t),
    "emu_fill": (c_int, c_void_p, c_int, c_size_t),
    "emu_launch": (c_int, c_void_p, c_char_p, Dim3, Dim3, c_void_p, c_size_t),
    "emu_reports": (c_char_p,),
    "emu_counters": (c_char_p,),
    "emu_statistics": (c_char_p,),
    "emu_clear": (None,),
}


class Library:
    """The runtime library.  It has one state for the whole process: whoever uses it holds `lock`."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.lock = threading.RLock()
        self._options = ""
        # Global: translated modules, and libraries that nvcc built, find the runtime's symbols in it.
        self._c = ctypes.CDLL(str(path), mode=ctypes.RTLD_GLOBAL)
        for name, (result, *arguments) in SIGNATURES.items():
            function = getattr(self._c, name)
            function.restype, function.argtypes = result, arguments
        self.launch = self._c.emu_launch  # (module, kernel, grid, block, args, shared_bytes) -> cudaError
        self.copy_unchecked = self._c.emu_copy  # (destination, source, bytes) -> nonzero on failure

    def configure(self, options: str) -> None:
        """Set options of the process; the same as last time costs nothing."""
        if options != self._options:
            self._check(self._c.emu_configure(options.encode()), f"options {options!r}")
            self._options = options

    def load(self, path: Path) -> int:
        """A translated module's handle."""
        handle = self._c.emu_module_load(str(path).encode())
        if not handle:
            raise EmulatorError(f"{path} cannot be loaded: {self.error()}")
        return int(handle)

    def unload(self, module: int) -> None:
        self._c.emu_module_unload(module)

    def symbol(self, module: int, name: str) -> tuple[int, int] | None:
        """(address, bytes) of a __device__ or __constant__ variable by its mangled name, or None."""
        address, size = c_void_p(), c_size_t()
        if self._c.emu_module_symbol(module, name.encode(), byref(address), byref(size)):
            return None
        return int(address.value or 0), size.value

    def allocate(self, size: int, label: str) -> int:
        """Device memory, filled with 0xFF; `label` is what reports call it."""
        address = self._c.emu_malloc(size, label.encode())
        if not address:
            raise EmulatorError(f"{label}: {size:,} bytes of device memory cannot be had: {self.error()}")
        return int(address)

    def free(self, address: int) -> None:
        self._check(self._c.emu_free(address), "free")

    def copy(self, destination: int, source: int, size: int) -> None:
        self._check(self._c.emu_copy(destination, source, size), "copy")

    def fill(self, destination: int, byte: int, size: int) -> None:
        self._check(self._c.emu_fill(destination, byte, size), "fill")

    def reports(self) -> list[dict[str, Any]]:
        """The findings since the last clear()."""
        found: list[dict[str, Any]] = json.loads(self._c.emu_reports().decode(errors="replace"))
        return found

    def counters(self) -> dict[str, dict[str, Any]]:
        """Counts by kernel since the last clear()."""
        found: dict[str, dict[str, Any]] = json.loads(self._c.emu_counters().decode(errors="replace"))
        return found

    def statistics(self) -> dict[str, Any]:
        """Launches, copies, bytes and synchronisations since the last clear()."""
        found: dict[str, Any] = json.loads(self._c.emu_statistics().decode(errors="replace"))
        return found

    def clear(self) -> None:
        self._c.emu_clear()

    def error(self) -> str:
        """Why this thread's last call failed."""
        return (self._c.emu_error() or b"").decode(errors="replace") or "no reason given"

    def _check(self, status: int, what: str) -> None:
        if status:
            raise EmulatorError(f"{what}: {self.error()}")


@lru_cache(maxsize=1)
def library() -> Library:
    """The process's library: built and loaded at the first call, the same one ever after."""
    return Library(runtime_library())
