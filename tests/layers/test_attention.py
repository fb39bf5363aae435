"""Grouped attention: what it equals, what it does not see, and its cache."""

from typing import Any

import numpy as np
import pytest

from nn import ops
from nn.cache import LayerCache
from nn.errors import InputError
from nn.layers import GroupedAttention, RopeScaling, Rotary, registry
from nn.tensor import Tensor, no_grad

STRETCHED = Rotary(6, scaling=RopeScaling("dynamic", 4.0, 4), length=16)


def layer(heads: int = 4, groups: int = 2, rotary: Rotary | None = None, **options: Any) -> GroupedAttention:
    made = GroupedAttention(12, heads, groups, 6, rotary or Rotary(6), std=0.4, dtype="float64", **options)
    made.initialize(0)
    return made


def inputs(batch: int = 2, length: int = 7) -> np.ndarray:
    return np.random.default_rng(0).standard_normal((batch, length, 12))


def run(attention: GroupedAttention, x: np.ndarray, **options: Any) -> np.ndarray:
    with no_grad():
        return attention(Tensor(x), **options)[0].data


def by_hand(attention: GroupedAttention, x: np.ndarray) -> np.ndarray:
    """Query by query, from the formula"""
    cos, sin = attention.rotary(0, x.shape[1], np.float64)
    heads, groups, width = attention.num_heads, attention.num_kv_heads, attention.head_dim

    def project(name: str, count: int, turn: bool) -> np.ndarray:
        z = (x @ getattr(attention, name).weight.data.T).reshape(*x.shape[:2], count, width)
        if turn:
            a, b = z[..., : width // 2], z[..., width // 2 :]
            c, s = cos[:, None], sin[:, None]
            z = np.concatenate([a * c - b * s, b * c + a * s], axis=-1)
        return z

    q = project("q_proj", heads, True)
    k, v = project("k_proj", groups, True), project("v_proj", groups, False)
    out = np.zeros((*x.shape[:2], heads * width))
    for b, t, h in np.ndindex(*x.shape[:2], heads):
        g = h // (heads // groups)
        scores = np.array([q[b, t, h] @ k[b, j, g] for j in range(t + 1)]) / np.sqrt(width)
        p = np.exp(scores - scores.max())
        out[b, t, h * width : (h + 1) * width] = (p / p.sum()) @ v[b, : t + 1, g]
    return out @ attention.o_proj.weight.data.T


@pytest.mark.parametrize(("heads", "groups"), [(4, 4), (4, 2), (4, 1), (1, 1), (6, 3)])
def test_equals_the_formula(heads: int, groups: int) -> None:
    attention = layer(heads, groups)
    np.testing.assert_allclose(run(attention, inputs()), by_hand(attention, inputs()), rtol=1e-12, atol=1e-13)


def test_grouped_equals_multi_head_with_repeated_heads() -> None:
    grouped, full = layer(4, 2), layer(4, 4)
    for name in ("k_proj", "v_proj"):
        rows = getattr(grouped, name).weight.data.reshape(2, 6, 12)
        getattr(full, name).weight.data = np.repeat(rows, 2, axis=0).reshape(24, 12)
    for name in ("q_proj", "o_proj"):
        getattr(full, name).weight.data = getattr(grouped, name).weight.data
    np.testing.assert_allclose(run(grouped, inputs()), run(full, inputs()), rtol=1e-13, atol=1e-14)


def test_window_of_the_whole_length_is_no_window() -> None:
    np.testing.assert_array_equal(run(layer(window=7), inputs()), run(layer(window=0), inputs()))
    assert not np.allclose(run(layer(window=6), inputs()), run(layer(window=0), inputs()))


def test_window_forgets() -> None:
    attention, x = layer(window=3), inputs()
    changed = x.copy()
    changed[:, 2] += 1.0
    before, after = run(attention, x), run(attention, changed)
    moved = np.any(before != after, axis=(0, 2))
    assert moved.tolist() == [False, False, True, True, True, False, False]


def test_qk_norm_makes_the_scale_of_q_and_k_irrelevant() -> None:
    attention = layer(qk_norm=True, eps=1e-12)
    before = run(attention, inputs())
    attention.q_proj.weight.data *= 7.0
    attention.k_proj.weight.data *= 0.3
    np.testing.assert_allclose(run(attention, inputs()), before, rtol=1e-9, atol=1e-10)


def test_qk_norm_comes_before_the_rotation() -> None:
    attention = layer(qk_norm=True)
    attention.q_norm.weight.data = np.linspace(0.5, 2.0, 6)
    q = ops.linear(Tensor(inputs()), attention.q_proj.weight).data.reshape(2, 7, 4, 6)
    normed = q / np.sqrt((q * q).mean(axis=-1, keepdims=True) + 1e-6) * attention.q_norm.weight.data
    found = attention.heads(attention.q_proj(Tensor(inputs())), attention.q_norm).data
    np.testing.assert_allclose(found, normed.transpose(0, 2, 1, 3), rtol=1e-13)


@pytest.mark.parametrize("pieces", [(7,), (4, 1, 1, 1), (1,) * 7, (2, 5), (1, 6)])
@pytest.mark.parametrize("options", [{}, {"window": 3}, {"qk_norm": True, "bias": True},
                                     {"rotary": STRETCHED}],
                         ids=["plain", "window", "qk-norm and biases", "dynamic"])
def test_cached_equals_uncached(pieces: tuple[int, ...], options: dict[str, Any]) -> None:
    attention, x, state, start = layer(**options), inputs(), LayerCache(), 0
    found = []
    for count in pieces:
        found.append(run(attention, x[:, start : start + count], state=state))
        start += count
    np.testing.assert_allclose(np.concatenate(found, axis=1), run(attention, x), rtol=1e-12, atol=1e-13)
    assert state.k.shape == (2, 2, 7, 6)                       # key/value heads only


def test_a_window_cache_needs_only_the_window() -> None:
    attention, x, state = layer(window=3), inputs(length=9), LayerCache()
    found = []
    for t in range(9):
        found.append(run(attention, x[:, t : t + 1], state=state))
        state.trim(2)
    np.testing.assert_allclose(np.concatenate(found, axis=1), run(attention, x), rtol=1e-12, atol=1e-13)


def test_a_cache_refuses_gradients() -> None:
    """Keys in a cache are constants: a gradient past them would be wrong without a word."""
    with pytest.raises(RuntimeError,
                       match=r"attention: a cache keeps no gradients; call with state= under no_grad\(\)"):
        layer()(Tensor(inputs()), state=LayerCache())


def test_heads_must_divide() -> None:
    with pytest.raises(InputError, match="num_heads: 4 is not a multiple of num_kv_heads: 3"):
        layer(4, 3)
    with pytest.raises(InputError, match="num_heads: 4 is not a multiple of num_kv_heads: 0"):
        layer(4, 0)


@pytest.mark.parametrize("mixer", ["full_attention", "gated_attention", "sliding_attention", "block_sparse",
                                   "nsa"])
@pytest.mark.parametrize(("name", "value"), [("num_kv_heads", -2), ("head_dim", -4), ("window", -1),
                                             ("softcap", float("nan")), ("scale", -1.0), ("norm_eps", -1.0),
                                             ("rope_theta", -1.0), ("clip_qkv", -1.0)])
def test_settings_below_zero_are_refused_by_name(mixer: str, name: str, value: float) -> None:
    """A negative divisor of num_heads divides them, too."""
    kind = registry.find("mixer", mixer).Settings
    with pytest.raises(InputError, match=f"{kind.__name__}.{name}: {value} is not 0 or more; 0 means"):
        kind.create(hidden_size=8, num_heads=4, **{name: value})
