"""What a benchmark is: one function of the C ABI with its sizes, the least traffic it needs, and a formula.

    @benchmark("norm", large={"rows": 8192, "cols": 4096}, small={"rows": 64, "cols": 512})
    def rms_norm_forward(at: Bench, rows: int, cols: int) -> Call:
        x, y = at.normal(rows, cols), at.empty(rows, cols)
        ...
        return Call(at.queue("rms_norm_forward", y, ...), reads=[x], writes=[y], checks=[...])

The formula is NumPy's in float64, on the inputs as they were rounded, for some of the results: rows drawn at
random, and the first and the last."""

import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from cuda.nn.array import DeviceArray
from cuda.nn.device import Device
from cuda.nn.dtypes import BFLOAT16, CODES, FLOAT16, FLOAT32

DTYPES = {"float32": FLOAT32, "float16": FLOAT16, "bfloat16": BFLOAT16}
FLOATS = tuple(DTYPES)
EPS = {FLOAT32: 2.0**-23, FLOAT16: 2.0**-10, BFLOAT16: 2.0**-7}
PERIOD = 1_000_003        # values drawn for an input, then repeated: a prime, so that no two rows are alike
SUMMED = 64               # roundings of float32 sums that a result may be off by, in units of EPS
ROUNDED = 2               # roundings of a result stored in half precision

Sizes = Mapping[str, int]
Where = Any               # an index into an array


@dataclass(frozen=True)
class Check:
    """Some of a result beside its formula.  `loose` multiplies what the error may be."""

    name: str
    found: DeviceArray
    expected: Callable[[], np.ndarray]
    where: Where = ...
    loose: float = 1.0

    def error(self) -> tuple[float, float]:
        """(greatest difference over the greatest value, what it may be); integers are equal or not.  No
        benchmark has a result that is not finite."""
        found, expected = self.found.numpy()[self.where], self.expected()
        if found.dtype.kind in "iub":
            return float(not np.array_equal(found, expected)), 0.0
        wide = found.astype(np.float64)
        if found.shape != expected.shape or not (np.isfinite(wide).all() and np.isfinite(expected).all()):
            return float("inf"), 0.0
        scale = np.max(np.abs(expected), initial=0.0) or 1.0
        allowed = self.loose * (SUMMED * EPS[FLOAT32] if found.dtype.itemsize >= 4
                                else ROUNDED * EPS[found.dtype])
        return float(np.max(np.abs(wide - expected), initial=0.0) / scale), float(allowed)


@dataclass(frozen=True)
class Call:
    """A call that is ready to be queued, and what is known of it."""

    run: Callable[[], None]
    reads: Sequence[DeviceArray | int]         # arrays, or bytes, that it cannot do without reading once
    writes: Sequence[DeviceArray | int]
    checks: Sequence[Check]
    flops: int = 0                             # where they may be the limit: 2 per multiply and add
    tf32: bool = False                         # float32 on tensor cores
    vendor: tuple[str, tuple[Any, ...]] | None = None      # the same by a vendor's library (baselines.py)

    @property
    def bytes_read(self) -> int:
        return sum(x if isinstance(x, int) else x.nbytes for x in self.reads)

    @property
    def bytes_written(self) -> int:
        return sum(x if isinstance(x, int) else x.nbytes for x in self.writes)


@dataclass(frozen=True)
class Benchmark:
    """One function at some sizes; `variant` tells several of one function apart."""

    function: str                              # of the C ABI, without nn_
    variant: str
    family: str                                # the header that declares it
    large: Sizes                               # on a GPU
    small: Sizes                               # on the emulated device
    dtypes: tuple[str, ...]
    build: Callable[..., Call] = field(repr=False)

    @property
    def name(self) -> str:
        return f"{self.function}:{self.variant}" if self.variant else self.function

    def make(self, device: Device, dtype: str, sizes: Sizes) -> Call:
        """The call, its inputs drawn and on the device."""
        return self.build(Bench(device, DTYPES[dtype], self.name), **sizes)


REGISTRY: dict[str, Benchmark] = {}


def benchmark(family: str, *, large: Sizes, small: Sizes, dtypes: tuple[str, ...] = FLOATS,
              function: str = "", variant: str = "") -> Callable[[Callable[..., Call]], Callable[..., Call]]:
    """Register a function that builds a call; its name is the kernel's, unless `function` is given."""

    def register(build: Callable[..., Call]) -> Callable[..., Call]:
        made = Benchmark(function or build.__name__, variant, family, dict(large), dict(small), dtypes, build)
        if made.name in REGISTRY:
            raise ValueError(f"{made.name}: two benchmarks of this name")
        REGISTRY[made.name] = made
        return build

    return register


class Bench:
    """Where a call is built: the device, the type, and arrays.  All of them live as long as the call, which
    may know of them by address alone; inputs keep their host values for the formula."""

    def __init__(self, device: Device, dtype: np.dtype, name: str) -> None:
        self.device, self.dtype, self.code = device, dtype, CODES[dtype]
        self.random = np.random.default_rng(zlib.crc32(name.encode()))
        self._kept: dict[int, tuple[DeviceArray, np.ndarray]] = {}
        self._empty: list[DeviceArray] = []

    # ---- inputs ----

    def normal(self, *shape: int, dtype: Any = None, scale: float = 1.0) -> DeviceArray:
        return self.put(self._repeated(lambda n: self.random.standard_normal(n, np.float32) * scale, shape,
                                       dtype))

    def uniform(self, *shape: int, dtype: Any = None, low: float = 0.0, high: float = 1.0) -> DeviceArray:
        return self.put(self._repeated(lambda n: self.random.uniform(low, high, n), shape, dtype))

    def integers(self, high: int, *shape: int, dtype: Any = np.int64) -> DeviceArray:
        return self.put(self._repeated(lambda n: self.random.integers(high, size=n), shape, dtype))

    def put(self, values: np.ndarray) -> DeviceArray:
        """These values on the device."""
        array = self.device.asarray(values)
        self._kept[id(array)] = array, values
        return array

    def _repeated(self, draw: Callable[[int], np.ndarray], shape: tuple[int, ...], dtype: Any) -> np.ndarray:
        count = int(np.prod(shape))
        return np.resize(draw(min(count, PERIOD)).astype(self.dtype if dtype is None else dtype), shape)

    def empty(self, *shape: int, dtype: Any = None) -> DeviceArray:
        self._empty.append(self.device.empty(shape, self.dtype if dtype is None else dtype))
        return self._empty[-1]

    def workspace(self, size: int) -> tuple[DeviceArray | None, int]:
        """What a call takes for its scratch memory."""
        return (self.device.workspace(size) if size > 0 else None), max(size, 0)

    # ---- the call and its formula ----

    def queue(self, function: str, *arguments: Any) -> Callable[[], None]:
        return lambda: self.device.call(function, *arguments)

    def values(self, x: DeviceArray) -> np.ndarray:
        """What an input was given, in its type."""
        return self._kept[id(x)][1]

    def wide(self, x: DeviceArray, where: Where = ...) -> np.ndarray:
        """The same in float64; `where`: of it."""
        return self.values(x)[where].astype(np.float64)

    def some(self, count: int, most: int = 16) -> np.ndarray:
        """Some of 0 ... count - 1, in order: the first, the last, others at random."""
        if count <= most:
            return np.arange(count)
        inner = self.random.choice(np.arange(1, count - 1), most - 2, replace=False)
        return np.sort(np.concatenate([[0], inner, [count - 1]]))
