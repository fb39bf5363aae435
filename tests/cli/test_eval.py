"""cuda-nn eval: the numbers of the run, of its checkpoints, and of other text."""

import gzip
import json
from pathlib import Path

import pytest

from nn.config import dump
from nn.train import load_trained


def final(out: str) -> dict[str, float]:
    last = out.splitlines()[-1]
    assert last.startswith("final: ")
    return {name: float(value) for name, value in (part.split("=") for part in last.split()[1:])}


def test_held_out_text_of_the_run_gives_the_number_that_training_gave(cuda_nn, trained: Path) -> None:
    metrics = (trained / "metrics.jsonl").read_text().splitlines()
    status, out, _ = cuda_nn("eval", "--run", trained, "--seq-len", 16)
    assert status == 0
    in_training = json.loads(metrics[-1])["held_out_bits_per_byte"]
    assert final(out)["bits_per_byte"] == pytest.approx(in_training, abs=1e-4)  # printed with four digits
    assert out.splitlines()[-5].split() == ["bits", "per", "byte", "perplexity"]


def test_perplexity_of_bytes_is_two_to_the_bits_per_token(cuda_nn, trained: Path) -> None:
    found = final(cuda_nn("eval", "--run", trained)[1])
    num_bytes = sum(1 for _ in range(int(found["tokens"])))
    assert found["perplexity"] == pytest.approx(
        2 ** found["bits_per_byte"], rel=0.05
    )  # nearly: some tokens end texts
    assert num_bytes > 100


def test_no_number_depends_on_the_threads(cuda_nn, trained: Path) -> None:
    one, two = (cuda_nn("eval", "--run", trained, "--threads", count)[1] for count in (1, 2))
    assert "1 thread" in one
    assert "2 threads" in two
    assert final(one) == final(two)


def test_other_text(cuda_nn, trained: Path, tmp_path: Path) -> None:
    (tmp_path / "other.txt").write_text("abc" * 500)
    found = final(
        cuda_nn("eval", "--ckpt", trained / "checkpoints" / "step_000003", "--data", tmp_path / "other.txt")[
            1
        ]
    )
    assert found["gzip"] == pytest.approx(8 * len(gzip.compress(b"abc" * 500, 9)) / 1500, abs=1e-4)
    assert found["tokens"] == 1501  # the text and its end
    assert found["xz"] > 0


def test_the_held_out_part_of_other_text_is_what_training_held_out(
    cuda_nn, trained: Path, text_file: Path
) -> None:
    own = final(cuda_nn("eval", "--run", trained)[1])
    same = final(cuda_nn("eval", "--run", trained, "--data", text_file, "--held-out-fraction", 0.2)[1])
    assert same == own


def test_a_config_must_agree_with_the_checkpoint(cuda_nn, trained: Path, tmp_path: Path) -> None:
    model, _ = load_trained(trained)
    path = tmp_path / "model.yaml"
    path.write_text(dump(model.config))
    assert cuda_nn("eval", "--config", path, "--ckpt", trained)[0] == 0
    path.write_text(dump(model.config.replace(num_layers=3)))
    status, _, err = cuda_nn("eval", "--config", path, "--ckpt", trained)
    assert status == 2
    assert err == f"cuda-nn eval: error: config: {path}: num_layers is 3, but 2 in the checkpoint\n"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--run", "/nowhere"], "/nowhere"),
        (["--data", "/nowhere.txt"], "/nowhere.txt"),
        (["--overlap", "0"], "overlap: 0"),
    ],
)
def test_wrong_input(cuda_nn, trained: Path, words: list[str], message: str) -> None:
    status, _, err = cuda_nn("eval", "--run", trained, *words)
    assert status == 2
    assert message in err
    assert err.count("\n") == 1


def test_a_folder_outside_a_run_needs_text(cuda_nn, trained: Path, tmp_path: Path) -> None:
    model, tokenizer = load_trained(trained)
    model.save_pretrained(tmp_path)
    tokenizer.save(tmp_path / "tokenizer.json")
    status, _, err = cuda_nn("eval", "--checkpoint", tmp_path)
    assert status == 2
    assert "--data" in err


@pytest.mark.parametrize(("option", "value"), [("--batch-size", 0), ("--batch-size", -1), ("--seq-len", 0),
                                               ("--overlap", 0)])
def test_numbers_that_would_measure_nothing(cuda_nn, trained: Path, option: str, value: int) -> None:
    status, out, err = cuda_nn("eval", "--run", trained, option, value)
    assert (status, out) == (2, "")
    assert f"{option}: {value}; give 1 or more" in err
