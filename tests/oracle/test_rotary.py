"""Rotary frequencies, their scalings and the tables against Transformers' functions for them."""

from typing import Any

import pytest
import torch
from transformers import MixtralConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS
from transformers.models.mixtral.modeling_mixtral import MixtralRotaryEmbedding

from nn.layers.rotary import RopeScaling, Rotary, inverse_frequencies
from tests.oracle.compare import error

YARN = {"factor": 8.0, "original_max_position_embeddings": 4096}
CASES = {
    "linear": {"factor": 4.0},
    "yarn": YARN,
    "yarn, betas": YARN | {"beta_fast": 16.0, "beta_slow": 2.0},
    "yarn, factor of cos and sin": YARN | {"attention_factor": 0.7},
    "yarn, nothing to stretch": {"factor": 1.0, "original_max_position_embeddings": 32768},
}


def their_config(dim: int, theta: float, context: int, rope: dict[str, Any]) -> MixtralConfig:
    rope = {"rope_theta": theta} | rope
    return MixtralConfig(head_dim=dim, max_position_embeddings=context, rope_parameters=rope)


@pytest.mark.parametrize("dim", [8, 64, 128])
@pytest.mark.parametrize("theta", [1e4, 1e6])
@pytest.mark.parametrize("name", CASES)
def test_frequencies(name: str, theta: float, dim: int) -> None:
    scaling = RopeScaling(name.split(",")[0], **CASES[name])
    config = their_config(dim, theta, 32768, {"rope_type": scaling.type} | CASES[name])
    expected, their_factor = ROPE_INIT_FUNCTIONS[scaling.type](config, "cpu")
    found, factor = inverse_frequencies(dim, theta, scaling, 32768)
    assert error(found / expected.double().numpy(), [1.0] * (dim // 2)) < 2e-6        # theirs is float32
    assert error(factor, their_factor) < 1e-12


@pytest.mark.parametrize("length", [100, 512, 513, 2048])
def test_dynamic_frequencies_are_theirs_at_the_planned_length(length: int) -> None:
    config = their_config(64, 1e4, 512, {"rope_type": "dynamic", "factor": 4.0})
    expected, _ = ROPE_INIT_FUNCTIONS["dynamic"](config, "cpu", seq_len=length)
    found, _ = inverse_frequencies(64, 1e4, RopeScaling("dynamic", 4.0, 512), length)
    assert error(found / expected.double().numpy(), [1.0] * 32) < 2e-6


def test_static_ntk_is_the_dynamic_one_at_full_stretch() -> None:
    """Transformers has no static kind; its dynamic one has some s' at each length."""
    config = their_config(64, 1e4, 512, {"rope_type": "dynamic", "factor": 7.0})
    expected, _ = ROPE_INIT_FUNCTIONS["dynamic"](config, "cpu", seq_len=1024)         # s' = 7·2 − 6 = 8
    found, _ = inverse_frequencies(64, 1e4, RopeScaling("ntk", 8.0), 262144)
    assert error(found / expected.double().numpy(), [1.0] * 32) < 2e-6


def test_tables() -> None:
    config = their_config(64, 1e4, 512, {"rope_type": "yarn"} | YARN)
    cos, sin = MixtralRotaryEmbedding(config)(torch.zeros(1), torch.arange(300)[None])
    ours = Rotary(64, 1e4, RopeScaling("yarn", **YARN), 512)(0, 300, "float32")
    assert error(ours[0], cos[0, :, :32]) < 1e-4                    # their angles are float32, ours float64
    assert error(ours[1], sin[0, :, :32]) < 1e-4
