"""Every layer's gradients, by its inputs and by its parameters, against finite differences."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest

from nn import ops
from nn.layers import (
    DecoderBlock,
    Embedding,
    Experts,
    FeedForward,
    GroupedAttention,
    LayerNorm,
    Linear,
    Module,
    MoELayer,
    RMSNorm,
    Rotary,
    Router,
    auxiliary,
)
from nn.layers.feed_forward import KINDS
from nn.layers.moe import Routing
from nn.layers.moe.capacity import POLICIES, keep_within_capacity
from nn.tensor import Tensor
from tests.gradients import check

F64 = {"dtype": "float64"}


def scattered(module: Module, seed: int = 0) -> Any:
    """Every parameter Normal(0, ½), norms' weights around 1"""
    random = np.random.default_rng(seed)
    for parameter in module.parameters():
        centre = 1.0 if parameter.fill == 1.0 else 0.0
        parameter.data = 0.5 * random.standard_normal(parameter.shape) + centre
    return module


def normal(*shape: int, seed: int = 1) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("shape", [(2, 3, 4), (4,), (0, 4), (1, 1, 4)])
def test_linear(bias: bool, shape: tuple[int, ...]) -> None:
    layer = scattered(Linear(4, 5, bias=bias, **F64))
    check(layer, normal(*shape), parameters=layer.parameters())


@pytest.mark.parametrize("ids", [[[1, 0, 1], [4, 1, 1]], [2], [[]], 3])
def test_embedding(ids: Any) -> None:
    layer = scattered(Embedding(5, 3, **F64))
    check(lambda: layer(np.array(ids, np.int64)), parameters=layer.parameters())


@pytest.mark.parametrize("kind", [RMSNorm, LayerNorm])
@pytest.mark.parametrize("shape", [(3, 5), (2, 7, 33), (1, 1, 1), (0, 2)])
def test_norms(kind: Callable[..., Module], shape: tuple[int, ...]) -> None:
    layer = scattered(kind(shape[-1], 1e-2, **F64))
    check(layer, normal(*shape), parameters=layer.parameters())


ATTENTION: dict[str, tuple[tuple[int, int, int], dict[str, Any]]] = {    # (heads, key/value heads, length)
    "multi-head": ((2, 2, 4), {}), "grouped": ((4, 2, 5), {}), "multi-query": ((3, 1, 4), {}),
    "one token": ((2, 1, 1), {}),
    "qk-norm": ((2, 1, 4), {"qk_norm": True, "eps": 1e-2}), "biases": ((2, 1, 4), {"bias": True}),
    "window": ((2, 1, 7), {"window": 3}),
    "everything": ((4, 2, 5), {"qk_norm": True, "eps": 1e-2, "bias": True, "window": 2})}


@pytest.mark.parametrize("pairing", ["none", "half-split", "interleaved"])
@pytest.mark.parametrize("name", ATTENTION)
def test_attention(name: str, pairing: str) -> None:
    (heads, groups, length), options = ATTENTION[name]
    rotary = None if pairing == "none" else Rotary(4, interleaved=pairing == "interleaved")
    layer = scattered(GroupedAttention(6, heads, groups, 4, rotary, **options, **F64))
    check(lambda x: layer(x)[0], normal(2, length, 6), parameters=layer.parameters(), entries=3)


def test_attention_with_left_padding() -> None:
    layer = scattered(GroupedAttention(6, 2, 1, 4, Rotary(4), **F64))
    mask = np.array([[False, False, True, True], [True, True, True, True]])
    check(lambda x: layer(x, mask=mask)[0], normal(2, 4, 6), parameters=layer.parameters(), entries=5)


@pytest.mark.parametrize("kind", KINDS)
def test_feed_forward(kind: str) -> None:
    layer = scattered(FeedForward(5, 7, kind, **F64))
    if kind == "relu":                                            # keep every unit away from its kink
        signs = np.array([1, -1, 1, -1, 1, -1, 1])[:, None]
        layer.up_proj.weight.data = np.abs(layer.up_proj.weight.data) * signs
    check(layer, np.abs(normal(2, 3, 5)), parameters=layer.parameters())


@contextmanager
def choices() -> Iterator[list[float]]:
    """How far apart chosen and refused logits are, for each routing inside the block"""
    margins: list[float] = []
    real = ops.router_topk

    def spy(logits: Tensor, k: int, renormalize: bool = True) -> Any:
        ordered = np.sort(logits.data, axis=-1)
        if k < logits.shape[-1]:
            margins.append(float(np.min(ordered[:, -k] - ordered[:, -k - 1], initial=np.inf)))
        return real(logits, k, renormalize)

    with patch.object(ops, "router_topk", spy):
        yield margins


def steady(make: Callable[[int], tuple[Any, np.ndarray]],
           run: Callable[[Any, np.ndarray], Any]) -> tuple[Any, np.ndarray]:
    """The first seed whose routing no finite difference can change"""
    for seed in range(200):
        layer, x = make(seed)
        with choices() as margins:
            run(layer, x)
        if min(margins, default=1.0) > 0.1:
            return layer, x
    raise AssertionError("no seed keeps the routing away from ties")


def with_losses(layer: Any) -> Callable[[Tensor], tuple[Tensor, ...]]:
    """The layer's output and its auxiliary losses"""

    def run(x: Tensor) -> tuple[Tensor, ...]:
        with auxiliary.collect() as emitted:
            y = layer(x)
        y = y.weights if isinstance(y, Routing) else y[0] if isinstance(y, tuple) else y
        return (y, *(loss for _, loss in emitted.losses))

    return run


@pytest.mark.parametrize("renormalize", [True, False])
@pytest.mark.parametrize(("jitter", "k"), [(0.0, 2), (0.1, 2), (0.0, 1), (0.0, 4)])
def test_router(renormalize: bool, jitter: float, k: int) -> None:
    """Weights, balance loss and z-loss; the jitter is drawn from a counter,
    so it is the same at every evaluation."""
    def make(seed: int) -> tuple[Router, np.ndarray]:
        router = Router(5, 4, k, renormalize=renormalize, jitter=jitter, balance_coef=0.7, z_coef=0.3, **F64)
        return scattered(router, seed), 2.0 * normal(6, 5, seed=seed)

    router, x = steady(make, lambda layer, x: layer(Tensor(x)))
    check(with_losses(router), x, parameters=router.parameters())


@pytest.mark.parametrize("chosen", [[[0, 2], [1, 2], [2, 0]],
                                    [[1, 1], [1, 1], [1, 1]],
                                    [[0, 3], [3, 3], [2, 3]]],
                         ids=["mixed", "one expert", "dropped"])
def test_experts(chosen: list[list[int]]) -> None:
    layer = scattered(Experts(3, 4, 5, **F64))
    experts = np.array(chosen)
    check(lambda x, w: layer(x, Routing(w, experts)), normal(3, 4), normal(3, 2, seed=2),
          parameters=layer.parameters())


@pytest.mark.parametrize("renormalize", [True, False])
@pytest.mark.parametrize(("experts", "k"), [(4, 2), (1, 1), (3, 3), (5, 1)])
def test_mixture(experts: int, k: int, renormalize: bool) -> None:
    def make(seed: int) -> tuple[MoELayer, np.ndarray]:
        router = Router(4, experts, k, renormalize=renormalize, balance_coef=0.5, z_coef=0.2, **F64)
        layer = scattered(MoELayer(router, Experts(experts, 4, 3, **F64)), seed)
        return layer, 2.0 * normal(2, 3, 4, seed=seed)

    layer, x = steady(make, lambda layer, x: layer(Tensor(x)))
    check(with_losses(layer), x, parameters=layer.parameters(), entries=5)


@pytest.mark.parametrize("policy", POLICIES)
def test_mixture_with_capacity(policy: str) -> None:
    """Some assignments are dropped; which ones stays the same where weights decide and lie apart."""
    def make(seed: int) -> tuple[MoELayer, np.ndarray]:
        router = Router(4, 3, 2, balance_coef=0.5, capacity_factor=0.5, drop_policy=policy, **F64)
        return scattered(MoELayer(router, Experts(3, 4, 3, **F64)), seed), 2.0 * normal(2, 5, 4, seed=seed)

    def run(layer: MoELayer, x: np.ndarray) -> None:
        layer(Tensor(x))
        logits = x.transpose(1, 0, 2).reshape(10, 4) @ layer.router.weight.data.T
        weights, experts, _ = ops.router_topk(Tensor(logits), 2)
        kept = keep_within_capacity(experts, weights.data, 3, 0.5, policy)
        assert not kept.all()
        if np.min(np.diff(np.sort(weights.data.ravel()))) < 0.003:
            ops.router_topk(Tensor(np.zeros((1, 3))), 2)          # as good as a tie: another seed

    layer, x = steady(make, run)
    check(with_losses(layer), x, parameters=layer.parameters(), entries=5)


@pytest.mark.parametrize("kind", ["dense", "mixture"])
def test_block(kind: str) -> None:
    def make(seed: int) -> tuple[DecoderBlock, np.ndarray]:
        attention = GroupedAttention(4, 2, 1, 4, Rotary(4), **F64)
        mixture = MoELayer(Router(4, 3, 2, balance_coef=0.5, **F64), Experts(3, 4, 3, **F64))
        ffn = FeedForward(4, 6, **F64) if kind == "dense" else mixture
        block = DecoderBlock(RMSNorm(4, 1e-2, **F64), attention, LayerNorm(4, 1e-2, **F64), ffn)
        return scattered(block, seed), 2.0 * normal(2, 3, 4, seed=seed)

    block, x = steady(make, lambda layer, x: layer(Tensor(x)))
    check(with_losses(block), x, parameters=block.parameters(), entries=3)
