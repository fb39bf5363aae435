"""Configurations that make no model are refused, with the argument, its value and the way out."""

from dataclasses import FrozenInstanceError
from typing import Any

import pytest

from nn import MoETransformer, MoETransformerConfig
from nn.errors import InputError
from nn.layers import RopeScaling


@pytest.mark.parametrize(("changes", "message"), [
    *[({name: 0}, f"^{name}: 0 is not positive$") for name in
      ("vocab_size", "hidden_size", "num_layers", "num_heads", "num_kv_heads", "intermediate_size",
       "max_seq_len")],
    ({"max_seq_len": -3}, "^max_seq_len: -3 is not positive$"),
    ({"hidden_size": 66},
     "^hidden_size: 66 is not a multiple of num_heads = 4; change one of them or set head_dim$"),
    ({"num_kv_heads": 3}, "^num_kv_heads: 3 does not divide num_heads = 4$"),
    ({"num_kv_heads": 8}, "^num_kv_heads: 8 does not divide"),
    ({"head_dim": 15}, "^head_dim: 15 is odd; rotary positions turn pairs of channels$"),
    ({"hidden_size": 60}, "^head_dim: 15 is odd"),
    ({"sliding_window": -1}, "^sliding_window: -1 is negative; 0 means no window$"),
    ({"top_k": 0}, "^top_k: 0 is not between 1 and num_experts = 4$"),
    ({"top_k": 5}, "^top_k: 5 is not between 1 and num_experts = 4$"),
    ({"num_experts": -1}, "num_experts = -1"),
    ({"ffn": "gelu"}, "^ffn: experts are swiglu, not 'gelu'; set num_experts to 0"),
    ({"ffn": "gelo", "num_experts": 0}, "^ffn: 'gelo'.*gelu"),
    ({"norm": "batchnorm"}, "^norm: 'batchnorm'.*rmsnorm, layernorm"),
    ({"drop_policy": "oldest"}, "^drop_policy: 'oldest'.*probs, position, slot"),
    ({"router_jitter": 1.0}, "router_jitter: 1.0"),
    ({"router_jitter": -0.1}, "router_jitter: -0.1"), ({"capacity_factor": -1.0}, "capacity_factor: -1.0"),
    ({"norm_eps": 0.0}, "^norm_eps: 0.0 is not a positive number$"),
    ({"norm_eps": float("nan")}, "^norm_eps: nan is not a positive"),
    ({"rope_theta": -1.0}, "^rope_theta: -1.0 is not a positive number$"),
    ({"rope_theta": float("inf")}, "^rope_theta: inf is not"),
])
def test_refusals(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        MoETransformerConfig(**changes)


@pytest.mark.parametrize(("dtype", "seed", "message"),
                         [("float8", 0, "^dtype: 'float8' is not a storage type; choose one of float64, "),
                                                        ("int32", 0, "^dtype: 'int32'")])
def test_a_model_of_another_type(dtype: str, seed: int, message: str) -> None:
    with pytest.raises(InputError, match=message):
        MoETransformer(MoETransformerConfig(), seed=seed, dtype=dtype)


def test_derived_head_width() -> None:
    config = MoETransformerConfig(hidden_size=96, num_heads=6)
    assert config.head_dim == 16
    assert config.replace(hidden_size=48).head_dim == 8
    assert config.replace(num_heads=3, num_kv_heads=1).head_dim == 32
    assert config.replace(hidden_size=48, head_dim=6).head_dim == 6
    free = MoETransformerConfig(hidden_size=96, num_heads=6, head_dim=10)
    assert free.replace(hidden_size=48).head_dim == 10
    assert config.replace(vocab_size=5).head_dim == 16


def test_is_frozen_and_compares_by_value() -> None:
    config = MoETransformerConfig()
    with pytest.raises(FrozenInstanceError):
        config.vocab_size = 3
    assert config == MoETransformerConfig() != config.replace(vocab_size=7)
    assert hash(config) == hash(MoETransformerConfig())


def test_scaling_reaches_the_tables() -> None:
    plain = MoETransformer(MoETransformerConfig())
    scaled = MoETransformer(MoETransformerConfig(rope_scaling=RopeScaling("ntk", 8.0)))
    assert plain.layers[0].self_attn.rotary is plain.layers[1].self_attn.rotary
    slow, fast = (made.layers[0].self_attn.rotary.inv[-1] for made in (scaled, plain))
    assert slow == pytest.approx(fast / 8.0)
