"""cuda-nn emulate: programs and scripts that nvcc's output is part of, run unmodified."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from cuda.nn.emulator import toolchain
from cuda.nn.emulator.build import runtime_library
from nn.cli.main import main

PROGRAM = r"""
#include <cstdio>
#include <cstdlib>
#include <cstring>
__global__ void square(int* x, int n) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n) x[i] *= x[i];
}
int main(int argc, char** argv) {
    char line[80] = "";
    if (argc > 2) std::fgets(line, sizeof line, stdin);
    int host[100], *x;
    for (int i = 0; i < 100; ++i) host[i] = i;
    if (cudaError_t error = cudaMalloc(&x, sizeof host)) { std::puts(cudaGetErrorName(error)); return 3; }
    cudaMemcpy(x, host, sizeof host, cudaMemcpyHostToDevice);
    square<<<1, 128>>>(x, argc > 1 ? std::atoi(argv[1]) : 100);
    cudaMemcpy(host, x, sizeof host, cudaMemcpyDeviceToHost);
    cudaDeviceProp device;
    cudaGetDeviceProperties(&device, 0);
    std::printf("%s%d on sm_%d%d\n", line, host[9], device.major, device.minor);
    return host[9] == 81 ? 5 : 6;
}
"""
LIBRARY = r"""
__global__ void add(int* x, int value) { x[threadIdx.x] += value; }
extern "C" int add_on_device(int* host, int count, int value) {
    int* x;
    cudaMalloc(&x, count * sizeof(int));
    cudaMemcpy(x, host, count * sizeof(int), cudaMemcpyHostToDevice);
    add<<<1, count>>>(x, value);
    int status = cudaMemcpy(host, x, count * sizeof(int), cudaMemcpyDeviceToHost);
    cudaFree(x);
    return status;
}
"""
SCRIPT = """
import ctypes, sys
library = ctypes.CDLL(sys.argv[1])
numbers = (ctypes.c_int * 8)(*range(8))
status = library.add_on_device(numbers, 8, 10)
print(list(numbers))
sys.exit(40 + status)
"""


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a program, linked both ways, and a library with a script that loads it."""
    runtime_library()  # which says so on stderr where it has to be built
    folder = tmp_path_factory.mktemp("emulate")
    (folder / "program.cu").write_text(PROGRAM)
    (folder / "library.cu").write_text(LIBRARY)
    (folder / "script.py").write_text(SCRIPT)
    for words in (
        ("-cudart", "shared", "-lineinfo", "program.cu", "-o", "program"),
        ("program.cu", "-o", "static"),
        ("-cudart", "shared", "-shared", "-Xcompiler", "-fPIC", "library.cu", "-o", "liblibrary.so"),
    ):
        subprocess.run([str(toolchain.nvcc()), *words], cwd=folder, check=True, capture_output=True)
    return folder


def emulate(*words: object) -> int:
    return main(["emulate", *map(str, words)])


def test_a_program_runs_with_its_own_status_and_output(
    built: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert emulate(built / "program") == 5
    captured = capfd.readouterr()
    assert captured.out == "81 on sm_80\n"
    assert captured.err == ""


def test_it_gets_its_own_input(built: Path) -> None:
    command = [sys.executable, "-m", "nn", "emulate", "--arch", "sm_90", built / "program", "100", "--check"]
    done = subprocess.run(command, input="a line\n", capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (5, "a line\n81 on sm_90\n", "")


def test_findings_follow_on_stderr_and_the_status_stays(
    built: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    files = ("--json", tmp_path / "found.json", "--sarif", tmp_path / "found.sarif")
    assert emulate("--check", *files, built / "program", "101") == 6
    captured = capfd.readouterr()
    assert "out_of_bounds in square: " in captured.err
    assert "if (i < n) x[i] *= x[i];" in captured.err
    assert "1 finding: 1 out_of_bounds" in captured.err
    found = json.loads((tmp_path / "found.json").read_text())
    assert found["status"] == 6
    assert found["statistics"]["launches"] == 1
    assert [report["line"] for report in found["reports"]] == [7]
    assert json.loads((tmp_path / "found.sarif").read_text())["runs"][0]["results"]


def test_counters_of_a_program(built: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert emulate("--count", "--json", tmp_path / "found.json", built / "program") == 5
    err = capfd.readouterr().err
    assert "no findings" in err
    assert "square: 1 launch" in err
    (counts,) = json.loads((tmp_path / "found.json").read_text())["counters"].values()
    assert counts["bytes_read"] == 400


def test_a_script_that_loads_a_library(built: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert emulate("--check", built / "script.py", built / "liblibrary.so") == 40
    captured = capfd.readouterr()
    assert captured.out == "[10, 11, 12, 13, 14, 15, 16, 17]\n"
    assert "no findings" in captured.err
    assert emulate(sys.executable, built / "script.py", built / "liblibrary.so") == 40


def test_an_allocation_fails_on_request(built: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert emulate("--fail-malloc", 1, built / "program") == 3
    assert capfd.readouterr().out == "cudaErrorMemoryAllocation\n"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["static"], "the CUDA runtime is linked into it statically.*link it again with nvcc -cudart shared"),
        (["missing"], "missing: no such program"),
        (["program.cu"], "program.cu: not executable"),
        (["--arch", "sm_70", "program"], "'sm_70' is not a device that can be emulated"),
        ([], "no program given"),
    ],
    ids=str,
)
def test_what_cannot_be_emulated_says_why(
    built: Path, words: list[str], message: str, capfd: pytest.CaptureFixture[str]
) -> None:
    import re

    words = [
        str(built / word) if word in ("static", "missing", "program", "program.cu") else word
        for word in words
    ]
    assert emulate(*words) == 2
    assert re.search(message, capfd.readouterr().err)


@pytest.mark.parametrize("code", ["raise SystemExit(9)", "import os; os._exit(9)"])
def test_a_program_without_kernels_is_told_apart_from_a_clean_one(
    code: str, capfd: pytest.CaptureFixture[str]
) -> None:
    assert emulate("--check", sys.executable, "-c", code) == 9
    err = capfd.readouterr().err
    assert ("left no report" if "_exit" in code else "no kernel was launched") in err
    assert "nvcc -cudart shared" in err
    assert "no findings" not in err


def test_a_program_that_a_signal_ends(capfd: pytest.CaptureFixture[str]) -> None:
    assert emulate("/bin/sh", "-c", "kill -9 $$") == 128 + 9
    assert "left no report" in capfd.readouterr().err


@pytest.mark.parametrize(("end", "told"), [("abort()", "was ended by SIGABRT"), ("_exit(6)", "(status 6)")])
def test_findings_outlive_a_program_that_does_not_exit(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], end: str, told: str
) -> None:
    (tmp_path / "ends.cu").write_text(
        f"""#include <cstdlib>
#include <unistd.h>
__global__ void past(int* x) {{ x[threadIdx.x + 1] = 0; }}
int main() {{
    int* x;
    cudaMalloc(&x, 32 * sizeof *x);
    past<<<1, 32>>>(x);
    if (cudaDeviceSynchronize()) {end};
}}
"""
    )
    words = ("-cudart", "shared", "-lineinfo", "ends.cu", "-o", "ends")
    subprocess.run([str(toolchain.nvcc()), *words], cwd=tmp_path, check=True)
    assert emulate("--check", "--json", tmp_path / "found.json", tmp_path / "ends") in (128 + 6, 6)
    err = capfd.readouterr().err
    assert "out_of_bounds in past" in err
    assert told in err
    assert [one["line"] for one in json.loads((tmp_path / "found.json").read_text())["reports"]] == [3]


def test_options_that_are_no_numbers_are_refused(built: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert emulate("--fail-malloc", "-1", built / "program") == 2
    assert "'-1' is not a number from 0" in capfd.readouterr().err
