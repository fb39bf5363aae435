"""Language models put together from blocks beside whole models of Transformers with the same weights:
logits, loss, and the gradient of every parameter.  Between them: learned positions, biases, LayerNorm, a tied
head, norms on both sides, softcaps, a scaled embedding, windows beside full attention, a hybrid of linear and
full attention with experts, and no attention."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from transformers import (
    Gemma2Config,
    Gemma2ForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    Mamba2Config,
    Mamba2ForCausalLM,
    MambaConfig,
    MambaForCausalLM,
    Qwen3NextConfig,
    Qwen3NextForCausalLM,
)

from nn.models import LanguageModel, LanguageModelConfig
from tests.oracle.compare import Arrays, assert_close, error, tokens
from tests.oracle.hugging_face import in_full

LIMIT = {"float64": 1e-9, "float32": 3e-4}
OURS: dict[str, Any] = {"vocab_size": 61, "hidden_size": 32, "num_layers": 2, "max_seq_len": 64}
HEADS = {"num_heads": 4, "num_kv_heads": 2, "head_dim": 12, "softcap": 3.0, "scale": 0.5}


# ---- each architecture: ours, theirs, and our weights by their names ----


def renamed(arrays: Arrays, *pairs: tuple[str, str]) -> Arrays:
    found = {}
    for name, array in arrays.items():
        for ours, theirs in pairs:
            name = name.replace(ours, theirs)
        found[name] = array
    return found


def gpt2() -> tuple[LanguageModelConfig, Any, Callable[[Arrays], Arrays]]:
    ours = LanguageModelConfig(
        **OURS, norm="layernorm", norm_eps=1e-5, positions="learned", feed_forward="mlp", tie_embeddings=True,
        options={"full_attention": {"num_heads": 4, "rope_theta": 0.0, "attn_bias": True, "out_bias": True},
                 "mlp": {"intermediate_size": 40, "activation": "gelu_tanh", "bias": True}})
    theirs = GPT2LMHeadModel(GPT2Config(vocab_size=61, n_embd=32, n_layer=2, n_head=4, n_inner=40,
                                        n_positions=64))

    def names(arrays: Arrays) -> Arrays:
        """Their matrices are [in, out]; queries, keys and values are one"""
        arrays = renamed(
            arrays, ("embed_tokens", "transformer.wte"), ("position_embedding", "transformer.wpe"),
            ("body.layers", "transformer.h"), ("connection.norms.0", "ln_1"), ("connection.norms.1", "ln_2"),
            ("feed_forward.ffn.up_proj", "mlp.c_fc"), ("feed_forward.ffn.down_proj", "mlp.c_proj"),
            ("mixer.o_proj", "attn.c_proj"), ("mixer", "attn"))
        arrays = {f"transformer.ln_f.{n.rpartition('.')[2]}" if n.startswith("norm.") else n: a
                  for n, a in arrays.items()}
        for name in [n for n in arrays if ".q_proj." in n]:
            parts = [arrays.pop(name.replace("q_proj", part)) for part in ("q_proj", "k_proj", "v_proj")]
            arrays[name.replace("q_proj", "c_attn")] = np.concatenate(parts)
        return {n: a.T if ".c_" in n else a for n, a in arrays.items()}

    return ours, theirs, names


def gemma2() -> tuple[LanguageModelConfig, Any, Callable[[Arrays], Arrays]]:
    ours = LanguageModelConfig(
        **OURS | {"hidden_size": 64}, mixer=("sliding_attention", "full_attention"), residual="sandwich",
        tie_embeddings=True, embedding_scale=8.0, logit_softcap=2.0,      # theirs keeps √64 in float32
        options={"sliding_attention": HEADS | {"window": 5}, "full_attention": HEADS,
                 "swiglu": {"intermediate_size": 40}})
    theirs = Gemma2ForCausalLM(Gemma2Config(
        vocab_size=61, hidden_size=64, intermediate_size=40, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, head_dim=12, hidden_activation="silu", query_pre_attn_scalar=4,
        sliding_window=5, layer_types=["sliding_attention", "full_attention"], attn_logit_softcapping=3.0,
        final_logit_softcapping=2.0, max_position_embeddings=64, attn_implementation="eager",
        pad_token_id=None))

    def names(arrays: Arrays) -> Arrays:
        order = ("input_layernorm", "post_attention_layernorm", "pre_feedforward_layernorm",
                 "post_feedforward_layernorm")
        norms = [(f"connection.norms.{i}", name) for i, name in enumerate(order)]
        arrays = renamed(arrays, ("body.layers", "layers"), *norms, ("mixer", "self_attn"),
                         ("feed_forward.ffn", "mlp"))
        return {f"model.{name}": array for name, array in arrays.items()}

    return ours, theirs, names


def mamba() -> tuple[LanguageModelConfig, Any, Callable[[Arrays], Arrays]]:
    ours = LanguageModelConfig(**OURS, mixer="mamba", feed_forward="none", norm_eps=1e-5, tie_embeddings=True,
                               options={"mamba": {"state_size": 5, "time_step_rank": 3, "conv_kernel": 3}})
    theirs = MambaForCausalLM(MambaConfig(
        vocab_size=61, hidden_size=32, num_hidden_layers=2, state_size=5, time_step_rank=3, conv_kernel=3,
        layer_norm_epsilon=1e-5, tie_word_embeddings=True, use_mambapy=False))
    return ours, theirs, state_space


def mamba2() -> tuple[LanguageModelConfig, Any, Callable[[Arrays], Arrays]]:
    own = {"state_size": 6, "head_dim": 8, "num_groups": 2, "chunk_size": 4, "conv_kernel": 3}
    ours = LanguageModelConfig(**OURS, mixer="mamba2", feed_forward="none", norm_eps=1e-5,
                               options={"mamba2": own | {"norm_groups": 1}})
    theirs = Mamba2ForCausalLM(Mamba2Config(
        vocab_size=61, hidden_size=32, num_hidden_layers=2, state_size=6, num_heads=8, head_dim=8, n_groups=2,
        chunk_size=4, conv_kernel=3, layer_norm_epsilon=1e-5, tie_word_embeddings=False))
    return ours, theirs, state_space


def qwen3_next() -> tuple[LanguageModelConfig, Any, Callable[[Arrays], Arrays]]:
    """Three gated delta rules to one gated attention, experts with a shared one in every layer"""
    ours = LanguageModelConfig(
        **OURS | {"num_layers": 4}, mixer=("gated_delta_net",) * 3 + ("gated_attention",), feed_forward="moe",
        options={"gated_delta_net": {"num_heads": 2, "num_v_heads": 4, "head_dim": 8, "expand_v": 1.0,
                                     "dt_init": "ones"},
                 "gated_attention": {"num_heads": 4, "num_kv_heads": 2, "head_dim": 8, "qk_norm": "head",
                                     "partial_rotary_factor": 0.25},
                 "moe": {"num_experts": 4, "top_k": 2, "intermediate_size": 10, "shared_gate": True,
                         "shared_intermediate_size": 6, "balance_coef": 0.0, "router_z_coef": 0.0}})
    theirs = Qwen3NextForCausalLM(Qwen3NextConfig(
        vocab_size=61, hidden_size=32, num_hidden_layers=4, num_attention_heads=4, num_key_value_heads=2,
        head_dim=8, linear_num_key_heads=2, linear_key_head_dim=8, linear_num_value_heads=4,
        linear_value_head_dim=8, linear_conv_kernel_dim=4, num_experts=4, num_experts_per_tok=2,
        norm_topk_prob=True, moe_intermediate_size=10, shared_expert_intermediate_size=6, hidden_act="silu",
        layer_types=["linear_attention"] * 3 + ["full_attention"], max_position_embeddings=64,
        rope_parameters={"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.25},
        experts_implementation="eager", attn_implementation="eager", tie_word_embeddings=False))

    def names(arrays: Arrays) -> Arrays:
        """Queries and their gates are one matrix, head by head"""
        arrays = renamed(
            arrays, ("body.layers", "layers"), ("connection.norms.0", "input_layernorm"),
            ("connection.norms.1", "post_attention_layernorm"), ("layers.3.mixer", "layers.3.self_attn"),
            ("mixer", "linear_attn"), ("feed_forward.moe.router", "mlp.gate"),
            ("feed_forward.moe", "mlp"), ("feed_forward.", "mlp."), ("shared_experts.", "shared_expert."))
        for name in [n for n in arrays if "output_gate" in n]:
            gate, query = arrays.pop(name), name.replace("output_gate", "q_proj")
            both = [array.reshape(4, 8, 32) for array in (arrays[query], gate)]
            arrays[query] = np.concatenate(both, axis=1).reshape(64, 32)
        arrays = {n: a[:, None] if n.endswith("conv1d.weight") else a for n, a in arrays.items()}
        return {n if n.startswith("lm_head") else f"model.{n}": a for n, a in arrays.items()}

    return ours, theirs, names


def state_space(arrays: Arrays) -> Arrays:
    """Their convolution has an axis for its one input channel."""
    arrays = renamed(arrays, ("embed_tokens", "backbone.embeddings"), ("body.layers", "backbone.layers"),
                     ("connection.norms.0", "norm"))
    arrays = {"backbone.norm_f.weight" if n == "norm.weight" else n: a for n, a in arrays.items()}
    return {n: a[:, None] if n.endswith("conv1d.weight") and a.ndim == 2 else a for n, a in arrays.items()}


ARCHITECTURES = {"GPT-2": gpt2, "Gemma 2": gemma2, "Mamba": mamba, "Mamba-2": mamba2,
                 "Qwen3-Next": qwen3_next}


def pair(name: str, dtype: str) -> tuple[LanguageModel, Any, Callable[[Arrays], Arrays]]:
    """With the same weights, far from their initial ones; norms of Gemma and Qwen3-Next have theirs less 1,
    all but those of the delta rule"""
    ours, theirs, names = ARCHITECTURES[name]()
    model, random = LanguageModel(ours, seed=0, dtype=dtype), np.random.default_rng(0)
    for parameter in model.parameters():
        noise = random.normal(scale=0.2, size=parameter.shape)
        parameter.data = (parameter.data + noise).astype(parameter.dtype)
    theirs = theirs.to(getattr(torch, dtype)).eval()
    arrays = names(model.state_dict())
    weights = {key: torch.tensor(np.ascontiguousarray(array)) for key, array in arrays.items()}
    if name in ("Gemma 2", "Qwen3-Next"):
        weights = {key: value - 1.0 if "norm" in key and "linear_attn" not in key else value
                   for key, value in weights.items()}
    problems = theirs.load_state_dict(weights, strict=False)
    assert not problems.unexpected_keys
    assert set(problems.missing_keys) <= {"lm_head.weight"}            # tied, or missing from `weights`
    if not ours.tie_embeddings:
        assert not problems.missing_keys
    return model, theirs, names


@pytest.mark.parametrize("dtype", LIMIT)
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_equals_transformers(name: str, dtype: str) -> None:
    ids, targets = tokens(61)
    with in_full(dtype):
        model, theirs, names = pair(name, dtype)
        logits = theirs(torch.tensor(ids)).logits
        kept = torch.tensor(targets).reshape(-1)
        expected = torch.nn.functional.cross_entropy(logits.reshape(-1, 61), kept)
        expected.backward()
    loss, figures = model.loss(ids, targets)
    loss.backward()
    assert logits.dtype == getattr(torch, dtype)
    assert error(model(ids).numpy(), logits.detach()) < LIMIT[dtype]
    assert error(figures["loss"], expected.item()) < LIMIT[dtype]
    assert_close(names({n: p.grad for n, p in model.named_parameters().items()}),
                 {n: p.grad.numpy() for n, p in theirs.named_parameters()}, LIMIT[dtype])


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_decodes_what_they_compute_at_once(name: str) -> None:
    """A prompt and then token by token, by a state"""
    ids, _ = tokens(61)
    with torch.no_grad(), in_full("float64"):
        model, theirs, _ = pair(name, "float64")
        logits = theirs(torch.tensor(ids)).logits
    state = model.init_state(2)
    parts = [model(ids[:, :9], cache=state), *(model(ids[:, t : t + 1], cache=state) for t in range(9, 17))]
    assert error(np.concatenate([part.numpy() for part in parts], axis=1), logits) < 1e-9
