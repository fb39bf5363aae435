"""The models that are measured, by name, and what a token of theirs costs.

gpt2-124m and moe-bench are trained, the others decode; weights are random."""

import os
import tempfile
from pathlib import Path
from typing import Any

from nn import flops
from nn.models import (
    AttentionConfig,
    BlockConfig,
    MoETransformerConfig,
    Transformer,
    TransformerConfig,
    from_config,
)
from nn.models.presets import MOE_6_9B, TINY
from nn.names import by_name

# GPT-2 small: 124,475,904 parameters with its vocabulary of 50,257 padded to a multiple of 128.
GPT2_124M = TransformerConfig(
    vocab_size=50304, d_model=768, n_layers=12, max_seq_len=1024, tie_embeddings=True,
    block=BlockConfig(attn=AttentionConfig(n_heads=12, bias=True), norm="layernorm", positional="learned",
                      ffn_type="mlp", activation="gelu_tanh", bias=True))
GPT_TINY = TransformerConfig(
    vocab_size=256, d_model=32, n_layers=2, max_seq_len=128, tie_embeddings=True,
    block=BlockConfig(attn=AttentionConfig(n_heads=2, bias=True), norm="layernorm", positional="learned",
                      ffn_type="mlp", activation="gelu_tanh", bias=True))
MOE_BENCH = MoETransformerConfig(
    vocab_size=4096, hidden_size=256, num_layers=8, num_heads=4, num_kv_heads=1, head_dim=64,
    intermediate_size=1024, num_experts=8, top_k=2, max_seq_len=1024)
SMOL_135M = MoETransformerConfig(       # SmolLM2-135M's shape: a small Llama, 134,515,008 parameters
    vocab_size=49152, hidden_size=576, num_layers=30, num_heads=9, num_kv_heads=3, head_dim=64,
    intermediate_size=1536, num_experts=0, max_seq_len=2048, norm_eps=1e-5, rope_theta=100000.0,
    tie_embeddings=True)
MOE_768X12 = MoETransformerConfig(      # Qwen3-MoE's shape: 970,625,280 parameters
    vocab_size=32000, hidden_size=768, num_layers=12, num_heads=12, num_kv_heads=1, head_dim=64,
    intermediate_size=2048, num_experts=16, top_k=4, max_seq_len=2048, qk_norm=True)

TRAINED: dict[str, Any] = {"gpt2-124m": GPT2_124M, "moe-bench": MOE_BENCH, "gpt-tiny": GPT_TINY, "tiny": TINY}
DECODED: dict[str, MoETransformerConfig] = {
    "smol-135m": SMOL_135M, "moe-768x12": MOE_768X12, "moe-6.9b": MOE_6_9B, "tiny": TINY}

MAPPED = ("moe-6.9b",)                                     # those whose weights are files, mapped

DTYPES = {"f32": "float32", "bf16": "bfloat16"}            # of training
# Bytes of a weight in each format: the quantized ones have blocks of 32 with a scale of 2 bytes.
WEIGHTS = {"f32": 4.0, "bf16": 2.0, "q8_0": 34 / 32, "q4_0": 18 / 32}


def trained(name: str, dtype: str) -> Any:
    """A model to be trained, by name; dtype: f32, or bf16 (the optimizer keeps the weights in float32)."""
    config = by_name("model", name, TRAINED)
    made = by_name("dtype", dtype, DTYPES)
    return Transformer(config, dtype=made) if isinstance(config, TransformerConfig) else from_config(
        config, dtype=made)


def decoded(name: str, dtype: str) -> Any:
    """A model that decodes, in evaluation mode, its weights in that format."""
    config = by_name("model", name, DECODED)
    by_name("dtype", dtype, WEIGHTS)
    from nn.bench import weights

    if name in MAPPED:
        return weights.mapped(config, dtype, cache() / name)
    return weights.in_memory(config, dtype)


def cache() -> Path:
    """Where files that are made once are kept."""
    return Path(os.environ.get("NN_BENCH_CACHE") or Path(tempfile.gettempdir()) / "nn_bench_cache")


def weight_bytes(name: str, dtype: str) -> float:
    """Of the weights that one token reads: all, of the experts those that it visits; of an embedding that is
    not the head, too, one row, which does not count."""
    config = by_name("model", name, DECODED)
    active = flops.parameters(config, active=True)
    unread = 0 if config.tie_embeddings else active["embedding"]
    return (sum(active.values()) - unread) * WEIGHTS[dtype]


def prefill_flops(config: Any, length: int) -> float:
    """Of reading a prompt of so many tokens, the head once, behind the last."""
    work = flops.breakdown(config, length)
    head = work.pop("head", 0.0)
    return length * sum(work.values()) + head


def factors(dtype: str) -> str:
    """The type that products with weights of a format are formed in: int8 for the quantized ones."""
    return DTYPES.get(dtype, "int8")


__all__ = ["DECODED", "DTYPES", "TRAINED", "WEIGHTS", "cache", "decoded", "factors", "prefill_flops",
           "trained", "weight_bytes"]
