"""cuda-nn flops: the table, from a preset and from a file."""

from pathlib import Path

import pytest

from nn.cli.sources import model_presets
from nn.config import dump
from nn.flops import breakdown, decoding, parameters
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


def test_options_change_the_model(cuda_nn, tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text(dump(preset("tiny").replace(num_layers=5)))
    changed = cuda_nn("flops", "--model", "tiny", "--model.num-layers", 5)
    assert changed == cuda_nn("flops", "--config", path)
    assert cuda_nn("flops", "--config", path, "--model.num_layers=2") == cuda_nn("flops", "--preset", "tiny")
    assert changed[0] == 0


def test_decoding_is_counted_behind_what_is_held(cuda_nn) -> None:
    """The 9th token: attention to 9 keys in 2 layers, 4·64 operations each"""
    status, out, err = cuda_nn("flops", "--preset", "tiny", "--seq-len", 9, "--decode", "--dtype", "float32")
    assert (status, err) == (0, "")
    assert "decoding, 8 tokens held" in out
    core = next(line for line in out.splitlines() if line.startswith("attention_core"))
    assert core.split()[1] == f"{2 * 4 * 64 * 9 / 1e6:.3f}"
    assert "state     2,304 bytes behind 9 tokens in float32, 256 with each further one" in out


def test_two_models_side_by_side(cuda_nn, tmp_path: Path) -> None:
    """A preset and a file, or the other way round; the ratio is the second over the first"""
    path = tmp_path / "recurrent.yaml"
    path.write_text("{hidden_size: 64, mixer: retention, options: {retention: {num_heads: 4}}}")
    rows = {}
    for words in (("--preset", "tiny", "--compare", path), ("--config", path, "--compare", "tiny")):
        status, out, err = cuda_nn("flops", *words, "--seq-len", 64)
        assert (status, err) == (0, "")
        for line in out.splitlines()[1:]:
            name, *figures = line.rsplit(maxsplit=3)
            rows.setdefault(name.strip(), []).append([float(f.replace(",", "")) for f in figures if f != "-"])
    assert len(rows) == 7
    for name, (here, there) in rows.items():
        assert here[:2] == there[1::-1], name
    assert rows["parameters"][0][0] == 542_528
    retained = 2 * (4 * 16 * 32 * 4 + 8)        # per layer S[H,Dk,Dv] in float32 and a count of padding
    assert rows["state bytes behind 64"][0][:2] == [2 * 2 * 16 * 64 * 2, retained]
    assert rows["state bytes per further token"][0] == [128, 0, 0]
    assert rows["parameters"][0][2] == pytest.approx(rows["parameters"][0][1] / 542_528, abs=1e-3)


def test_every_preset_is_counted() -> None:
    for name, config in model_presets().items():
        assert sum(parameters(config).values()) >= sum(parameters(config, active=True).values()) > 0, name
        assert sum(breakdown(config, 128).values()) > 0 < sum(decoding(config, 128).values()), name


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "give either --preset (tiny, small, moe-6.9b, qwen3-0.6b"),
        ([], "or --config FILE"),
        (["--preset", "tiny", "--compare", "mamba-smal"], "did you mean 'mamba-small'"),
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
