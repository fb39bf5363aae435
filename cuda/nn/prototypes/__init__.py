"""The C ABI as Python knows it: {function: its arguments}, one module per family, as in csrc/include/nn.

An argument is `name*` (a pointer), or `name:type` with the types i32, i64, u64, f32, f64.  A trailing `stream*` is filled
in by the caller's device.  tests/device/test_prototypes.py compares all of it with the headers."""

import importlib
import pkgutil


def prototypes() -> dict[str, str]:
    """Every function, whatever its family."""
    found: dict[str, str] = {}
    for module in pkgutil.iter_modules(__path__):
        found |= importlib.import_module(f"{__name__}.{module.name}").FUNCTIONS
    return found
