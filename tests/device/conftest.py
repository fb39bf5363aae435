"""The devices that kernel tests run on: emulated ones, which check every access; with --device=cuda the GPU.

    pytest tests/device --device=cuda

On a GPU only tests of the fixture `device` are left, once instead of for several architectures. What they do
with the emulator itself (counters, injected failures) skips the rest of such a test."""

import zlib
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cuda.nn import build
from cuda.nn.device import Device, EmulatedDevice, open_device
from cuda.nn.errors import DeviceError
from cuda.nn.library import Library

HERE = Path(__file__).parent
SCHEDULES = [("forward", 0), ("reverse", 0), *(("random", seed) for seed in range(18))]
ARCH = "sm_80"                   # a test of several architectures runs as this one on a GPU
# Parts of node ids, and what in them is the emulator's although they ask for nothing that only it has.
EMULATED_ONLY = {
    "test_exchange.py": "its memory is the host's, which NumPy can see",
    "test_checks_see_where_an_array_ends": "its memory is exact",
}
ORDERS = {"schedule", "seed", "threads"}       # options of the emulator that a GPU decides for itself


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--device", choices=["emulated", "cuda"], default="emulated",
                     help="what tests/device runs on (default: emulated)")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """On a GPU, what cannot run there is left out."""
    if not on_gpu(config):
        return
    try:
        gpu()
    except DeviceError as error:
        raise pytest.UsageError(f"--device=cuda: {error}; without the option the emulated device is used"
                                ) from None
    left = [item for item in items if item.path.is_relative_to(HERE) and not runs_on_a_gpu(item)]
    config.hook.pytest_deselected(items=left)
    config.stash[LEFT_OUT] = len(left)
    items[:] = [item for item in items if item not in left]


LEFT_OUT = pytest.StashKey[int]()


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    if left := config.stash.get(LEFT_OUT, 0):
        terminalreporter.write_line(f"tests/device on a GPU: {left} tests were left out, which are about the "
                                    "emulator, other architectures, or no device at all")


def on_gpu(config: pytest.Config) -> bool:
    return bool(config.getoption("--device", "emulated") == "cuda")


def runs_on_a_gpu(item: pytest.Item) -> bool:
    parameters = item.callspec.params if hasattr(item, "callspec") else {}
    return ("device" in getattr(item, "fixturenames", ()) and parameters.get("arch", ARCH) == ARCH
            and not any(name in item.nodeid for name in EMULATED_ONLY))


class RealDevice(Device):
    """A GPU where a test expects an emulated device: what only an emulator has, skips the test."""

    mode, arch = "fast", ARCH

    def configure(self, **options: Any) -> None:
        if options.keys() - ORDERS:
            pytest.skip(f"the emulator's own: {', '.join(options)}")

    def counters(self) -> Any:
        pytest.skip("the emulator's own: counters")

    @property
    def runtime(self) -> Any:
        pytest.skip("the emulator's own: its runtime")

    def reports(self) -> list[Any]:
        """A GPU reports nothing; compute-sanitizer does."""
        self.synchronize()
        return []

    def clear(self) -> None:
        pass


@cache
def gpu() -> RealDevice:
    return RealDevice("cuda", Library(build.gpu_library()))


@cache
def opened(arch: str, mode: str) -> EmulatedDevice:
    device = open_device("emulated", arch=arch, mode=mode)
    assert isinstance(device, EmulatedDevice)
    return device


@pytest.fixture
def arch() -> str:
    """Override by parametrization: @pytest.mark.parametrize("arch", ["sm_75", "sm_80", "sm_90"])"""
    return ARCH


@pytest.fixture
def device(arch: str, request: pytest.FixtureRequest) -> Iterator[EmulatedDevice | RealDevice]:
    """An emulated device under full checks, where a finding fails the test; or the GPU."""
    found = gpu() if on_gpu(request.config) else opened(arch, "check")
    found.configure()
    found.clear()
    yield found
    found.configure()
    if reports := found.reports():
        pytest.fail("\n".join(str(report) for report in reports[:5]), pytrace=False)


@pytest.fixture
def rng(request: pytest.FixtureRequest) -> np.random.Generator:
    """Seeded by the test's name."""
    return np.random.default_rng(zlib.crc32(request.node.name.encode()))


@pytest.fixture
def same_bits(device: EmulatedDevice) -> Callable[[Callable[[], list[np.ndarray]]], None]:
    """same_bits(run): run() gives the same bits under 20 schedules of threads and blocks, or in 20 runs on a
    GPU."""

    def check(run: Callable[[], list[np.ndarray]]) -> None:
        first: list[bytes] | None = None
        for schedule, seed in SCHEDULES:
            device.configure(schedule=schedule, seed=seed)
            found = [array.tobytes() for array in run()]
            assert first is None or found == first, f"other bits under schedule {schedule}, seed {seed}"
            first = found

    return check
