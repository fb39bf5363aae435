"""Windows, first tokens and sink logits: their formula, what they equal at their limits, and the ring."""

from typing import Any

import numpy as np
import pytest

from nn import ops
from nn.errors import InputError
from nn.layers.attention.causal import CausalSelfAttention
from nn.layers.attention.window import SlidingAttentionSettings, SlidingWindowAttention
from nn.ops.merged import KeySet
from nn.tensor import Tensor, no_grad
from tests.blocks.harness import close
from tests.layers.attention.formulas import (
    attention,
    built,
    causal,
    continued,
    drawn,
    heads,
    joined,
    run,
    turned,
    weights,
)

SHAPE: dict[str, Any] = {"hidden_size": 12, "num_heads": 4, "num_kv_heads": 2, "head_dim": 6}
CASES = [{"window": 1}, {"window": 3}, {"window": 3, "sink_tokens": 1}, {"window": 3, "sink_tokens": 3},
         {"window": 4, "sinks": True}, {"window": 2, "sink_tokens": 2, "sinks": True}]


def by_formula(block: SlidingWindowAttention, x: np.ndarray) -> np.ndarray:
    s, length = block.settings, x.shape[1]
    q, k, v = (heads(x, weights(block, name), count) for name, count in
               (("q_proj", s.num_heads), ("k_proj", s.num_kv_heads), ("v_proj", s.num_kv_heads)))
    i, j = np.arange(length)[:, None], np.arange(length)
    visible = causal(length) & ((j > i - s.window) | (j < s.sink_tokens))
    o = attention(turned(q, i[:, 0]), turned(k, j), v, visible, sinks=getattr(block.sinks, "data", None))
    return joined(o) @ weights(block, "o_proj").T


@pytest.mark.parametrize("options", CASES, ids=str)
def test_equals_the_formula(options: dict[str, Any]) -> None:
    block, x = built(SlidingWindowAttention, **SHAPE, **options), drawn(2, 11, 12)
    close(run(block, x), by_formula(block, x), 1e-12)


@pytest.mark.parametrize("cuts", [list(range(1, 23)), [2, 3, 9, 10, 11, 20], [1, 8], [22]], ids=str)
@pytest.mark.parametrize("options", CASES, ids=str)
def test_the_ring_is_the_full_cache(options: dict[str, Any], cuts: list[int]) -> None:
    """Behind a state, in pieces shorter and longer than the window, many times round"""
    block, x = built(SlidingWindowAttention, **SHAPE, **options), drawn(2, 23, 12)
    close(continued(block, x, cuts), by_formula(block, x), 1e-11)


def test_the_ring_does_not_grow() -> None:
    block = built(SlidingWindowAttention, **SHAPE, window=4, sink_tokens=2)
    state = block.init_state(2)
    size, x = state.nbytes, drawn(2, 30, 12)
    assert state.k.shape == (2, 2, 4, 6)
    assert state.first_k.shape == (2, 2, 2, 6)
    with no_grad():
        for t in range(30):
            block(Tensor(x[:, t : t + 1]), state=state)
    assert state.nbytes == size
    assert state.offset == 30


def test_token_t_lies_in_slot_t_mod_w() -> None:
    block, x = built(SlidingWindowAttention, **SHAPE, window=4, rope_theta=0.0), drawn(1, 11, 12)
    state, k = block.init_state(1), heads(x, weights(block, "k_proj"), 2)
    with no_grad():
        block(Tensor(x[:, :7]), state=state)
        block(Tensor(x[:, 7:]), state=state)
    for t in range(7, 11):
        close(state.k[:, :, t % 4], k[:, :, t], 1e-12)


@pytest.mark.parametrize("pads", [[0, 5, 2], [6, 6, 0]], ids=str)
def test_first_tokens_are_those_behind_the_padding(pads: list[int]) -> None:
    block = built(SlidingWindowAttention, **SHAPE, window=3, sink_tokens=2)
    x, length = drawn(3, 16, 12), 16
    mask = np.arange(length) >= np.array(pads)[:, None]
    whole, state, parts = run(block, x, mask=mask), block.init_state(3), []
    with no_grad():
        for start, end in ((0, 4), (4, 5), (5, 11), (11, 12), (12, 16)):
            parts.append(block(Tensor(x[:, start:end]), state=state, mask=mask[:, :end])[0].data)
    for row, pad in enumerate(pads):
        alone = by_formula(block, x[row : row + 1, pad:])[0]
        close(whole[row, pad:], alone, 1e-12)
        close(np.concatenate(parts, axis=1)[row, pad:], alone, 1e-12)


# ---- limits ----


def plain_with(block: Any) -> CausalSelfAttention:
    """Full attention with its weights"""
    plain = CausalSelfAttention(CausalSelfAttention.Settings.create(**SHAPE), dtype="float64")
    own = block.state_dict()
    plain.load_state_dict({name: own[name] for name in plain.state_dict()})
    return plain


@pytest.mark.parametrize("options", [{"window": 9}, {"window": 100}, {"window": 5, "sink_tokens": 4}],
                         ids=str)
def test_a_window_over_everything_is_full_attention(options: dict[str, int]) -> None:
    block, x = built(SlidingWindowAttention, **SHAPE, **options), drawn(2, 9, 12)
    close(run(block, x), run(plain_with(block), x), 1e-12)


def test_a_sink_of_minus_infinity_is_none_and_a_great_one_takes_all() -> None:
    block, x = built(SlidingWindowAttention, **SHAPE, window=100, sinks=True), drawn(2, 9, 12)
    block.sinks.data[...] = -np.inf
    close(run(block, x), run(plain_with(block), x), 1e-12)
    block.sinks.data[...] = 900.0
    assert np.abs(run(block, x)).max() < 1e-12


def test_sinks_of_zero_are_one_more_key_without_a_value() -> None:
    """softmax1: e^s / (1 + Σ e^s)"""
    q, k, v = (Tensor(drawn(2, 2, 5, 4, seed=seed)) for seed in range(3))
    o = ops.merged_attention(q, [KeySet(k, v)], sinks=Tensor(np.zeros(2)))
    close(o.data, attention(q.data, k.data, v.data, causal(5), sinks=np.zeros(2)), 1e-12)


def test_parts_of_the_keys_merge_to_the_whole() -> None:
    """Golden values of one head: two queries behind one key; the gradients as well"""
    def wave(count: int, start: float, *shape: int) -> np.ndarray:
        return np.sin(start + 0.7 * np.arange(count)).reshape(1, 1, *shape)

    q, k, v = (Tensor(wave(n, c, n // 2, 2), requires_grad=True) for n, c in ((4, 0.0), (6, 1.0), (6, 2.0)))
    first = KeySet(k[:, :, :1], v[:, :, :1], causal=False)
    o = ops.merged_attention(q, [first, KeySet(k[:, :, 1:], v[:, :, 1:])])
    o.backward(wave(4, 3.0, 2, 2))
    expected = {"o": [[0.4509804, -0.06273596], [0.41858218, -0.03594477]],
                "q": [[-0.01388402, -0.07946006], [-0.18693973, -0.47052945]],
                "k": [[-0.38824875, -0.39396733], [0.29521261, 0.31247188], [0.09303614, 0.08149545]],
                "v": [[-0.5062085, -0.89713321], [-0.23965452, -0.49564969], [-0.06461904, -0.06286793]]}
    for name, found in {"o": o.data, "q": q.grad, "k": k.grad, "v": v.grad}.items():
        np.testing.assert_allclose(found[0, 0], expected[name], atol=6e-9, err_msg=name)


def test_flops_stop_growing_at_the_window() -> None:
    settings = SlidingAttentionSettings.create(**SHAPE, window=4, sink_tokens=2)
    near, far = settings.flops(1, 1, 10), settings.flops(1, 1, 10_000)
    assert near == far
    assert far["core"] == 2 * 4 * 4 * (6 + 6)
    assert far["sink_tokens"] == 2 * 4 * 2 * (6 + 6)
    assert settings.flops(1, 4)["sink_tokens"] == 0


@pytest.mark.parametrize("options", [{"window": 0}, {"window": 3, "sink_tokens": 4}, {"sink_tokens": -1}],
                         ids=str)
def test_refusals(options: dict[str, int]) -> None:
    with pytest.raises(InputError, match="window|sink_tokens"):
        SlidingAttentionSettings.create(**SHAPE, **options)


def test_a_ring_keeps_no_gradients() -> None:
    block, x = built(SlidingWindowAttention, **SHAPE, window=3), Tensor(drawn(2, 4, 12), requires_grad=True)
    with pytest.raises(RuntimeError, match="no_grad"):
        block(x, state=block.init_state(2))
