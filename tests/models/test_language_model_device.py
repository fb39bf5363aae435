"""Language models of any blocks on the emulated device: whole training steps, and writing."""

from typing import Any

import numpy as np
import pytest

from cuda.nn.device import EmulatedDevice
from nn.backends.array_api import NotRepeatable, Uploads, beside
from nn.cache import StaticKVCache
from nn.errors import InputError
from nn.generate import SamplingConfig, generate
from nn.models import LanguageModel
from nn.optim import AdamW
from nn.train.constraints import create_constraints
from nn.train.gpu_trainer import GpuTrainer
from nn.train.update import HostUpdate
from tests.models.mixed import ENGRAM, VOCABULARY, config

MOE = {"moe": {"num_experts": 4, "intermediate_size": 6, "router_jitter": 0.1}}
HYBRID: dict[str, Any] = {"mixer": ("retention", "full_attention"), "feed_forward": "moe",
                          "options": MOE, "init_std": 0.1}


def text(steps: int) -> np.ndarray:
    """[steps,B,T+1] ids in which every token follows from the one before"""
    ids = np.empty((steps, 2, 9), np.int64)
    ids[:, :, 0] = np.random.default_rng(0).integers(VOCABULARY, size=(steps, 2))
    for t in range(8):
        ids[:, :, t + 1] = (ids[:, :, t] * 7 + 3) % VOCABULARY
    return ids


def losses(update: Any, ids: np.ndarray) -> list[float]:
    return [update([(x[:, :-1], x[:, 1:])], step=i + 1, lr=1e-2)[0]["loss"] for i, x in enumerate(ids)]


@pytest.mark.parametrize(("changes", "recorded"), [
    (HYBRID, True),
    ({"logit_softcap": 4.0, "embedding_scale": 2.0, "residual": "mhc", "options": {"mhc": {"n_streams": 2}}},
     True),
    ({"mixer": "retention", "memory": "engram", "options": {"engram": ENGRAM}}, False),
    ({"mixer": "retention", "prelude": ("nsb",), "options": {"nsb": {"rules": 4, "dropout": 0.5}}}, False)],
    ids=["hybrid with experts", "softcap and streams", "ids read back", "drawn on the host"])
def test_steps_follow_the_cpu(changes: dict[str, Any], recorded: bool, fast: EmulatedDevice,
                              caplog: pytest.LogCaptureFixture) -> None:
    """The first queued, the second recorded, the others replayed; or all queued, which is said"""
    ids, shape = text(4), config(**changes)
    here, there = LanguageModel(shape, seed=2), LanguageModel(shape, seed=2)
    here.constraints = there.constraints = create_constraints({"smoothness": {"weight": 0.5}})
    expected = losses(HostUpdate(here, AdamW(here.named_parameters(), lr=1e-2), clip=1.0, seed=0), ids)
    trainer = GpuTrainer(there, device=fast)
    assert losses(trainer, ids) == pytest.approx(expected, rel=2e-4)
    assert len(set(expected)) == 4
    assert ("queued kernel by kernel" in caplog.text) != recorded
    assert all((step.graph is not None) == recorded for step in trainer._steps.values())


def test_what_is_uploaded_again_must_be_the_same(fast: EmulatedDevice) -> None:
    """And untouched: a recording would go on with what the first run left there"""
    like, uploads = fast.zeros((1,), np.float32), Uploads()
    with uploads.keeping():
        first = beside(np.array([1.0, np.nan]), like)
    with uploads.reusing():
        assert beside(np.array([1.0, np.nan]), like) is first
        with pytest.raises(NotRepeatable, match="changes from step to step"):
            beside(np.array([1.0]), like)
    with uploads.reusing(), pytest.raises(NotRepeatable, match="changes from step to step"):
        beside(np.array([1.0, 2.0]), like)
    first[:1] = 3.0
    with pytest.raises(NotRepeatable, match="written into"), uploads.reusing():
        raise AssertionError("not reached")
    assert beside(np.array([1.0]), like) is not beside(np.array([1.0]), like)


@pytest.mark.parametrize("mixer", ["full_attention", ("sliding_attention", "gated_attention"),
                                   ("retention", "full_attention"), "mamba"])
def test_writing_gives_the_cpus_tokens(mixer: Any, fast: EmulatedDevice) -> None:
    """By a recorded step and a cache of fixed size, where there is nothing but attention; else by states"""
    sampling = SamplingConfig(temperature=0, max_tokens=8)
    expected = list(generate(LanguageModel(config(mixer), seed=2), [3, 1, 4], sampling))
    model = LanguageModel(config(mixer), seed=2).to(fast)
    assert (model.static_problem == "") == ("retention" not in mixer and mixer != "mamba")
    assert list(generate(model, [3, 1, 4], sampling)) == expected


WIDE: dict[str, Any] = {"max_seq_len": 8, "options": {"sliding_attention": {
    "num_heads": 2, "num_kv_heads": 1, "window": 6}}}


@pytest.mark.parametrize(("mixer", "prompt"), [
    ("sliding_attention", 3), ("sliding_attention", 11),
    (("full_attention", "sliding_attention"), 3)], ids=str)
def test_windows_are_whole_past_the_context(mixer: Any, prompt: int, fast: EmulatedDevice) -> None:
    """A cache of fixed size drops half of what it holds, which is less than a window here"""
    ids, sampling = list(range(prompt)), SamplingConfig(temperature=1, max_tokens=24, seed=3)
    expected = list(generate(LanguageModel(config(mixer, **WIDE), seed=2), ids, sampling))
    model = LanguageModel(config(mixer, **WIDE), seed=2).to(fast)
    assert model.static_problem == ""
    assert list(generate(model, ids, sampling)) == expected
    assert len(set(expected)) > 2


@pytest.mark.parametrize(("changes", "message"), [
    ({"mixer": "retention"}, "does not serve retention"), ({"prelude": ("nsb",)}, "layers alone"),
    ({"positions": "learned"}, "layers alone")])
def test_a_cache_of_fixed_size_is_refused(changes: dict[str, Any], message: str) -> None:
    made = LanguageModel(config(**changes), seed=2)
    cache = StaticKVCache(2, 1, 8, like=made.embed_tokens.weight.data)
    with pytest.raises(InputError, match=message):
        made(np.array([[1, 2]]), cache=cache)
