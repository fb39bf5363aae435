"""A run that is killed, stopped or goes back in the middle of recorded steps ends with the bits of one that
was left alone: weights, moments, masters and every figure.

The first step of a life runs kernel by kernel, the second is recorded, the others are replayed.  So a later
life's first steps fall where the straight run's are replayed: both ways must have the same bits."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from nn.backends import native
from nn.config import load, save
from nn.train import Callback, TrainConfig, latest_valid, train
from nn.train.metrics import read_metrics
from nn.train.recorded import Recorded

pytestmark = pytest.mark.skipif(native.missing() is not None, reason=str(native.missing()))
SOURCE = Path(__file__).parents[2]
LIFE = "import sys; from tests.train.test_recorded import life; life(sys.argv[1], *map(int, sys.argv[2:]))"
STEPS, CUT = 14, 7          # CUT: the step that is cut short, which is not saved by itself
Kind = tuple[str, str]      # optimizer, dtype
Left = tuple[list[dict[str, Any]], dict[str, bytes]]
KINDS: list[Kind] = [("adamw", "float32"), ("adamw", "bfloat16"), ("muon", "bfloat16")]


def watch(then: Callable[[int], None] = lambda step: None) -> list[int]:
    """The steps replayed with the optimizer's behind them, from now on; `then` gets each, its weights being
    changed and nothing else done."""
    replayed, run = list[int](), Recorded.run

    def watched(self: Recorded, optimizer: Any, clip: float | None, lr: float) -> float | None:
        norm = run(self, optimizer, clip, lr)
        if self.together is not None:
            replayed.append(optimizer.steps)
            then(optimizer.steps)
        return norm

    Recorded.run = watched      # type: ignore[method-assign,assignment]
    return replayed


@pytest.fixture(autouse=True)
def as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Recorded, "run", Recorded.run)      # what watch() sets goes after the test
    monkeypatch.setattr("nn.train.job.draw_loss", lambda folder: None)
    monkeypatch.delenv("NN_BACKEND", raising=False)


def life(config_file: str, step: int, number: int) -> None:
    """Train, and get a signal in a step; says which steps were replayed."""
    def cut(done: int) -> None:
        os.write(1, b"%d " % done)
        if done == step:
            os.kill(os.getpid(), number)

    watch(cut)
    train(load(config_file, TrainConfig))


def left(run: Path) -> Left:
    """What a run leaves: its metrics without times, and the newest checkpoint's tensors."""
    found = latest_valid(run / "checkpoints")
    assert found is not None
    assert found.step == STEPS
    figures = [{name: value for name, value in record.items() if name != "tokens_per_second"}
               for record in read_metrics(run / "metrics.jsonl")]
    return figures, {path.name: path.read_bytes() for path in found.path.glob("*.safetensors")}


def assert_same(found: Left, expected: Left) -> None:
    for record, right in zip(found[0], expected[0], strict=True):
        assert record == right
    assert found[1].keys() == expected[1].keys()
    for name, content in expected[1].items():
        assert found[1][name] == content, name


class Fails(Callback):
    """Once, before the step is saved."""

    fails = True

    def on_step(self, record: dict[str, Any]) -> None:
        if self.fails and record["step"] == CUT:
            self.fails = False
            raise RuntimeError("for once")


@pytest.fixture
def config(make_config: Any) -> Callable[..., TrainConfig]:
    """One micro-batch and no noise, or nothing would be recorded; every gradient is clipped."""
    def make(run: str, kind: Kind) -> TrainConfig:
        optimizer, dtype = kind
        made: TrainConfig = make_config(
            run=run, optimizer=optimizer, dtype=dtype, steps=STEPS, accumulate=1, clip=0.01, eval_every=3,
            model={"router_jitter": 0.0, "num_layers": 2, "num_experts": 4, "top_k": 2})
        return made

    return make


@pytest.fixture(scope="module")
def finished() -> dict[Kind, Left]:
    return {}


@pytest.fixture
def straight(config: Any, finished: dict[Kind, Left]) -> Callable[[Kind], Left]:
    """What the run that was left alone leaves."""
    def run(kind: Kind) -> Left:
        if kind not in finished:
            replayed = watch()
            finished[kind] = left(train(config("straight", kind)).run)
            assert replayed == list(range(3, STEPS + 1))
        return finished[kind]

    return run


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM], ids=["killed", "stopped"])
@pytest.mark.parametrize("kind", KINDS, ids="-".join)
def test_a_cut_in_a_recorded_step_changes_no_bit(
        kind: Kind, number: signal.Signals, tmp_path: Path, config: Any, straight: Any) -> None:
    expected = straight(kind)
    file, run = tmp_path / "cut.yaml", tmp_path / "cut"
    save(config("cut", kind), file)
    done = subprocess.run([sys.executable, "-c", LIFE, file, str(CUT), str(int(number))], cwd=SOURCE,
                          capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == (-number if number == signal.SIGKILL else 0), done.stderr
    assert [int(step) for step in done.stdout.split()] == list(range(3, CUT + 1))

    saved = latest_valid(run / "checkpoints")
    assert saved is not None
    assert 4 <= saved.step <= CUT
    assert (saved.step == CUT) == (number == signal.SIGTERM)        # which finishes the step, and saves
    replayed = watch()
    train(resume=run)
    assert replayed == list(range(saved.step + 3, STEPS + 1))
    assert_same(left(run), expected)


@pytest.mark.parametrize("kind", KINDS, ids="-".join)
def test_a_trainer_that_goes_back_to_its_checkpoint_changes_no_bit(
        kind: Kind, config: Any, make_trainer: Any, straight: Any) -> None:
    """Weights and moments lie elsewhere then; the recorded step must not move those that it knew."""
    expected, replayed = straight(kind), watch()
    trainer = make_trainer(config("back", kind), [Fails()])
    with pytest.raises(RuntimeError, match="for once"):
        trainer.fit()
    assert replayed == list(range(3, CUT + 1))
    back = trainer.resume()
    assert 4 <= back < CUT
    trainer.fit()
    assert replayed[CUT - 2:] == list(range(back + 2, STEPS + 1))       # step back + 1 was recorded anew
    assert_same(left(trainer.run.path), expected)


@pytest.mark.parametrize("kind", KINDS, ids="-".join)
def test_gradients_of_a_step_that_failed_are_not_added_to(
        kind: Kind, config: Any, make_trainer: Any, straight: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    expected, trainer = straight(kind), make_trainer(config("failed", kind))
    optimizer = trainer.update.optimizer
    finish = optimizer._finish

    def fails_once(*arguments: Any) -> None:
        if optimizer.steps >= CUT:
            monkeypatch.setattr(optimizer, "_finish", finish)
            raise RuntimeError("for once")
        finish(*arguments)

    monkeypatch.setattr(optimizer, "_finish", fails_once)
    with pytest.raises(RuntimeError, match="for once"):
        trainer.fit()
    trainer.resume()
    trainer.fit()
    assert_same(left(trainer.run.path), expected)


@pytest.mark.parametrize("kind", KINDS, ids="-".join)
def test_the_straight_run_clips_and_has_masters(kind: Kind, straight: Any) -> None:
    """What the others compare is what they say"""
    figures, tensors = straight(kind)
    assert len(figures) == STEPS
    assert all(record["grad_norm"] > 0.01 for record in figures)
    assert tensors.keys() == {"model.safetensors", "optimizer.safetensors"}
    assert (b".master" in tensors["optimizer.safetensors"]) == (kind[1] == "bfloat16")
