"""Text written on the emulated device: token for token what the CPU writes."""

from typing import Any

import numpy as np
import pytest

from cuda.nn.device import EmulatedDevice
from nn import MoETransformer
from nn.errors import NonFiniteError
from nn.generate import SamplingConfig, generate, generate_batch
from nn.models.presets import TINY
from nn.train.gpu_trainer import STRATEGIES, GpuTrainer

OPTIONS: dict[str, dict[str, Any]] = {
    "greedy": {"temperature": 0.0}, "sample": {"temperature": 1.0}, "cold": {"temperature": 0.3},
    "top-k": {"temperature": 1.0, "top_k": 7}, "top-p": {"temperature": 1.0, "top_p": 0.7},
    "min-p": {"temperature": 1.0, "min_p": 0.2}, "penalty": {"temperature": 0.0, "repetition_penalty": 1.7},
    "all": {"temperature": 0.9, "top_k": 50, "top_p": 0.9, "min_p": 0.01, "repetition_penalty": 1.2,
            "seed": 5},
}


def models(device: Any, **changes: Any) -> tuple[MoETransformer, MoETransformer]:
    """The same model on the CPU and on the device; peaked, so that roundings decide nothing."""
    config = TINY.replace(init_std=0.2, **changes)
    return MoETransformer(config, seed=3).eval(), MoETransformer(config, seed=3).to(device).eval()


@pytest.mark.parametrize("name", OPTIONS)
def test_every_strategy_writes_what_the_cpu_writes(fast: EmulatedDevice, name: str) -> None:
    here, there = models(fast)
    config = SamplingConfig(max_tokens=16, **OPTIONS[name])
    right = list(generate(here, [1, 2, 3], config))
    assert list(generate(there, [1, 2, 3], config)) == right
    assert len(set(right)) > 1


def test_a_batch(fast: EmulatedDevice) -> None:
    here, there = models(fast)
    config = SamplingConfig(max_tokens=8, temperature=1.0, top_p=0.9)
    prompts = [[1, 2, 3], [9], [4, 5, 6], [7, 7]]
    assert generate_batch(there, prompts, config) == generate_batch(here, prompts, config)


def test_beyond_the_context(fast: EmulatedDevice) -> None:
    here, there = models(fast, max_seq_len=12)
    config = SamplingConfig(max_tokens=30, temperature=1.0)
    assert list(generate(there, [1, 2, 3], config)) == list(generate(here, [1, 2, 3], config))


def test_long_prompt_and_window(fast: EmulatedDevice) -> None:
    here, there = models(fast, sliding_window=6)
    prompt = np.random.default_rng(0).integers(1000, size=40).tolist()
    config = SamplingConfig(max_tokens=6, temperature=1.0)
    assert list(generate(there, prompt, config)) == list(generate(here, prompt, config))


def test_eos_and_smaller_vocabulary(fast: EmulatedDevice) -> None:
    here, there = models(fast)
    config = SamplingConfig(max_tokens=20, temperature=1.0, seed=2)
    right = list(generate(here, [1], config, vocab_size=100))
    assert list(generate(there, [1], config, vocab_size=100)) == right
    stopping = SamplingConfig(max_tokens=20, temperature=1.0, seed=2, eos_ids=(right[5],))
    assert list(generate(there, [1], stopping, vocab_size=100)) == right[: right.index(right[5])]


def test_one_id_comes_back_per_token_and_the_rest_is_replayed(fast: EmulatedDevice) -> None:
    _, there = models(fast)
    tokens = generate(there, [1, 2, 3], SamplingConfig(max_tokens=10, temperature=1.0))
    for _ in range(4):
        next(tokens)
    before = fast.counts()
    next(tokens)
    after = fast.counts()
    assert after.downloaded_bytes - before.downloaded_bytes == 8
    assert after.uploads == before.uploads
    assert after.allocations == before.allocations
    assert after.graph_launches - before.graph_launches == 1


def test_no_kernel_of_a_step_does_anything_wrong(device: EmulatedDevice) -> None:
    here, there = models(device)
    config = SamplingConfig(max_tokens=4, temperature=1.0, top_k=5, top_p=0.9, repetition_penalty=1.1)
    assert list(generate(there, [1, 2, 3], config)) == list(generate(here, [1, 2, 3], config))


def test_logits_that_are_not_finite(fast: EmulatedDevice) -> None:
    _, there = models(fast)
    there.norm.weight.data.upload(np.full(64, np.nan, np.float32))
    with pytest.raises(NonFiniteError, match="logits of row 0"):
        list(generate(there, [1], SamplingConfig(max_tokens=2)))


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_trainer_decodes_by_name(fast: EmulatedDevice, strategy: str) -> None:
    trainer = GpuTrainer(MoETransformer(TINY.replace(init_std=0.2)), device=fast)
    right = list(generate(MoETransformer(TINY.replace(init_std=0.2)).eval(), [1, 2],
                          SamplingConfig(max_tokens=5, seed=1, **STRATEGIES[strategy])))
    assert trainer.decode([1, 2], strategy, max_tokens=5, seed=1) == right
