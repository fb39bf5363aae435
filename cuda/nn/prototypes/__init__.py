"""The C ABI as Python knows it: {function: its arguments}, one module per family, as in csrc/include/nn.

An argument is `name*` (a pointer), or `name:type` with the types i32, i64, u64, f32, f64.  A trailing
`stream*` is filled in by the caller's device.  A function returns a status, unless its text ends in what it
returns instead: "rows:i64 cols:i64 -> i64"; the types of results are those of arguments, and `text`.

Structs are ctypes.Structure classes here: nn_device_info is DeviceInfo, field by field.
tests/device/test_prototypes.py compares all of it with the headers."""

import ctypes
import importlib
import pkgutil
import re
from collections.abc import Iterator
from types import ModuleType


def prototypes() -> dict[str, str]:
    """Every function, whatever its family."""
    found: dict[str, str] = {}
    for module in _families():
        found |= module.FUNCTIONS
    return found


def structures() -> dict[str, type[ctypes.Structure]]:
    """Every struct by its name in C."""
    return {
        c_name(name): value
        for module in _families()
        for name, value in vars(module).items()
        if isinstance(value, type) and issubclass(value, ctypes.Structure)
        if value.__module__ == module.__name__ and "_fields_" in vars(value)
    }


def c_name(name: str) -> str:
    """DeviceInfo -> nn_device_info"""
    return "nn" + re.sub(r"([A-Z])", r"_\1", name).lower()


def _families() -> Iterator[ModuleType]:
    for module in pkgutil.iter_modules(__path__):
        yield importlib.import_module(f"{__name__}.{module.name}")
