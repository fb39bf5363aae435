"""Native sparse attention: its definition query by query, its choice of blocks, and its limits."""

from typing import Any

import numpy as np
import pytest

from nn.errors import InputError
from nn.layers.attention.causal import CausalSelfAttention
from nn.layers.attention.sparse.nsa import OWN, NativeSparseAttention, NSASettings
from nn.layers.attention.sparse.selection import importance, select
from nn.layers.attention.window import SlidingWindowAttention
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
    sigmoid,
    turned,
    weights,
)

SHAPE: dict[str, Any] = {"hidden_size": 12, "num_heads": 4, "num_kv_heads": 2, "head_dim": 6}
SIZES: dict[str, Any] = {"compress_size": 8, "compress_stride": 4, "block_size": 8, "selected_blocks": 4,
                         "window": 6, "compressor": "mean", "separate_kv": False}
COMPRESSORS = ("mean", "weights", "linear")


def chosen_blocks(p: np.ndarray, t: int, s: NSASettings) -> list[int]:
    """Of one query and one group, from its summaries' probabilities [C], by the definition"""
    own, size, stride = t // s.block_size, s.compress_size, s.compress_stride
    scores = []
    for j in range(own + 1):
        total = 0.0
        for one in range(j * s.block_size // stride, (j + 1) * s.block_size // stride):
            for n in range(size // stride):
                total += p[one - n] if 0 <= one - n < len(p) else 0.0
        forced = j < s.initial_blocks or j > own - s.local_blocks
        scores.append(np.inf if forced else total)
    order = sorted(range(own + 1), key=lambda j: (-scores[j], j))
    return sorted(order[: s.selected_blocks])


def summaries(x: np.ndarray, s: NSASettings, compressor: Any) -> np.ndarray:
    """[B,G,T,d] -> [B,G,C,d]"""
    count = max(0, (x.shape[2] - s.compress_size) // s.compress_stride + 1)
    found = np.zeros((*x.shape[:2], count, x.shape[3]))
    for c in range(count):
        part = x[:, :, c * s.compress_stride : c * s.compress_stride + s.compress_size]
        if compressor.position is not None:
            part = part + compressor.position.data
        if s.compressor == "mean":
            found[:, :, c] = part.mean(axis=2)
        elif s.compressor == "weights":
            found[:, :, c] = np.einsum("gi,bgid->bgd", compressor.weight.data, part)
        else:
            flat = part.reshape(*part.shape[:2], -1)
            found[:, :, c] = np.einsum("bgi,gio->bgo", flat, compressor.weight.data)
    return found


def by_definition(block: NativeSparseAttention, x: np.ndarray) -> np.ndarray:
    s, (batch, length, _) = block.settings, x.shape
    share, positions = s.num_heads // s.num_kv_heads, np.arange(length)
    q, k, v = (heads(x, weights(block, name), count) for name, count in
               (("q_proj", s.num_heads), ("k_proj", s.num_kv_heads), ("v_proj", s.num_kv_heads)))
    far_k, far_v, near_k, near_v = k, v, k, v
    if s.separate_kv:
        far_k, far_v, near_k, near_v = (heads(x, weights(block, name), s.num_kv_heads) for name in OWN)
    q, turned_k, near_k = turned(q, positions), turned(k, positions), turned(near_k, positions)
    kc = summaries(turned(far_k, positions) if s.rope_before_compress else far_k, s, block.compress_k)
    vc = summaries(far_v, s, block.compress_v)
    starts = np.arange(kc.shape[2]) * s.compress_stride
    kc = kc if s.rope_before_compress else turned(kc, starts)
    ended = starts + s.compress_size - 1 <= positions[:, None]                             # [T,C]
    far = attention(q, kc, vc, ended)
    selected = np.zeros((batch, s.num_heads, length, length), bool)
    for b, g, t in np.ndindex(batch, s.num_kv_heads, length):
        p = np.zeros(int(ended[t].sum()))
        for h in range(g * share, (g + 1) * share):
            if len(p):
                scores = np.exp(kc[b, g, : len(p)] @ q[b, h, t] / np.sqrt(s.head_dim))
                p = p + scores / scores.sum()
        for j in chosen_blocks(p, t, s):
            selected[b, g * share : (g + 1) * share, t, j * s.block_size : (j + 1) * s.block_size] = True
    chosen = attention(q, turned_k, v, selected & causal(length))
    near = attention(q, near_k, near_v, causal(length) & (positions > positions[:, None] - s.window))
    gates = sigmoid(x @ weights(block, "gate_proj").T).reshape(batch, length, 3, s.num_heads)
    looks = sum(gates[:, :, i].transpose(0, 2, 1)[..., None] * o for i, o in enumerate((far, chosen, near)))
    return joined(looks) @ weights(block, "o_proj").T


@pytest.mark.parametrize("mode", ["chunk", "recurrent"])
@pytest.mark.parametrize("length", [5, 8, 40])
@pytest.mark.parametrize("compressor", COMPRESSORS)
@pytest.mark.parametrize("before", [True, False])
@pytest.mark.parametrize("own", [True, False])
def test_equals_the_definition(compressor: str, before: bool, own: bool, length: int, mode: str) -> None:
    options = {"compressor": compressor, "rope_before_compress": before, "separate_kv": own}
    block = built(NativeSparseAttention, **SHAPE, **SIZES | options)
    x = drawn(2, length, 12)
    close(run(block, x, mode=mode), by_definition(block, x), 1e-11)


@pytest.mark.parametrize("cuts", [[1, 2, 7, 8, 9, 30], list(range(1, 40)), [39]], ids=str)
@pytest.mark.parametrize("compressor", COMPRESSORS)
@pytest.mark.parametrize("own", [True, False])
def test_decoding(compressor: str, own: bool, cuts: list[int]) -> None:
    block = built(NativeSparseAttention, **SHAPE, **SIZES | {"compressor": compressor, "separate_kv": own})
    x = drawn(2, 40, 12)
    close(continued(block, x, cuts), by_definition(block, x), 1e-11)


@pytest.mark.parametrize("own", [True, False])
def test_rows_behind_padding(own: bool) -> None:
    block, pads = built(NativeSparseAttention, **SHAPE, **SIZES | {"separate_kv": own}), [0, 13, 4]
    x = drawn(3, 40, 12)
    mask = np.arange(40) >= np.array(pads)[:, None]
    state, parts = block.init_state(3), []
    with no_grad():
        for start, end in ((0, 9), (9, 10), (10, 31), (31, 32), (32, 40)):
            parts.append(block(Tensor(x[:, start:end]), state=state, mask=mask[:, :end])[0].data)
    for row, pad in enumerate(pads):
        alone = by_definition(block, x[row : row + 1, pad:])[0]
        close(np.concatenate(parts, axis=1)[row, pad:], alone, 1e-11)
        for mode in ("chunk", "recurrent"):
            close(run(block, x, mask=mask, mode=mode)[row, pad:], alone, 1e-11)


# ---- limits ----


def gated(block: NativeSparseAttention, *gates: float) -> NativeSparseAttention:
    """Gates held at 0 or 1: x's first channel is 1, and only that is looked at"""
    values = np.zeros_like(block.gate_proj.weight.data)
    values[:, 0] = np.repeat(np.where(np.array(gates) > 0, 60.0, -800.0), block.num_heads)
    block.gate_proj.weight.data = values
    return block


def with_one(x: np.ndarray) -> np.ndarray:
    x[:, :, 0] = 1.0
    return x


def like(cls: Any, block: Any, **options: Any) -> Any:
    other = cls(cls.Settings.create(**SHAPE, **options), dtype="float64")
    own = block.state_dict()
    other.load_state_dict({name: own[name] for name in other.state_dict()})
    return other


@pytest.mark.parametrize("mode", ["chunk", "recurrent"])
@pytest.mark.parametrize(("options", "gates"), [
    ({"selected_blocks": 5}, (0, 1, 0)),                                           # every block is chosen
    ({"window": 40}, (0, 0, 1)),                                                   # the window holds all
    ({"compress_size": 1, "compress_stride": 1}, (1, 0, 0))], ids=str)             # summaries of one token
def test_one_look_at_everything_is_full_attention(options: dict[str, int], gates: Any, mode: str) -> None:
    block, x = built(NativeSparseAttention, **SHAPE, **SIZES | options), with_one(drawn(2, 40, 12))
    gated(block, *gates)
    close(run(block, x, mode=mode), run(like(CausalSelfAttention, block), x), 1e-11)


def test_the_window_alone_is_sliding_attention() -> None:
    block, x = gated(built(NativeSparseAttention, **SHAPE, **SIZES), 0, 0, 1), with_one(drawn(2, 40, 12))
    close(run(block, x), run(like(SlidingWindowAttention, block, window=6), x), 1e-11)


def test_no_summary_has_ended_yet() -> None:
    block, x = gated(built(NativeSparseAttention, **SHAPE, **SIZES), 1, 0, 0), with_one(drawn(2, 9, 12))
    y = run(block, x)
    assert np.abs(y[:, :7]).max() == 0.0
    assert np.abs(y[:, 7:]).min() > 0.0


# ---- the choice ----


def test_importance_counts_shared_stretches() -> None:
    p = np.array([0.1, 0.2, 0.3, 0.4])
    np.testing.assert_allclose(importance(p, 3, size=4, stride=2, block=4), [0.4, 1.2, 0.4], rtol=1e-12)
    np.testing.assert_allclose(importance(p, 2, size=2, stride=2, block=4), [0.3, 0.7], rtol=1e-12)
    np.testing.assert_allclose(importance(p[:0], 2, size=2, stride=2, block=4), [0.0, 0.0])


def test_selection_is_ascending_without_repeats_and_holds_the_forced() -> None:
    scores, position = drawn(2, 3, 40, 10, seed=4) ** 2, np.tile(np.arange(40), (2, 1))
    found = select(scores, position, 4, wanted=5, first=1, near=2)
    assert found.shape == (2, 3, 40, 5)
    for b, g, t in np.ndindex(2, 3, 40):
        row, own = [j for j in found[b, g, t] if j >= 0], t // 4
        assert row == sorted(set(row))
        assert {0, own, max(0, own - 1)} <= set(row)
        assert len(row) == min(5, own + 1)
        assert max(row) == own
        rest = [j for j in row if 0 < j < own - 1]
        others = [j for j in range(1, own - 1) if j not in rest]
        assert not rest or not others or min(scores[b, g, t, rest]) >= max(scores[b, g, t, others])
        assert (found[b, g, t, len(row) :] == -1).all()


def test_of_equals_the_earlier_is_chosen() -> None:
    found = select(np.zeros((1, 1, 1, 8)), np.array([[31]]), 4, wanted=5, first=1, near=2)
    assert found.tolist() == [[[[0, 1, 2, 6, 7]]]]


def test_a_decoded_token_looks_at_as_many_keys_whatever_the_past() -> None:
    """But for the summaries"""
    settings = NSASettings.create(**SHAPE, **SIZES)
    near, far = settings.flops(1, 1, 63, "recurrent"), settings.flops(1, 1, 6399, "recurrent")
    assert near["selected"] == far["selected"] == 2 * 4 * 4 * 8 * (6 + 6)
    assert near["window"] == far["window"]
    assert far["compressed"] == 2 * 4 * 1599 * (6 + 6)


@pytest.mark.parametrize("options", [{"compress_size": 6}, {"block_size": 6}, {"compress_size": 16},
                                     {"selected_blocks": 2}, {"compressor": "max"}, {"sinks": True}], ids=str)
def test_refusals(options: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=next(iter(options))):
        NSASettings.create(**SHAPE | SIZES | options)
