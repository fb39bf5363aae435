"""Norms of queries and keys, sinks and partly turned heads of full attention."""

from typing import Any

import numpy as np
import pytest

from nn.errors import InputError
from nn.layers.attention.causal import AttentionSettings, CausalSelfAttention
from tests.blocks.harness import close
from tests.layers.attention.formulas import (
    attention,
    built,
    causal,
    drawn,
    heads,
    joined,
    rms,
    run,
    turned,
    weights,
)

SHAPE: dict[str, Any] = {"hidden_size": 12, "num_heads": 4, "num_kv_heads": 2, "head_dim": 6}


def by_formula(block: CausalSelfAttention, x: np.ndarray) -> np.ndarray:
    s, positions, scale, parts = block.settings, np.arange(x.shape[1]), 6**-0.5, []
    for name, count in (("q", s.num_heads), ("k", s.num_kv_heads)):
        flat = x @ weights(block, f"{name}_proj").T
        if s.qk_norm == "full":
            flat = rms(flat, weights(block, f"{name}_norm"))
        flat = np.clip(flat, -s.clip_qkv, s.clip_qkv) if s.clip_qkv else flat
        z = flat.reshape(*flat.shape[:2], count, 6).transpose(0, 2, 1, 3)
        if s.qk_norm == "head":
            z = rms(z, weights(block, f"{name}_norm"))
        if s.qk_norm == "l2":
            z, scale = z / np.sqrt((z * z).sum(axis=-1, keepdims=True) + 1e-6), 6**0.5
        parts.append(turned(z, positions, round(6 * s.partial_rotary_factor)))
    v, sinks = heads(x, weights(block, "v_proj"), s.num_kv_heads), getattr(block.sinks, "data", None)
    v = np.clip(v, -s.clip_qkv, s.clip_qkv) if s.clip_qkv else v
    q, k = parts
    return joined(attention(q, k, v, causal(x.shape[1]), scale, sinks)) @ weights(block, "o_proj").T


@pytest.mark.parametrize("part", [1.0, 2 / 3])
@pytest.mark.parametrize("sinks", [False, True])
@pytest.mark.parametrize("kind", ["none", "head", "full", "l2"])
def test_equals_the_formula(kind: str, sinks: bool, part: float) -> None:
    block = built(CausalSelfAttention, **SHAPE, qk_norm=kind, sinks=sinks, partial_rotary_factor=part)
    x = drawn(2, 7, 12)
    close(run(block, x), by_formula(block, x), 1e-12)


@pytest.mark.parametrize("kind", ["none", "head", "full"])
def test_queries_keys_and_values_are_cut(kind: str) -> None:
    block, x = built(CausalSelfAttention, **SHAPE, qk_norm=kind, clip_qkv=0.4), drawn(2, 7, 12)
    close(run(block, x), by_formula(block, x), 1e-12)
    block.clip = 1e9
    assert np.abs(run(block, x) - by_formula(block, x)).max() > 1e-3


def test_full_is_head_where_there_is_one_head() -> None:
    one = {"hidden_size": 12, "num_heads": 1, "head_dim": 6}
    full, head = (built(CausalSelfAttention, **one, qk_norm=kind) for kind in ("full", "head"))
    head.load_state_dict(full.state_dict())
    x = drawn(2, 7, 12)
    assert np.array_equal(run(full, x), run(head, x))


def test_l2_is_head_without_weights() -> None:
    unit, head = (built(CausalSelfAttention, **SHAPE, qk_norm=kind, norm_eps=1e-14)
                  for kind in ("l2", "head"))
    ones = {name: np.ones(6) for name in ("q_norm.weight", "k_norm.weight")}
    head.load_state_dict(unit.state_dict() | ones)
    x = drawn(2, 7, 12)
    close(run(unit, x), run(head, x), 1e-10)


@pytest.mark.parametrize("kind", ["head", "full", "l2"])
def test_the_size_of_queries_and_keys_does_not_matter(kind: str) -> None:
    block, x = built(CausalSelfAttention, **SHAPE, qk_norm=kind, norm_eps=1e-14), drawn(2, 7, 12)
    before = run(block, x)
    block.q_proj.weight.data *= 5.0
    block.k_proj.weight.data *= 0.3
    close(run(block, x), before, 1e-10)


def test_heads_of_a_group_may_be_exchanged() -> None:
    block, x = built(CausalSelfAttention, **SHAPE, sinks=True), drawn(2, 7, 12)
    before, order = run(block, x), [1, 0, 3, 2]
    q, o = weights(block, "q_proj").reshape(4, 6, 12), weights(block, "o_proj").reshape(12, 4, 6)
    block.q_proj.weight.data = q[order].reshape(24, 12)
    block.o_proj.weight.data = o[:, order].reshape(12, 24)
    block.sinks.data = block.sinks.data[order]
    close(run(block, x), before, 1e-12)


def test_parameters_of_the_norms() -> None:
    counts = {kind: AttentionSettings.create(**SHAPE, qk_norm=kind).parameters()["norms"]
              for kind in ("none", "head", "full", "l2")}
    assert counts == {"none": 0, "head": 12, "full": 24 + 12, "l2": 0}


def test_refusals() -> None:
    with pytest.raises(InputError, match="qk_norm"):
        AttentionSettings.create(**SHAPE, qk_norm="heads")
    with pytest.raises(InputError, match="partial_rotary_factor"):
        AttentionSettings.create(**SHAPE, partial_rotary_factor=0.0)
