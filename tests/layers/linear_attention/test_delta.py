"""DeltaNet and gated DeltaNet against their formulas, token by token; where the two are one."""

from typing import Any

import numpy as np
import pytest

from nn.errors import InputError
from nn.layers.attention.linear.delta import DeltaNet, DeltaNetSettings
from nn.layers.attention.linear.gated_delta import GatedDeltaNet, GatedDeltaNetSettings
from nn.layers.initial import log_uniform, step_bias
from nn.tensor import Tensor, no_grad
from tests.blocks.harness import close, shaken
from tests.layers.linear_attention.formulas import (
    conv_silu,
    delta_rule,
    output,
    rms,
    sigmoid,
    silu,
    unit,
    weights_of,
)

TOKENS = 11


def tokens() -> np.ndarray:
    return np.random.default_rng(1).standard_normal((TOKENS, 8))


@pytest.mark.parametrize(("conv", "negative", "gated"),
                         [(4, False, False), (0, True, False), (2, True, True)])
@pytest.mark.parametrize("mode", ["chunk", "recurrent"])
def test_delta_net(conv: int, negative: bool, gated: bool, mode: str) -> None:
    s = DeltaNetSettings(hidden_size=8, num_heads=2, conv_size=conv, allow_neg_eigval=negative,
                         use_gate=gated, chunk_size=4)
    layer, x = shaken(DeltaNet(s, dtype="float64"), 0), tokens()
    weight = weights_of(layer)
    qkv = np.concatenate([x @ weight[f"{n}_proj.weight"].T for n in "qkv"], 1)
    qkv = conv_silu(qkv, weight["conv1d.weight"]) if conv else silu(qkv)
    beta, heads = sigmoid(x @ weight["b_proj.weight"].T) * (2.0 if negative else 1.0), []
    for h in range(2):
        q, k, v = (qkv[:, start + 4 * h : start + 4 * h + 4] for start in (0, 8, 16))
        o = delta_rule(unit(q), unit(k), v, np.zeros(TOKENS), beta[:, h])
        o = rms(o, weight["norm.weight"], 1e-5)
        heads.append(o * silu(x @ weight["g_proj.weight"][4 * h : 4 * h + 4].T) if gated else o)
    close(output(layer, x[None], mode)[0], np.concatenate(heads, 1) @ weight["o_proj.weight"].T, 1e-11)


@pytest.mark.parametrize(("value_heads", "negative"), [(2, True), (4, False)])
@pytest.mark.parametrize("mode", ["chunk", "recurrent"])
def test_gated_delta_net(value_heads: int, negative: bool, mode: str) -> None:
    """In the layout of Qwen3-Next: per key head q, k, then v and z of its value heads"""
    s = GatedDeltaNetSettings(hidden_size=8, num_heads=2, num_v_heads=value_heads, head_dim=4, expand_v=0.5,
                              allow_neg_eigval=negative, chunk_size=4)
    layer, x, shared = shaken(GatedDeltaNet(s, dtype="float64"), 0), tokens(), value_heads // 2
    weight = weights_of(layer)
    each = (x @ weight["in_proj_qkvz.weight"].T).reshape(TOKENS, 2, 8 + 4 * shared)
    q, k, v, z = np.split(each, [4, 8, 8 + 2 * shared], axis=2)
    mixed = np.concatenate([part.reshape(TOKENS, -1) for part in (q, k, v)], 1)
    mixed = conv_silu(mixed, weight["conv1d.weight"])
    b, a = np.split((x @ weight["in_proj_ba.weight"].T).reshape(TOKENS, 2, 2 * shared), 2, axis=2)
    heads = []
    for h in range(value_heads):
        head, place = h // shared, h % shared
        q, k = (unit(mixed[:, start + 4 * head : start + 4 * head + 4]) for start in (0, 8))
        step = np.log1p(np.exp(a[:, head, place] + weight["dt_bias"][h]))
        g, beta = -np.exp(weight["A_log"][h]) * step, sigmoid(b[:, head, place]) * (1.0 + negative)
        o = delta_rule(q, k, mixed[:, 16 + 2 * h : 18 + 2 * h], g, beta)
        heads.append(rms(o, weight["norm.weight"], 1e-5) * silu(z[:, head, 2 * place : 2 * place + 2]))
    close(output(layer, x[None], mode)[0], np.concatenate(heads, 1) @ weight["out_proj.weight"].T, 1e-11)


def test_without_forgetting_gated_delta_net_is_delta_net() -> None:
    """A = 0 makes g = 0; q, k, v and z are in another order in the fused projection"""
    plain = shaken(DeltaNet(DeltaNetSettings(hidden_size=8, num_heads=2, use_gate=True, norm_eps=1e-6),
                            dtype="float64"), 0)
    gated = shaken(GatedDeltaNet(GatedDeltaNetSettings(hidden_size=8, num_heads=2, head_dim=4, expand_v=1.0,
                                                       norm_eps=1e-6), dtype="float64"), 1)
    p = weights_of(plain)
    rows = [p[f"{n}_proj.weight"][4 * h : 4 * h + 4] for h in range(2) for n in "qkvg"]
    gated.in_proj_qkvz.weight.data = np.concatenate(rows)
    gated.in_proj_ba.weight.data[::2] = p["b_proj.weight"]
    gated.A_log.data = np.full(2, -np.inf)
    for ours, name in (("conv1d", "conv1d"), ("norm", "norm"), ("out_proj", "o_proj")):
        getattr(gated, ours).weight.data = p[f"{name}.weight"]
    for mode in ("chunk", "recurrent"):
        close(output(gated, tokens()[None], mode), output(plain, tokens()[None], mode), 1e-12)


def test_shared_keys_are_repeated_keys() -> None:
    """Two value heads on one key head: as two heads with the same queries and keys"""
    one, two = (GatedDeltaNetSettings(hidden_size=8, num_heads=heads, num_v_heads=2, head_dim=4, expand_v=1.0)
                for heads in (1, 2))
    grouped = shaken(GatedDeltaNet(one, dtype="float64"), 0)
    each = shaken(GatedDeltaNet(two, dtype="float64"), 1)
    w, (q, k, v1, v2, z1, z2) = weights_of(grouped), np.split(weights_of(grouped)["in_proj_qkvz.weight"], 6)
    each.in_proj_qkvz.weight.data = np.concatenate([q, k, v1, z1, q, k, v2, z2])
    each.in_proj_ba.weight.data = w["in_proj_ba.weight"][[0, 2, 1, 3]]                    # b, b, a, a
    taps = w["conv1d.weight"]
    each.conv1d.weight.data = np.concatenate([taps[:4], taps[:4], taps[4:8], taps[4:8], taps[8:]])
    for name in ("A_log", "dt_bias"):
        getattr(each, name).data = w[name]
    each.norm.weight.data, each.out_proj.weight.data = w["norm.weight"], w["out_proj.weight"]
    for mode in ("chunk", "recurrent"):
        close(output(each, tokens()[None], mode), output(grouped, tokens()[None], mode), 1e-12)


def test_decays_start_as_published() -> None:
    """A uniform in (0, 16), dt = softplus(dt_bias) log-uniform between 0.001 and 0.1; neither is decayed"""
    layer = GatedDeltaNet(GatedDeltaNetSettings(hidden_size=8, num_heads=2000, head_dim=1, expand_v=1.0))
    layer.initialize(0)
    a, dt = np.exp(layer.A_log.data), np.log1p(np.exp(np.float64(layer.dt_bias.data)))
    assert 0.0 < a.min() < 0.1 < 15.9 < a.max() <= 16.0
    assert abs(a.mean() - 8.0) < 0.4
    assert 0.99e-3 < dt.min() < 1.1e-3
    assert 0.09 < dt.max() < 0.1001
    assert abs(np.log(dt).mean() - np.log(1e-2)) < 0.1
    assert not layer.A_log.decay
    assert not layer.dt_bias.decay
    one = GatedDeltaNet(GatedDeltaNetSettings(dt_init="ones"))
    assert np.array_equal(one.dt_bias.data, np.ones(6))


def test_bias_for_a_step() -> None:
    """softplus⁻¹(0.01) = −4.60016602, in the middle of the range"""

    class Middle:
        def uniform(self, low: float, high: float, shape: tuple[int, ...]) -> np.ndarray:
            return np.full(shape, (low + high) / 2.0)

    random: Any = Middle()
    np.testing.assert_allclose(step_bias(1e-3, 1e-1, 1e-4)(random, (2,)), [-4.60016602] * 2, atol=5e-9)
    np.testing.assert_allclose(log_uniform(0.0, 16.0)(random, (1,)), [np.log(8.0)])
    np.testing.assert_allclose(log_uniform(0.0, 16.0, floor=9.0)(random, (1,)), [np.log(9.0)])


def test_decays_are_kept_wide_in_half_precision() -> None:
    block = GatedDeltaNet(GatedDeltaNetSettings(hidden_size=8, num_heads=2, head_dim=4), dtype="bfloat16")
    assert block.A_log.dtype == block.dt_bias.dtype == np.float32
    assert block.out_proj.weight.dtype != np.float32


@pytest.mark.parametrize("mode", ["chunk", "recurrent"])
@pytest.mark.parametrize("gated", [False, True])
def test_a_key_that_comes_again_and_again_lets_no_state_grow(gated: bool, mode: str) -> None:
    """β = 2 reflects: ‖k‖² = 1.0057, as rounding to bfloat16 makes it, grows by e^22 in 2,000 tokens"""
    size = {"hidden_size": 8, "num_heads": 1, "conv_size": 0, "allow_neg_eigval": True}
    block: Any = (GatedDeltaNet(GatedDeltaNetSettings(**size, head_dim=8, expand_v=1.0), dtype="bfloat16")
                  if gated else DeltaNet(DeltaNetSettings(**size), dtype="bfloat16"))
    block.initialize(0)
    tokens, keys = (2000 if mode == "chunk" else 400), np.array([0.0, 2.1, -1.1, -4.0, 2.3, 1.4, -2.0, -0.7])
    one = np.array([[1.0, 0, 0, 0, 0, 0, 0, 0]])
    weights = {"q": np.ones((8, 8)), "k": keys[:, None] * one, "v": np.ones((8, 1)) * one}
    if gated:
        rows = np.concatenate([weights["q"], weights["k"], weights["v"], np.ones((8, 8))])
        block.in_proj_qkvz.weight.data = rows.astype(block.in_proj_qkvz.weight.dtype)
        block.in_proj_ba.weight.data = np.array(20.0 * one * [[1], [0]], block.in_proj_ba.weight.dtype)
        block.A_log.data = np.full(1, -np.inf, np.float32)
    else:
        for name, value in weights.items():
            getattr(block, f"{name}_proj").weight.data = value.astype(block.o_proj.weight.dtype)
        block.b_proj.weight.data = (20.0 * one).astype(block.b_proj.weight.dtype)
    x, state = np.zeros((1, tokens, 8)), block.init_state(1)
    x[:, :, 0] = 1.0
    state.s[:] = start = np.random.default_rng(0).standard_normal(state.s.shape)
    with no_grad():
        _, state = block(Tensor(x.astype(block.parameters()[0].dtype)), state=state, mode=mode)
    assert np.abs(state.s).max() < 2.0 * np.abs(start).max() + 2.0


def test_parameters_of_published_layers() -> None:
    """DeltaNet of width D: 4 D², β D H, three convolutions 4 · 3 D, a norm.  Gated as in Qwen3-Next-80B-A3B:
    width 2,048, 16 heads of 128 for keys, 32 for values."""
    plain = DeltaNetSettings(hidden_size=1024)
    assert sum(plain.parameters().values()) == 4 * 1024**2 + 4 * 1024 + 12288 + 256
    qwen = GatedDeltaNetSettings(hidden_size=2048, num_heads=16, num_v_heads=32, head_dim=128, expand_v=1.0)
    expected = 2048 * (2 * 2048 + 2 * 4096) + 2048 * 64 + 4 * 8192 + 2 * 32 + 128 + 4096 * 2048
    assert sum(qwen.parameters().values()) == expected


def test_what_it_refuses() -> None:
    with pytest.raises(InputError, match="num_v_heads: 3 is not a multiple of num_heads = 2"):
        GatedDeltaNetSettings(num_heads=2, num_v_heads=3)
    with pytest.raises(InputError, match="expand_v: 0.3 x head_dim = 256 is no whole number"):
        GatedDeltaNetSettings(expand_v=0.3)
    with pytest.raises(InputError, match="dt_init"):
        GatedDeltaNetSettings(dt_init="one")
