"""Device memory, kept for reuse: a training step asks the runtime for memory only the first time.

A block is handed out again as soon as nobody refers to it; work on one stream runs in order, so what still
reads the old contents does so before anything writes new ones."""

from collections import defaultdict
from ctypes import byref, c_void_p

from cuda.nn.errors import DeviceMemoryError
from cuda.nn.library import Library

GRANULE = 512      # bytes; a multiple of every alignment that kernels ask for


class Block:
    """Device memory that returns to its pool when the last array on it goes."""

    __slots__ = ("__weakref__", "address", "pool", "size")

    def __init__(self, pool: "Pool", address: int, size: int) -> None:
        self.pool, self.address, self.size = pool, address, size

    def __del__(self) -> None:
        self.pool.take_back(self.address, self.size)


class Pool:
    """Free blocks by size; sizes are rounded up, so that they repeat."""

    def __init__(self, library: Library) -> None:
        self._library = library
        self._free: dict[int, list[int]] = defaultdict(list)
        self.used_bytes = self.kept_bytes = self.peak_bytes = 0

    def block(self, size: int) -> Block:
        size = rounded(size)
        addresses = self._free[size]
        if addresses:
            address = addresses.pop()
            self.kept_bytes -= size
        else:
            address = self._allocate(size)
        self.used_bytes += size
        self.peak_bytes = max(self.peak_bytes, self.used_bytes)
        return Block(self, address, size)

    def take_back(self, address: int, size: int) -> None:
        self._free[size].append(address)
        self.used_bytes -= size
        self.kept_bytes += size

    def trim(self) -> None:
        """Give everything that is free back to the device."""
        for size, addresses in self._free.items():
            while addresses:
                self._library.nn_memory_free(addresses.pop())
                self.kept_bytes -= size

    def _allocate(self, size: int) -> int:
        pointer = c_void_p()
        try:
            self._library.nn_memory_allocate(byref(pointer), size)
        except DeviceMemoryError:
            self.trim()
            self._library.nn_memory_allocate(byref(pointer), size)
        return int(pointer.value or 0)


def rounded(size: int) -> int:
    """At most an eighth more than was asked for."""
    step = max(GRANULE, 1 << max(0, size.bit_length() - 4))
    return max(1, -(-size // step)) * step
