"""What a case is, how its arguments are drawn, and the table that each family fills with its own."""

import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import ml_dtypes
import numpy as np

DTYPES = {"float64": np.dtype(np.float64), "float32": np.dtype(np.float32),
          "bfloat16": np.dtype(ml_dtypes.bfloat16), "float16": np.dtype(np.float16)}
HALF = ("bfloat16", "float16")
Arguments = tuple[Any, ...]


@dataclass(frozen=True)
class Case:
    kernel: str
    name: str
    dtype: str
    arguments: Arguments
    options: dict[str, Any] = field(default_factory=dict)
    layout: str = "contiguous"         # how the arrays lie in memory

    @property
    def id(self) -> str:
        return f"{self.kernel}-{self.name}-{self.dtype}" + f"-{self.layout}" * (self.layout != "contiguous")


class Draw:
    """Random arguments of one case, in the case's type; the same at every run."""

    def __init__(self, kernel: str, name: str, dtype: str) -> None:
        self.random = np.random.default_rng(zlib.crc32(f"{kernel}/{name}".encode()))
        self.dtype = DTYPES[dtype]
        self.float = np.dtype(np.float32) if dtype in HALF else self.dtype

    def __call__(self, *shape: int, scale: float = 1.0) -> np.ndarray:
        return np.asarray(self.random.standard_normal(shape) * scale, np.float64).astype(self.dtype)

    def wide(self, *shape: int, low: float = -2.0, high: float = 2.0) -> np.ndarray:
        return self.random.uniform(low, high, shape).astype(self.float)

    def integers(self, high: int, *shape: int) -> np.ndarray:
        return self.random.integers(0, max(1, high), shape)

    def like(self, exact: np.ndarray) -> np.ndarray:
        """A float64 result as a kernel of this type would store it"""
        return exact.astype(self.dtype)

    def statistic(self, exact: np.ndarray) -> np.ndarray:
        return exact.astype(self.float)


def exact(array: np.ndarray) -> np.ndarray:
    return array.astype(np.float64)


Builder = Callable[[Draw], tuple[Arguments, dict[str, Any]]]
Table = Iterator[tuple[str, Builder]]
_TABLES: dict[str, Callable[[], Table]] = {}


def table(*kernels: str) -> Callable[[Callable[..., Table]], Callable[..., Table]]:
    """Mark a generator of (name, builder) as the cases of these kernels."""

    def mark(function: Callable[..., Table]) -> Callable[..., Table]:
        for kernel in kernels:
            _TABLES[kernel] = lambda kernel=kernel: function(kernel)
        return function

    return mark


def cases(kernel: str, dtype: str) -> Iterator[Case]:
    for name, build in _TABLES[kernel]():
        arguments, options = build(Draw(kernel, name, dtype))
        yield Case(kernel, name, dtype, arguments, options)


def kernels_with_cases() -> set[str]:
    return set(_TABLES)


def label(*sizes: int) -> str:
    return "x".join(map(str, sizes)) or "scalar"


SHAPES = ((), (0,), (1,), (5,), (3, 0, 2), (3, 4), (2, 1, 7), (33, 65))
EXTREMES = (0.0, -0.0, 1e-4, -1e-4, 3.0, -3.0, 6.0, -6.0, 20.0, -20.0, 100.0, -100.0, 3e4, -3e4)
