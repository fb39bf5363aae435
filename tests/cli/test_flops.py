"""cuda-nn flops: the table, from a preset and from a file."""

from pathlib import Path

import pytest

from nn.config import dump
from nn.models import preset


def test_the_large_model_is_counted_and_not_built(cuda_nn) -> None:
    status, out, err = cuda_nn("flops", "--preset", "moe-6.9b", "--seq-len", 4096)
    assert (status, err) == (0, "")
    assert "total         6,882,678,528     1,786,599,168" in out
    assert "attention_core" in out
    assert out.splitlines()[-1].startswith("training ")


def test_shares_add_up(cuda_nn) -> None:
    rows = [
        line.split() for line in cuda_nn("flops", "--preset", "tiny")[1].splitlines() if line.endswith("%")
    ]
    *parts, (_, total, whole) = rows
    assert whole == "100.0%"
    assert sum(float(row[1]) for row in parts) == pytest.approx(float(total), abs=0.01)
    assert sum(float(row[2][:-1]) for row in parts) == pytest.approx(100, abs=0.5)


@pytest.mark.parametrize("text", ["MODEL", "model:\n  NESTED", "steps: 3\nmodel:\n  NESTED"])
def test_a_file_of_a_model_or_of_a_run(cuda_nn, tmp_path: Path, text: str) -> None:
    model = dump(preset("tiny"))
    path = tmp_path / "a.yaml"
    path.write_text(text.replace("MODEL", model).replace("NESTED", model.replace("\n", "\n  ")))
    assert cuda_nn("flops", "--config", path) == cuda_nn("flops", "--preset", "tiny")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "give either --preset (tiny, small, moe-6.9b) or --config FILE"),
        (["--preset", "tny"], "tiny"),
        (["--preset", "tiny", "--seq-len", "0"], "seq_len: 0 must be 1 or more"),
        (["--preset", "tiny", "--config", "x"], "give either"),
    ],
)
def test_wrong_input(cuda_nn, words: list[str], message: str) -> None:
    status, _, err = cuda_nn("flops", *words)
    assert status == 2
    assert message in err
    assert err.count("\n") == 1
