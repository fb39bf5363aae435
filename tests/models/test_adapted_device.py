"""Training of adapters alone, and of modules that predict further ahead, on the emulated device: step by step
what the CPU does."""

from typing import Any

import numpy as np

from cuda.nn.device import EmulatedDevice
from nn.layers.lora import LoRA, LoRASettings
from nn.models.language_model import LanguageModel, LanguageModelConfig
from nn.optim import AdamW
from nn.train.gpu_trainer import GpuTrainer
from nn.train.update import HostUpdate

CONFIG = LanguageModelConfig(vocab_size=23, hidden_size=16, num_layers=1, max_seq_len=16, init_std=0.2,
                             feed_forward="moe", options={
                                 "full_attention": {"num_heads": 2, "num_kv_heads": 1, "qk_norm": "head"},
                                 "moe": {"num_experts": 3, "intermediate_size": 8}})
TARGETS = ("q_proj", "v_proj", "experts.gate_up_proj", "experts.down_proj")


def losses(update: Any, steps: int = 4) -> list[float]:
    """The first step is queued, the second recorded, the others replayed."""
    ids = np.random.default_rng(0).integers(0, 23, (2, 9))
    return [update([(ids[:, :-1], ids[:, 1:])], step=i + 1, lr=2e-2)[0]["loss"] for i in range(steps)]


def on_host(model: LanguageModel) -> list[float]:
    return losses(HostUpdate(model, AdamW(model.named_parameters(), lr=2e-2), clip=1.0, seed=0))


def test_adapters_train_as_on_the_host(fast: EmulatedDevice) -> None:
    here, there = LanguageModel(CONFIG), LanguageModel(CONFIG)
    LoRA(here, LoRASettings(r=2, targets=TARGETS))
    lora = LoRA(there.to(fast), LoRASettings(r=2, targets=TARGETS))
    before = {name: p.numpy() for name, p in there.named_parameters().items() if not p.requires_grad}
    expected = on_host(here)
    assert expected[-1] < expected[0]
    trainer = GpuTrainer(there, lr=2e-2, clip=1.0)
    np.testing.assert_allclose(losses(trainer), expected, rtol=2e-4)
    for name, values in before.items():
        np.testing.assert_array_equal(there.named_parameters()[name].numpy(), values)
    ids = np.arange(8)[None]
    adapted = there(ids).numpy()
    lora.merge()
    np.testing.assert_allclose(there(ids).numpy(), adapted, atol=1e-4)


def test_dropout_hides_the_same_inputs(fast: EmulatedDevice) -> None:
    here, there = LanguageModel(CONFIG), LanguageModel(CONFIG).to(fast)
    for model in (here, there):
        LoRA(model, LoRASettings(r=2, targets=("v_proj",), dropout=0.5))
    trainer = GpuTrainer(there, lr=2e-2, clip=1.0)
    np.testing.assert_allclose(losses(trainer, steps=3), on_host(here)[:3], rtol=2e-4)


def test_tokens_further_ahead(fast: EmulatedDevice) -> None:
    config = CONFIG.replace(mtp_depth=2)
    expected = on_host(LanguageModel(config))
    assert expected[-1] < expected[0]
    trainer = GpuTrainer(LanguageModel(config).to(fast), lr=2e-2, clip=1.0)
    np.testing.assert_allclose(losses(trainer), expected, rtol=2e-4)
    assert trainer.metrics["mtp"] > 0.0
    assert trainer.metrics["mtp/loss"].shape == (2,)
