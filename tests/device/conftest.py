"""The devices that kernel tests run on: emulated ones, which check every access."""

from collections.abc import Callable, Iterator
from functools import cache

import numpy as np
import pytest

from cuda.nn.device import EmulatedDevice, open_device

SCHEDULES = [("forward", 0), ("reverse", 0), *(("random", seed) for seed in range(18))]


@cache
def opened(arch: str, mode: str) -> EmulatedDevice:
    device = open_device("emulated", arch=arch, mode=mode)
    assert isinstance(device, EmulatedDevice)
    return device


@pytest.fixture
def arch() -> str:
    """Override by parametrization: @pytest.mark.parametrize("arch", ["sm_75", "sm_80", "sm_90"])"""
    return "sm_80"


@pytest.fixture
def device(arch: str) -> Iterator[EmulatedDevice]:
    """An emulated device under full checks; a finding fails the test."""
    found = opened(arch, "check")
    found.configure()
    found.clear()
    yield found
    found.configure()
    if reports := found.reports():
        pytest.fail("\n".join(str(report) for report in reports[:5]), pytrace=False)


@pytest.fixture
def same_bits(device: EmulatedDevice) -> Callable[[Callable[[], list[np.ndarray]]], None]:
    """same_bits(run): run() gives the same bits under 20 schedules of threads and blocks."""

    def check(run: Callable[[], list[np.ndarray]]) -> None:
        first: list[bytes] | None = None
        for schedule, seed in SCHEDULES:
            device.configure(schedule=schedule, seed=seed)
            found = [array.tobytes() for array in run()]
            assert first is None or found == first, f"other bits under schedule {schedule}, seed {seed}"
            first = found

    return check
