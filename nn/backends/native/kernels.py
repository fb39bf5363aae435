"""The native backend's kernels by their names in the protocol: whatever the extension has."""

from collections.abc import Callable
from typing import Any

from nn.backends.native import extension


def __getattr__(name: str) -> Callable[..., Any]:
    if name.startswith("_"):
        raise AttributeError(name)
    try:
        return extension().function(name)
    except KeyError:
        raise AttributeError(f"the native backend has no kernel {name}") from None
