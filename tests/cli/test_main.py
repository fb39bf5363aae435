"""The command itself: help, verbs, and how each kind of failure ends."""

import errno
import subprocess
import sys
from collections.abc import Callable

import pytest

from nn.cli.main import VERBS, main
from nn.errors import InputError, NonFiniteError


def test_help_lists_every_verb(cuda_nn) -> None:
    status, out, err = cuda_nn("--help")
    assert (status, err) == (0, "")
    assert all(f"\n  {verb} " in out for verb in VERBS)
    assert cuda_nn() == cuda_nn("help") == cuda_nn("-h") == (0, out, "")


def test_version(cuda_nn) -> None:
    from nn import __version__

    assert cuda_nn("--version") == (0, f"cuda-nn {__version__}\n", "")


def test_unknown_verb_suggests_the_nearest(cuda_nn) -> None:
    assert cuda_nn("trian") == (2, "", "cuda-nn: error: 'trian' is not a verb. Did you mean train?\n")
    assert cuda_nn("qqq") == (2, "", "cuda-nn: error: 'qqq' is not a verb. cuda-nn --help lists them\n")


@pytest.mark.parametrize("verb", VERBS)
def test_help_of_a_verb(cuda_nn, verb: str) -> None:
    status, out, err = cuda_nn(verb, "--help")
    assert (status, err) == (0, "")
    usage, about, *_, examples = out.strip().split("\n\n")
    assert usage.startswith(f"usage: cuda-nn {verb} ")
    assert "[options]" in usage
    assert about.endswith(".")
    commands = examples.splitlines()
    assert commands[0] == "Examples:"
    assert all(f"cuda-nn {verb}" in command for command in commands[1:])
    assert 1 <= len(commands) - 1 <= 3


def test_help_fits_a_terminal(cuda_nn, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    for verb in VERBS:
        options = cuda_nn(verb, "--help")[1].partition("Examples:")[0]
        assert max(map(len, options.splitlines())) <= 80


FULL = "No space left on device; make room, or write to another disk"
FAILURES: list[tuple[BaseException, int, str]] = [
    (InputError("lr: -1 must be greater than 0"), 2, "lr: -1 must be greater than 0"),
    (OSError(errno.ENOSPC, "No space left on device", "runs/a"), 2, f"runs/a: {FULL}"),
    (OSError(errno.ENOSPC, "No space left on device"), 2, FULL),
    (PermissionError(errno.EACCES, "Permission denied", "runs"), 2, "runs: Permission denied"),
    (OSError("in\ntwo lines"), 2, "in two lines"),
    (NonFiniteError("step 3: the loss is not finite"), 1, "step 3: the loss is not finite"),
    (
        MemoryError("Unable to allocate 9 TiB"),
        1,
        "not enough memory: Unable to allocate 9 TiB; take a smaller model, batch or seq_len",
    ),
    (KeyboardInterrupt(), 130, "stopped"),
]


@pytest.mark.parametrize(("error", "status", "line"), FAILURES, ids=lambda value: type(value).__name__)
def test_failures_end_in_one_line(
    cuda_nn, monkeypatch: pytest.MonkeyPatch, error: BaseException, status: int, line: str
) -> None:
    monkeypatch.setattr("nn.cli.info.run", raising(error))
    assert cuda_nn("info") == (status, "", f"cuda-nn info: error: {line}\n")


def test_a_defect_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nn.cli.info.run", raising(TypeError("ours")))
    with pytest.raises(TypeError, match="ours"):
        main(["info"])


def raising(error: BaseException) -> Callable[[list[str]], int]:
    def run(argv: list[str]) -> int:
        raise error

    return run


def test_python_m_nn_is_the_same_command(cuda_nn) -> None:
    done = subprocess.run([sys.executable, "-m", "nn", "--help"], capture_output=True, text=True, check=True)
    assert done.stdout == cuda_nn("--help")[1]
    done = subprocess.run([sys.executable, "-m", "nn", "trian"], capture_output=True, text=True, check=False)
    assert done.returncode == 2


def test_a_reader_that_leaves_is_no_error() -> None:
    """As in `cuda-nn flops ... | head -1`, with a reader that is gone before the first line."""
    code = (
        "import os, sys; r, w = os.pipe(); os.close(r); os.dup2(w, 1)\n"
        "from nn.cli.main import main; sys.exit(main(['flops', '--preset', 'tiny']))"
    )
    done = subprocess.run([sys.executable, "-c", code], stderr=subprocess.PIPE, text=True, check=False)
    assert (done.returncode, done.stderr) == (141, "")
