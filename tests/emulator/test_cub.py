"""CUB from CCCL, code that nobody here wrote: its block and device primitives run right, and the checker is
silent about them."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from cuda.nn import emulator
from cuda.nn.emulator import toolchain
from tests.emulator.corpus import SOURCES, integers

SCHEDULES = ("forward", "reverse", "random")


@pytest.fixture(scope="module")
def blocks() -> emulator.Module:
    return emulator.compile(SOURCES / "cub_block.cu", arch="sm_80", mode="check")


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_block_reduce(blocks: emulator.Module, schedule: str) -> None:
    x, out = integers((3, 128), 1000), np.zeros(3, np.int32)
    blocks.clear()
    blocks.launch("block_reduce", grid=3, block=128, args=[out, x], schedule=schedule)
    np.testing.assert_array_equal(out, x.sum(1))
    assert blocks.reports == []


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_block_scan(blocks: emulator.Module, schedule: str) -> None:
    x, out = integers(512, 1000), np.zeros(512, np.int32)
    blocks.clear()
    blocks.launch("block_scan", grid=1, block=128, args=[out, x], schedule=schedule)
    np.testing.assert_array_equal(out, x.cumsum() - x)
    assert blocks.reports == []


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_block_radix_sort(blocks: emulator.Module, schedule: str) -> None:
    keys = integers(512, 2**31 - 1, np.uint32)
    values, order = np.arange(512, dtype=np.int32), np.argsort(keys, kind="stable")
    expected = keys[order]
    blocks.clear()
    blocks.launch("block_sort", grid=1, block=128, args=[keys, values], schedule=schedule)
    np.testing.assert_array_equal(keys, expected)
    np.testing.assert_array_equal(values, order)
    assert blocks.reports == []


def test_device_reduce_scan_and_sort_in_an_unmodified_program(tmp_path: Path) -> None:
    program = tmp_path / "cub_device"
    command = [toolchain.nvcc(), "-O3", "-lineinfo", "-arch=sm_80", "-cudart", "shared",
               SOURCES / "cub_device.cu", "-o", program]
    subprocess.run(command, check=True)
    report = tmp_path / "report.json"
    done = subprocess.run(
        [sys.executable, "-m", "nn", "emulate", "--check", "--json", report, program],
        capture_output=True, text=True, env={**os.environ, "NO_COLOR": "1"}, check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    said = [line for line in done.stdout.splitlines() if line.endswith(" ok")]
    assert said == ["reduce ok", "scan ok", "sort ok"]
    assert '"reports": []' in report.read_text(encoding="utf-8")
