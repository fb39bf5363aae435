"""Muon on the emulated device: step by step what it is on the host, recorded and replayed."""

from typing import Any

import numpy as np
import pytest

from cuda.nn.device import EmulatedDevice
from nn import MoETransformer, MoETransformerConfig
from nn.errors import InputError
from nn.layers.module import Parameter
from nn.optim import Muon
from nn.optim.device_muon import DeviceMuon
from nn.train.config import TrainConfig
from nn.train.gpu_trainer import GpuTrainer
from nn.train.update import create_update

SHAPES = {"norm": (5,), "gate_up_proj": (2, 6, 4), "embedding": (7, 5), "tall": (7, 3), "bias": (3,),
          "wide": (3, 7)}
MODEL = MoETransformerConfig(vocab_size=23, hidden_size=16, num_layers=1, num_heads=2, intermediate_size=8,
                             num_experts=2, max_seq_len=16, init_std=0.1)


def parameters(dtype: str = "float32") -> dict[str, Parameter]:
    """Three are matrices, or hold several; one has no gradient."""
    rng, made = np.random.default_rng(0), {}
    for name, shape in SHAPES.items():
        made[name] = Parameter(shape, dtype=dtype, decay=name in ("gate_up_proj", "tall", "wide"))
        made[name].data = rng.standard_normal(shape).astype(made[name].dtype)
    return made


def gradients(step: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(step + 1)
    return {name: rng.standard_normal(shape).astype(np.float32) for name, shape in SHAPES.items()
            if name != "bias"}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("settings", [{}, {"scale": "original", "nesterov": False, "adamw_lr_scale": 0.25},
                                      {"scale": "spectral", "ns_steps": 3, "adamw": ("tall",)}], ids=str)
def test_steps_are_those_of_the_host(settings: dict[str, Any], dtype: str, fast: EmulatedDevice) -> None:
    ours, theirs = parameters(dtype), parameters(dtype)
    for p in theirs.values():
        p.to(fast)
    host = Muon(ours, lr=0.05, weight_decay=0.3, **settings)
    there = DeviceMuon(theirs, lr=0.05, weight_decay=0.3, max_norm=None, **settings)
    assert sorted(there.matrices) == sorted(host.matrices)
    for step in range(3):
        for name, gradient in gradients(step).items():
            ours[name].grad, theirs[name].grad = gradient, fast.asarray(gradient)
        host.step()
        there.step()
        there.taken()
    found, expected = there.state_dict(), host.state_dict()
    assert found.keys() == expected.keys()
    for name in found:
        np.testing.assert_allclose(found[name], expected[name], rtol=1e-4, atol=1e-5)
    for name, p in ours.items():
        found, expected = (values.astype(np.float32) for values in (theirs[name].numpy(), p.data))
        np.testing.assert_allclose(found, expected, atol=1e-5 if dtype == "float32" else 0.01)


def test_a_gradient_that_is_not_finite_changes_nothing(fast: EmulatedDevice) -> None:
    made = parameters()
    for p in made.values():
        p.to(fast)
    optimizer = DeviceMuon(made, lr=0.05)
    for bad in (False, True):
        for name, gradient in gradients(0).items():
            made[name].grad = fast.asarray(gradient * np.float32(np.nan if bad and name == "norm" else 1.0))
        before = [p.numpy() for p in made.values()] + list(optimizer.state_dict().values())
        optimizer.step()
        optimizer.steps += not bad
        after = [p.numpy() for p in made.values()] + list(optimizer.state_dict().values())
        assert not bad or all(np.array_equal(one, other) for one, other in zip(before, after, strict=True))


def test_a_run_goes_on_where_the_host_was(fast: EmulatedDevice) -> None:
    """Two steps there, four here, the first queued, the others replayed; the same as six there."""
    config = TrainConfig(model=MODEL, seq_len=16, optimizer="muon", clip=0.5,
                         optimizer_options={"momentum": 0.8})
    ids = np.random.default_rng(0).integers(0, 23, (2, 9))
    batches = [(ids[:, :-1], ids[:, 1:])]

    def losses(update: Any, steps: range) -> list[float]:
        return [update(batches, step=step, lr=0.02)[0]["loss"] for step in steps]

    whole, begun = MoETransformer(MODEL), MoETransformer(MODEL)
    expected = losses(create_update(whole, config), range(1, 7))
    first = create_update(begun, config)
    losses(first, range(1, 3))
    model = MoETransformer(MODEL)
    model.load_state_dict(begun.state_dict())
    second = create_update(model.to(fast), config)
    assert isinstance(second, GpuTrainer)
    second.optimizer.load_state_dict(first.optimizer.state_dict())
    np.testing.assert_allclose(losses(second, range(3, 7)), expected[2:], rtol=2e-4)
    assert expected[-1] < expected[2]
    assert [step.graph is not None for step in second._steps.values()] == [True]


def test_bad_settings_are_named(fast: EmulatedDevice) -> None:
    model = MoETransformer(MODEL).to(fast)
    for settings, message in (({"optimizer": "muon", "optimizer_options": {"nesterof": True}}, "nesterov"),
                              ({"optimizer": "adamw", "optimizer_options": {"momentum": 0.5}}, "momentum"),
                              ({"optimizer": "lion"}, "lion")):
        with pytest.raises(InputError, match=message):
            GpuTrainer(model, **settings)
