"""What a table of calls is made of: arrays that are drawn the same at every run, and the call itself."""

from collections.abc import Callable
from ctypes import Structure, byref
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
from _pytest.mark.structures import ParameterSet

from cuda.nn.array import DeviceArray
from cuda.nn.device import EmulatedDevice
from cuda.nn.dtypes import code
from cuda.nn.library import split
from cuda.nn.prototypes import prototypes
from tests.device.accuracy import DTYPES, WIDE

Arguments = tuple[Any, ...]
Builder = Callable[..., Arguments]
BUILDERS: dict[str, Builder] = {}                        # by the exported name without nn_
VARIANTS: dict[str, dict[str, dict[str, Any]]] = {}      # {function: {name: sizes, and dtype}}


def exported(*names: str, **variants: dict[str, Any]) -> Callable[[Builder], Builder]:
    """Mark a builder as the call of the functions of these names, its own if there is none.  Variants are
    other sizes, or another dtype, with which the function takes other kernels."""

    def mark(builder: Builder) -> Builder:
        for name in names or (builder.__name__,):
            BUILDERS[name], VARIANTS[name] = builder, {"": {}} | variants
        return builder

    return mark


def pointer(array: DeviceArray | None) -> int | None:
    return None if array is None else array.pointer


def aligned(device: EmulatedDevice, values: np.ndarray) -> DeviceArray:
    return device.asarray(values)


class Arrays:
    """The arrays of one call.  Floats have the call's type unless another is asked for."""

    def __init__(self, device: EmulatedDevice, dtype: str, seed: int, place: Callable[..., DeviceArray]):
        self.device, self.dtype, self.place = device, DTYPES[dtype], place
        self.code = code(self.dtype)
        self.random = np.random.default_rng(seed)
        self.inputs: list[tuple[DeviceArray, np.ndarray]] = []
        self.changed: list[tuple[DeviceArray, np.ndarray]] = []      # in place: inputs that are outputs
        self.outputs: list[DeviceArray] = []
        self.kept: list[Any] = []

    def __call__(self, *shape: int, dtype: Any = None, scale: float = 1.0) -> DeviceArray:
        """Normal floats"""
        return self.given((self.random.standard_normal(shape) * scale).astype(dtype or self.dtype))

    def integers(self, high: int, *shape: int, dtype: Any = np.int64) -> DeviceArray:
        return self.given(self.random.integers(0, high, shape).astype(dtype))

    def given(self, values: Any) -> DeviceArray:
        values = np.asarray(values)
        self.inputs.append((self.place(self.device, values), values))
        return self.inputs[-1][0]

    def in_place(self, *shape: int, dtype: Any = None) -> DeviceArray:
        array = self(*shape, dtype=dtype)
        self.changed.append(self.inputs[-1])
        self.outputs.append(array)
        return array

    def out(self, *shape: int, dtype: Any = None) -> DeviceArray:
        """Memory that nothing was written to; where the place is another than usual, zeros"""
        kind = np.dtype(dtype or self.dtype)
        array = (self.device.empty(shape, kind) if self.place is aligned
                 else self.place(self.device, np.zeros(shape, kind)))
        self.outputs.append(array)
        return array

    def floats(self, *shape: int) -> DeviceArray:
        """An output that is float32 in every type"""
        return self.out(*shape, dtype=WIDE)

    def scratch(self, function: str, *arguments: Any) -> tuple[DeviceArray | None, int]:
        """(workspace, workspace_bytes) of the size that nn_<function>_workspace_size gives"""
        size = getattr(self.device.library, f"nn_{function}_workspace_size")(*arguments)
        return (self.keep(self.device.workspace(size)) if size else None), size

    def keep(self, value: Any) -> Any:
        self.kept.append(value)
        return value


@dataclass
class Call:
    """A function, its arguments without the stream, and the arrays behind them."""

    function: str
    arguments: list[Any]
    arrays: Arrays = field(repr=False)

    @property
    def names(self) -> list[str]:
        words, _ = split(prototypes()[f"nn_{self.function}"])
        return [word.partition(":")[0].rstrip("*") for word in words[:-1]]

    def launch(self, **instead: Any) -> None:
        """Queue it; `instead` gives other arguments by name."""
        pairs = zip(self.names, self.arguments, strict=True)
        arguments = [instead.get(name, argument) for name, argument in pairs]
        self.arrays.device.call(self.function, *(byref(a) if isinstance(a, Structure) else a
                                                 for a in arguments))

    def restore(self) -> None:
        """What the call changes in place is as before."""
        for array, values in self.arrays.changed:
            upload(array, values)

    def take(self, other: "Call") -> None:
        """The values of the other call in this one's arrays"""
        for (array, _), (_, values) in zip(self.arrays.inputs, other.arrays.inputs, strict=True):
            upload(array, values)

    def results(self) -> list[np.ndarray]:
        return [array.numpy() for array in self.arrays.outputs]

    def run(self) -> list[np.ndarray]:
        self.restore()
        self.launch()
        return self.results()


def upload(array: DeviceArray, values: np.ndarray) -> None:
    host = np.ascontiguousarray(values)
    array.device.call("memory_upload", array, host.ctypes.data, host.nbytes)


def make(device: EmulatedDevice, function: str, dtype: str = "float32", *, seed: int = 0,
         place: Callable[..., DeviceArray] = aligned, **sizes: Any) -> Call:
    arrays = Arrays(device, dtype, seed, place)
    return Call(function, list(BUILDERS[function](arrays, **sizes)), arrays)


def cases() -> list[ParameterSet]:
    """(function, its sizes and dtype) of every entry and variant"""
    return [pytest.param(function, sizes, id=f"{function}-{name}".rstrip("-"))
            for function, variants in VARIANTS.items() for name, sizes in variants.items()]


HOST = ("nn_memory_", "nn_stream_", "nn_event_", "nn_graph_")        # copies and handles: no kernel


def launching() -> set[str]:
    """The exported functions that take a stream, without nn_"""
    return {name.removeprefix("nn_") for name, text in prototypes().items()
            if text.split()[-1:] == ["stream*"] and not name.startswith(HOST)}
