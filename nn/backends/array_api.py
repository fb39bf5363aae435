"""The little that the Python array API standard lacks and the reference needs, and finding an array's module.

NumPy gets its own fast form where there is one; any other array module gets one written in the standard."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np


def namespace(*arrays: Any) -> Any:
    """The array module of the first array among the arguments; NumPy if they are all Python numbers."""
    for array in arrays:
        if hasattr(array, "__array_namespace__"):
            return array.__array_namespace__()
    return np


def on_device(array: Any) -> bool:
    """Whether reading a value of it would make the host wait for a device."""
    return bool(getattr(array, "on_device", False))


def beside(array: Any, like: Any) -> Any:
    """The array on the device of `like`; itself if that is the host, or if it is there already."""
    if not on_device(like) or on_device(array):
        return array
    return _open.uploads.place(array, like.device) if _open.uploads else like.device.asarray(array)


class NotRepeatable(RuntimeError):
    """A computation cannot be recorded and run again as it is."""


class Uploads:
    """What one run of a computation uploads, kept for its next run: while a graph is recorded nothing can be
    uploaded.  The runs must upload the same values in the same order, and write into none."""

    def __init__(self) -> None:
        self._kept: list[tuple[np.ndarray, Any]] = []       # (values, where they are)
        self._used = -1                                     # of them in this run; −1: the run that keeps

    @contextmanager
    def keeping(self) -> Iterator[None]:
        """The first run."""
        self._kept, self._used = [], -1
        with _opened(self):
            yield

    @contextmanager
    def reusing(self) -> Iterator[None]:
        """A run that uploads nothing.  NotRepeatable, before it or in it, if it would not be the same."""
        if any(not np.array_equal(values, placed.numpy(), equal_nan=values.dtype.kind == "f")
               for values, placed in self._kept):
            raise NotRepeatable("what was uploaded has been written into")
        self._used = 0
        with _opened(self):
            yield

    def place(self, array: Any, device: Any) -> Any:
        values = np.array(array)
        if self._used < 0:
            self._kept.append((values, device.asarray(array)))
            return self._kept[-1][1]
        kept = self._kept[self._used] if self._used < len(self._kept) else (np.zeros(0), None)
        self._used += 1
        if kept[0].dtype != values.dtype or kept[0].tobytes() != values.tobytes():
            raise NotRepeatable("what is uploaded changes from step to step, as random numbers do that are "
                                "drawn on the host")
        return kept[1]


class _Open(threading.local):
    uploads: Uploads | None = None


_open = _Open()


@contextmanager
def _opened(uploads: Uploads) -> Iterator[None]:
    before, _open.uploads = _open.uploads, uploads
    try:
        yield
    finally:
        _open.uploads = before


def all_finite(array: Any) -> bool:
    """Whether no element is NaN or infinite (integers always are finite)."""
    if isinstance(array, np.ndarray | np.generic) and np.asarray(array).dtype.kind in "iub":
        return True
    xp = namespace(array)
    return bool(xp.all(xp.isfinite(array)))


def scatter_add(source: Any, index: Any, rows: int) -> Any:
    """[rows, D] with row index[n] increased by source[n], in increasing n; repeated indices add up."""
    xp = namespace(source)
    if xp is np:
        return _scatter_add_sorted(source, index, rows)
    one_hot = xp.astype(xp.arange(rows)[:, None] == index[None, :], source.dtype)       # [rows, N]
    return xp.matmul(one_hot, source)


def _scatter_add_sorted(source: np.ndarray, index: np.ndarray, rows: int) -> np.ndarray:
    """Sort by index, then one segment sum per distinct index: no atomics, always the same order."""
    out = np.zeros((rows, *source.shape[1:]), source.dtype)
    if index.size:
        order = np.argsort(index, kind="stable")
        distinct, starts = np.unique(index[order], return_index=True)
        out[distinct] = np.add.reduceat(source[order], starts, axis=0)
    return out


def add_at_columns(x: Any, columns: Any, values: Any) -> Any:
    """x[R,V] with values[r] added at column columns[r] of every row; x is given up to it."""
    xp = namespace(x)
    if xp is np:
        x[np.arange(x.shape[0]), columns] += values
        return x
    hit = xp.arange(x.shape[1])[None, :] == columns[:, None]
    return xp.where(hit, x + values[:, None], x)


def sigmoid(x: Any) -> Any:
    """σ(x) = 1/(1 + e⁻ˣ), from e^−|x|: no overflow, and full relative precision in both tails."""
    xp = namespace(x)
    e = xp.exp(-xp.abs(x))
    y = xp.where(x >= 0.0, xp.ones_like(e), e)
    e += 1.0
    y /= e
    return y


def erf(x: Any) -> Any:
    """The error function, off by a few units of 1's last place (Chebyshev fit of erfc): made for 1 + erf."""
    xp = namespace(x)
    t = 2.0 / (2.0 + xp.abs(x))
    ty = 4.0 * t - 2.0
    d, dd = xp.zeros_like(x), xp.zeros_like(x)
    for c in _ERFC[:0:-1]:
        d, dd = ty * d - dd + c, d
    erfc = t * xp.exp(-x * x + 0.5 * (_ERFC[0] + ty * d) - dd)
    return xp.where(x >= 0.0, 1.0 - erfc, erfc - 1.0)


# Chebyshev coefficients of erfc: W. H. Press et al., Numerical Recipes, 3rd edition, section 6.2.2
_ERFC = (
    -1.3026537197817094, 6.4196979235649026e-1, 1.9476473204185836e-2, -9.561514786808631e-3,
    -9.46595344482036e-4, 3.66839497852761e-4, 4.2523324806907e-5, -2.0278578112534e-5,
    -1.624290004647e-6, 1.303655835580e-6, 1.5626441722e-8, -8.5238095915e-8,
    6.529054439e-9, 5.059343495e-9, -9.91364156e-10, -2.27365122e-10,
    9.6467911e-11, 2.394038e-12, -6.886027e-12, 8.94487e-13,
    3.13092e-13, -1.12708e-13, 3.81e-16, 7.106e-15,
    -1.523e-15, -9.4e-17, 1.21e-16, -2.8e-17)
