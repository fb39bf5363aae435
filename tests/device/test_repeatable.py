"""Every function that launches kernels gives the same bits whatever order its blocks and warps run in."""

from collections.abc import Callable
from typing import Any

import pytest

from cuda.nn.device import EmulatedDevice
from tests.device.accuracy import counted
from tests.device.calls import BUILDERS, cases, launching, make


def test_every_function_that_launches_has_a_call() -> None:
    assert set(BUILDERS) == launching()


@pytest.mark.parametrize(("function", "sizes"), cases())
def test_same_bits(device: EmulatedDevice, same_bits: Callable[..., None], function: str,
                   sizes: dict[str, Any]) -> None:
    same_bits(make(device, function, **sizes).run)


@pytest.mark.parametrize(("function", "sizes"), cases())
def test_there_is_an_order_to_be_chosen(device: EmulatedDevice, function: str, sizes: dict[str, Any]) -> None:
    """Several warps: a call of one would prove nothing."""
    found = counted(device, make(device, function, **sizes).launch, check=False).values()
    warps = max(counts.blocks * -(-counts.threads // (32 * counts.blocks)) for counts in found)
    assert warps > 1 or function == "counter_increment"
