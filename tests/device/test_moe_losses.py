"""Auxiliary losses of the router: balance of the load, size of the logits."""

from typing import Any

import numpy as np
import pytest

from cuda.nn.device import EmulatedDevice
from nn.backends.device import moe
from tests.device.moe_cases import wide

ROUTERS = [(0, 4, 2), (1, 1, 1), (7, 3, 2), (65, 8, 2), (130, 33, 4), (20, 1000, 3)]


@pytest.mark.parametrize(("tokens", "num_experts", "choices"), ROUTERS)
def test_balance_loss(device: EmulatedDevice, rng: np.random.Generator, tokens: int, num_experts: int,
                      choices: int) -> None:
    logits = rng.standard_normal((tokens, num_experts))
    probs = (np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)).astype(np.float32)
    experts = np.argsort(-probs, axis=1)[:, :choices]
    loss, load = moe.moe_balance_loss(device.asarray(probs), device.asarray(experts.astype(np.int32)), 0.02)
    f = np.bincount(experts.ravel(), minlength=num_experts) / max(1, tokens * choices)
    mean = wide(probs).sum(axis=0) / max(1, tokens)
    np.testing.assert_allclose(load.numpy(), f, rtol=1e-6)
    np.testing.assert_allclose(loss.numpy(), 0.02 * num_experts * (f * mean).sum(), rtol=2e-6)
    dloss = device.asarray(np.array([1.5], np.float32))
    dprobs = moe.moe_balance_loss_backward(dloss, load, tokens, 0.02).numpy()
    right = np.broadcast_to(1.5 * 0.02 * num_experts * f / max(1, tokens), probs.shape)
    np.testing.assert_allclose(dprobs, right, rtol=1e-6)


@pytest.mark.parametrize(("tokens", "num_experts", "choices"), ROUTERS)
def test_z_loss(device: EmulatedDevice, rng: np.random.Generator, tokens: int, num_experts: int,
                choices: int) -> None:
    logits = (3.0 * rng.standard_normal((tokens, num_experts))).astype(np.float32)
    loss, lse = moe.moe_z_loss(device.asarray(logits), 0.001)
    largest = wide(logits).max(axis=1, initial=-np.inf)
    right = largest + np.log(np.exp(wide(logits) - largest[:, None]).sum(axis=1))
    np.testing.assert_allclose(lse.numpy(), right, rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(loss.numpy(), [0.001 / max(1, tokens) * (right**2).sum()], rtol=3e-6)
    dloss = device.asarray(np.array([0.5], np.float32))
    dlogits = moe.moe_z_loss_backward(dloss, device.asarray(logits), lse, 0.001).numpy()
    expect = 0.5 * 2 * 0.001 / max(1, tokens) * right[:, None] * np.exp(wide(logits) - right[:, None])
    np.testing.assert_allclose(dlogits, expect, rtol=1e-5, atol=1e-6 * np.abs(expect).max(initial=0.0))


def test_losses_of_many_chunks_under_any_schedule(device: EmulatedDevice, same_bits: Any,
                                                  rng: np.random.Generator) -> None:
    probs = device.asarray(rng.random((200, 5), np.float32))
    experts = device.asarray(rng.integers(0, 6, (200, 2)))       # a dropped pair is nobody's
    same_bits(lambda: [array.numpy() for array in (
        *moe.moe_balance_loss(probs, experts, 1.0), *moe.moe_z_loss(probs, 1.0))])
    load = moe.moe_balance_loss(probs, experts, 1.0)[1].numpy()
    np.testing.assert_allclose(load, np.bincount(experts.numpy().ravel(), minlength=6)[:5] / 400, rtol=1e-6)


def test_extreme_logits(device: EmulatedDevice) -> None:
    inf = np.inf
    logits = device.asarray(np.array([[1e4, -1e4], [-inf, 3.0], [-inf, -inf]], np.float32))
    lse = moe.moe_z_loss(logits, 1.0)[1].numpy()
    assert lse.tolist() == [1e4, 3.0, -inf]
    nan = moe.moe_z_loss(device.asarray(np.array([[np.nan, 1.0]], np.float32)), 1.0)
    assert np.isnan(nan[0].numpy()).all()
