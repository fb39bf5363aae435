"""What the tape does in this thread: record or not, and check every result for NaN and infinity or not."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from nn.backends.array_api import all_finite
from nn.dtypes import is_floating
from nn.errors import NonFiniteError


class _State(threading.local):
    recording = True                # False inside no_grad()
    deferred = False                # whether backward will run this again, recorded, for its gradients
    path: list[str] | None = None   # names of the layers being called, inside find_nonfinite()
    count: Any = None               # what is told of every operation, inside ops.count_flops()


state = _State()


@contextmanager
def _set(name: str, value: Any) -> Iterator[None]:
    before = getattr(state, name)
    setattr(state, name, value)
    try:
        yield
    finally:
        setattr(state, name, before)


def no_grad() -> Any:
    """`with no_grad():` records nothing: results carry no history and cost no memory for gradients."""
    return _set("recording", False)


def enable_grad() -> Any:
    """`with enable_grad():` records again, inside a no_grad() block."""
    return _set("recording", True)


def defer() -> Any:
    """`with defer():` says that backward will run this again: what is counted once per pass counts now."""
    return _set("deferred", True)


def find_nonfinite() -> Any:
    """`with find_nonfinite():` checks every result, forward and backward; the first NaN or infinity raises
    NonFiniteError with the operation, the layer and the input shapes.  Slow: for a step known to be bad."""
    return _set("path", [])


def check_finite(operation: str, where: str, what: str, arrays: tuple[Any, ...],
                 shapes: list[list[int]]) -> None:
    """NonFiniteError if an array holds a NaN or an infinity."""
    for array in arrays:
        if array is not None and not all_finite(array):
            layer = f" in {where}" if where else ""
            raise NonFiniteError(f"{operation}{layer}: first non-finite {what} (input shapes {shapes})")


def check_floating(operation: str, inputs: list[Any]) -> None:
    """TypeError if an input array holds integers: their results would be cut to integers."""
    for x in inputs:
        if hasattr(x, "dtype") and not is_floating(x):
            raise TypeError(f"{operation}: {x.dtype} input; cast it to a floating-point type first")


def check_shapes(operation: str, edges: list[Any], gradients: tuple[Any, ...],
                 shapes: tuple[Any, ...]) -> None:
    """RuntimeError if a backward returned a gradient of another shape than its input's."""
    for i, (edge, gradient, shape) in enumerate(zip(edges, gradients, shapes, strict=True)):
        if edge is not None and gradient is not None and tuple(gradient.shape) != shape:
            raise RuntimeError(f"{operation}: backward gave input {i} a gradient of shape "
                               f"{list(gradient.shape)}, the input has {list(shape)}")
