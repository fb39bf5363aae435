"""Device memory, kept for reuse: a training step asks the runtime for memory only the first time.

A block is handed out again as soon as nobody refers to it; work on one stream runs in order, so what still
reads the old contents does so before anything writes new ones.  A captured graph has a pool of its own: its
kernels keep their addresses after Python has let go of the arrays."""

import sys
import threading
from collections import defaultdict, deque
from ctypes import byref, c_void_p
from dataclasses import dataclass

from cuda.nn.errors import DeviceMemoryError
from cuda.nn.library import Library

GRANULE = 512      # bytes; a multiple of every alignment that kernels ask for


class Block:
    """Device memory that returns to its pool when the last array on it goes."""

    __slots__ = ("__weakref__", "address", "pool", "size")

    def __init__(self, pool: "Pool", address: int, size: int) -> None:
        self.pool, self.address, self.size = pool, address, size

    def __del__(self) -> None:
        # No lock and no arithmetic: the garbage collector may call this at any point of anyone's code.
        self.pool.returned.append((self.address, self.size))


class Borrowed:
    """Memory of somebody else, who is kept alive as long as it is in use."""

    __slots__ = ("__weakref__", "address", "owner")

    def __init__(self, address: int, owner: object) -> None:
        self.address, self.owner = address, owner


@dataclass(frozen=True)
class PoolStatistics:
    used_bytes: int         # in arrays
    kept_bytes: int         # free, for reuse
    peak_bytes: int         # the most that was in arrays at one time
    allocations: int        # asked from the runtime
    requests: int           # blocks handed out


class Pool:
    """Free blocks by size; sizes are rounded up, so that they repeat.

    exact: nothing is rounded or kept, so that an emulated device under check sees where each array ends, what
    of it was never written, and whether it is used after it is gone."""

    def __init__(self, library: Library, exact: bool = False) -> None:
        self.exact = exact
        self.returned: deque[tuple[int, int]] = deque()
        self._library = library
        self._lock = threading.Lock()
        self._free: dict[int, list[int]] = defaultdict(list)
        self._used = self._kept = self._peak = self._allocations = self._requests = 0

    def block(self, size: int) -> Block:
        size = max(size, 1) if self.exact else rounded(size)
        with self._lock:
            if self.returned:
                self._collect()
            addresses = self._free[size]
            if addresses:
                address = addresses.pop()
                self._kept -= size
            else:
                address = self._allocate(size)
            self._requests += 1
            self._used += size
            if self._used > self._peak:
                self._peak = self._used
        return Block(self, address, size)

    def trim(self) -> None:
        """Give everything that is free back to the device."""
        with self._lock:
            self._collect()
            self._give_back()

    def statistics(self) -> PoolStatistics:
        with self._lock:
            self._collect()
            return PoolStatistics(self._used, self._kept, self._peak, self._allocations, self._requests)

    @property
    def used_bytes(self) -> int:
        return self.statistics().used_bytes

    @property
    def kept_bytes(self) -> int:
        return self.statistics().kept_bytes

    @property
    def peak_bytes(self) -> int:
        return self.statistics().peak_bytes

    def reset_peak(self) -> None:
        with self._lock:
            self._collect()
            self._peak = self._used

    def _collect(self) -> None:
        """Take in what was let go of since the last time."""
        while self.returned:
            address, size = self.returned.popleft()
            self._used -= size
            if self.exact:
                self._library.nn_memory_free(address)
            else:
                self._free[size].append(address)
                self._kept += size

    def _give_back(self) -> None:
        for size, addresses in self._free.items():
            while addresses:
                self._library.nn_memory_free(addresses.pop())
                self._kept -= size

    def _allocate(self, size: int) -> int:
        pointer = c_void_p()
        try:
            self._library.nn_memory_allocate(byref(pointer), size)
        except DeviceMemoryError:
            kept = self._kept
            self._give_back()
            try:
                self._library.nn_memory_allocate(byref(pointer), size)
            except DeviceMemoryError as error:
                raise DeviceMemoryError(
                    f"{size:,} bytes of device memory cannot be had: {self._used:,} are in use by arrays of "
                    f"this pool, {kept:,} free ones were given back ({error}); a smaller batch needs less"
                ) from None
        self._allocations += 1
        return int(pointer.value or 0)

    def __del__(self) -> None:
        # Blocks refer to their pool: when it goes, all have come back.  A process that ends frees everything.
        if not sys.is_finalizing():
            self._collect()
            self._give_back()


def rounded(size: int) -> int:
    """At most an eighth more than was asked for."""
    step = max(GRANULE, 1 << max(0, size.bit_length() - 4))
    return max(1, -(-size // step)) * step
