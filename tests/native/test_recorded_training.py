"""Recorded training steps: the same bits as kernel by kernel, and what cannot be recorded."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from nn.backends import native, use_backend
from nn.errors import InputError
from nn.models import MoETransformer
from nn.models.hooks import Hook
from nn.models.presets import TINY
from nn.optim import create_optimizer
from nn.train.recorded import MOST, Recorded
from nn.train.update import HostUpdate
from tests.native.test_training import MODELS

pytestmark = pytest.mark.skipif(native.missing() is not None, reason=str(native.missing()))


def update_of(model: Any, recorded: bool = True) -> HostUpdate:
    optimizer = create_optimizer("adamw", model.named_parameters(), lr=1e-2)
    return HostUpdate(model, optimizer, clip=1.0, seed=0, recorded=recorded)


def recording(update: HostUpdate) -> Recorded:
    assert update.recorded is not None
    assert update.recorded.recorded is not None
    return update.recorded.recorded


def refused(update: HostUpdate) -> str:
    """Why nothing was recorded"""
    assert update.recorded is not None
    assert update.recorded.recorded is None
    return update.recorded.why


def batch(step: int, rows: int = 3, length: int = 33) -> tuple[np.ndarray, np.ndarray]:
    ids = np.random.default_rng(step).integers(0, 200, size=(rows, length + 1))
    return ids[:, :-1], ids[:, 1:]


def steps(update: HostUpdate, batches: list[Any]) -> list[Any]:
    return [update([each], step=1 + i, lr=1e-2) for i, each in enumerate(batches)]


def bits(model: Any) -> dict[str, bytes]:
    return {name: values.tobytes() for name, values in model.state_dict().items()}


def assert_same(found: list[Any], expected: list[Any]) -> None:
    for (metrics, norm), (right, right_norm) in zip(found, expected, strict=True):
        assert norm == right_norm
        assert metrics.keys() == right.keys()
        for name, value in right.items():
            np.testing.assert_array_equal(metrics[name], value, strict=True)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", MODELS)
def test_the_same_bits_as_kernel_by_kernel(name: str, dtype: str) -> None:
    eager, model = MODELS[name](dtype), MODELS[name](dtype)
    batches = [batch(0), batch(1), batch(2), batch(3, rows=2), batch(4), batch(2)]
    with use_backend("native"):
        expected = steps(update_of(eager, recorded=False), batches)
    update = update_of(model)
    assert_same(steps(update, batches), expected)
    assert bits(model) == bits(eager)
    done = recording(update)
    assert done.step.calls > 50
    assert done.step.memory["planned"] <= done.step.memory["eager"]


def test_other_weights_are_not_overlooked() -> None:
    update, eager = (update_of(MoETransformer.tiny(seed=1), recorded) for recorded in (True, False))
    steps(update, [batch(0)] * 3)
    with use_backend("native"):
        steps(eager, [batch(0)] * 3)
        for each in (update, eager):
            parameter = each.model.layers[0].self_attn.q_proj.weight
            parameter.data = parameter.data * np.float32(2.0)
        expected = steps(eager, [batch(1), batch(2)])
    assert_same(steps(update, [batch(1), batch(2)]), expected)


def test_an_id_that_is_none_is_named() -> None:
    update = update_of(MoETransformer.tiny())
    steps(update, [batch(0)] * 2)
    recording(update)
    inputs, targets = batch(1)
    with pytest.raises(InputError, match=r"ids\[1, 2\]"):
        update([(np.where(np.arange(99).reshape(3, 33) == 35, 10**6, inputs), targets)], step=3, lr=1e-2)


def test_a_loss_that_is_not_finite_leaves_the_weights() -> None:
    update = update_of(MoETransformer.tiny())
    steps(update, [batch(0)] * 2)
    update.model.norm.weight.data[0] = np.nan
    before = bits(update.model)
    (metrics, norm), = steps(update, [batch(1)])
    assert np.isnan([metrics["loss"], norm]).all()
    assert bits(update.model) == before


def noisy() -> MoETransformer:
    return MoETransformer(replace(TINY, router_jitter=0.1))


def watched() -> MoETransformer:
    model = MoETransformer.tiny()
    model.hooks.append(Hook())
    return model


def checkpointed() -> MoETransformer:
    model = MoETransformer.tiny()
    model.gradient_checkpointing = True
    return model


def namesake() -> MoETransformer:
    """A class of the caller's with the name of one of ours, which may do anything"""
    model = MoETransformer.tiny()
    mlp = model.layers[0].mlp
    mlp.__class__ = type(type(mlp).__name__, (type(mlp),), {"__module__": "mine"})
    return model


@pytest.mark.parametrize(("make", "why"), [(namesake, "look at values"), (noisy, "random numbers"),
                                           (watched, "hooks"), (checkpointed, "again in backward")])
def test_what_cannot_be_recorded_says_so(make: Any, why: str, caplog: pytest.LogCaptureFixture) -> None:
    update, eager = update_of(make()), update_of(make(), recorded=False)
    with caplog.at_level("INFO", "nn.train"):
        found = steps(update, [batch(i) for i in range(3)])
    assert_same(found, steps(eager, [batch(i) for i in range(3)]))
    assert why in refused(update)
    assert caplog.text.count("cannot be recorded") == 1


def test_several_micro_batches_run_kernel_by_kernel() -> None:
    update = update_of(MoETransformer.tiny())
    for step in (1, 2, 3):
        update([batch(0), batch(1)], step=step, lr=1e-2)
    assert "micro-batches" in refused(update)


def test_shapes_that_change_are_not_recorded_for_ever() -> None:
    update, eager = (update_of(MoETransformer.tiny(seed=1), recorded) for recorded in (True, False))
    batches = [batch(i, rows=1 + i // 2 % 2) for i in range(2 * MOST + 4)]
    with use_backend("native"):
        expected = steps(eager, batches)
    assert_same(steps(update, batches), expected)
    assert "change too often" in refused(update)
    assert bits(update.model) == bits(eager.model)


def test_targets_that_are_no_integers_are_refused() -> None:
    update = update_of(MoETransformer.tiny())
    steps(update, [batch(0)] * 2)
    recording(update)
    inputs, targets = batch(1)
    with pytest.raises(InputError, match="targets"):
        update([(inputs, targets + 0.5)], step=3, lr=1e-2)
