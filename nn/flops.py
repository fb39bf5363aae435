"""Parameters and floating-point operations of a model, from its configuration alone.

A multiply-add counts 2; elementwise work, norms and the embedding lookup count 0.  Attention counts the
causal average of (T + 1)/2 keys per query (a window W: W − W(W − 1)/(2T)).  A backward pass costs twice the
forward's products, so training costs three times the forward.

A configuration with formulas of its own (LanguageModelConfig: those of its blocks) is asked; what stands here
is MoETransformerConfig's.

Try: cuda-nn flops --preset moe-6.9b --seq-len 2048"""

from typing import TYPE_CHECKING, Any

from nn.dtypes import DType
from nn.errors import InputError
from nn.layers.formulas import TRAINING
from nn.ops.count import visible_pairs

if TYPE_CHECKING:
    from nn.models.config import MoETransformerConfig


def parameters(config: Any, active: bool = False) -> dict[str, int]:
    """Parameters by component; active: only those one token meets (top_k of the experts)."""
    if hasattr(config, "parameters"):
        found: dict[str, int] = config.parameters(active)
        return found
    return _parameters(config, active)


def breakdown(config: Any, seq_len: int) -> dict[str, float]:
    """Forward FLOPs per token by component, averaged over a sequence of seq_len tokens, read together."""
    if seq_len < 1:
        raise InputError(f"seq_len: {seq_len} is not positive")
    if hasattr(config, "flops"):
        counts = config.flops(1, seq_len, mode="chunk")
        return {name: count / seq_len for name, count in counts.items()}
    return _breakdown(config, mean_context(seq_len, config.sliding_window))


def decoding(config: Any, past: int) -> dict[str, float]:
    """Forward FLOPs by component of one more token behind `past` others that a state holds."""
    if past < 0:
        raise InputError(f"past: {past} is negative")
    if hasattr(config, "flops"):
        counts = config.flops(1, 1, past, mode="recurrent")
        return {name: float(count) for name, count in counts.items()}
    return _breakdown(config, float(visible_pairs(1, past + 1, config.sliding_window)))


def training(config: Any, seq_len: int) -> dict[str, float]:
    """FLOPs per token of a training step by component: three times the forward pass, and what only training
    has (the prediction of further tokens)."""
    counts = breakdown(config, seq_len)
    if ahead := getattr(config, "mtp", None):
        more = ahead.flops(1, seq_len, config.vocab_size)
        counts = counts | {name: count / seq_len for name, count in more.items()}
    return {name: TRAINING * count for name, count in counts.items()}


def state_bytes(config: Any, tokens: int, dtype: Any = "bfloat16") -> int:
    """Bytes that a row's state (keys and values, or what summarises them) holds behind so many tokens."""
    if hasattr(config, "state_bytes"):
        return sum(config.state_bytes(tokens, dtype).values())
    size: int = DType.of(dtype).numpy.itemsize
    return 2 * config.num_layers * config.num_kv_heads * config.head_dim * tokens * size


def _parameters(config: "MoETransformerConfig", active: bool) -> dict[str, int]:
    c = config
    norm_width = c.hidden_size * (2 if c.norm == "layernorm" else 1)
    heads, groups = c.num_heads * c.head_dim, c.num_kv_heads * c.head_dim
    attention = 2 * c.hidden_size * (heads + groups) + (2 * c.head_dim if c.qk_norm else 0)
    if c.attention_bias:
        attention += heads + 2 * groups + c.hidden_size
    experts = (c.top_k if active else c.num_experts) if c.num_experts else 1
    matrices = 3 if c.ffn == "swiglu" else 2
    return {
        "embedding": c.vocab_size * c.hidden_size,
        "attention": c.num_layers * attention,
        "router": c.num_layers * c.num_experts * c.hidden_size,
        "feed_forward": c.num_layers * experts * matrices * c.hidden_size * c.intermediate_size,
        "norms": (2 * c.num_layers + 1) * norm_width,
        "head": 0 if c.tie_embeddings else c.vocab_size * c.hidden_size,
    }


def mean_context(seq_len: int, window: int = 0) -> float:
    """Keys that a query of a causal sequence sees, averaged over its positions."""
    return visible_pairs(seq_len, seq_len, window) / seq_len


def _breakdown(config: "MoETransformerConfig", context: float) -> dict[str, float]:
    """Of a token that sees `context` keys"""
    c = config
    heads, groups = c.num_heads * c.head_dim, c.num_kv_heads * c.head_dim
    matrices = 3 if c.ffn == "swiglu" else 2
    experts = c.top_k if c.num_experts else 1
    return {
        "attention_projections": c.num_layers * 4.0 * c.hidden_size * (heads + groups),
        "attention_core": c.num_layers * 4.0 * heads * context,
        "router": c.num_layers * 2.0 * c.hidden_size * c.num_experts,
        "feed_forward": c.num_layers * experts * 2.0 * matrices * c.hidden_size * c.intermediate_size,
        "head": 2.0 * c.hidden_size * c.vocab_size,
    }
