"""A tiny run, trained once through the command line; every verb is tried on it."""

from collections.abc import Callable
from pathlib import Path

import pytest

from nn.cli.main import main

# seconds: bytes of a small text, two layers of width 16, six steps
SMALL = [
    "--preset",
    "smoke",
    "--steps",
    "6",
    "--lr",
    "0.1",
    "--warmup",
    "1",
    "--eval-every",
    "3",
    "--checkpoint-every",
    "3",
    "--seq-len",
    "16",
    "--batch-size",
    "2",
    "--sample-tokens",
    "5",
    "--eval-tokens",
    "64",
    "--log-every",
    "2",
    "--held-out-fraction",
    "0.2",
    "--model.hidden-size",
    "16",
    "--model.intermediate_size",
    "16",
]


@pytest.fixture(scope="session")
def text_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_text("\n\n".join(f"verse {i}: the cat sat on mat {i * i}, and ran" for i in range(400)))
    return path


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory, text_file: Path) -> Path:
    """The folder of a finished run; nobody changes it."""
    run = tmp_path_factory.mktemp("runs") / "small"
    assert main(["train", *SMALL, "--data", str(text_file), "--run", str(run)]) == 0
    return run


Outcome = tuple[int, str, str]


@pytest.fixture
def cuda_nn(capsys: pytest.CaptureFixture[str]) -> Callable[..., Outcome]:
    """cuda_nn("train", "--help") -> (status, standard output, standard error)."""

    def call(*words: object) -> Outcome:
        capsys.readouterr()
        status = main([str(word) for word in words])
        captured = capsys.readouterr()
        return status, captured.out, captured.err

    return call
