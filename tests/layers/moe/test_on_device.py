"""Every choice of a router on the emulated device: what it computes here; recorded training steps."""

from typing import Any

import numpy as np
import pytest

from cuda.nn.device import EmulatedDevice
from nn.layers import auxiliary
from nn.layers.moe.block import Mixture, MixtureSettings
from nn.layers.moe.expert_choice import ExpertChoice, ExpertChoiceSettings
from nn.models import LanguageModel, LanguageModelConfig
from nn.optim import AdamW
from nn.tensor import Tensor
from nn.train.gpu_trainer import GpuTrainer
from nn.train.update import HostUpdate
from tests.blocks.harness import close, shaken

ALL = {"switch": 0.3, "gshard": 0.3, "importance": 0.2, "sequence": 0.2, "token_entropy": 0.1,
       "usage_entropy": 0.1, "switch_global": 0.1}
SMALL = {"hidden_size": 6, "intermediate_size": 4, "num_experts": 6}
TRAINING: dict[str, dict[str, Any]] = {
    "every loss": {"balance": ALL, "router_z_coef": 0.1},
    "sigmoid": {"score": "sigmoid", "balance": ALL, "bias_update_rate": 0.01, "n_group": 3, "topk_group": 2},
    "noise": {"noisy_topk": True, "router_jitter": 0.2, "balance": {"load": 0.3}},
    "jittered experts": {"router_jitter": 0.2, "jitter_affects_experts": True},
    "capacity": {"capacity_factor": 0.6, "min_capacity": 1, "renormalize_after_drop": True},
    "slots": {"capacity_factor": 0.6, "min_capacity": 1, "drop_policy": "slot", "score": "sqrtsoftplus"},
}


def results(block: Any, x: Any, mask: Any) -> dict[str, np.ndarray]:
    """y, the losses, the figures, and all gradients of their sum"""
    x = Tensor(x, requires_grad=True)
    with auxiliary.collect() as emitted:
        y, _ = block(x, mask=mask)
    total = (y * y).sum()
    for _, loss in emitted.losses:
        total = total + loss
    total.backward()
    found = {"y": y.data, "x.grad": x.grad} | {name: loss.data for name, loss in emitted.losses}
    found |= {f"figure {name}": value for name, value in emitted.figures}
    found |= {f"{name}.grad": p.grad for name, p in block.named_parameters().items() if p.grad is not None}
    return {name: np.asarray(value.numpy() if hasattr(value, "numpy") else value)
            for name, value in found.items()}


def same(block: Any, twin: Any, fast: EmulatedDevice, padded: bool) -> None:
    x = np.random.default_rng(1).standard_normal((2, 6, 6)).astype(np.float32)
    mask = np.arange(6) >= np.array([[2], [0]]) if padded else None
    here, there = results(block, x, mask), results(twin.to(fast), fast.asarray(x), mask)
    assert here.keys() == there.keys()
    for name, value in here.items():
        close(there[name], value, 2e-4)


EXAMPLES = {name: settings for name, settings in MixtureSettings.examples().items() if name}


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("name", EXAMPLES)
def test_examples(name: str, padded: bool, fast: EmulatedDevice) -> None:
    block, twin = (shaken(Mixture(EXAMPLES[name]), 1) for _ in range(2))
    same(block, twin, fast, padded)


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("name", TRAINING)
def test_training(name: str, padded: bool, fast: EmulatedDevice) -> None:
    settings = MixtureSettings.create(**SMALL | TRAINING[name])
    block, twin = (shaken(Mixture(settings), 1).train() for _ in range(2))
    same(block, twin, fast, padded)
    if block.moe.router.counts is not None:
        np.testing.assert_array_equal(twin.moe.router.counts.numpy(), block.moe.router.counts)
        for each in (block, twin):
            each.moe.router.finish_step(taken=True)
        bias = "moe.router.e_score_correction_bias"
        if bias in block.state_dict():
            np.testing.assert_allclose(twin.state_dict()[bias], block.state_dict()[bias], rtol=1e-6)


@pytest.mark.parametrize("padded", [False, True])
def test_expert_choice(padded: bool, fast: EmulatedDevice) -> None:
    settings = ExpertChoiceSettings.create(**SMALL, capacity_factor=1.5, router_z_coef=0.1)
    block, twin = (shaken(ExpertChoice(settings), 1) for _ in range(2))
    same(block, twin, fast, padded)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_recorded_steps(checkpointing: bool, fast: EmulatedDevice) -> None:
    """Three steps of two micro-batches, the last two replayed: losses, figures, weights and biases are the
    host's; each step draws its own noise."""
    options = {"intermediate_size": 6, "num_experts": 4, "score": "sigmoid", "bias_update_rate": 0.01,
               "noisy_topk": True, "router_jitter": 0.1, "balance": {"switch_global": 0.1, "load": 0.1}}
    config = LanguageModelConfig(vocab_size=31, hidden_size=8, num_layers=2, max_seq_len=16, mixer="none",
                                 feed_forward="moe", options={"moe": options})
    here, there = LanguageModel(config, seed=1), LanguageModel(config, seed=1)
    there.gradient_checkpointing = checkpointing                   # counts each pair once all the same
    host = HostUpdate(here, AdamW(here.named_parameters(), lr=1e-2), clip=1.0, seed=0)
    trainer, random = GpuTrainer(there, device=fast, lr=1e-2), np.random.default_rng(0)
    for step in (1, 2, 3):
        batches = [tuple(random.integers(0, 31, (2, 2, 10))) for _ in range(2)]
        right, norm = host(batches, step=step, lr=1e-2)
        found, their_norm = trainer(batches, step=step, lr=1e-2)
        assert their_norm == pytest.approx(norm, rel=1e-3)
        for name, value in right.items():
            np.testing.assert_allclose(found[name], value, rtol=2e-3, atol=1e-5, err_msg=name)
    bias = "body.layers.0.feed_forward.moe.router.e_score_correction_bias"
    ours, theirs = here.state_dict(), there.state_dict()
    assert ours[bias].any()
    for name, value in ours.items():
        np.testing.assert_allclose(theirs[name], value, rtol=2e-3, atol=2e-4, err_msg=name)
