"""The BLAS that NumPy carries, for the native kernels: addresses of three functions, or nothing.

Large float32 products go by it where there are no tiles.  NumPy's OpenBLAS is loaded already, and exports
cblas_sgemm under a name that says its integers have 64 bits; csrc/native/core/blas.h calls it."""

import ctypes
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np

NAMES = (("scipy_cblas_sgemm64_", "scipy_openblas_get_num_threads64_", "scipy_openblas_set_num_threads64_"),
         ("cblas_sgemm64_", "openblas_get_num_threads64_", "openblas_set_num_threads64_"))


def addresses() -> tuple[int, int, int] | None:
    """(cblas_sgemm, get_num_threads, set_num_threads) with 64-bit integers; None if not found."""
    for path in _libraries():
        try:
            library = ctypes.CDLL(str(path))
        except OSError:
            continue
        for names in NAMES:
            if all(hasattr(library, name) for name in names):
                found = [ctypes.cast(getattr(library, name), ctypes.c_void_p).value for name in names]
                if all(found):
                    return found[0] or 0, found[1] or 0, found[2] or 0
    return None


def _libraries() -> Iterator[Path]:
    """Files beside NumPy, where its wheels put OpenBLAS."""
    package = Path(np.__file__).parent
    suffix = ".dylib" if sys.platform == "darwin" else ".so*"
    for folder in (package.parent / "numpy.libs", package / ".dylibs"):
        yield from sorted(folder.glob(f"*openblas*{suffix}"))
