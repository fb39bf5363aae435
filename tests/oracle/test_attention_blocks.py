"""Attention blocks against Transformers' layers with their weights, in float64: results and gradients of
every weight and of the inputs.  DeepSeek-V3 (latent attention), Qwen3-Next (gated), gpt-oss (sinks, window),
OLMoE (QK-norm of all heads together), T5 (cross attention)."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from transformers.models.deepseek_v3 import modeling_deepseek_v3 as deepseek
from transformers.models.deepseek_v3.configuration_deepseek_v3 import DeepseekV3Config
from transformers.models.gemma2 import modeling_gemma2 as gemma2
from transformers.models.gemma2.configuration_gemma2 import Gemma2Config
from transformers.models.gpt_oss import modeling_gpt_oss as gpt_oss
from transformers.models.gpt_oss.configuration_gpt_oss import GptOssConfig
from transformers.models.olmoe import modeling_olmoe as olmoe
from transformers.models.olmoe.configuration_olmoe import OlmoeConfig
from transformers.models.qwen3_next import modeling_qwen3_next as qwen
from transformers.models.qwen3_next.configuration_qwen3_next import Qwen3NextConfig
from transformers.models.t5 import modeling_t5 as t5
from transformers.models.t5.configuration_t5 import T5Config

from nn.layers import registry
from nn.layers.attention.gated import GatedAttention
from nn.layers.attention.mla import MLA
from nn.layers.rotary import RopeScaling
from nn.tensor import Tensor
from tests.oracle.hugging_face import in_full

LENGTH, WIDTH = 17, 24
Arrays = dict[str, np.ndarray]
SMALL = {"hidden_size": WIDTH, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8}


def error(found: Any, expected: Any) -> float:
    """The largest difference, relative to the largest value"""
    expected = np.asarray(expected)
    return float(np.max(np.abs(np.asarray(found) - expected)) / np.max(np.abs(expected)))


def drawn(layer: Any, seed: int = 0) -> Any:
    """Their layer in float64, its weights random"""
    rng, layer = np.random.default_rng(seed), layer.double().eval()
    with torch.no_grad():
        for name, weight in layer.named_parameters():
            noise = rng.normal(scale=0.3, size=tuple(weight.shape))
            weight.copy_(torch.tensor(1.0 + noise if "norm" in name else noise))
    return layer


def inputs(seed: int = 1) -> tuple[np.ndarray, np.ndarray]:
    """x, and what the result is weighted with"""
    rng = np.random.default_rng(seed)
    return rng.standard_normal((2, LENGTH, WIDTH)), rng.standard_normal((2, LENGTH, WIDTH))


def hidden(window: int = 0) -> Any:
    """Their mask [1,1,T,T], added to the scores"""
    i, j = np.arange(LENGTH)[:, None], np.arange(LENGTH)
    visible = (j <= i) & (j > i - window if window else True)
    return torch.tensor(np.where(visible, 0.0, -np.inf))[None, None]


def compare(theirs: Any, ours: Any, run: Callable[[Any, Any], Any], weights: Callable[[Arrays], Arrays],
            limit: float = 1e-9, **options: Any) -> None:
    """`run(layer, x)` is their result; `weights` names their weights, or gradients, as ours are named."""
    x, c = inputs()
    there = torch.tensor(x, requires_grad=True)
    with in_full("float64"):
        expected = run(theirs, there)
        (expected * torch.tensor(c)).sum().backward()
    ours.load_state_dict(weights({name: w.detach().numpy() for name, w in theirs.named_parameters()}))
    wanted = weights({name: w.grad.numpy() for name, w in theirs.named_parameters()})
    for mode in ("chunk", "recurrent"):
        ours.zero_grad()
        here = Tensor(x, requires_grad=True)
        y, _ = ours(here, mode=mode, **options)
        (y * c).sum().backward()
        assert error(y.numpy(), expected.detach()) < limit
        assert error(here.grad, there.grad) < limit
        for name, parameter in ours.named_parameters().items():
            assert error(parameter.grad, wanted[name]) < limit, name


def rotary(module: Any, config: Any) -> Any:
    with in_full("float64"):
        return module(config)(torch.zeros(1, dtype=torch.float64), torch.arange(LENGTH)[None])


PLAIN = {"rope_type": "default", "rope_theta": 1e4}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16, "beta_fast": 4.0,
        "beta_slow": 1.0, "mscale": 1.0, "mscale_all_dim": 1.0}


@pytest.mark.parametrize("stretched", [False, True])
@pytest.mark.parametrize("interleaved", [True, False])
@pytest.mark.parametrize("rank", [None, 10])
def test_deepseek_v3(rank: int | None, interleaved: bool, stretched: bool) -> None:
    ranks = {"kv_lora_rank": 12, "qk_nope_head_dim": 6, "qk_rope_head_dim": 8, "v_head_dim": 5}
    rope = {"rope_theta": 1e4} | (YARN if stretched else {"rope_type": "default"})
    config = DeepseekV3Config(hidden_size=WIDTH, num_attention_heads=4, num_key_value_heads=4,
                              q_lora_rank=rank, rope_interleave=interleaved, rope_parameters=rope,
                              max_position_embeddings=64, attn_implementation="eager", **ranks)
    scaling = RopeScaling("yarn", 4.0, 16, 4.0, 1.0, attention_factor=1.0) if stretched else RopeScaling()
    ours = MLA(MLA.Settings.create(hidden_size=WIDTH, num_heads=4, q_lora_rank=rank or 0, max_seq_len=64,
                                   rope_interleaved=interleaved, rope_scaling=scaling,
                                   mscale_all_dim=1.0 if stretched else 0.0, **ranks), dtype="float64")
    angles = rotary(deepseek.DeepseekV3RotaryEmbedding, config)
    compare(drawn(deepseek.DeepseekV3Attention(config, 0)), ours,
            lambda layer, x: layer(x, angles, hidden())[0], dict, limit=1e-6 if stretched else 1e-7)


def test_qwen3_next() -> None:
    """Query and gate lie in one projection, head by head; their norms add 1 to the weight"""
    config = Qwen3NextConfig(**SMALL, rms_norm_eps=1e-6, attn_implementation="eager",
                             rope_parameters=PLAIN | {"partial_rotary_factor": 0.25})
    ours = GatedAttention(GatedAttention.Settings.create(
        hidden_size=WIDTH, num_heads=4, num_kv_heads=2, head_dim=8, qk_norm="head",
        partial_rotary_factor=0.25), dtype="float64")
    theirs = drawn(qwen.Qwen3NextAttention(config, 0))
    gradients: list[bool] = []

    def named(arrays: Arrays) -> Arrays:
        both = arrays["q_proj.weight"].reshape(4, 2, 8, WIDTH)
        shift = 0.0 if gradients else 1.0                   # the gradient of 1 + w is that of w
        gradients.append(True)
        return arrays | {"q_proj.weight": both[:, 0].reshape(32, WIDTH),
                         "output_gate.weight": both[:, 1].reshape(32, WIDTH),
                         "q_norm.weight": arrays["q_norm.weight"] + shift,
                         "k_norm.weight": arrays["k_norm.weight"] + shift}

    angles = rotary(qwen.Qwen3NextRotaryEmbedding, config)
    compare(theirs, ours, lambda layer, x: layer(x, angles, hidden())[0], named, limit=1e-7)


@pytest.mark.parametrize("window", [0, 5])
def test_gpt_oss(window: int) -> None:
    kind = "sliding_attention" if window else "full_attention"
    config = GptOssConfig(**SMALL, attention_bias=True, attn_implementation="eager", num_hidden_layers=1,
                          sliding_window=window or 5, layer_types=[kind], rope_parameters=PLAIN)
    ours = registry.create("mixer", kind, hidden_size=WIDTH, num_heads=4, num_kv_heads=2, head_dim=8,
                           attn_bias=True, out_bias=True, sinks=True, window=window, dtype="float64")
    angles = rotary(gpt_oss.GptOssRotaryEmbedding, config)
    compare(drawn(gpt_oss.GptOssAttention(config, 0)), ours,
            lambda layer, x: layer(x, angles, hidden(window))[0], dict, limit=1e-7)


@pytest.mark.parametrize("window", [0, 5])
def test_gemma2_softcap(window: int) -> None:
    """Scores bent by softcap · tanh(scores / softcap), with a scale of their own"""
    kind = "sliding_attention" if window else "full_attention"
    config = Gemma2Config(**SMALL, attn_implementation="eager", num_hidden_layers=1, layer_types=[kind],
                          sliding_window=window or 5, attn_logit_softcapping=0.5, query_pre_attn_scalar=1,
                          rope_parameters=PLAIN)
    ours = registry.create("mixer", kind, hidden_size=WIDTH, num_heads=4, num_kv_heads=2, head_dim=8,
                           softcap=0.5, scale=1.0, window=window, dtype="float64")
    angles = rotary(gemma2.Gemma2RotaryEmbedding, config)
    compare(drawn(gemma2.Gemma2Attention(config, 0)), ours,
            lambda layer, x: layer(x, angles, hidden(window))[0], dict, limit=1e-7)


@pytest.mark.parametrize("clip", [None, 0.8])
def test_olmoe(clip: float | None) -> None:
    small = {name: value for name, value in SMALL.items() if name != "head_dim"}
    config = OlmoeConfig(**small, rms_norm_eps=1e-6, attn_implementation="eager", clip_qkv=clip,
                         rope_parameters=PLAIN)
    ours = registry.create("mixer", "full_attention", hidden_size=WIDTH, num_heads=4, num_kv_heads=2,
                           qk_norm="full", clip_qkv=clip or 0.0, dtype="float64")
    angles = rotary(olmoe.OlmoeRotaryEmbedding, config)
    compare(drawn(olmoe.OlmoeAttention(config, 0)), ours,
            lambda layer, x: layer(x, position_embeddings=angles, attention_mask=hidden())[0], dict,
            limit=1e-7)


@pytest.mark.parametrize("padded", [False, True])
def test_t5_cross_attention(padded: bool) -> None:
    config = T5Config(d_model=WIDTH, d_kv=8, num_heads=4, dropout_rate=0.0, is_decoder=True,
                      attn_implementation="eager")
    theirs = drawn(t5.T5Attention(config, has_relative_attention_bias=False, layer_idx=0))
    ours = registry.create("memory", "cross_attention", hidden_size=WIDTH, num_heads=4, head_dim=8, scale=1.0,
                           dtype="float64")
    context = 0.5 * np.random.default_rng(5).standard_normal((2, 7, WIDTH))
    keep = np.array([[True] * 7, [True] * 4 + [False] * 3]) if padded else np.ones((2, 7), bool)
    mask = torch.tensor(np.where(keep, 0.0, -np.inf))[:, None, None, :].expand(2, 1, LENGTH, 7)
    there, here = torch.tensor(context, requires_grad=True), Tensor(context, requires_grad=True)
    compare(theirs, ours, lambda layer, x: layer(x, mask=mask, key_value_states=there)[0],
            lambda arrays: {f"{name[0]}_proj.weight": array for name, array in arrays.items()},
            context=here, context_mask=keep)
    assert error(here.grad, 2.0 * there.grad) < 1e-9               # of both modes
