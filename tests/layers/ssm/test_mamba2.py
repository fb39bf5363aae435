"""Mamba-2 against its formulas in NumPy float64, and against the selective scan that it is a case of."""

from typing import Any

import numpy as np
import pytest

from nn import ops
from nn.errors import InputError
from nn.layers.formulas import total
from nn.layers.ssm import Mamba2, Mamba2Settings
from nn.tensor import Tensor, no_grad
from tests.blocks.harness import close, shaken

TINY: dict[str, Any] = {"hidden_size": 8, "state_size": 3, "head_dim": 2, "chunk_size": 4}


def silu(x: np.ndarray) -> np.ndarray:
    return x / (1.0 + np.exp(-x))


def convolved(w: dict[str, np.ndarray], x: np.ndarray) -> np.ndarray:
    taps = w["conv1d.weight"].shape[1]
    long = np.concatenate([np.zeros((taps - 1, x.shape[1])), x])
    y = [np.sum(long[t : t + taps].T * w["conv1d.weight"], axis=1) for t in range(len(x))]
    return silu(np.stack(y) + w.get("conv1d.bias", 0.0))


def by_formula(s: Mamba2Settings, w: dict[str, np.ndarray], u: np.ndarray) -> np.ndarray:
    """One row u[T,D], token by token and head by head"""
    inner, heads, width = s.intermediate_size, s.num_heads, s.num_groups * s.state_size
    z, mixed, dt = np.split(u @ w["in_proj.weight"].T + w.get("in_proj.bias", 0.0),
                            [inner, 2 * inner + 2 * width], axis=1)
    x, b, c = np.split(convolved(w, mixed), [inner, inner + width], axis=1)
    dt = np.clip(np.log1p(np.exp(dt + w["dt_bias"])), *s.time_step_limit)
    y = np.zeros_like(x)
    for head in range(heads):
        own = slice(head * s.head_dim, (head + 1) * s.head_dim)
        group = head // (heads // s.num_groups)
        shared = slice(group * s.state_size, (group + 1) * s.state_size)
        state = w["init_states"][head] if s.learn_start else np.zeros((s.head_dim, s.state_size))
        for t in range(len(u)):
            state = np.exp(-np.exp(w["A_log"][head]) * dt[t, head]) * state
            state = state + dt[t, head] * np.outer(x[t, own], b[t, shared])
            y[t, own] = state @ c[t, shared] + w["D"][head] * x[t, own]
    o = (y * silu(z)).reshape(len(u), s.norm_groups or s.num_groups, -1)
    o = (o / np.sqrt(np.mean(o**2, axis=2, keepdims=True) + s.norm_eps)).reshape(len(u), inner)
    return (o * w["norm.weight"]) @ w["out_proj.weight"].T + w.get("out_proj.bias", 0.0)


VARIANTS: dict[str, dict[str, Any]] = {
    "": {}, "groups": {"num_groups": 2}, "a group per head": {"num_groups": 8}, "one norm": {"num_groups": 4,
    "norm_groups": 1}, "biases": {"use_bias": True, "use_conv_bias": False, "conv_kernel": 2},
    "limits": {"time_step_limit": (0.6, 0.9)}, "one head": {"head_dim": 16},
    "learned start": {"learn_start": True}}


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("mode", ["chunk", "recurrent"])
def test_is_the_formula_of_the_paper(variant: str, mode: str) -> None:
    s = Mamba2Settings(**TINY | VARIANTS[variant])
    layer, u = shaken(Mamba2(s, dtype="float64"), 0), np.random.default_rng(1).standard_normal((2, 11, 8))
    weights = {name: p.data for name, p in layer.named_parameters().items()}
    with no_grad():
        y, _ = layer(Tensor(u), mode=mode)
        again, _ = layer(Tensor(u), state=layer.init_state(2), mode=mode)
    assert np.array_equal(y.data, again.data)
    for row in range(2):
        close(y.data[row], by_formula(s, weights, u[row]), 1e-12)


@pytest.mark.parametrize("size", [1, 2, 5, 8, 64])
def test_any_chunk_size_gives_the_same(size: int) -> None:
    u = Tensor(np.random.default_rng(0).standard_normal((2, 13, 8)))
    with no_grad():
        expected, _ = shaken(Mamba2(Mamba2Settings(**TINY), "float64"), 0)(u, mode="recurrent")
        layer = shaken(Mamba2(Mamba2Settings(**TINY | {"chunk_size": size}), "float64"), 0)
        state = layer.init_state(2)
        found, state = layer(u, state=state, mode="chunk")
    close(found.data, expected.data, 1e-12)
    assert state.ssm_state.value.shape == (2, 8, 2, 3)                            # [B,H,P,N]
    assert state.conv_state.value.shape == (2, 3, 16 + 2 * 3)


def test_is_mamba_with_one_decay_per_head() -> None:
    """The core equals Mamba's selective scan whose A, Δ and D are those of a head in all its channels."""
    s = Mamba2Settings(**TINY)
    layer = shaken(Mamba2(s, dtype="float64"), 0)
    draw = np.random.default_rng(0).standard_normal
    mixed, dt, state = draw((2, 9, 22)), np.exp(draw((2, 9, 8))), draw((2, 8, 2, 3))
    with no_grad():
        y, last = layer._core(Tensor(mixed), Tensor(dt), Tensor(state.copy()), "chunk")
        a = np.tile(np.repeat(-np.exp(layer.A_log.data), 2)[:, None], 3)
        given = (mixed[..., :16], np.repeat(dt, 2, axis=2), a, mixed[..., 16:19], mixed[..., 19:],
                 np.repeat(layer.D.data, 2), state.reshape(2, 16, 3))
        expected, end = ops.selective_scan(*map(Tensor, given))
    close(y.data, expected.data, 1e-12)
    close(last.reshape(2, 16, 3), end.data, 1e-12)


def test_start_of_the_parameters() -> None:
    layer = Mamba2(Mamba2Settings(hidden_size=1024, head_dim=8), dtype="bfloat16").initialize(0)
    decays = np.exp(layer.A_log.data.astype(np.float64))
    assert decays.min() >= 1.0
    assert 15.0 < decays.max() <= 16.0
    assert abs(decays.mean() - 8.5) < 1.0                                         # uniform, not log-uniform
    steps = np.log1p(np.exp(layer.dt_bias.data.astype(np.float64)))
    assert 0.000999 <= steps.min() < 0.002
    assert 0.05 < steps.max() <= 0.1001
    own = (layer.A_log, layer.D, layer.dt_bias)
    assert {p.dtype for p in own} == {np.dtype(np.float32)}
    assert not any(p.decay for p in own)


def test_counts_of_the_published_model() -> None:
    """mamba2-130m: 24 layers of width 768, 24 heads of 64, 128 states: 128,989,632 parameters"""
    s = Mamba2Settings(hidden_size=768)
    assert (s.num_heads, s.conv_size) == (24, 1536 + 256)
    d, di, n, h, p = 768, 1536, 128, 24, 64
    layer = (2 * di + 2 * n + h) * d + 5 * (di + 2 * n) + 3 * h + di + di * d
    assert total(s.parameters()) == layer
    assert 24 * (layer + d) + d + 50288 * d == 128_989_632
    projections = 2 * d * (2 * di + 2 * n + h) + 2 * di * d
    chunk = 2 * h * (256 * (n + p) + 2 * n * p)
    conv = 2 * 4 * (di + 2 * n)
    assert total(s.flops(1, 512, mode="chunk")) == 512 * (projections + conv + chunk)
    assert total(s.flops(1, 1, mode="recurrent")) == projections + conv + 4 * h * n * p


def test_settings_are_checked() -> None:
    for name, bounds in (("time_step_limit", (1.0, 0.5)), ("time_step_limit", (-1.0, 1.0)),
                         ("decay_range", (0.0, 1.0)), ("decay_range", (4.0, 1.0))):
        with pytest.raises(InputError, match="the lower bound first"):
            Mamba2Settings.create(**{name: bounds})
    with pytest.raises(InputError, match="head_dim 3, num_groups 1: heads divide the 16 channels"):
        Mamba2Settings(hidden_size=8, head_dim=3)
    with pytest.raises(InputError, match="head_dim 4, num_groups 3"):
        Mamba2Settings(hidden_size=8, head_dim=4, num_groups=3)
    with pytest.raises(InputError, match="norm_groups: 3 do not divide 16"):
        Mamba2Settings(hidden_size=8, head_dim=4, norm_groups=3)
