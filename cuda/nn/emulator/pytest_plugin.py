"""pytest: the fixture `cuda_emulator`, for projects that test their CUDA kernels without a GPU.  Installed
with cuda-nn.

    def test_scan(cuda_emulator):
        module = cuda_emulator("scan.cu", arch="sm_80")          # as emulator.compile, in mode "check"
        module.launch("block_scan", 4, 128, [x, out, np.int32(n)])
        np.testing.assert_array_equal(out, x.cumsum(1))

A test whose kernels were reported on fails at its end.  A test that wants the findings takes them:
cuda_emulator.acknowledge()."""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from cuda.nn.emulator.module import Module
    from cuda.nn.emulator.report import Report


class Emulator:
    """What the fixture gives: a function that compiles, and what its modules found."""

    def __init__(self) -> None:
        self._modules: list[Module] = []

    def __call__(self, source: str | Path, *, mode: str = "check", **options: Any) -> "Module":
        """As cuda.nn.emulator.compile."""
        from cuda.nn import emulator

        module = emulator.compile(source, mode=mode, **options)
        self._modules.append(module)
        return module

    def compile_ptx(self, text: str, *, mode: str = "check", arch: str | None = None) -> "Module":
        """As cuda.nn.emulator.compile_ptx."""
        from cuda.nn import emulator

        module = emulator.compile_ptx(text, mode=mode, arch=arch)
        self._modules.append(module)
        return module

    def acknowledge(self) -> "list[Report]":
        """The findings until now; they no longer fail the test."""
        found = [report for module in self._modules for report in module.reports]
        for module in self._modules:
            module.clear()
        return found


@pytest.fixture
def cuda_emulator() -> Iterator[Emulator]:
    """Compile and run CUDA kernels on the CPU; findings fail the test.  See
    cuda.nn.emulator.pytest_plugin."""
    emulator = Emulator()
    yield emulator
    if found := emulator.acknowledge():
        from cuda.nn.emulator import render

        shown = "\n\n".join("\n".join(line.plain for line in render.finding(report)) for report in found)
        pytest.fail(f"the emulator found:\n\n{shown}\n\n{render.summary(found)}", pytrace=False)
