"""Small models with weights wide enough to matter."""

from typing import Any

import numpy as np

from nn import MoETransformer, MoETransformerConfig

SIZES: dict[str, Any] = {"vocab_size": 31, "hidden_size": 16, "num_layers": 2, "num_heads": 4,
                         "num_kv_heads": 2, "head_dim": 6, "intermediate_size": 10, "num_experts": 4,
                         "top_k": 2, "max_seq_len": 128, "init_std": 0.4}


def model(dtype: str = "float64", seed: int = 0, **changes: Any) -> MoETransformer:
    return MoETransformer(MoETransformerConfig(**(SIZES | changes)), seed=seed, dtype=dtype)


def ids(batch: int = 2, length: int = 9, seed: int = 0, vocabulary: int = 31) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, vocabulary, (batch, length))


# One change at a time: every switch of the architecture.
VARIANTS: dict[str, dict[str, Any]] = {
    "as it is": {}, "multi-head": {"num_kv_heads": 4}, "multi-query": {"num_kv_heads": 1},
    "qk-norm": {"qk_norm": True}, "biases": {"attention_bias": True}, "layernorm": {"norm": "layernorm"},
    "tied": {"tie_embeddings": True}, "dense": {"num_experts": 0},
    "dense gelu": {"num_experts": 0, "ffn": "gelu"}, "interleaved": {"rope_interleaved": True},
    "window": {"sliding_window": 3}, "one expert": {"num_experts": 1, "top_k": 1},
    "raw weights": {"renormalize": False}, "many experts": {"num_experts": 8, "top_k": 3}}
