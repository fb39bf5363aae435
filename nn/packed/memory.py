"""Memory for packed weights: one behind the other on huge pages, which small ones alone would not fill.

Without huge pages every 4 KiB that is read costs a walk through the page tables."""

import os
import threading
from contextlib import suppress
from pathlib import Path
from weakref import ReferenceType, ref

import numpy as np

from nn.backends import native
from nn.packed.layout import LINE

SLAB = (32 << 20) - LINE             # the pool's own header fills it up
LARGE = SLAB // 4                    # from here on a weight has memory of its own
POPULATE_READ = 22                   # MADV_POPULATE_READ, Linux 5.14; the module mmap has no name for it


class _Slabs:
    """The slab that is being filled; weights keep theirs, it is forgotten with the last of them"""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.slab: ReferenceType[np.ndarray] | None = None
        self.used = 0

    def take(self, size: int) -> np.ndarray:
        with self.lock:
            slab = self.slab() if self.slab else None
            if slab is None or self.used + size > SLAB:
                slab, self.used = native.empty((SLAB,), np.uint8), 0
                self.slab = ref(slab)
            start, self.used = self.used, self.used + -(-size // LINE) * LINE
            return slab[start : start + size]


_slabs = _Slabs()


def room(size: int) -> np.ndarray:
    """uint8 [size], not set, at a multiple of 64 bytes; on huge pages where the native kernels are."""
    if native.missing():
        return np.empty(size, np.uint8)
    return native.empty((size,), np.uint8) if size >= LARGE else _slabs.take(size)


def mapped(path: str | Path) -> np.ndarray:
    """uint8 of a whole file, mapped to be read.  Where memory is larger than the file, its pages are brought
    in at once: otherwise the first tokens do that, a few pages at a time."""
    file = np.memmap(path, np.uint8, "r")
    if hasattr(file._mmap, "madvise") and file.size < _memory():         # type: ignore[attr-defined]
        with suppress(OSError):                                          # an older kernel
            file._mmap.madvise(POPULATE_READ)                            # type: ignore[attr-defined]
    return np.asarray(file)


def _memory() -> int:
    """Bytes of this machine's; 0 where that is not known"""
    with suppress(AttributeError, OSError, ValueError):
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return 0
