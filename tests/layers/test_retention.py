"""Retention and what it is made of, against the definition token by token in NumPy; the short convolution."""

from typing import Any

import numpy as np
import pytest

from nn.layers.attention.linear.decayed import decayed_attention
from nn.layers.attention.linear.retention import Retention, RetentionSettings
from nn.layers.conv import ShortConv
from nn.layers.masks import masked, newest
from nn.tensor import Tensor, no_grad
from tests.blocks.harness import close, shaken

random = np.random.default_rng


def by_definition(q: np.ndarray, k: np.ndarray, v: np.ndarray, g: np.ndarray,
                  s: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """S_t = e^g S + k vᵀ, o = Sᵀ q"""
    o = np.zeros((*q.shape[:3], v.shape[3]))
    for b, h, t in np.ndindex(*q.shape[:3]):
        s[b, h] = np.exp(g[b, h, t]) * s[b, h] + np.outer(k[b, h, t], v[b, h, t])
        o[b, h, t] = s[b, h].T @ q[b, h, t]
    return o, s


@pytest.mark.parametrize(("mode", "size"), [("recurrent", 1), ("chunk", 1), ("chunk", 3), ("chunk", 4),
                                            ("chunk", 64)])
@pytest.mark.parametrize("length", [1, 4, 11])
def test_decayed_attention_is_its_definition(mode: str, size: int, length: int) -> None:
    draw = random(length)
    q, k, v = (draw.standard_normal((2, 3, length, width)) for width in (4, 4, 5))
    g, s = -np.exp(2.0 * draw.standard_normal((2, 3, length))), draw.standard_normal((2, 3, 4, 5))
    with no_grad():
        o, last = decayed_attention(*map(Tensor, (q, k, v, g)), s.copy(), mode=mode, size=size)
    expected, end = by_definition(q, k, v, g, s)
    close(o.data, expected, 1e-13)
    close(last.data, end, 1e-13)


@pytest.mark.parametrize("mode", ["chunk", "recurrent"])
def test_no_tokens_leave_the_state_as_it_was(mode: str) -> None:
    s = random(0).standard_normal((1, 2, 3, 4))
    q, v, g = (Tensor(np.zeros(shape)) for shape in ((1, 2, 0, 3), (1, 2, 0, 4), (1, 2, 0)))
    o, last = decayed_attention(q, q, v, g, s, mode=mode)
    assert o.shape == (1, 2, 0, 4)
    assert np.array_equal(last.data, s)


def test_strong_decay_neither_overflows_nor_leaves_nan() -> None:
    q = Tensor(np.ones((1, 1, 200, 2)), requires_grad=True)
    g = Tensor(np.full((1, 1, 200), -400.0), requires_grad=True)
    o, _ = decayed_attention(q, q, q, g, np.zeros((1, 1, 2, 2)), mode="chunk")
    assert np.array_equal(o.data, np.full((1, 1, 200, 2), 2.0))          # only the token itself is left
    o.sum().backward()
    assert np.isfinite(g.grad).all()
    assert np.isfinite(q.grad).all()


def test_retention_is_the_formula_of_the_paper() -> None:
    """O = (Q Kᵀ ⊙ D) V with D_ts = γ^(t − s), rotated, normalised per head, gated"""
    s = RetentionSettings(hidden_size=8, num_heads=2)
    layer, x = shaken(Retention(s, dtype="float64"), 0), random(1).standard_normal((1, 6, 8))
    weight = {name: p.data for name, p in layer.named_parameters().items()}
    place = np.arange(6)[:, None]
    angle = np.tile(place * 10000.0 ** (-np.arange(0, 4, 2) / 4), 2)                       # [T,Dk]
    heads = []
    for h in range(2):
        q, k = (x[0] @ weight[f"{name}_proj.weight"][4 * h : 4 * h + 4].T for name in "qk")
        q, k = (z * np.cos(angle) + np.concatenate([-z[:, 2:], z[:, :2]], 1) * np.sin(angle) for z in (q, k))
        decay = np.tril((1.0 - 2.0 ** (-5.0 - h)) ** (place - place.T))
        o = (q @ k.T / 2.0 * decay) @ (x[0] @ weight["v_proj.weight"][8 * h : 8 * h + 8].T)
        heads.append(o / np.sqrt(np.mean(o**2, axis=1, keepdims=True) + 1e-5) * weight["norm.weight"])
    gate = x[0] @ weight["g_proj.weight"].T
    y = (np.concatenate(heads, 1) * gate / (1.0 + np.exp(-gate))) @ weight["o_proj.weight"].T
    with no_grad():
        close(layer(Tensor(x), mode="chunk")[0].data[0], y, 1e-12)


@pytest.mark.parametrize("mode", ["chunk", "recurrent"])
def test_padding_has_no_position(mode: str) -> None:
    """Left of tokens, between them and at the end of a call: a row goes on as if there were none, with the
    same state."""
    layer = shaken(Retention(RetentionSettings(hidden_size=8, num_heads=2, chunk_size=4), dtype="float64"), 0)
    x = random(1).standard_normal((2, 9, 8))
    mask = np.array([[0, 1, 1, 0, 0, 1, 1, 0, 1], [1, 1, 1, 1, 1, 0, 0, 0, 1]], bool)
    for cut in (5, 8):
        with no_grad():
            one, state = layer(Tensor(x[:, :cut]), state=layer.init_state(2), mask=mask[:, :cut], mode=mode)
            two, state = layer(Tensor(x[:, cut:]), state=state, mask=mask, mode=mode)
            for row in range(2):
                alone, end = layer(Tensor(x[row, mask[row]][None]), state=layer.init_state(1), mode=mode)
                found = np.concatenate([one.data, two.data], axis=1)[row, mask[row]]
                close(found, alone.data[0], 1e-12)
                close(state.s[row], end.s[0], 1e-12)


def test_parameters_of_the_published_layer() -> None:
    """Per layer of width D: q, k of D², v, g and out of 2 D² each, and one norm of a head's width."""
    assert sum(RetentionSettings(hidden_size=512).parameters().values()) == 8 * 512**2 + 128


# ---- the short convolution ----


@pytest.mark.parametrize(("taps", "dilation"), [(4, 1), (1, 1), (2, 3), (3, 2)])
@pytest.mark.parametrize("bias", [False, True])
def test_short_convolution(taps: int, dilation: int, bias: bool) -> None:
    """By definition, and the same in any parts behind a tail"""
    conv = ShortConv(3, taps, dilation=dilation, bias=bias, activation="none", dtype="float64")
    conv.initialize(0)
    x = random(0).standard_normal((2, 9, 3))
    reach = (taps - 1) * dilation
    long = np.concatenate([np.zeros((2, reach, 3)), x], axis=1)
    expected = sum(conv.weight.data[:, j] * long[:, j * dilation : j * dilation + 9] for j in range(taps))
    expected = expected + (conv.bias.data if bias else 0.0)
    with no_grad():
        whole, end = conv(Tensor(x))
        close(whole.data, expected, 1e-13)
        assert np.array_equal(end, long[:, 9:])
        for cuts in ([1, 2], [5], list(range(1, 9))):
            tail: Any = None
            for start, stop in zip([0, *cuts], [*cuts, 9], strict=True):
                y, tail = conv(Tensor(x[:, start:stop]), tail)
                close(y.data, expected[:, start:stop], 1e-13)
            assert np.array_equal(tail, end)


def test_short_convolution_starts_within_its_bound() -> None:
    weight = ShortConv(500, 4).initialize(0).weight.data
    assert 0.49 < np.abs(weight).max() <= 0.5
    assert abs(weight.std() - 0.5 / np.sqrt(3.0)) < 0.01


# ---- masks ----


def test_masks() -> None:
    mask = np.array([[False, True, True], [True, True, True]])
    assert np.array_equal(newest(mask, 2), [[True, True], [True, True]])
    assert newest(None, 2) is None
    x = Tensor(np.ones((2, 3, 1, 2)))
    assert np.array_equal(masked(x, mask).data[..., 0, 1], mask)
    with pytest.raises(ValueError, match=r"mask: shape \[2, 3\]; expected \[batch, 4 or more columns\]"):
        newest(mask, 4)
