"""What the kernel tests share: draws, arrays that begin at an odd element, the accuracy rule, counts.

The rule is that of tests/conformance: an error against float64 at most twice that of the same formula in the
type itself, plus a few units in the last place."""

from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np

from cuda.nn.array import DeviceArray
from cuda.nn.device import EmulatedDevice
from cuda.nn.emulator.counters import KernelCounters
from tests.conformance import compare, naive

DTYPES = {"float32": np.dtype(np.float32), "float16": np.dtype(np.float16),
          "bfloat16": np.dtype(ml_dtypes.bfloat16)}
WIDE = np.dtype(np.float32)


def draw(dtype: str, *shape: int, seed: int = 0, scale: float = 1.0) -> np.ndarray:
    return (np.random.default_rng(seed).standard_normal(shape) * scale).astype(DTYPES[dtype])


def at_odd_element(device: EmulatedDevice, values: np.ndarray) -> DeviceArray:
    """The values on the device, from the second element of their memory on: aligned to an element only"""
    memory = device.empty((values.size + 1,), values.dtype)
    view = DeviceArray(device, memory.block, values.dtype, values.shape, None, 1)
    host = np.ascontiguousarray(values)
    device.call("memory_upload", view, host.ctypes.data, host.nbytes)
    return view


PLACES: dict[str, Callable[[EmulatedDevice, np.ndarray], DeviceArray]] = {
    "aligned": lambda device, values: device.asarray(values), "odd": at_odd_element}


def accurate(kernel: str, dtype: str, results: list[DeviceArray], *arguments: Any,
             floats: tuple[int, ...] = (), **options: Any) -> None:
    """The results against the kernel's formula; `floats` are the results that are float32 in every type."""
    def run(wanted: Any) -> list[np.ndarray]:
        given = [a.astype(wanted) if isinstance(a, np.ndarray) and a.dtype.kind not in "iub" else a
                 for a in arguments]
        with np.errstate(all="ignore"):
            found = getattr(naive, kernel)(*given, **options)
        return list(found) if isinstance(found, tuple) else [found]

    exact, plain, plain_float = run(np.float64), run(DTYPES[dtype]), run(WIDE)
    for i, (result, right) in enumerate(zip(results, exact, strict=True)):
        rough = plain_float[i] if i in floats else plain[i]
        found = result.numpy().reshape(right.shape)
        assert found.dtype == (WIDE if i in floats else DTYPES[dtype]) or found.dtype.kind == "i"
        if right.dtype.kind == "i":
            np.testing.assert_array_equal(found, right)
        else:
            compare.compare(f"{kernel} {i}", found, right, rough, dtype, 1.0 if "backward" in kernel else 0.0)


def counted(device: EmulatedDevice, run: Callable[[], Any], check: bool = True) -> dict[str, KernelCounters]:
    """{kernel's name without namespace and template arguments: its counts}"""
    device.configure(count=1, check=int(check))
    device.clear()
    run()
    counters = device.counters()
    found = {name_of(name): counters[name] for name in counters}
    device.configure()
    return found


def name_of(mangled: str) -> str:
    """_ZN2nn12softmax_rowsIfLi4E... -> softmax_rows; of nested names, the last"""
    name, rest = mangled, mangled.removeprefix("_Z").removeprefix("N")
    while digits := len(rest) - len(rest.lstrip("0123456789")):
        end = digits + int(rest[:digits])
        name, rest = rest[digits:end], rest[end:]
    return name


def moved_bytes(counts: KernelCounters) -> int:
    return counts.bytes_read + counts.bytes_written
