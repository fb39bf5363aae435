"""The loop: it learns, it resumes to the same bits, it stops cleanly, and a bad number stops it before it
does harm."""

import json
import math
import os
import signal
import threading
from dataclasses import replace

import numpy as np
import pytest

from nn.errors import InputError, NonFiniteError
from nn.eval import bits_per_byte
from nn.train import Callback, latest_valid, load_trained, train
from nn.train.checkpoint import checkpoints
from nn.train.metrics import read_metrics
from nn.train.signals import StopSignal


@pytest.fixture(autouse=True)
def no_picture(monkeypatch):
    """Drawing takes longer than all the training here; test_plot.py has a run with its picture."""
    monkeypatch.setattr("nn.train.job.draw_loss", lambda folder: None)


def metrics(path):
    """Every line, without what depends on the clock."""
    records = read_metrics(path / "metrics.jsonl")
    for record in records:
        del record["tokens_per_second"]
    return records


def weights(path):
    """The model's file in the newest checkpoint, byte for byte."""
    return latest_valid(path / "checkpoints").path.joinpath("model.safetensors").read_bytes()


@pytest.fixture(scope="module")
def finished():
    return {}


@pytest.fixture
def straight(make_config, finished):
    """The uninterrupted run that others are compared with, trained once: (metrics, weights, result, optimizer
    state)."""

    def run(dtype="float32"):
        if dtype not in finished:
            result = train(make_config(run="straight", dtype=dtype))
            state = latest_valid(result.run / "checkpoints").tensors["optimizer"]
            finished[dtype] = metrics(result.run), weights(result.run), result, state
        return finished[dtype]

    return run


class Recorder(Callback):
    def __init__(self):
        self.events = []

    def on_start(self, trainer):
        self.events.append(("start", trainer.step))

    def on_eval(self, step, bits_per_byte):
        self.events.append(("eval", step))

    def on_step(self, record):
        self.events.append(("step", record["step"]))

    def on_checkpoint(self, step, path):
        assert path.is_dir()
        self.events.append(("checkpoint", step))

    def on_stop(self, result):
        self.events.append(("stop", result and result.steps))


class At(Callback):
    """Does something after a step."""

    def __init__(self, step, action):
        self.step, self.action = step, action

    def on_step(self, record):
        if record["step"] == self.step:
            self.action()


def send(number):
    return lambda: os.kill(os.getpid(), number)


def test_it_learns_a_repeated_word(tmp_path, make_config):
    (tmp_path / "abc.txt").write_text("abcabc" * 400)
    shape = {"hidden_size": 16, "intermediate_size": 32}
    config = make_config(data=str(tmp_path / "abc.txt"), steps=100, lr=3e-2, accumulate=1, batch_size=4,
                         eval_every=100, checkpoint_every=100, model=shape)
    result = train(config)
    assert metrics(result.run)[0]["loss"] > 5.0
    assert metrics(result.run)[-1]["loss"] < 0.1
    assert result.bits_per_byte < 0.2


def test_the_result_and_the_files_of_a_run(make_config):
    config = make_config()
    result = train(config)
    found = metrics(result.run)
    assert [record["step"] for record in found] == list(range(1, 13))
    assert [record["tokens"] for record in found] == [64 * step for step in range(1, 13)]
    assert [r["step"] for r in found if "held_out_bits_per_byte" in r] == [5, 10, 12]
    assert result.bits_per_byte == found[-1]["held_out_bits_per_byte"]
    assert result.steps == 12
    assert result.interrupted is None
    assert result.seconds > 0
    assert {p.name for p in result.run.iterdir()} == {
        ".lock", "config.yaml", "manifest.json", "tokenizer.json", "tokens", "metrics.jsonl", "checkpoints"}
    fields = dict(part.split("=") for part in result.final_line().removeprefix("final: ").split())
    assert list(fields) == ["bits_per_byte", "gzip", "xz", "tokens", "seconds", "run"]
    assert float(fields["bits_per_byte"]) == pytest.approx(result.bits_per_byte, abs=1e-4)
    assert fields["tokens"] == "768"


def test_a_line_holds_everything_that_was_measured(make_config):
    record = metrics(train(make_config()).run)[-1]
    assert set(record) >= {
        "step", "loss", "bits_per_byte", "lr", "grad_norm", "tokens", "moe/load_balance", "moe/router_z",
        "moe/load", "moe/load_min", "moe/load_max", "held_out_bits_per_byte"}
    assert sum(record["moe/load"]) == pytest.approx(1.0, abs=1e-3)
    assert record["bits_per_byte"] == pytest.approx(record["loss"] / math.log(2), rel=0.05)


def test_the_final_evaluation_covers_all_held_out_text(make_config, make_trainer):
    trainer = make_trainer(make_config(steps=1))
    trainer.fit()
    held = trainer.corpus.held_out
    length, eos = held.info.text_bytes, held.info.eos_id
    expected = bits_per_byte(trainer.model, held.tokens, length, 16, 2, prefix_id=eos)
    assert trainer.evaluation["bits_per_byte"] == pytest.approx(expected, rel=1e-6)


def test_callbacks_come_in_order_and_at_their_intervals(make_config, make_trainer):
    recorder = Recorder()
    make_trainer(make_config(steps=6, eval_every=3, checkpoint_every=2), [recorder]).fit()
    events = [e for e in recorder.events if e[0] != "checkpoint"]
    assert events == [
        ("start", 0), ("step", 1), ("step", 2), ("eval", 3), ("step", 3), ("step", 4), ("step", 5),
        ("eval", 6), ("step", 6), ("stop", 6)]
    saved = [step for kind, step in recorder.events if kind == "checkpoint"]
    assert saved == [2, 3, 4, 6]            # step 3: the best evaluation so far
    for step in saved:
        assert recorder.events.index(("step", step)) < recorder.events.index(("checkpoint", step))


def test_the_best_checkpoint_is_kept_besides_the_newest(make_config, make_trainer):
    """A learning rate that explodes after its warm-up makes an early evaluation the best."""
    trainer = make_trainer(make_config(lr=3.0, warmup=10, eval_every=2, checkpoint_every=1, keep_last=2))
    trainer.fit()
    best = min((r for r in metrics(trainer.run.path) if "held_out_bits_per_byte" in r),
               key=lambda r: r["held_out_bits_per_byte"])["step"]
    assert best < 11
    assert sorted(checkpoints(trainer.run.checkpoints)) == [best, 11, 12]


@pytest.mark.parametrize(("stop_after", "dtype"), [
    (1, "float32"), (4, "float32"), (5, "float32"), (11, "float32"), (3, "bfloat16")])
def test_a_stopped_run_continues_to_the_same_bits(make_config, straight, stop_after, dtype):
    expected_metrics, expected_weights, expected_result, expected_state = straight(dtype)
    stopped = train(make_config(run="stopped", dtype=dtype), callbacks=[At(stop_after, send(signal.SIGINT))])
    assert stopped.interrupted == signal.SIGINT
    assert stopped.steps == stop_after
    recorder = Recorder()
    resumed = train(resume=stopped.run, callbacks=[recorder])
    assert recorder.events[0] == ("start", stop_after)
    assert metrics(resumed.run) == expected_metrics
    assert weights(resumed.run) == expected_weights
    assert replace(resumed, run=None, seconds=0) == replace(expected_result, run=None, seconds=0)
    state = latest_valid(resumed.run / "checkpoints").tensors["optimizer"]
    assert state.keys() == expected_state.keys()
    for name, array in expected_state.items():
        assert state[name].tobytes() == array.tobytes(), name


def test_a_run_that_dies_between_checkpoints_repeats_the_lost_steps(tmp_path, make_config, straight):
    """An exception is what a crash looks like: nothing is saved on the way out."""
    def die():
        raise RuntimeError("power cut")

    with pytest.raises(RuntimeError, match="power cut"):
        train(make_config(run="died"), callbacks=[At(7, die)])
    run = tmp_path / "died"
    assert metrics(run)[-1]["step"] == 7
    assert latest_valid(run / "checkpoints").step == 5
    train(resume=run)
    assert (metrics(run), weights(run)) == straight()[:2]


def test_a_damaged_checkpoint_costs_the_steps_since_the_one_before(make_config, straight, caplog):
    stopped = train(make_config(run="stopped"), callbacks=[At(9, send(signal.SIGTERM))])
    newest = latest_valid(stopped.run / "checkpoints").path
    os.truncate(newest / "model.safetensors", 100)
    train(resume=stopped.run)
    assert "step_000009" in caplog.text
    assert "truncated" in caplog.text
    assert (metrics(stopped.run), weights(stopped.run)) == straight()[:2]


def test_a_checkpoint_never_knows_more_steps_than_the_metrics_on_the_disk(make_config, monkeypatch):
    """Metrics are flushed before the checkpoint gets its name, whatever a power cut takes."""
    events = []
    real_fsync, real_replace = os.fsync, os.replace

    def fsync(descriptor):
        events.append(os.path.basename(os.readlink(f"/proc/self/fd/{descriptor}")))
        real_fsync(descriptor)

    def rename(source, target):
        events.append(os.path.basename(target))
        real_replace(source, target)

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(os, "replace", rename)
    train(make_config(steps=4, eval_every=4, checkpoint_every=2))
    first, second = (events.index(name) for name in ("step_000002", "step_000004"))
    assert "metrics.jsonl" in events[:first]
    assert "metrics.jsonl" in events[first:second]


def test_a_finished_run_resumes_to_its_result(make_config):
    first = train(make_config())
    before = weights(first.run)
    again = train(resume=first.run)
    assert replace(again, seconds=0) == replace(first, seconds=0)
    assert again.seconds == pytest.approx(first.seconds)
    assert weights(first.run) == before
    assert len(json.loads((first.run / "manifest.json").read_text())["starts"]) == 2


def test_a_resumed_run_reads_its_own_tokens_even_if_the_source_is_gone(make_config, straight, text_file):
    stopped = train(make_config(run="stopped"), callbacks=[At(3, send(signal.SIGINT))])
    text_file.unlink()
    train(resume=stopped.run)
    assert metrics(stopped.run) == straight()[0]


def test_the_same_seed_gives_the_same_losses_and_another_seed_others(make_config, straight):
    same, other = [metrics(train(make_config(run=f"seed{seed}", seed=seed)).run) for seed in (0, 1)]
    assert same == straight()[0]
    assert all(a["loss"] != b["loss"] for a, b in zip(same, other, strict=True))


def test_gradient_checkpointing_changes_no_bit(make_config, straight):
    saving = train(make_config(gradient_checkpointing=True))
    assert (metrics(saving.run), weights(saving.run)) == straight()[:2]


def test_a_bfloat16_run_stores_half_the_bytes_and_learns(make_config):
    result = train(make_config(dtype="bfloat16", steps=40, eval_every=40, checkpoint_every=40))
    found = latest_valid(result.run / "checkpoints")
    assert {array.dtype.name for array in found.tensors["model"].values()} == {"bfloat16"}
    assert any(name.endswith(".master") for name in found.tensors["optimizer"])
    losses = [record["loss"] for record in metrics(result.run)]
    assert losses[-1] < losses[0] - 1.0


def test_clipping_limits_what_the_optimizer_sees(make_config, make_trainer):
    trainer = make_trainer(make_config(steps=1, clip=1e-3))
    seen = []
    trainer.update.optimizer.step = lambda lr, grad_scale: seen.append(grad_scale)
    trainer.fit()
    assert seen[0] * metrics(trainer.run.path)[0]["grad_norm"] == pytest.approx(1e-3, rel=1e-4)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_finishes_the_step_and_saves_it(make_config, number):
    before = signal.getsignal(number)
    result = train(make_config(), callbacks=[At(3, send(number))])
    assert result.interrupted == number
    assert result.steps == 3
    assert math.isnan(result.bits_per_byte)
    assert latest_valid(result.run / "checkpoints").step == 3
    assert metrics(result.run)[-1]["step"] == 3
    assert signal.getsignal(number) == before


def test_a_signal_in_the_last_step_is_a_finished_run(make_config):
    assert train(make_config(), callbacks=[At(12, send(signal.SIGINT))]).interrupted is None


@pytest.fixture
def interruptible():
    """SIGINT as a program has it that somebody started; a test runner may have other plans."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def test_a_second_ctrl_c_stops_at_once(make_config, interruptible):
    def twice():
        send(signal.SIGINT)()
        send(signal.SIGINT)()

    with pytest.raises(KeyboardInterrupt):
        train(make_config(), callbacks=[At(3, twice)])


def test_outside_the_main_thread_signals_are_left_alone():
    found = []

    def body():
        with StopSignal() as stop:
            found.append((stop.number, signal.getsignal(signal.SIGINT)))

    before = signal.getsignal(signal.SIGINT)
    thread = threading.Thread(target=body)
    thread.start()
    thread.join()
    assert found == [(None, before)]


def poison(trainer, name, value):
    """Make one weight bad, as a broken update would."""
    return lambda: trainer.model.named_parameters()[name].data.reshape(-1).__setitem__(0, value)


def test_a_loss_that_is_not_finite_stops_the_run_and_says_where_it_began(make_config, make_trainer):
    recorder = Recorder()
    trainer = make_trainer(make_config(checkpoint_every=2), [recorder])
    trainer.callbacks = [recorder, At(3, poison(trainer, "norm.weight", np.nan))]
    with pytest.raises(NonFiniteError) as caught:
        trainer.fit()
    message = str(caught.value)
    assert "step 4: the loss is not finite" in message
    assert "micro-batch 1 of 2" in message
    assert "in norm: first non-finite result" in message
    assert "\n" not in message
    assert "step_000002" in message
    assert latest_valid(trainer.run.checkpoints).step == 2
    assert recorder.events[-1] == ("stop", None)
    assert metrics(trainer.run.path)[-1]["step"] == 3


def test_no_update_is_made_of_a_gradient_that_is_not_finite(make_config, make_trainer, monkeypatch):
    monkeypatch.setattr("nn.optim.adamw.grad_norm", lambda parameters: math.inf)
    trainer = make_trainer(make_config())
    before = {name: p.data.copy() for name, p in trainer.model.named_parameters().items()}
    message = r"step 1: the gradient norm is not finite; every single .*no checkpoint was written yet"
    with pytest.raises(NonFiniteError, match=message):
        trainer.fit()
    for name, p in trainer.model.named_parameters().items():
        np.testing.assert_array_equal(p.data, before[name])
    assert trainer.update.optimizer.steps == 0
    assert not checkpoints(trainer.run.checkpoints)


def test_after_a_bad_number_the_run_resumes_from_the_last_checkpoint(make_config, make_trainer, straight):
    trainer = make_trainer(make_config(run="bad"))
    trainer.callbacks = [At(6, poison(trainer, "norm.weight", np.inf))]
    with pytest.raises(NonFiniteError, match=r"last good checkpoint: .*step_000005"):
        trainer.fit()
    trainer.run.close()
    resumed = train(resume=trainer.run.path)
    assert weights(resumed.run) == straight()[1]


def test_trained_weights_can_be_read_back(make_config):
    result = train(make_config())
    model, tokenizer = load_trained(result.run)
    assert not model.training
    assert tokenizer.vocab_size == model.config.vocab_size
    by_step, _ = load_trained(result.run / "checkpoints" / "step_000012")
    for name, array in model.state_dict().items():
        np.testing.assert_array_equal(by_step.state_dict()[name], array)


def test_a_run_without_checkpoint_cannot_be_read(make_config, make_trainer):
    trainer = make_trainer(make_config())
    with pytest.raises(InputError, match="no checkpoint yet"):
        load_trained(trainer.run.path)
