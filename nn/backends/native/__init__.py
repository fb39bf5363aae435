"""The native backend: kernels in C++ for NumPy arrays, compiled from csrc/native (see its README.md).

    cuda-nn info                        # whether it is built, its level of instructions, what it serves
    NN_NATIVE_LEVEL=avx2 NN_THREADS=1   # force a lower level; the number of threads

Where the extension is not built the reference serves everything, and missing() says how to get it.  What a
kernel does not take (THE RULE in csrc/native/core/signature.h) goes to the reference; fallbacks() counts it,
and the log says it once."""

import functools
import importlib
import logging
import os
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import ml_dtypes
import numpy as np

from nn.errors import InputError

__all__ = ["DTYPES", "SERVED", "empty", "extension", "fallbacks", "fallen_back", "level", "levels",
           "limit_threads", "memory", "missing", "set_threads", "summary", "threads", "trim", "use_level"]

DTYPES = (np.dtype(np.float32), np.dtype(ml_dtypes.bfloat16))       # element types with kernels of their own
SERVED = (*DTYPES, np.dtype(np.int64), np.dtype(np.int32), np.dtype(np.uint8))      # of a first argument
MODULE = "nn.backends.native.nn_native"
log = logging.getLogger("nn.backends.native")
_fallbacks: Counter[tuple[str, str]] = Counter()


@functools.cache
def missing() -> str | None:
    """Why the native kernels cannot run here and how to get them; None if they can."""
    try:
        module = importlib.import_module(MODULE)
    except ImportError as error:
        built = "is not built" if isinstance(error, ModuleNotFoundError) else f"cannot be loaded ({error})"
        return f"the extension {built}; with a C++20 compiler: pip install again, or make native"
    wanted = os.environ.get("NN_NATIVE_LEVEL")
    if wanted and wanted not in module.levels():
        return f"NN_NATIVE_LEVEL={wanted}: not one of {', '.join(module.levels())}"
    return None


@functools.cache
def extension() -> Any:
    """The C++ module, ready to be called; InputError where it cannot be."""
    if reason := missing():
        raise InputError(f"native: {reason}")
    from nn.backends import reference
    from nn.backends.native import blas

    nn_native: Any = importlib.import_module(MODULE)
    reference_of = {name: getattr(reference, name) for name in nn_native.kernels()}
    nn_native.set_up(np.dtype(ml_dtypes.bfloat16), reference_of, _report)
    if addresses := blas.addresses():
        nn_native.set_blas(*addresses)
    return nn_native


def _report(kernel: str, why: str) -> None:
    if (kernel, why) not in _fallbacks:
        log.info("%s: the reference runs where %s", kernel, why)
    _fallbacks[kernel, why] += 1


def fallbacks() -> dict[tuple[str, str], int]:
    """{(kernel, why): how often the reference ran instead} of this process."""
    return dict(_fallbacks)


def fallen_back(before: dict[tuple[str, str], int] | None = None) -> str:
    """What has been added to fallbacks() since it was `before`, for a person, the most frequent first:
    "rms_norm 3 times (weight: float64 where float32 is taken), ..."; empty if nothing."""
    since = _fallbacks - Counter(before or {})
    return ", ".join(f"{kernel} {count} time{'s' * (count > 1)} ({why})"
                     for (kernel, why), count in since.most_common())


def level() -> str:
    """The level of instructions in use."""
    return extension().level()


def levels() -> list[str]:
    """Those that this processor has, lowest first."""
    return extension().levels()


@contextmanager
def use_level(name: str) -> Iterator[None]:
    """Use the kernels of another level inside the block, in the whole process (what NN_NATIVE_LEVEL does)."""
    before = level()
    try:
        extension().use_level(name)
    except ValueError as error:
        raise InputError(str(error)) from None
    try:
        yield
    finally:
        extension().use_level(before)


def threads() -> int:
    """How many threads a kernel may use: NN_THREADS, else the usable cores."""
    return extension().threads()


def set_threads(count: int) -> None:
    """Results do not depend on it, to the bit."""
    if count < 1:
        raise InputError(f"threads: {count}; at least 1")
    extension().set_threads(count)


@contextmanager
def limit_threads(count: int) -> Iterator[None]:
    """So many threads inside the block, in the whole process; nothing where the extension is not built."""
    if missing():
        yield
        return
    before = threads()
    set_threads(count)
    try:
        yield
    finally:
        set_threads(before)


def summary() -> str:
    """One line for a person: level, threads, BLAS."""
    if reason := missing():
        return reason
    products = "NumPy's BLAS" if extension().blas_is_there() else "the reference"
    if level() == "amx" and os.environ.get("NN_FLOAT32") != "blas":
        products = f"tiles and {products}"
    return (f"{level()} (of {' '.join(levels())}), {threads()} threads, "
            f"float32 matrix products by {products}")


def empty(shape: tuple[int, ...], dtype: Any = np.float32) -> np.ndarray:
    """An array in the pool's memory, its values not set; huge pages from 2 MiB on."""
    return extension().empty(shape, np.dtype(dtype))


def memory() -> dict[str, int]:
    """The pool's counters: bytes_in_use bytes_kept peak_bytes bytes_huge taken fresh."""
    return extension().memory()


def trim() -> None:
    """Give the pool's free buffers back to the system."""
    extension().trim()
