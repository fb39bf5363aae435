"""make gpu-check: stages, limits, the report; and the kernel tests' way to a GPU, taken without one."""

import importlib.util
import os
import subprocess
import sys
import time
from pathlib import Path
from types import ModuleType

import pytest

from nn.backends import devices

ROOT = Path(__file__).resolve().parents[2]
no_gpu = pytest.mark.skipif(devices.missing("cuda") is None, reason="there is a GPU")

# A device that is not an EmulatedDevice, on the emulator's CUDA runtime: it goes the way that a GPU goes.
STAND_IN = """
import os, shlex, sys
from cuda.nn import build
from cuda.nn.emulator import native
from cuda.nn.emulator.emulate import STARTER
native.library().configure("arch=sm_80;check=1")
starter = [sys.executable, "-c", STARTER.format(place=os.getcwd())]
os.environ["CUDA_NN_EMULATOR_TRANSLATE"] = shlex.join(starter)
build.gpu_library = build.emulated_library
"""


@pytest.fixture(scope="module")
def gpu_check() -> ModuleType:
    spec = importlib.util.spec_from_file_location("gpu_check", ROOT / "bench" / "gpu_check.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules["gpu_check"] = module                        # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def python(code: str) -> list[str]:
    return [sys.executable, "-c", code]


# ---- stages ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("code", "outcome"), [("print('fine')", "passed"),
                                               ("raise SystemExit(3)", "FAILED")])
def test_a_stage(gpu_check: ModuleType, code: str, outcome: str) -> None:
    result = gpu_check.run(gpu_check.Stage("one", python(code), 60))
    assert result.outcome == outcome
    assert ("fine" in result.output) == (outcome == "passed")


def test_a_stage_and_its_children_end_at_the_limit(gpu_check: ModuleType, tmp_path: Path) -> None:
    child = f"import time\ntime.sleep(12)\nopen({str(tmp_path / 'late')!r}, 'w')"
    code = ("import subprocess, sys\nprint('begun', flush=True)\n"
            f"subprocess.run([sys.executable, '-c', {child!r}])")
    began = time.monotonic()
    result = gpu_check.run(gpu_check.Stage("long", python(code), 2))
    assert result.outcome == "stopped at its time limit"
    assert time.monotonic() - began < 12         # it did not wait for the child
    assert "begun" in result.output
    time.sleep(max(0.0, began + 14 - time.monotonic()))
    assert not (tmp_path / "late").exists()


def test_what_is_missing_is_said(gpu_check: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_check, "sanitizer", lambda: None)
    found = {stage.name: stage for stage in gpu_check.stages("cuda")}
    for tool in ("memcheck", "racecheck", "initcheck", "synccheck"):
        result = gpu_check.run(found[f"compute-sanitizer {tool}"])
        assert (result.outcome, result.output) == ("not run", gpu_check.NO_SANITIZER)
    assert gpu_check.without("no_such_package")
    assert not gpu_check.without("pytest")


def test_all_stages_together_fit_ten_minutes(gpu_check: ModuleType) -> None:
    assert sum(stage.limit for stage in gpu_check.stages("cuda")) <= 600


def test_sanitizers_run_every_kernel_once(gpu_check: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_check, "sanitizer", lambda: "/opt/compute-sanitizer")
    words = next(stage.command for stage in gpu_check.stages("cuda") if stage.name.endswith("racecheck"))
    assert words[:5] == ["/opt/compute-sanitizer", "--tool", "racecheck", "--error-exitcode", "86"]
    assert {"--check-only", "--small", "cuda"} <= set(words)


# ---- the report --------------------------------------------------------------------------------------------


def test_the_pipeline_on_the_emulated_device(gpu_check: ModuleType, tmp_path: Path,
                                             capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--device", "emulated", "--only", "checker", "bench", "--kernel", "rope_frequencies", "--folder",
             str(tmp_path)]
    assert gpu_check.main(words) == 0
    (path,) = tmp_path.iterdir()
    assert capsys.readouterr().out.endswith(f"report: {path}\n")
    assert path.name.startswith("gpu-check-20")
    assert path.name.endswith("-nvidia-a100-sxm4-80gb-emulated.md")
    text = path.read_text()
    assert "no GPU took part, and nothing here is a speed" in text
    assert "| the emulator's checker | passed |" in text
    assert "| bench kernels | passed |" in text
    assert "| multiprocessors | 108 |" in text
    assert "| driver |" in text
    assert "counted, not timed" in text
    assert "rope_frequencies  float32" in text


def test_the_report_is_there_although_a_stage_fails(gpu_check: ModuleType, tmp_path: Path,
                                                    monkeypatch: pytest.MonkeyPatch) -> None:
    made = [gpu_check.Stage("bad", python("print('why'); raise SystemExit(1)"), 60),
            gpu_check.Stage("good", python("print(*range(1000), sep='\\n')"), 60),
            gpu_check.Stage("none", python(""), 60, missing="not installed")]
    monkeypatch.setattr(gpu_check, "stages", lambda *_: made)
    monkeypatch.setattr(gpu_check, "facts", lambda _: [("name", "NVIDIA L4")])
    assert gpu_check.main(["--device", "emulated", "--folder", str(tmp_path)]) == 1
    text = next(tmp_path.glob("*-nvidia-l4.md")).read_text()
    assert "| bad | FAILED |" in text
    assert "why" in text
    assert "| good | passed |" in text
    assert "... 940 lines" in text
    assert "| none | not run: not installed |" in text


def test_rows_that_the_time_limit_cut_off_are_no_quiet_pass(gpu_check: ModuleType) -> None:
    words = ("-m", "nn", "bench", "kernels", "--device", "emulated", "--check-only", "--kernel",
             "rope_forward", "--limit", "-1")
    result = gpu_check.run(gpu_check.Stage("compute-sanitizer", [sys.executable, *words], 60))
    assert result.outcome == "passed"
    text = gpu_check.report("cuda", [], [result])
    assert "| compute-sanitizer | passed, but 3 rows were not run: time limit |" in text


@no_gpu
def test_without_a_gpu_it_says_so(gpu_check: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    assert gpu_check.main([]) == 2
    err = capsys.readouterr().err
    assert err.startswith("gpu-check: no GPU can be used here: ")
    assert 'make gpu-check ARGS="--device emulated"' in err


def test_an_unknown_stage(gpu_check: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    assert gpu_check.main(["--device", "emulated", "--only", "zzz"]) == 2
    assert "bench kernels" in capsys.readouterr().err


# ---- pytest tests/device --device=cuda ---------------------------------------------------------------------


def run_pytest(*words: str, path: Path | None = None) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *words]
    variables = os.environ | ({"PYTHONPATH": f"{path}{os.pathsep}{ROOT}"} if path else {})
    return subprocess.run(command, cwd=ROOT, env=variables, capture_output=True, text=True, check=False)


@no_gpu
def test_tests_on_a_gpu_need_one() -> None:
    done = run_pytest("tests/device/test_rope.py", "--device=cuda")
    assert done.returncode == 4
    assert "without the option the emulated device is used" in done.stderr + done.stdout


def test_kernel_tests_take_the_way_of_a_gpu(tmp_path: Path) -> None:
    """Tests run, those of other architectures are left out, and those of the emulator's counters skip."""
    (tmp_path / "stand_in.py").write_text(STAND_IN)
    done = run_pytest("tests/device/test_rope.py", "tests/device/test_library.py", "--device=cuda", "-rs",
                      "-p", "stand_in", path=tmp_path)
    assert done.returncode == 0, done.stdout[-3000:]
    assert "passed" in done.stdout
    assert "deselected" in done.stdout
    assert "tests were left out, which are about the emulator" in done.stdout


def test_make_has_it() -> None:
    variables = {name: value for name, value in os.environ.items() if not name.startswith("MAKE")}

    def make(*words: str) -> str:
        return subprocess.run(["make", *words], cwd=ROOT, env=variables, capture_output=True, text=True,
                              check=True).stdout

    assert any(line.startswith("  make gpu-check ") for line in make().splitlines())
    assert "bench/gpu_check.py --device emulated" in make("-n", "gpu-check", "ARGS=--device emulated")
