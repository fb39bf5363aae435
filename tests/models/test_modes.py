"""What may change between forward and backward, and between training and inference, and must not matter."""

from typing import Any

import numpy as np
import pytest

from nn import InputError, MoETransformer, MoETransformerConfig
from nn.cache import KVCache
from nn.layers import Linear, Module

CONFIG = MoETransformerConfig(vocab_size=50, hidden_size=16, num_heads=2, intermediate_size=16, init_std=0.3)
IDS = np.random.default_rng(0).integers(50, size=(2, 9))


def test_checkpointing_remembers_the_noise_and_the_mode_of_the_forward() -> None:
    gradients = []
    for checkpointing in (False, True):
        model = MoETransformer(CONFIG.replace(router_jitter=0.3), dtype="float64")
        model.gradient_checkpointing = checkpointing
        model.set_noise(0, 1, 0)
        first, _ = model.loss(IDS[:, :-1], IDS[:, 1:])
        model.set_noise(0, 1, 1)
        second, _ = model.loss(IDS[:, :-1], IDS[:, 1:])
        model.eval()
        (first + second).backward()
        gradients.append({name: p.grad for name, p in model.named_parameters().items()})
    for name, gradient in gradients[0].items():
        np.testing.assert_array_equal(gradients[1][name], gradient, err_msg=name)


@pytest.mark.parametrize("policy", ["probs", "position", "slot"])
def test_capacity_is_short_in_training_only(policy: str) -> None:
    """At inference, dropping would let later tokens decide about earlier ones."""
    short = CONFIG.replace(capacity_factor=0.3, drop_policy=policy)
    model, plenty = MoETransformer(short, dtype="float64"), MoETransformer(CONFIG, dtype="float64")
    ids = np.random.default_rng(1).integers(50, size=(1, 64))
    assert np.abs(model(ids).data - plenty(ids).data).max() > 1e-6
    np.testing.assert_array_equal(model.eval()(ids).data, plenty.eval()(ids).data)


@pytest.mark.parametrize(("mask", "message"), [
    (np.where(np.tri(9), 0.0, -np.inf)[:2], "mask: float64 values"),
    (np.full((2, 9), 2), "mask: int64 values"),
    (np.ones((2, 8), bool), r"mask: shape \[2, 8\]; expected \[batch, cached \+ new tokens\] = \[2, 9\]"),
])
def test_a_mask_of_another_kind_is_refused(mask: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        MoETransformer(CONFIG)(IDS, mask=mask)


@pytest.mark.parametrize("hidden", [(Linear(2, 2),), {"a": Linear(2, 2)}])
def test_parameters_where_nobody_finds_them_are_refused(hidden: Any) -> None:
    with pytest.raises(TypeError, match=r"Module\.parts: a (tuple|dict) would hide its parameters"):
        Module().parts = hidden  # type: ignore[attr-defined]


def test_a_cache_keeps_no_negative_number_of_tokens() -> None:
    for shorten in (KVCache(1).trim, KVCache(1).crop):
        with pytest.raises(InputError, match="-1 entries cannot be left"):
            shorten(-1)
