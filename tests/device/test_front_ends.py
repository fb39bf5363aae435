"""LMModel and NeoFormerX on the emulated device: what they compute here they compute there, states too."""

from typing import Any

import numpy as np
import pytest

from cuda.nn.device import EmulatedDevice
from nn.models import LMModel, NeoFormerX
from nn.models.lm_config import ModelConfig
from nn.models.neoformer_config import preset
from nn.tensor import no_grad
from tests.blocks.harness import close

IDS = np.arange(12).reshape(2, 6)


@pytest.mark.parametrize("pattern", ["attention", "MA", "mla"])
def test_lm_model(pattern: str, fast: EmulatedDevice) -> None:
    config = ModelConfig(vocab_size=50, hidden_size=16, n_layers=2, n_heads=4, block_pattern=pattern)
    here, there, found = LMModel(config), LMModel(config).to(fast), []
    with no_grad():
        for model in (here, there):
            first, state = model(IDS)
            second, state = model(IDS[:, :1], state=state)
            assert state.position == 7
            found.append([first.numpy(), second.numpy()])
    for ours, theirs in zip(*found, strict=True):
        close(theirs, ours, 1e-4)


def test_neoformer_x(fast: EmulatedDevice) -> None:
    """Logits, past, trimming, the write, and the text"""
    config = preset("125M", vocab_size=50, d_model=16, nhead=4, kv_heads=2, layers=2, mem_size=4, rules=3,
                    rdim=5, max_seq_len=8)
    here, there = NeoFormerX(config), NeoFormerX(config).to(fast)
    found: list[list[Any]] = []
    for model in (here, there):
        logits, _, delta = model(IDS, update=True)
        logits.sum().backward()
        model.rmc.apply_update(delta, lr=0.5)
        with no_grad():
            _, past, _ = model(IDS)
            past = [(k[:, :, -3:, :], v[:, :, -3:, :]) for k, v in past]
            rest, _, _ = model(IDS[:, :2], past=past)
        values = [model.rmc.memory, model.rmc.memory.grad, logits.data, rest.data]
        found.append([x.numpy() if hasattr(x, "numpy") else x for x in values])
    for ours, theirs in zip(*found, strict=True):
        close(theirs, ours, 1e-4)
    assert np.array_equal(here.generate(IDS, max_new=6, temp=0), there.generate(IDS, max_new=6, temp=0))
