"""Registered blocks on the emulated device: the first example of each computes there what it computes here.

A block written in operations runs on whatever the device has kernels for, the rest as array operations."""

from typing import Any

import numpy as np
import pytest

from cuda.nn.device import EmulatedDevice
from nn.layers import registry
from nn.tensor import Tensor, no_grad
from tests.blocks.harness import Case, Inputs, cases_of, close, inputs

CASES = [cases_of(role, name)[0] for role in registry.ROLES for name in registry.names(role)]
RTOL = 1e-4


def there(device: Any, given: Inputs) -> Inputs:
    """x and the context on the device; ids stay where a loader has them"""
    return Inputs(device.asarray(given.x), given.ids, device.asarray(given.context))


def both(block: Any, given: Inputs, mode: str) -> tuple[Any, Any]:
    """y, and the gradient of Σ y² by x"""
    x = Tensor(given.x, requires_grad=True)
    y, _ = block(x, **given.given(block), mode=mode)
    (y * y).sum().backward()
    return y.numpy(), Tensor(x.grad).numpy()


@pytest.mark.parametrize("case", CASES, ids=str)
def test_values_and_gradients(case: Case, fast: EmulatedDevice) -> None:
    here, block = case.build("float32"), case.build("float32").to(fast)
    given = inputs(case.settings, 2, 6, dtype="float32")
    for mode in ("chunk", "recurrent"):
        results = both(block, there(fast, given), mode)
        for found, expected in zip(results, both(here, given, mode), strict=True):
            close(found, expected, RTOL)


@pytest.mark.parametrize("case", [case for case in CASES if case.settings.is_causal], ids=str)
def test_decoding(case: Case, fast: EmulatedDevice) -> None:
    """A prompt and two tokens behind a state on the device, whose rows are exchanged in between"""
    here, block = case.build("float32"), case.build("float32").to(fast)
    given = inputs(case.settings, 2, 6, dtype="float32")
    with no_grad():
        whole, _ = here(Tensor(given.x), **given.given(here))
        state = block.init_state(2)
        for start, end in ((0, 4), (4, 5), (5, 6)):
            part = there(fast, given.cut(start, end))
            y, state = block(Tensor(part.x), **part.given(block), state=state)
            close(y.numpy(), whole.data[:, start:end], RTOL)
            if state is not None:
                state.reorder(np.array([1, 0]))
                state.reorder(np.array([1, 0]))
