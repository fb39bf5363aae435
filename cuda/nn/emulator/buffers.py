"""Device memory that stays between launches.

y = module.empty((4, 128), np.float32)      # never written: reading it first is a finding
x = module.array(host)                      # a copy of a NumPy array
module.launch("scan", 4, 128, [x, y, np.int32(4)])
y.numpy()                                   # a copy on the host"""

import weakref
from typing import Any

import numpy as np

from cuda.nn.emulator.errors import EmulatorError
from cuda.nn.emulator.native import Library


class Buffer:
    """An array in device memory, freed with its last reference.  Pass it to launch() in place of a NumPy
    array."""

    def __init__(
        self, library: Library, address: int, shape: tuple[int, ...], dtype: Any, *, owned: bool
    ) -> None:
        self._library = library
        self.address = address  # what the kernel gets
        self.shape = shape
        self.dtype = np.dtype(dtype)
        self.nbytes = int(np.prod(shape, dtype=np.int64)) * self.dtype.itemsize
        self._release = weakref.finalize(self, _free, library, address) if owned and address else None

    def numpy(self) -> np.ndarray:
        """A copy on the host."""
        out = np.empty(self.shape, self.dtype)
        self._library.copy(out.ctypes.data, self._alive(), self.nbytes)
        return out

    def copy_from(self, array: Any) -> "Buffer":
        """Overwrite it with an array of the same shape and type."""
        array = np.asarray(array)
        if array.shape != self.shape or array.dtype != self.dtype:
            raise EmulatorError(
                f"copy_from: {array.dtype}{list(array.shape)} does not fit a buffer of "
                f"{self.dtype}{list(self.shape)}"
            )
        array = np.ascontiguousarray(array)
        self._library.copy(self._alive(), array.ctypes.data, self.nbytes)
        return self

    def fill(self, byte: int) -> "Buffer":
        """Set every byte, as cudaMemset does."""
        self._library.fill(self._alive(), byte, self.nbytes)
        return self

    def free(self) -> None:
        """Give the memory back now.  Kernels that still use it are found (use_after_free)."""
        if self._release:
            self._release()

    def __repr__(self) -> str:
        return f"Buffer({self.dtype}{list(self.shape)} at {self.address:#x})"

    def _alive(self) -> int:
        if self._release and not self._release.alive:
            raise EmulatorError(f"{self!r} was freed")
        return self.address


def _free(library: Library, address: int) -> None:
    library.free(address)
