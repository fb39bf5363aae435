"""Gated attention: its formula, and what open and closed gates leave of it."""

from typing import Any

import numpy as np
import pytest

from nn.errors import InputError
from nn.layers.attention.causal import CausalSelfAttention
from nn.layers.attention.gated import GatedAttention, GatedAttentionSettings
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
    sigmoid,
    turned,
    weights,
)

SHAPE: dict[str, Any] = {"hidden_size": 12, "num_heads": 4, "num_kv_heads": 2, "head_dim": 6}
GATES = ("output_gate", "q_gate", "k_gate", "v_gate")
CASES = [{"output_gate": "elementwise"}, {"output_gate": "headwise"}, {"output_gate": "projected"},
         {"output_gate": "none", "q_gate": "headwise", "k_gate": "elementwise", "v_gate": "headwise"},
         dict.fromkeys(GATES, "elementwise"), dict.fromkeys(GATES, "headwise")]


def by_formula(block: GatedAttention, x: np.ndarray) -> np.ndarray:
    s, positions = block.settings, np.arange(x.shape[1])

    def gate(name: str, count: int) -> Any:
        if not hasattr(block, name):
            return 1.0
        return sigmoid(heads(x, weights(block, name), count))       # headwise: one channel

    q, k, v = (heads(x, weights(block, name), count) for name, count in
               (("q_proj", s.num_heads), ("k_proj", s.num_kv_heads), ("v_proj", s.num_kv_heads)))
    q = rms(q, weights(block, "q_norm")) * gate("q_gate", s.num_heads)
    k = rms(k, weights(block, "k_norm")) * gate("k_gate", s.num_kv_heads)
    o = attention(turned(q, positions), turned(k, positions), v * gate("v_gate", s.num_kv_heads),
                  causal(x.shape[1]))
    if s.output_gate == "projected":
        return (joined(o) @ weights(block, "o_proj").T) * sigmoid(x @ weights(block, "output_gate").T)
    return joined(o * gate("output_gate", s.num_heads)) @ weights(block, "o_proj").T


@pytest.mark.parametrize("gates", CASES, ids=str)
def test_equals_the_formula(gates: dict[str, str]) -> None:
    block, x = built(GatedAttention, **SHAPE, **gates, qk_norm="head"), drawn(2, 7, 12)
    close(run(block, x), by_formula(block, x), 1e-12)


def with_biases(block: GatedAttention, value: float) -> GatedAttention:
    for name in block.settings.gate_widths():
        getattr(block, name).bias.data[...] = value
    return block


@pytest.mark.parametrize("gates", CASES, ids=str)
def test_open_gates_are_plain_attention(gates: dict[str, str]) -> None:
    block = with_biases(built(GatedAttention, **SHAPE, **gates, gate_start=1.0), 60.0)
    plain = CausalSelfAttention(CausalSelfAttention.Settings.create(**SHAPE), dtype="float64")
    own = block.state_dict()
    plain.load_state_dict({name: own[name] for name in plain.state_dict()})
    x = drawn(2, 7, 12)
    close(run(block, x), run(plain, x), 1e-12)


@pytest.mark.parametrize("gate", ["elementwise", "headwise", "projected"])
def test_closed_output_gates_leave_nothing(gate: str) -> None:
    block = with_biases(built(GatedAttention, **SHAPE, output_gate=gate, gate_start=1.0), -800.0)
    assert np.abs(run(block, drawn(2, 7, 12))).max() == 0.0


def test_closed_query_gates_look_at_all_keys_alike() -> None:
    block = with_biases(built(GatedAttention, **SHAPE, output_gate="none", q_gate="headwise", gate_start=1.0),
                        -800.0)
    x = drawn(1, 5, 12)
    v = np.repeat(heads(x, weights(block, "v_proj"), 2), 2, axis=1)
    means = np.cumsum(v, axis=2) / np.arange(1, 6)[:, None]
    close(run(block, x), joined(means) @ weights(block, "o_proj").T, 1e-12)


def test_headwise_is_elementwise_with_equal_rows() -> None:
    each = built(GatedAttention, **SHAPE, output_gate="headwise", v_gate="headwise")
    wide = GatedAttention(GatedAttentionSettings.create(**SHAPE, v_gate="elementwise"), dtype="float64")
    own = each.state_dict()
    wide.load_state_dict({name: np.repeat(values, 6, axis=0) if "gate" in name else values
                          for name, values in own.items()})
    x = drawn(2, 7, 12)
    close(run(wide, x), run(each, x), 1e-12)


def test_parameters_of_the_gates() -> None:
    counts = {kind: GatedAttentionSettings.create(**SHAPE, output_gate=kind).parameters()["gates"]
              for kind in ("none", "elementwise", "headwise", "projected")}
    assert counts == {"none": 0, "elementwise": 12 * 24, "headwise": 12 * 4, "projected": 12 * 12}
    flops = GatedAttentionSettings.create(**SHAPE, output_gate="headwise").flops(1, 5)
    assert flops["gates"] == 5 * 2 * 12 * 4


def test_refuses_an_unknown_gate() -> None:
    with pytest.raises(InputError, match="v_gate"):
        GatedAttentionSettings.create(**SHAPE, v_gate="projected")
