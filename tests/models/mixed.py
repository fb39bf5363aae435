"""Small language models of any blocks, with weights wide enough to matter."""

from typing import Any

import numpy as np

from nn.layers import registry
from nn.models import LanguageModel, LanguageModelConfig
from tests.blocks.harness import options_of

VOCABULARY = 31
FROM_THE_MODEL = {"layer", "max_seq_len", "vocab_size", "norm_eps", "causal"}
ENGRAM = {"engram_vocab_size": [11, 13], "n_head_per_ngram": 2, "n_embed_per_ngram": 4}


def options(role: str, name: str) -> dict[str, Any]:
    """Of a block's first example, which is 8 wide"""
    first = next(iter(registry.find(role, name).Settings.examples().values()))
    return {key: value for key, value in options_of(first).items() if key not in FROM_THE_MODEL}


def config(mixer: Any = "full_attention", **changes: Any) -> LanguageModelConfig:
    """Two layers of a mixer, or one of each of several"""
    mixers = (mixer,) if isinstance(mixer, str) else tuple(mixer)
    given: dict[str, Any] = {"vocab_size": VOCABULARY, "hidden_size": 8, "num_layers": max(2, len(mixers)),
                             "max_seq_len": 24, "mixer": mixers, "feed_forward": "swiglu", "init_std": 0.4}
    own = {name: options("mixer", name) for name in mixers if name in registry.MIXERS}
    own |= {"swiglu": {"intermediate_size": 12}} if "feed_forward" not in changes else {}
    return LanguageModelConfig(**(given | changes | {"options": own | changes.get("options", {})}))


def model(mixer: Any = "full_attention", dtype: str = "float64", **changes: Any) -> LanguageModel:
    return LanguageModel(config(mixer, **changes), seed=1, dtype=dtype)


def ids(batch: int = 2, length: int = 9, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, VOCABULARY, (batch, length))


# Beyond one mixer: what else a configuration may say.
VARIANTS: dict[str, tuple[Any, dict[str, Any]]] = {
    "hybrid": (("retention", "full_attention", "mamba2"), {}),
    "experts": ("full_attention", {"feed_forward": ("swiglu", "moe"), "options": {
        "swiglu": {"intermediate_size": 6}, "moe": {"intermediate_size": 5, "num_experts": 4}}}),
    "prelude": ("full_attention", {"prelude": ("rmc", "nsb"), "options": {"rmc": {"mem_size": 3}}}),
    "prelude added": ("retention", {"prelude": ("engram", "rmc"), "prelude_residual": True,
                                    "options": {"engram": ENGRAM, "rmc": {"mem_size": 3}}}),
    "memory": ("gated_delta_net", {"memory": ("none", "engram"), "memory_at": "ffn",
                                   "options": {"engram": ENGRAM}}),
    "streams": ("full_attention", {"residual": "mhc", "options": {"mhc": {"n_streams": 2}}}),
    "recursion": ("full_attention", {"body": "recursion", "recursion": {
        "recurrence_steps": 3, "rule": "gated", "prelude": {"num_layers": 1, "mixer": "retention"},
        "step_embedding": "learned"}, "options": {"retention": {"num_heads": 2}}}),
    "tied": ("retention", {"tie_embeddings": True, "embedding_scale": 2.5, "logit_softcap": 5.0}),
    "learned positions": ("full_attention", {"positions": "learned", "norm": "layernorm"}),
    "sinusoidal": ("retention", {"positions": "sinusoidal", "final_norm": False, "residual": "post_norm"}),
}
EVERY = {**{name: (name, {}) for name in registry.MIXERS}, **VARIANTS}
