"""Parameters and floating-point operations of a model, from its configuration alone.

A multiply-add counts 2; elementwise work, norms and the embedding lookup count 0.  Attention counts the
causal average of (T + 1)/2 keys per query (a window W: W − W(W − 1)/(2T)).  A backward pass costs twice the
forward's products, so training costs three times the forward.

Try: cuda-nn flops --preset moe-6.9b --seq-len 2048"""

from typing import TYPE_CHECKING

from nn.ops.count import visible_pairs

if TYPE_CHECKING:
    from nn.models.config import MoETransformerConfig


def parameters(config: "MoETransformerConfig", active: bool = False) -> dict[str, int]:
    """Parameters by component; active: only those one token meets (top_k of the experts)."""
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


def breakdown(config: "MoETransformerConfig", seq_len: int) -> dict[str, float]:
    """Forward FLOPs per token by component, averaged over a sequence of seq_len tokens."""
    c = config
    heads, groups = c.num_heads * c.head_dim, c.num_kv_heads * c.head_dim
    context = mean_context(seq_len, c.sliding_window)
    matrices = 3 if c.ffn == "swiglu" else 2
    experts = c.top_k if c.num_experts else 1
    return {
        "attention_projections": c.num_layers * 4.0 * c.hidden_size * (heads + groups),
        "attention_core": c.num_layers * 4.0 * heads * context,
        "router": c.num_layers * 2.0 * c.hidden_size * c.num_experts,
        "feed_forward": c.num_layers * experts * 2.0 * matrices * c.hidden_size * c.intermediate_size,
        "head": 2.0 * c.hidden_size * c.vocab_size,
    }
