"""Sampling filters against Transformers' logits processors, and greedy texts against its `generate`."""

from typing import Any

import numpy as np
import pytest
import torch
from transformers import (
    LogitsProcessorList,
    MinPLogitsWarper,
    MixtralForCausalLM,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from nn import MoETransformerConfig
from nn.backends.reference import drawing
from nn.generate import SamplingConfig, generate, generate_batch, sampling
from tests.oracle.compare import random_model, tokens

VOCAB = 200
CASES = {
    "temperature": {"temperature": 0.7},
    "top-k": {"top_k": 13},
    "top-p": {"top_p": 0.6},
    "top-p, nearly all": {"top_p": 0.999},
    "top-p, nearly none": {"top_p": 1e-6},
    "min-p": {"min_p": 0.05},
    "repetition": {"repetition_penalty": 1.7},
    "all of them": {"temperature": 1.3, "top_k": 40, "top_p": 0.9, "min_p": 0.02, "repetition_penalty": 1.3},
}


def their_distribution(logits: np.ndarray, history: np.ndarray, config: SamplingConfig) -> np.ndarray:
    processors = LogitsProcessorList([RepetitionPenaltyLogitsProcessor(config.repetition_penalty),
                                      TemperatureLogitsWarper(config.temperature)])
    if config.top_k:
        processors.append(TopKLogitsWarper(config.top_k))
    if config.top_p < 1:
        processors.append(TopPLogitsWarper(config.top_p))
    if config.min_p:
        processors.append(MinPLogitsWarper(config.min_p))
    return processors(torch.tensor(history), torch.tensor(logits)).double().softmax(-1).numpy()


def our_distribution(logits: np.ndarray, history: np.ndarray, config: SamplingConfig) -> np.ndarray:
    """What the reference of `sample` draws from, by the same steps."""
    z = sampling.repetition_penalty(logits, history, config.repetition_penalty)
    ids, z = drawing.largest(drawing.cooled(z, config.temperature), config.top_k)
    weights = drawing.min_p(drawing.top_p(drawing.weights(z), config.top_p), config.min_p)
    if ids is not None:
        weights, kept = np.zeros(logits.shape), weights
        np.put_along_axis(weights, ids, kept, axis=1)
    return weights / weights.sum(axis=1, keepdims=True)


@pytest.mark.parametrize("name", CASES)
def test_filters_leave_the_same_distribution(name: str) -> None:
    """Rows flat and peaked; the same tokens ruled out, the others with the same probabilities."""
    rng = np.random.default_rng(0)
    logits = (rng.normal(size=(6, VOCAB)) * [[0.1], [1], [2], [4], [8], [20]]).astype(np.float32)
    history = rng.integers(0, VOCAB, (6, 30))
    config = SamplingConfig(**{"temperature": 1.0} | CASES[name])
    ours, theirs = (f(logits, history, config) for f in (our_distribution, their_distribution))
    drawable = theirs > 2.0**-33 * theirs.max(axis=1, keepdims=True)      # rounds to a weight of 1
    assert ((ours > 0) == drawable).all()
    assert np.abs(ours - theirs).max() < 1e-6


@pytest.fixture(scope="module", params=[0, 7], ids=["full attention", "window"])
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any]:
    """The same model twice.  Its context is longer than what is generated; a window is much shorter."""
    folder = tmp_path_factory.mktemp("model")
    config = MoETransformerConfig(vocab_size=VOCAB, hidden_size=32, num_kv_heads=2, intermediate_size=24,
                                  max_seq_len=64, sliding_window=request.param)
    model = random_model(config, "float32")
    model.save_pretrained(folder)
    return model, MixtralForCausalLM.from_pretrained(folder)


def their_text(model: Any, prompt: list[int], **options: Any) -> list[int]:
    result = model.generate(torch.tensor([prompt]), do_sample=False, max_new_tokens=40, **options)
    return result[0, len(prompt):].tolist()


@pytest.mark.parametrize("cached", [True, False])
@pytest.mark.parametrize("penalty", [1.0, 1.4])
def test_greedy_text(pair: tuple[Any, Any], penalty: float, cached: bool) -> None:
    model, theirs = pair
    config = SamplingConfig(temperature=0, max_tokens=40, repetition_penalty=penalty)
    for row in tokens(VOCAB, batch=3, length=6)[0].tolist():
        expected = their_text(theirs, row, repetition_penalty=penalty, use_cache=cached)
        assert len(expected) == 40, "our config.json names an end-of-text token"
        assert list(generate(model, row, config, use_cache=cached)) == expected


def test_greedy_batch_and_end_of_text(pair: tuple[Any, Any]) -> None:
    """A row ends before its end-of-text token, whatever the others do.  Transformers keeps the token."""
    model, theirs = pair
    prompts = tokens(VOCAB, batch=3, length=6)[0].tolist()
    end = their_text(theirs, prompts[0])[10]
    found = generate_batch(model, prompts, SamplingConfig(temperature=0, max_tokens=40, eos_ids=(end,)))
    for row, prompt in zip(found, prompts, strict=True):
        expected = their_text(theirs, prompt, eos_token_id=end, pad_token_id=0)
        assert row == (expected[:-1] if expected[-1] == end else expected)
    assert len(found[0]) <= 10
