"""The stand-in runtime under programs that nvcc built: launches, symbols, limits, graphs, faults."""

from pathlib import Path
from typing import Any

import pytest

from tests.emulator.cudart_programs import Outcome, check, cuda_program, run

MODES: tuple[tuple[str, dict[str, Any]], ...] = (
    ("fast", {}),
    ("fast", {"threads": 2}),
    ("fast", {"defer": 1}),                  # the program synchronises correctly, so it sees no difference
    ("check", {}),
    ("check", {"schedule": "random", "seed": 5}),
    ("count", {}),
)
SMALL = ("small", "-arch=sm_80", "--default-stream=legacy")


@pytest.mark.parametrize(("mode", "options"), MODES, ids=str)
def test_kernels(mode: str, options: dict[str, Any]) -> None:
    outcome = run(cuda_program("kernels"), mode=mode, options=options)
    check(outcome, least=75)
    assert outcome.kinds == []               # the program clears what it provoked


def test_clusters() -> None:
    check(run(cuda_program("clusters", "-arch=sm_90"), arch="sm_90"), least=18)


@pytest.mark.parametrize(("kind", "streams"), [("legacy", "one"), ("per-thread", "one per thread")])
def test_default_stream(kind: str, streams: str) -> None:
    """--default-stream per-thread calls the runtime by other names."""
    program = cuda_program("small", "-arch=sm_80", f"--default-stream={kind}", output=f"small-{kind}")
    outcome = run(program)
    check(outcome, least=8)
    assert f"default streams: {streams}\n" in outcome.output


# ---- programs and translators that cannot work: an error of the launch, never a crash ------------------


def fails(outcome: Outcome, code: str, message: str) -> None:
    assert outcome.status > 0
    assert f"launch: got {code}\n" in outcome.output
    assert outcome.kinds == ["translation"]  # once, however often the kernel is used
    assert message in outcome.report["reports"][0]["message"]


def test_program_without_ptx() -> None:
    outcome = run(cuda_program("small", "-gencode=arch=compute_80,code=sm_80", output="no_ptx"))
    fails(outcome, "cudaErrorNoKernelImageForDevice", "build it with PTX")
    assert "code=compute_80" in outcome.errors


def test_relocatable_program() -> None:
    program = cuda_program("small", "-arch=sm_80", "-rdc=true", output="relocatable")
    fails(run(program), "cudaErrorNotSupported", "-rdc=true")


BROKEN = (
    ("/bin/false", "cudaErrorInvalidKernelImage", "ended with status 1"),
    ("/nonexistent/translator", "cudaErrorInvalidKernelImage", "not be started (/nonexistent/translator)"),
    ("/bin/echo /nonexistent/module.so", "cudaErrorInvalidKernelImage", "/nonexistent/module.so"),
    ("'/bin/sh' -c \"exit 3\"", "cudaErrorNoKernelImageForDevice", "no PTX"),
)


@pytest.mark.parametrize(("command", "code", "message"), BROKEN)
def test_translator_that_fails(command: str, code: str, message: str) -> None:
    variables = {"CUDA_NN_EMULATOR_TRANSLATE": command, "CUDA_NN_EMULATOR_CACHE": ""}
    fails(run(cuda_program(*SMALL, output="small-legacy"), variables=variables), code, message)


def test_translation_is_kept(tmp_path: Path) -> None:
    """The second process does not ask the translator: a broken one does no harm."""
    program = cuda_program(*SMALL, output="small-legacy")
    kept = {"CUDA_NN_EMULATOR_CACHE": str(tmp_path)}
    check(run(program, variables=kept), least=8)
    [answer] = tmp_path.iterdir()
    assert answer.match("fatbin-*-fast-sm_80.path")
    check(run(program, variables={**kept, "CUDA_NN_EMULATOR_TRANSLATE": "/bin/false"}), least=8)
    answer.write_text("/nonexistent/module.so\n")        # tidied away: asked for again
    check(run(program, variables=kept), least=8)
