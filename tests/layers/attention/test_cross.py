"""Cross attention: its formula, other lengths than its own, and what a state spares."""

from typing import Any

import numpy as np
import pytest

from nn.errors import InputError
from nn.layers.attention.cross import CrossAttention, CrossAttentionSettings
from nn.ops.count import count_flops
from nn.tensor import Tensor, no_grad
from tests.blocks.harness import close
from tests.layers.attention.formulas import attention, built, drawn, heads, joined, run, weights

SHAPE: dict[str, Any] = {"hidden_size": 12, "num_heads": 4, "num_kv_heads": 2, "head_dim": 6}


def by_formula(block: CrossAttention, x: np.ndarray, context: np.ndarray,
               keep: np.ndarray | None = None) -> np.ndarray:
    s = block.settings
    q = heads(x, weights(block, "q_proj"), s.num_heads)
    k, v = (heads(context, weights(block, name), s.num_kv_heads) for name in ("k_proj", "v_proj"))
    visible = np.ones((1, 1, 1, 1), bool) if keep is None else keep[:, None, None, :]
    o = attention(q, k, v, visible, s.scale or 6**-0.5)
    return joined(o) @ weights(block, "o_proj").T


@pytest.mark.parametrize("options", [{}, {"scale": 1.0}, {"context_size": 7}], ids=str)
@pytest.mark.parametrize("length", [1, 3, 8])
def test_equals_the_formula(options: dict[str, Any], length: int) -> None:
    block = built(CrossAttention, **SHAPE, **options)
    x, context = drawn(2, 4, 12), drawn(2, length, block.settings.context_size, seed=1)
    close(run(block, x, context=Tensor(context)), by_formula(block, x, context), 1e-12)


def test_tokens_of_the_context_have_no_order_and_those_of_x_do_not_meet() -> None:
    block, x, context = built(CrossAttention, **SHAPE), drawn(2, 4, 12), drawn(2, 5, 12, seed=1)
    y = run(block, x, context=Tensor(context))
    close(run(block, x, context=Tensor(context[:, ::-1].copy())), y, 1e-12)
    close(run(block, x[:, 2:], context=Tensor(context)), y[:, 2:], 1e-12)


def test_padding_of_the_context_is_not_looked_at() -> None:
    block, x, context = built(CrossAttention, **SHAPE), drawn(2, 4, 12), drawn(2, 5, 12, seed=1)
    keep = np.array([[True] * 3 + [False] * 2, [True] * 5])
    y = run(block, x, context=Tensor(context), context_mask=keep)
    close(y, by_formula(block, x, context, keep), 1e-12)
    close(y[:1], run(block, x[:1], context=Tensor(context[:1, :3])), 1e-12)
    nothing = np.zeros((2, 5), bool)
    assert np.abs(run(block, x, context=Tensor(context), context_mask=nothing)).max() == 0.0


def test_the_context_is_projected_once() -> None:
    block, x = built(CrossAttention, **SHAPE, context_length=5), drawn(2, 4, 12)
    context, state = Tensor(drawn(2, 5, 12, seed=1)), block.init_state(2)
    whole = run(block, x, context=context)
    with no_grad():
        first, state = block(Tensor(x[:, :2]), context=context, state=state)
        with count_flops() as count:
            second, _ = block(Tensor(x[:, 2:]), state=state)                   # not even asked for again
    close(np.concatenate([first.data, second.data], axis=1), whole, 1e-12)
    assert count.flops == sum(block.flops(2, 2, past=2).values())
    assert block.flops(2, 2, past=2)["context"] == 0


def test_a_state_keeps_the_mask_of_its_context() -> None:
    """Later calls leave it out, from a copy, from a file and for chosen rows too."""
    block, x, context = built(CrossAttention, **SHAPE), drawn(2, 4, 12), drawn(2, 5, 12, seed=1)
    keep = np.array([[True] * 3 + [False] * 2, [True] * 5])
    expected = by_formula(block, x, context, keep)[:, 2:]
    with no_grad():
        _, state = block(Tensor(x[:, :2]), context=Tensor(context), context_mask=keep,
                         state=block.init_state(2))
        keep[:] = True                                                  # the caller's array is its own
        copied, loaded, swapped = state.copy(), block.init_state(2), state.copy()
        loaded.load_state_dict(state.state_dict())
        swapped.reorder(np.array([1, 0]))
        for each in (state, copied, loaded):
            close(block(Tensor(x[:, 2:]), state=each)[0].data, expected, 1e-12)
        close(block(Tensor(x[::-1, 2:].copy()), state=swapped)[0].data, expected[::-1], 1e-12)


def test_refusals() -> None:
    with pytest.raises(InputError, match="context"):
        built(CrossAttention, **SHAPE)(Tensor(drawn(2, 4, 12)))
    with pytest.raises(InputError, match="rope_theta"):
        CrossAttentionSettings.create(**SHAPE, rope_theta=1e4)
    with pytest.raises(InputError, match="context_size: -3 is negative"):
        CrossAttentionSettings.create(**SHAPE, context_size=-3)
