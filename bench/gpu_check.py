"""All that the owner of a GPU should run, and one report file of it.

    make cuda && make gpu-check                     # under ten minutes, the build apart
    make gpu-check ARGS="--device emulated"         # the same stages without a GPU, to try them

Stages: the conformance suite and the kernels' tests on the GPU, a few training steps, compute-sanitizer on
every kernel, `cuda-nn bench kernels`.  Each has a time limit; the report is written whatever happens, and
says what is missing.

Exit status: 0 all that could run passed, 1 a stage failed, 2 no GPU."""

import argparse
import contextlib
import datetime
import os
import platform
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib import metadata, util
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PASSED, FAILED, STOPPED, MISSING = "passed", "FAILED", "stopped at its time limit", "not run"
TOOLS = ("memcheck", "racecheck", "initcheck", "synccheck")
PACKAGES = ("numpy", "ml_dtypes", "pytest", "cupy-cuda13x", "nvidia-cuda-nvcc")
SHOWN = 60                # last lines of a stage's output in the report
GRACE = 5                 # seconds between an interrupt and the end
FOUND = 86                # compute-sanitizer's exit status when it reports anything
NO_SANITIZER = "compute-sanitizer is not installed; it comes with the CUDA toolkit"
KERNELS = ("-m", "nn", "bench", "kernels")
CUT = "left out: time limit"      # in a row of theirs


@dataclass(frozen=True)
class Stage:
    """One command, what it may take, and how much of its output the report shows (None: all)."""

    name: str
    command: list[str]
    limit: float              # seconds
    missing: str = ""         # why it cannot run here
    shown: int | None = SHOWN


@dataclass(frozen=True)
class Result:
    stage: Stage
    outcome: str
    seconds: float
    output: str


# ---- stages ------------------------------------------------------------------------------------------------


def stages(device: str, kernels: Sequence[str] = ()) -> list[Stage]:
    """In the order in which they run.  With `kernels`, only those are benchmarked and sanitized."""
    chosen = ["--kernel", *kernels] if kernels else []
    python = [sys.executable]
    tests = [*python, "-m", "pytest", "-q", "--no-header", "-p", "no:cacheprovider", *workers()]
    example = [*python, "examples/gpu_trainer.py", "--device", device, "--steps", "20"]
    bench = [*python, *KERNELS, "--device", device, "--limit", "120", *chosen]
    return [
        Stage("conformance", [*tests, "tests/conformance", "-k", device], 120,
              missing=without("pytest")),
        Stage("kernel tests", [*tests, "tests/device", f"--device={device}"], 150, missing=without("pytest")),
        Stage("training", example, 30),
        *sanitizers(device, chosen),
        Stage("bench kernels", bench, 150, shown=None),
    ]


def sanitizers(device: str, chosen: list[str]) -> Iterator[Stage]:
    """Every kernel once, on small shapes, under each tool; the emulator has a checker of its own."""
    program = [sys.executable, *KERNELS, "--device", device, "--check-only", "--small", *chosen]
    if device == "emulated":
        yield Stage("the emulator's checker", program, 120)
        return
    found = sanitizer()
    for tool in TOOLS:
        yield Stage(f"compute-sanitizer {tool}",
                    [found or "compute-sanitizer", "--tool", tool, "--error-exitcode", str(FOUND), *program,
                     "--limit", "20"], 30,
                    missing="" if found else NO_SANITIZER)


def sanitizer() -> str | None:
    toolkit = Path(os.environ.get("CUDA_PATH") or "/usr/local/cuda") / "bin"
    return shutil.which("compute-sanitizer") or shutil.which("compute-sanitizer", path=str(toolkit))


def without(package: str) -> str:
    return "" if util.find_spec(package) else f"{package} is not installed (pip install -e '.[dev]')"


def workers() -> list[str]:
    """Test processes: they wait for NumPy most of the time, and share the device."""
    count = min(4, os.cpu_count() or 1)
    return ["-n", str(count)] if util.find_spec("xdist") and count > 1 else []


def run(stage: Stage, factor: float = 1.0) -> Result:
    """The stage's command, interrupted at its limit, so that it can say what it has, then ended with all its
    children."""
    if stage.missing:
        return Result(stage, MISSING, 0.0, stage.missing)
    began = time.monotonic()
    with tempfile.TemporaryFile("w+", errors="replace") as output:
        process = subprocess.Popen(stage.command, cwd=ROOT, stdout=output, stderr=subprocess.STDOUT,
                                   start_new_session=True)
        try:
            outcome = FAILED if process.wait(stage.limit * factor) else PASSED
        except subprocess.TimeoutExpired:
            outcome = STOPPED
            os.killpg(process.pid, signal.SIGINT)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(GRACE)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)      # a group of our own: the stage and its children
            process.wait()
        output.seek(0)
        return Result(stage, outcome, time.monotonic() - began, output.read())


# ---- the report --------------------------------------------------------------------------------------------


def facts(device: str) -> list[tuple[str, str]]:
    """What was tested, and with what."""
    from cuda.nn.device import device as find_device

    info = find_device(device).info
    shown = [(name.replace("_", " "), str(value)) for name, value in vars(info).items()]
    installed = [(name, version(name)) for name in PACKAGES]
    return [*shown, ("driver", driver()), ("system", platform.platform()),
            ("python", platform.python_version()), *installed, ("commit", said("git", "rev-parse", "HEAD")),
            ("changed files", str(len(said("git", "status", "--short").splitlines())))]


def version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"


def driver() -> str:
    return said("nvidia-smi", "--query-gpu=name,driver_version,power.limit,clocks.max.sm",
                "--format=csv,noheader") or "nvidia-smi is not installed"


def said(*command: str) -> str:
    """What a command prints; nothing where it fails or there is none."""
    try:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


def report(device: str, known: Sequence[tuple[str, str]], results: Sequence[Result]) -> str:
    """Markdown."""
    part = dict(known).get("name", device)
    lines = [f"# GPU check: {part}, {datetime.date.today().isoformat()}", ""]
    if device == "emulated":
        lines += ["**On the emulated device: no GPU took part, and nothing here is a speed.**", ""]
    lines += ["| stage | outcome | seconds |", "|---|---|---|"]
    lines += [f"| {r.stage.name} | {r.outcome}{reason(r)} | {r.seconds:.0f} |" for r in results]
    lines += ["", "## What was tested", "", "| | |", "|---|---|"]
    lines += [f"| {name} | {value.replace(chr(10), '; ')} |" for name, value in known]
    for result in results:
        lines += ["", f"## {result.stage.name}: {result.outcome}", "", "```text",
                  "$ " + " ".join(result.stage.command), *tail(result), "```"]
    return "\n".join(lines) + "\n"


def reason(result: Result) -> str:
    """What the outcome alone would hide."""
    if result.outcome == MISSING:
        return f": {result.stage.missing}"
    cut = result.output.count(CUT)
    return f", but {cut} rows were not run: time limit" if cut else ""


def tail(result: Result) -> list[str]:
    lines = result.output.rstrip().splitlines()
    most = result.stage.shown
    if most is None or len(lines) <= most:
        return lines
    return [f"... {len(lines) - most} lines", *lines[-most:]]


def path_of(folder: Path, part: str) -> Path:
    """gpu-check-2026-01-31-nvidia-l4.md"""
    words = re.sub(r"[^a-z0-9]+", "-", part.lower()).strip("-")
    return folder / f"gpu-check-{datetime.date.today().isoformat()}-{words}.md"


# ---- the command -------------------------------------------------------------------------------------------


def main(argv: Sequence[str] | None = None) -> int:
    given = parser().parse_args(argv)
    if given.device == "cuda" and (why := no_gpu()):
        print(f"gpu-check: no GPU can be used here: {why}\n"
              'To try the stages without one: make gpu-check ARGS="--device emulated"', file=sys.stderr)
        return 2
    wanted = [s for s in stages(given.device, given.kernel)
              if not given.only or any(word in s.name for word in given.only)]
    if not wanted:
        print(f"gpu-check: no stage is named {' or '.join(given.only)}: "
              + ", ".join(s.name for s in stages(given.device)), file=sys.stderr)
        return 2
    return check(given, wanted)


def check(given: argparse.Namespace, wanted: Sequence[Stage]) -> int:
    """Run the stages; the report is written after each, so that it is there whatever happens."""
    known, results = facts(given.device), list[Result]()
    path = path_of(given.folder, dict(known)["name"])
    for stage in wanted:
        print(f"{stage.name}: ", end="", flush=True)
        results.append(run(stage, given.limit_factor))
        print(f"{results[-1].outcome}{reason(results[-1])} ({results[-1].seconds:.0f} s)", flush=True)
        path.write_text(report(given.device, known, results), encoding="utf-8")
    print(f"report: {path}")
    return int(any(r.outcome in (FAILED, STOPPED) for r in results))


def no_gpu() -> str:
    """Why there is none; "" if there is one."""
    from cuda.nn.device import device
    from cuda.nn.emulator.errors import EmulatorError
    from cuda.nn.errors import DeviceError

    try:
        device("cuda")
    except (DeviceError, EmulatorError, OSError) as error:
        return str(error)
    return ""


def parser() -> argparse.ArgumentParser:
    words = argparse.ArgumentParser(prog="gpu-check", description=__doc__,
                                    formatter_class=argparse.RawDescriptionHelpFormatter)
    words.add_argument("--device", choices=["cuda", "emulated"], default="cuda")
    words.add_argument("--only", nargs="+", default=[], metavar="STAGE",
                       help="stages whose names contain this")
    words.add_argument("--kernel", nargs="+", default=[], metavar="NAME",
                       help="benchmark and sanitize these only (as for cuda-nn bench kernels)")
    words.add_argument("--folder", type=Path, default=Path(), help="where the report goes (default: here)")
    words.add_argument("--limit-factor", type=float, default=1.0, metavar="X",
                       help="multiply every stage's time limit")
    return words


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    sys.exit(main())
