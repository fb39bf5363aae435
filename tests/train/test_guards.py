"""Numbers and runs that must not pass for good: weights blown up by an update, runs that never began, damaged
tokens, a picture that cannot be written."""

from dataclasses import replace

import numpy as np
import pytest

from nn.errors import InputError, NonFiniteError
from nn.eval import bits_per_byte
from nn.train import newest_run, preset, train
from nn.train.checkpoint import load_checkpoint
from nn.train.corpus import load


def short(tmp_path, **changes):
    return replace(preset("smoke"), steps=4, eval_every=1, checkpoint_every=1, eval_tokens=256,
                   sample_tokens=0, runs=str(tmp_path / "runs"), **changes)


def test_weights_that_an_update_broke_are_never_saved(tmp_path):
    with pytest.raises(NonFiniteError, match=r"step \d: the update made .* not finite; lower lr, which was"):
        train(short(tmp_path, lr=1e38, warmup=0))
    run = newest_run(tmp_path / "runs")
    for folder in (run / "checkpoints").glob("step_*"):
        for name, values in load_checkpoint(folder).tensors["model"].items():
            assert np.isfinite(values).all(), (folder.name, name)


def test_an_evaluation_that_is_not_finite_is_an_error():
    from nn import MoETransformer
    model = MoETransformer.tiny()
    model.norm.weight.data[0] = np.nan
    with pytest.raises(NonFiniteError, match="evaluation: the loss is not finite"):
        bits_per_byte(model, np.arange(50), 100, 16, 2, prefix_id=0)
    with pytest.raises(InputError, match="batch_size: -1; give 1 or more"):
        bits_per_byte(model, np.arange(50), 100, 16, -1, prefix_id=0)


def test_a_text_too_short_leaves_no_run(tmp_path):
    (tmp_path / "short.txt").write_text("one\n" * 10)
    with pytest.raises(InputError, match="seq_len: 64 needs 65 tokens"):
        train(short(tmp_path, data=str(tmp_path / "short.txt")))
    assert list((tmp_path / "runs").iterdir()) == []


@pytest.mark.parametrize(("field", "value"), [("beta1", 2.0), ("beta2", -0.1), ("seed", 2**64), ("data", "")])
def test_settings_out_of_range_are_refused_before_a_folder_is_made(tmp_path, field, value):
    with pytest.raises(InputError, match=f"^{field}: "):
        train(short(tmp_path, **{field: value}))
    assert not (tmp_path / "runs").exists()


def test_a_run_without_a_checkpoint_is_not_the_newest_to_write_with(tmp_path):
    done = train(short(tmp_path)).run
    began = tmp_path / "runs" / "zzz"
    began.mkdir()
    (began / "config.yaml").write_text((done / "config.yaml").read_text())
    (began / ".lock").write_text("")
    assert newest_run(tmp_path / "runs").name == "zzz"
    assert newest_run(tmp_path / "runs", trained=True).name == done.name


def test_damaged_tokens_are_noticed(tmp_path):
    run = train(short(tmp_path)).run
    path = run / "tokens" / "train.tokens"
    content = bytearray(path.read_bytes())
    content[-3] ^= 0xFF
    path.write_bytes(content)
    with pytest.raises(InputError, match="train.tokens"):
        load(run)


def test_a_picture_that_cannot_be_written_fails_nothing(tmp_path, monkeypatch):
    def full(folder):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("nn.train.job.draw_loss", full)
    assert train(short(tmp_path)).steps == 4


@pytest.mark.parametrize("name", ["manifest.json", "tokens/info.json"])
@pytest.mark.parametrize("content", ["", "{", "[]"])
def test_a_damaged_file_of_the_run_is_named(tmp_path, name, content):
    run = train(short(tmp_path)).run
    (run / name).write_text(content)
    with pytest.raises(InputError, match=f"{name}: (not JSON|holds a list)"):
        train(resume=run)
