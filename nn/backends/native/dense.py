"""Which of the operations that NumPy has itself are worth a kernel's call."""

from typing import Any

import numpy as np

from nn.backends import asked_for, forced, native

WORTH = 4096        # elements; with fewer NumPy is done before a kernel's arguments have been looked at


def small(a: Any, b: Any = None) -> bool:
    """Whether an operation on these (arrays, numbers) is done sooner than asking further; never where native
    was asked for by use_backend, as recordings do."""
    return getattr(a, "size", 1) < WORTH and getattr(b, "size", 1) < WORTH and asked_for() != "native"


def takes(a: Any, b: Any = None) -> bool:
    """Whether native kernels take one or two arrays and pay: dense NumPy arrays of float32 or bfloat16, one
    of them not small."""
    if small(a, b) or not _dense(a) or not (b is None or _dense(b)):
        return False
    return forced() in (None, "native") and not native.missing()


def served(x: np.ndarray) -> bool:
    """Whether native kernels take a NumPy array that need not be dense but in its last axis, and pay"""
    return (not small(x) and x.dtype in native.DTYPES and x.strides[-1] == x.itemsize
            and forced() in (None, "native") and not native.missing())


def _dense(array: Any) -> bool:
    return type(array) is np.ndarray and array.dtype in native.DTYPES and array.flags.c_contiguous
