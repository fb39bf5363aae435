"""cuda-nn kernels check: with a driver, a program with main(), a file with neither; text, JSON, SARIF, exit
statuses."""

import json
from pathlib import Path

import pytest

from nn.cli.main import main

CLEAN = """#include <cstdio>
__global__ void twice(int* out, const int* x, int n) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n) out[i] = FACTOR * x[i];
}
"""
RACE = """__global__ void shift(int* out) {
    __shared__ int words[64];
    words[threadIdx.x] = 0;
    __syncthreads();
    words[threadIdx.x] = threadIdx.x;
    out[threadIdx.x] = words[63 - threadIdx.x];
}
"""
MAIN = """int main(int argc, char**) {
    int *x, *y;
    cudaMalloc(&x, 256);
    cudaMalloc(&y, 256);
    cudaMemset(x, 1, 256);
    twice<<<argc, 64>>>(y, x, 64);
    std::puts("done");
    return cudaDeviceSynchronize() != cudaSuccess;
}
"""
DRIVER = """import numpy as np

def run(module):
    out, x = np.zeros(64, np.int32), np.arange(64, dtype=np.int32)
    module.launch("twice", 1, 64, [out, x, np.int32(64)])
    print("driver speaks")
    np.testing.assert_array_equal(out, {factor} * x)
"""


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "clean.cu").write_text(CLEAN)
    (tmp_path / "race.cu").write_text(RACE)
    (tmp_path / "program.cu").write_text(CLEAN + MAIN)
    (tmp_path / "driver.py").write_text(DRIVER.format(factor=3))
    (tmp_path / "wrong.py").write_text(DRIVER.format(factor=4))
    (tmp_path / "race.py").write_text(
        "import numpy as np\ndef run(module):\n    module.launch('shift', 1, 64, [np.zeros(64, np.int32)])\n"
    )
    (tmp_path / "idle.py").write_text("def run(module):\n    pass\n")
    return tmp_path


def check(*words: str) -> int:
    return main(["kernels", "check", *words])


def test_a_clean_kernel_with_a_driver(capfd: pytest.CaptureFixture[str]) -> None:
    assert check("clean.cu", "--driver", "driver.py", "-D", "FACTOR=3") == 0
    out = capfd.readouterr().out
    assert "driver speaks" in out
    assert "clean.cu, sm_80\n  twice  " in out
    assert "registers, no spills, 0 bytes shared, occupancy" in out
    assert "1 launch" in out
    assert "no findings" in out


def test_a_race_is_shown_with_both_lines(capfd: pytest.CaptureFixture[str]) -> None:
    assert check("race.cu", "--driver", "race.py", "--sarif", "race.sarif") == 1
    out = capfd.readouterr().out
    assert "race in shift" in out
    assert "    6 |     out[threadIdx.x] = words[63 - threadIdx.x];\n      |     ^^^^" in out
    assert "  race.cu:5  " in out
    assert "  the other side" in out
    assert "\nfix: " in out
    log = json.loads(Path("race.sarif").read_text())
    assert {result["ruleId"] for result in log["runs"][0]["results"]} == {"race"}


def test_json_is_one_document_and_nothing_else(capfd: pytest.CaptureFixture[str]) -> None:
    assert check("clean.cu", "--driver", "driver.py", "-DFACTOR=3", "--json", "--count") == 0
    captured = capfd.readouterr()
    found = json.loads(captured.out)
    assert "driver speaks" in captured.err
    assert (found["status"], found["executed"], found["reports"]) == (0, True, [])
    (kernel,) = found["kernels"]
    assert (kernel["name"], kernel["launches"], kernel["counters"]["bytes_read"]) == ("twice", 1, 256)
    assert kernel["resources"]["registers"] > 0


def test_counts_are_shown(capfd: pytest.CaptureFixture[str]) -> None:
    assert check("clean.cu", "--driver", "driver.py", "-D", "FACTOR=3", "--count", "--arch", "sm_90") == 0
    out = capfd.readouterr().out
    assert "  global  256 bytes read, 256 written in 16 sectors (1.00x the ideal)" in out
    assert "on H100 at least" in out


def test_what_the_driver_raises_is_found(capfd: pytest.CaptureFixture[str]) -> None:
    assert check("clean.cu", "--driver", "wrong.py", "-D", "FACTOR=3") == 1
    out = capfd.readouterr().out
    assert "AssertionError" in out
    assert "wrong.py" in out


def test_a_program_with_main_runs(capfd: pytest.CaptureFixture[str]) -> None:
    assert check("program.cu", "-D", "FACTOR=3") == 0
    out = capfd.readouterr().out
    assert "done\n" in out
    assert "no findings" in out
    assert check("program.cu", "-D", "FACTOR=3", "--", "--an-argument") == 0  # two blocks, one of them idle


def test_a_program_s_faults_are_found(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (folder / "bad.cu").write_text((CLEAN + MAIN).replace("if (i < n) out[i]", "out[i + n]"))
    assert check("bad.cu", "-D", "FACTOR=1", "--json") == 1
    captured = capfd.readouterr()
    found = json.loads(captured.out)
    assert [(report["kind"], report["line"]) for report in found["reports"]] == [("out_of_bounds", 4)]
    assert found["failure"] == "the program ended with status 1"
    assert "done" in captured.err


def test_without_driver_and_main_nothing_runs_and_the_way_is_shown(capfd: pytest.CaptureFixture[str]) -> None:
    assert check("race.cu") == 2
    out = capfd.readouterr().out
    assert "shift  " in out
    assert "256 bytes shared" in out
    assert "Nothing was executed: it has no main(), and no driver was given." in out
    assert 'module.launch("shift", grid=4, block=256, args=[out])' in out
    assert "no findings" not in out


def test_a_driver_that_launches_nothing_is_no_check(capfd: pytest.CaptureFixture[str]) -> None:
    assert check("race.cu", "--driver", "idle.py") == 2
    assert "Nothing was executed: idle.py launched none of them" in capfd.readouterr().out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["missing.cu"], "missing.cu: no such file"),
        (["clean.cu", "--driver", "missing.py"], "missing.py: no such file"),
        (["clean.cu", "--arch", "sm_70"], "'sm_70' is not a device that can be emulated"),
        (["clean.cu", "--drivr", "driver.py"], "--drivr: unexpected. Did you mean --driver?"),
        (["clean.cu", "--schedule", "sideways"], "invalid choice: 'sideways'"),
        ([], "the following arguments are required: FILE.cu"),
        (["clean.cu"], 'identifier "FACTOR" is undefined'),
    ],
    ids=str,
)
def test_bad_input_ends_in_status_2(
    words: list[str], message: str, capfd: pytest.CaptureFixture[str]
) -> None:
    assert check(*words) == 2
    assert message in capfd.readouterr().err


def test_other_verbs_of_kernels_are_refused(capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["kernels", "chekc", "clean.cu"]) == 2
    assert "Did you mean check?" in capfd.readouterr().err
    assert main(["kernels"]) == 0
    assert "cuda-nn kernels check FILE.cu" in capfd.readouterr().out


@pytest.mark.parametrize(
    ("driver", "status", "told"),
    [
        ("import nosuchmodule", 2, "driver.py: it fails before run(module) is called"),
        ("import sys\ndef run(module): sys.exit(7)", 1, "driver.py ended itself: sys.exit(7)"),
        ("def run(): pass", 1, "takes 0 positional arguments"),
    ],
)
def test_a_driver_that_fails(
    folder: Path, driver: str, status: int, told: str, capfd: pytest.CaptureFixture[str]
) -> None:
    (folder / "driver.py").write_text(driver)
    assert check("race.cu", "--driver", "driver.py") == status
    captured = capfd.readouterr()
    assert told in captured.out + captured.err
    assert "check.py" not in captured.out + captured.err              # our part of the traceback


@pytest.mark.parametrize("words", [[], ["--driver", "idle.py"]])
def test_an_instruction_that_does_not_exist_is_named_with_its_line(
    folder: Path, words: list[str], capfd: pytest.CaptureFixture[str]
) -> None:
    (folder / "odd.cu").write_text(
        '__global__ void odd(int* x) {\n    asm("ld.global.foo.u32 %0, [%1];" : "=r"(*x) : "l"(x));\n}\n'
    )
    assert check("odd.cu", *words) == 2
    err = capfd.readouterr().err
    assert "odd.cu:2: " in err
    assert ".foo" in err
