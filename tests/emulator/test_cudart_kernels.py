"""The stand-in runtime under programs that nvcc built: launches, symbols, limits, attributes, graphs, faults, deferred kernels."""

import pytest
from tests.emulator.cudart_programs import check, cuda_program, run

MODES = [("fast", {}), ("check", {}), ("count", {}), ("check", {"schedule": "random", "seed": 5}), ("fast", {"threads": 2})]


@pytest.mark.parametrize("mode,options", MODES, ids=lambda value: str(value))
def test_kernels(mode: str, options: dict[str, object]) -> None:
    outcome = run(cuda_program("kernels"), mode=mode, options=options)
    check(outcome, least=75)
    assert outcome.kinds == []                       # the program clears what it provoked


def test_kernels_with_a_default_stream_per_thread() -> None:
    program = cuda_program("kernels", "-arch=sm_80", "--default-stream=per-thread", output="per_thread")
    check(run(program), least=75)


def test_kernels_deferred_throughout() -> None:
    """The whole program with work deferred: what synchronises correctly sees no difference."""
    outcome = run(cuda_program("kernels"), options={"defer": 1})
    allowed = {"graph", "fault"}
    wrong = [line for line in outcome.failed if not any(word in line for word in allowed)]
    assert not wrong, "\n".join(wrong)


def test_program_without_ptx() -> None:
    """Machine code alone cannot be emulated: the launch fails with the runtime's code, and the message says how to build."""
    program = cuda_program("kernels", "-gencode=arch=compute_80,code=sm_80", output="no_ptx")
    outcome = run(program)
    assert outcome.status != 0
    assert "cudaErrorNoKernelImageForDevice" in outcome.output
    assert "code=compute_80" in outcome.errors


def test_relocatable_program() -> None:
    outcome = run(cuda_program("kernels", "-arch=sm_80", "-rdc=true", output="relocatable"))
    assert outcome.status != 0
    assert any("-rdc=true" in one["message"] for one in outcome.report["reports"]) or "-rdc=true" in outcome.errors


@pytest.mark.parametrize("command,why", [
    ("/bin/false", "status 1"),
    ("/nonexistent/translator", "could not be started"),
    ("/bin/echo /nonexistent/module.so", ""),
    ("'/bin/sh' -c 'exit 3'", "no PTX"),
])
def test_translator_that_fails(command: str, why: str) -> None:
    """A broken translator is an error of the launch, never a crash; and it is reported once."""
    outcome = run(cuda_program("kernels"), variables={"CUDA_NN_EMULATOR_TRANSLATE": command, "CUDA_NN_EMULATOR_CACHE": ""})
    assert outcome.status > 0 and "launch: expected cudaSuccess" in outcome.output
    code = "cudaErrorNoKernelImageForDevice" if "exit 3" in command else "cudaErrorInvalidKernelImage"
    assert f"got {code}" in outcome.output
    del why


def test_translation_is_kept(tmp_path) -> None:
    """The second process does not ask the translator: a broken one does no harm."""
    kept = {"CUDA_NN_EMULATOR_CACHE": str(tmp_path)}
    check(run(cuda_program("kernels"), variables=kept), least=75)
    assert [path.name.startswith("fatbin-") for path in tmp_path.iterdir()] == [True]
    check(run(cuda_program("kernels"), variables={**kept, "CUDA_NN_EMULATOR_TRANSLATE": "/bin/false"}), least=75)
