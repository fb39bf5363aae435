"""The fixture that other projects get: findings fail their tests, unless they ask for them."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
KERNEL = """__global__ void k(int* x) {
    __shared__ int words[64];
    words[threadIdx.x] = 1;
    __syncthreads();
    words[63 - threadIdx.x] = RACE ? threadIdx.x : 2;
    x[threadIdx.x] = words[threadIdx.x];
}
"""
TESTS = """import numpy as np

def run(module):
    module.launch("k", 1, 64, [np.zeros(64, np.int32)])
    return module

def test_race(cuda_emulator):
    run(cuda_emulator("k.cu", defines={"RACE": 1}))

def test_acknowledged(cuda_emulator):
    run(cuda_emulator("k.cu", defines={"RACE": 1}))
    assert {report.kind for report in cuda_emulator.acknowledge()} == {"race"}
    assert cuda_emulator.acknowledge() == []

def test_clean(cuda_emulator):
    x = cuda_emulator.compile_ptx(run(cuda_emulator("empty.cu")).ptx)
    run(x)
"""


def test_findings_fail_the_test_that_caused_them(tmp_path: Path) -> None:
    (tmp_path / "k.cu").write_text(KERNEL)
    (tmp_path / "empty.cu").write_text("__global__ void k(int* x) { x[threadIdx.x] = 1; }\n")
    (tmp_path / "test_kernels.py").write_text(TESTS)
    environment = os.environ | {"PYTHONPATH": str(ROOT), "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-p",
        "cuda.nn.emulator.pytest_plugin",
        "-p",
        "no:cacheprovider",
        "-rA",
        "test_kernels.py",
    ]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert "3 passed, 1 error" in done.stdout, done.stdout + done.stderr
    assert "ERROR test_kernels.py::test_race" in done.stdout
    assert "the emulator found:" in done.stdout
    assert "race in k: " in done.stdout
    assert "    6 |     x[threadIdx.x] = words[threadIdx.x];" in done.stdout


def test_the_entry_point_names_the_plugin() -> None:
    text = (ROOT / "pyproject.toml").read_text()
    assert '[project.entry-points.pytest11]\ncuda-nn = "cuda.nn.emulator.pytest_plugin"' in text


@pytest.mark.parametrize(
    "module", ["cuda.nn.emulator", "cuda.nn.emulator.pytest_plugin", "cuda.nn.emulator.build"]
)
def test_importing_is_cheap(module: str) -> None:
    heavy = ("numpy", "rich", "cuda.nn.emulator.translate")
    code = f"import sys, {module}; print([name for name in {heavy} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
