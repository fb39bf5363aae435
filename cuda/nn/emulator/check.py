"""Check one .cu file: compile it, run its kernels, gather what there is to say.  Behind `cuda-nn kernels
check`.

    outcome = check_file(Path("scan.cu"), driver=Path("driver.py"))
    outcome.reports, outcome.status

Three ways: with a driver, a Python file whose run(module) launches the kernels; a file with main() runs as a
program; of a file with neither nothing is executed, and the outcome says what nvcc, ptxas and the translator
know."""

import contextlib
import dataclasses
import os
import re
import runpy
import sys
import tempfile
import traceback
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cuda.nn.emulator import emulate
from cuda.nn.emulator.counters import KernelCounters, read_counters
from cuda.nn.emulator.errors import EmulatorError, LaunchError
from cuda.nn.emulator.kernels import COMMENT, Kernel, read_kernels
from cuda.nn.emulator.module import Module, compile
from cuda.nn.emulator.nvcc import Define, check_source, compile_program, compile_to_ptx
from cuda.nn.emulator.profiles import profile_of
from cuda.nn.emulator.report import Report
from cuda.nn.emulator.resources import Resources, read_resources
from cuda.nn.emulator.sass import Loop

MAIN = re.compile(r"\b(?:int|auto)\s+main\s*\(")
FOUND, AT_FAULT = 1, 2
OURS = {__file__, runpy.__file__, runpy.run_path.__code__.co_filename}  # files between a driver and us


@dataclass(frozen=True)
class KernelFacts:
    """What is known of one kernel."""

    name: str
    resources: Resources | None
    launches: int | None = None  # None: unknown
    counters: KernelCounters | None = None
    loops: tuple[Loop, ...] = ()  # of its machine code, when counting, where cuobjdump is installed


@dataclass(frozen=True)
class Outcome:
    """What a check came to."""

    file: Path
    arch: str
    kernels: list[KernelFacts]
    reports: list[Report] = field(default_factory=list)
    executed: bool = True
    refused: list[str] = field(default_factory=list)  # kernels that the emulator cannot run, and why
    failure: str = ""  # what the driver raised, or the program's status
    advice: str = ""  # how to get the kernels executed

    @property
    def status(self) -> int:
        """0: executed and nothing found.  1: something found.  2: nothing was executed."""
        if self.reports or self.failure:
            return FOUND
        return 0 if self.executed else AT_FAULT

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "file": str(self.file),
            "arch": self.arch,
            "status": self.status,
            "executed": self.executed,
            "reports": [report.as_dict() for report in self.reports],
            "kernels": [_kernel_dict(kernel) for kernel in self.kernels],
            "refused": self.refused,
            "failure": self.failure,
        }

    def print(self) -> None:
        """As text, with the source's lines."""
        from cuda.nn.emulator import render

        render.outcome(self)


def check_file(
    source: Path,
    *,
    driver: Path | None = None,
    arch: str = "sm_80",
    mode: str = "check",
    defines: Mapping[str, Define] | None = None,
    include_dirs: Sequence[str | Path] = (),
    schedule: str = "forward",
    seed: int = 0,
    arguments: Sequence[str] = (),
    quiet: bool = False,
) -> Outcome:
    """See the top of the file.  quiet: what the kernels and the driver print goes to stderr.  EmulatorError
    for input at fault."""
    check_source(source)
    profile_of(arch)
    if driver is not None and not driver.is_file():
        raise EmulatorError(f"{driver}: no such file")
    compiled: dict[str, Any] = {"arch": arch, "defines": defines, "include_dirs": include_dirs}
    with _output_to_stderr() if quiet else contextlib.nullcontext():
        if driver is not None:
            module = compile(source, mode=mode, **compiled)
            module.schedule, module.seed = schedule, seed
            return _driven(module, source, driver)
        if MAIN.search(COMMENT.sub("", source.read_text(encoding="utf-8", errors="replace"))):
            return _run_program(source, compiled, mode, {"schedule": schedule, "seed": seed}, arguments)
        return _looked_at(source, compiled)


# ---- the three ways ----------------------------------------------------------------------------------------


def _driven(module: Module, source: Path, driver: Path) -> Outcome:
    run = _load(driver, list(module.kernels.values()))
    failure = ""
    try:
        run(module)
    except LaunchError as error:
        failure = str(error)
    except EmulatorError:
        raise
    except SystemExit as stop:  # status 0 and 2 mean something else here
        failure = f"{driver} ended itself: sys.exit({stop.code!r})" if stop.code else ""
    except Exception as error:  # the driver's own: a comparison that failed, say
        failure = _told(error)
    launched = any(module.launches.values())
    advice = "" if launched or failure else f"{driver} launched none of them"
    return Outcome(
        source,
        module.arch,
        [_facts(module, kernel) for kernel in module.kernels.values()],
        list(module.reports),
        executed=launched,
        failure=failure,
        advice=advice,
    )


def _run_program(
    source: Path, compiled: Mapping[str, Any], mode: str, options: Mapping[str, Any], arguments: Sequence[str]
) -> Outcome:
    arch = compiled["arch"]
    ptx = compile_to_ptx(source, **compiled)
    resources = read_resources(ptx, arch)
    with tempfile.TemporaryDirectory(prefix="cuda-nn-check-") as folder:
        program = Path(folder) / source.stem
        compile_program(source, program, **compiled)
        result = emulate.run([str(program), *arguments], mode=mode, arch=arch, options=options)
    counters = read_counters(result.counters, source)
    facts = [
        KernelFacts(kernel.name, resources.get(kernel.mangled), counters=counters.get(kernel.mangled))
        for kernel in read_kernels(ptx).values()
    ]
    failure = f"the program ended with status {result.status}" if result.status else ""
    executed = bool(result.statistics.get("launches", result.reports))
    return Outcome(
        source,
        arch,
        facts,
        result.reports,
        executed=executed,
        failure=failure,
        advice="" if executed else "the program launched no kernel",
    )


def _looked_at(source: Path, compiled: Mapping[str, Any]) -> Outcome:
    from cuda.nn.emulator.translate import translate

    arch = compiled["arch"]
    ptx = compile_to_ptx(source, **compiled)
    kernels = read_kernels(ptx, source)
    if not kernels:
        raise EmulatorError(
            f"{source}: there are no kernels in it; a __global__ template needs an explicit instantiation"
        )
    refused = [
        f"{kernels[name].name}: {why}"
        for name, reasons in translate(ptx, partial=True).refused.items()
        for why in reasons
    ]
    resources = read_resources(ptx, arch)
    profile = profile_of(arch)
    facts = [
        KernelFacts(kernel.name, resources[kernel.mangled].with_launch(profile, None, 0))
        for kernel in kernels.values()
    ]
    advice = "it has no main(), and no driver was given. A driver is a Python file such as\n\n" + skeleton(
        list(kernels.values())
    )
    return Outcome(source, arch, facts, executed=False, refused=refused, advice=advice)


# ---- drivers -----------------------------------------------------------------------------------------------


def skeleton(kernels: Sequence[Kernel]) -> str:
    """A driver to begin with: one launch, arguments by their sizes."""
    kernel = kernels[0]
    names = [kernel.parameter_name(i) or f"a{i}" for i in range(len(kernel.parameter_sizes))]
    scalars = {1: "np.int8(0)", 2: "np.int16(0)", 4: "np.int32(0)"}
    arrays = [
        f"    {name} = np.zeros(1024, np.float32)"
        for name, size in zip(names, kernel.parameter_sizes, strict=True)
        if size == 8
    ]
    passed = [
        name if size == 8 else scalars.get(size, f"bytes({size})")
        for name, size in zip(names, kernel.parameter_sizes, strict=True)
    ]
    launch = f'    module.launch("{kernel.name}", grid=4, block=256, args=[{", ".join(passed)}])'
    return "\n".join(
        ["    import numpy as np", "", "    def run(module):", *(f"    {line}" for line in [*arrays, launch])]
    )


def _load(driver: Path, kernels: Sequence[Kernel]) -> Any:
    """The driver's function `run`."""
    sys.path.insert(0, str(driver.resolve().parent))
    try:
        run = runpy.run_path(str(driver)).get("run")
    except SyntaxError as error:
        raise EmulatorError(f"{error.filename}, line {error.lineno}: {error.msg}") from None
    except EmulatorError:
        raise
    except (Exception, SystemExit) as error:  # an import that is not there, say
        raise EmulatorError(f"{driver}: it fails before run(module) is called", _told(error)) from None
    finally:
        sys.path.pop(0)
    if not callable(run):
        raise EmulatorError(
            f"{driver}: it has no function run(module); a driver is a file such as the above",
            skeleton(kernels),
        )
    return run


def _told(error: BaseException) -> str:
    """The traceback, without our own part of it."""
    trace = error.__traceback__
    while trace and trace.tb_frame.f_code.co_filename in OURS:
        trace = trace.tb_next
    return "".join(traceback.format_exception(type(error), error, trace, limit=-3)).rstrip()


def _facts(module: Module, kernel: Kernel) -> KernelFacts:
    counting = module.mode == "count"
    counters = module.counters.get(kernel.mangled) if counting else None
    code = module.sass(kernel.mangled) if counting else None
    resources, launches = module.resources(kernel.mangled), module.launches[kernel.mangled]
    return KernelFacts(kernel.name, resources, launches, counters, code.loops if code else ())


def _kernel_dict(kernel: KernelFacts) -> dict[str, Any]:
    found = {
        "name": kernel.name,
        "launches": kernel.launches,
        "resources": dataclasses.asdict(kernel.resources) if kernel.resources else None,
        "loops": [dataclasses.asdict(loop) for loop in kernel.loops],
    }
    return found | ({"counters": kernel.counters.as_dict()} if kernel.counters else {})


@contextlib.contextmanager
def _output_to_stderr() -> Iterator[None]:
    """Kernels print by C's stdout, drivers by Python's, programs by their own: all of them through file 1."""
    sys.stdout.flush()
    kept = os.dup(1)
    try:
        os.dup2(2, 1)
        with contextlib.redirect_stdout(sys.stderr):
            yield
    finally:
        sys.stdout.flush()
        os.dup2(kept, 1)
        os.close(kept)
