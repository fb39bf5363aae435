"""The stand-in runtime under programs that nvcc built: launches, symbols, limits, attributes, graphs, faults, deferred kernels."""

from pathlib import Path

import pytest

from tests.emulator.cudart_programs import Outcome, check, cuda_program, run

MODES = [("fast", {}), ("check", {}), ("count", {}), ("check", {"schedule": "random", "seed": 5}), ("fast", {"threads": 2})]


@pytest.mark.parametrize("mode,options", MODES, ids=lambda value: str(value))
def test_kernels(mode: str, options: dict[str, object]) -> None:
    outcome = run(cuda_program("kernels"), mode=mode, options=options)
    check(outcome, least=75)
    assert outcome.kinds == []                       # the program clears what it provoked


def test_kernels_deferred_throughout() -> None:
    """The whole program with work deferred: it synchronises correctly, so it sees no difference."""
    check(run(cuda_program("kernels"), options={"defer": 1}), least=75)


def test_clusters() -> None:
    check(run(cuda_program("clusters", "-arch=sm_90"), arch="sm_90"), least=20)


@pytest.mark.parametrize("kind,streams", [("legacy", "one"), ("per-thread", "one per thread")])
def test_default_stream(kind: str, streams: str) -> None:
    outcome = run(cuda_program("small", "-arch=sm_80", f"--default-stream={kind}", output=f"small-{kind}"))
    check(outcome, least=8)
    assert f"default streams: {streams}\n" in outcome.output


# ---- programs and translators that cannot work: an error of the launch, never a crash ---------------------------------------


def fails(outcome: Outcome, code: str, message: str) -> None:
    assert outcome.status > 0
    assert f"launch: got {code}\n" in outcome.output
    assert outcome.kinds == ["translation"]          # once, however often the kernel is used
    assert message in outcome.report["reports"][0]["message"]


def test_program_without_ptx() -> None:
    outcome = run(cuda_program("small", "-gencode=arch=compute_80,code=sm_80", output="no_ptx"))
    fails(outcome, "cudaErrorNoKernelImageForDevice", "build it with PTX")
    assert "code=compute_80" in outcome.errors


def test_relocatable_program() -> None:
    fails(run(cuda_program("small", "-arch=sm_80", "-rdc=true", output="relocatable")), "cudaErrorNotSupported", "-rdc=true")


@pytest.mark.parametrize("command,code,message", [
    ("/bin/false", "cudaErrorInvalidKernelImage", "ended with status 1"),
    ("/nonexistent/translator", "cudaErrorInvalidKernelImage", "could not be started (/nonexistent/translator)"),
    ("/bin/echo /nonexistent/module.so", "cudaErrorInvalidKernelImage", "/nonexistent/module.so"),
    ("'/bin/sh' -c \"exit 3\"", "cudaErrorNoKernelImageForDevice", "no PTX"),
])
def test_translator_that_fails(command: str, code: str, message: str) -> None:
    program = cuda_program("small", "-arch=sm_80", "--default-stream=legacy", output="small-legacy")
    variables = {"CUDA_NN_EMULATOR_TRANSLATE": command, "CUDA_NN_EMULATOR_CACHE": ""}
    fails(run(program, variables=variables), code, message)


def test_translation_is_kept(tmp_path: Path) -> None:
    """The second process does not ask the translator: a broken one does no harm."""
    program = cuda_program("small", "-arch=sm_80", "--default-stream=legacy", output="small-legacy")
    kept = {"CUDA_NN_EMULATOR_CACHE": str(tmp_path)}
    check(run(program, variables=kept), least=8)
    [answer] = tmp_path.iterdir()
    assert answer.name.startswith("fatbin-") and answer.name.endswith("-fast-sm_80.path")
    check(run(program, variables={**kept, "CUDA_NN_EMULATOR_TRANSLATE": "/bin/false"}), least=8)
    answer.write_text("/nonexistent/module.so\n")    # tidied away: asked for again
    check(run(program, variables=kept), least=8)
