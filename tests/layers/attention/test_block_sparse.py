"""Block-sparse attention: dense attention under its pattern, full attention where the pattern covers all."""

from typing import Any

import numpy as np
import pytest

from nn.errors import InputError
from nn.layers.attention.causal import CausalSelfAttention
from nn.layers.attention.sparse.block import BlockSparseAttention, BlockSparseSettings
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

SHAPE: dict[str, Any] = {"hidden_size": 12, "num_heads": 4, "num_kv_heads": 2, "head_dim": 6, "block_size": 4}
CASES = [{"local_blocks": 1, "global_blocks": 0}, {"local_blocks": 2, "global_blocks": 1},
         {"local_blocks": 1, "global_blocks": 0, "stride": 2},
         {"local_blocks": 1, "global_blocks": 1, "stride": 3},
         {"local_blocks": 1, "global_blocks": 0, "random_blocks": 1, "random_seed": 3}]


def pattern(s: BlockSparseSettings, length: int) -> np.ndarray:
    """booleans [T,S], pair by pair from the definition; drawn blocks are taken from the settings"""
    visible = np.zeros((length, length), bool)
    for i, j in np.ndindex(length, length):
        a, b = i // s.block_size, j // s.block_size
        near = (a - b if s.causal else abs(a - b)) < s.local_blocks
        first = b < s.global_blocks or (not s.causal and a < s.global_blocks)
        column = s.stride > 0 and b % s.stride == s.stride - 1
        chosen = s.random_blocks > 0 and bool(s.looks_at(a, a + 1)[b]) if b < a else False
        visible[i, j] = (near or first or column or chosen) and (j <= i or not s.causal)
    return visible


def by_formula(block: BlockSparseAttention, x: np.ndarray) -> np.ndarray:
    s, positions = block.settings, np.arange(x.shape[1])
    q, k, v = (heads(x, weights(block, name), count) for name, count in
               (("q_proj", s.num_heads), ("k_proj", s.num_kv_heads), ("v_proj", s.num_kv_heads)))
    o = attention(turned(q, positions), turned(k, positions), v, pattern(s, x.shape[1]))
    return joined(o) @ weights(block, "o_proj").T


@pytest.mark.parametrize("length", [1, 4, 13, 24])
@pytest.mark.parametrize("options", [*CASES, {"local_blocks": 1, "causal": False},
                                     {"local_blocks": 2, "global_blocks": 0, "causal": False}], ids=str)
def test_is_dense_attention_under_the_pattern(options: dict[str, Any], length: int) -> None:
    block, x = built(BlockSparseAttention, **SHAPE, **options), drawn(2, length, 12)
    expected = by_formula(block, x)
    close(run(block, x), expected, 1e-12)
    close(run(block, x, mask=np.ones((2, length), bool)), expected, 1e-12)


@pytest.mark.parametrize("options", CASES, ids=str)
def test_decoding_within_and_across_blocks(options: dict[str, Any]) -> None:
    block, x = built(BlockSparseAttention, **SHAPE, **options), drawn(2, 21, 12)
    close(continued(block, x, [3, 4, 5, 6, 13, 16, 17, 20]), by_formula(block, x), 1e-12)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("options", [*CASES, {"local_blocks": 2, "softcap": 50.0}], ids=str)
@pytest.mark.parametrize("keep", [3, 5, 8])
def test_dropping_tokens_leaves_blocks_where_they_were(options: dict[str, Any], keep: int,
                                                       masked: bool) -> None:
    """What was dropped is not seen any more; else every pair is looked at that was.  Without rotation, keys
    that are gone can be left out of the formula.  A row that begins with padding has blocks of its own."""
    block, x = built(BlockSparseAttention, **SHAPE, rope_theta=0.0, **options), drawn(2, 17, 12)
    first, end, pads = 11, 17, (2 if masked else 0, 0)
    mask = np.array([np.arange(end) >= pad for pad in pads])
    with no_grad():
        state = block.init_state(2)
        block(Tensor(x[:, :first]), state=state, mask=mask[:, :first] if masked else None)
        state.trim(keep)
        held = slice(first - keep, end)
        y, _ = block(Tensor(x[:, first:]), state=state, mask=mask[:, held] if masked else None)
    for row, pad in enumerate(pads):
        s, own = block.settings, x[row : row + 1, pad:]
        q, k, v = (heads(own, weights(block, name), count) for name, count in
                   (("q_proj", s.num_heads), ("k_proj", s.num_kv_heads), ("v_proj", s.num_kv_heads)))
        visible = pattern(s, end - pad)
        visible[:, : first - keep - pad] = False
        o = capped(q, k, v, visible, s.softcap) if s.softcap else attention(q, k, v, visible)
        close(y.data[row], (joined(o) @ weights(block, "o_proj").T)[0, first - pad :], 1e-12)


def capped(q: np.ndarray, k: np.ndarray, v: np.ndarray, visible: np.ndarray, c: float) -> np.ndarray:
    """Attention whose scores u are c tanh(u / c)"""
    k, v = np.repeat(k, 2, axis=1), np.repeat(v, 2, axis=1)
    powers = np.where(visible, np.exp(c * np.tanh(q @ k.swapaxes(-1, -2) / (c * q.shape[-1] ** 0.5))), 0.0)
    return np.asarray(powers / np.maximum(powers.sum(axis=-1, keepdims=True), 1e-300) @ v)


@pytest.mark.parametrize("options", [{"local_blocks": 4}, {"local_blocks": 1, "global_blocks": 4},
                                     {"local_blocks": 1, "global_blocks": 0, "stride": 1}], ids=str)
def test_a_pattern_over_everything_is_full_attention(options: dict[str, Any]) -> None:
    block, x = built(BlockSparseAttention, **SHAPE, **options), drawn(2, 13, 12)
    plain = CausalSelfAttention(CausalSelfAttention.Settings.create(
        **{name: value for name, value in SHAPE.items() if name != "block_size"}), dtype="float64")
    plain.load_state_dict(block.state_dict())
    close(run(block, x), run(plain, x), 1e-12)
    assert block.settings.flops(2, 13) == plain.settings.flops(2, 13)


@pytest.mark.parametrize("options", CASES, ids=str)
def test_tiles_are_the_pattern_and_every_row_has_a_key(options: dict[str, Any]) -> None:
    settings, length = BlockSparseSettings.create(**SHAPE, **options), 22
    visible = pattern(settings, length)
    assert visible.any(axis=1).all()
    assert not (visible & ~causal(length)).any()
    assert sum(tile.pairs(True) for tile in settings.tiles(length)) == visible.sum()
    assert settings.flops(1, length)["core"] == 2 * 4 * int(visible.sum()) * (6 + 6)
    assert visible.sum() < causal(length).sum()


def test_what_is_not_looked_at_changes_nothing() -> None:
    block, x = built(BlockSparseAttention, **SHAPE, local_blocks=1, global_blocks=1), drawn(1, 16, 12)
    before = run(block, x)
    x[:, 4:12] += 1.0
    assert np.array_equal(run(block, x)[:, 12:], before[:, 12:])


def test_drawn_blocks_are_earlier_ones_and_always_the_same() -> None:
    one, other = (BlockSparseSettings.create(**SHAPE, local_blocks=1, global_blocks=0, random_blocks=2,
                                             random_seed=seed) for seed in (0, 1))
    rows = [one.looks_at(i, 12) for i in range(12)]
    assert [int(row.sum()) for row in rows] == [1, 2, *[3] * 10]
    assert all(row[i] and not row[i + 1 :].any() for i, row in enumerate(rows))
    assert all(np.array_equal(row, one.looks_at(i, 12)) for i, row in enumerate(rows))
    assert any(not np.array_equal(row, other.looks_at(i, 12)) for i, row in enumerate(rows))


@pytest.mark.parametrize("options", [{"local_blocks": 0}, {"block_size": 0}, {"stride": -1}, {"window": 3},
                                     {"sinks": True}], ids=str)
def test_refusals(options: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=next(iter(options))):
        BlockSparseSettings.create(**SHAPE | options)
