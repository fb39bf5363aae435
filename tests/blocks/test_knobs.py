"""The settings of attention, linear attention and state space models: the names that papers and other
programs give them, and the defaults they are to have."""

from dataclasses import fields
from typing import Any

import pytest

from nn.layers import registry
from tests.docs.pages import rows

ATTENTION, LATENT, SPARSE, NSA = "full_attention", "mla", "block_sparse", "nsa"
GATED, WINDOW, LINEAR, GLA = "gated_attention", "sliding_attention", "linear_attention", "gla"
DELTA, GATED_DELTA, MAMBA, MAMBA2 = "delta_net", "gated_delta_net", "mamba", "mamba2"

# (block, knob, setting, default); settings of the same name, and of another
SAME = [
    *((ATTENTION, name, name, default) for name, default in (
        ("attn_bias", False), ("out_bias", False), ("qk_norm", "none"), ("sinks", False), ("causal", True),
        ("backend", "auto"), ("scale", 0.0), ("clip_qkv", 0.0), ("softcap", 0.0), ("attn_dropout", 0.0),
        ("window", 0))),
    (WINDOW, "sink_tokens", "sink_tokens", 0), (LATENT, "decode_impl", "decode_impl", "absorbed"),
    (LATENT, "q_lora_rank", "q_lora_rank", 0), (SPARSE, "stride", "stride", 0),
    (NSA, "separate_kv", "separate_kv", True), (NSA, "rope_before_compress", "rope_before_compress", False),
    (NSA, "compressor", "compressor", "linear"), (LINEAR, "feature_map", "feature_map", "elu1"),
    (LINEAR, "normalize", "normalize", False), (LINEAR, "chunk_size", "chunk_size", 64),
    (DELTA, "chunk_size", "chunk_size", 64), (MAMBA2, "chunk_size", "chunk_size", 256),
    (GLA, "expand_k", "expand_k", 0.5), (GLA, "expand_v", "expand_v", 1.0),
    ("retention", "expand_k", "expand_k", 1.0), ("retention", "expand_v", "expand_v", 2.0),
    (DELTA, "expand_k", "expand_k", 1.0), (DELTA, "expand_v", "expand_v", 1.0),
    (GATED_DELTA, "expand_v", "expand_v", 2.0), (DELTA, "conv_size", "conv_size", 4),
    (GATED_DELTA, "conv_size", "conv_size", 4), (GLA, "conv_size", "conv_size", 0),
    (DELTA, "allow_neg_eigval", "allow_neg_eigval", False), (GLA, "gate_normalizer", "gate_normalizer", 16.0),
    (GLA, "gate_low_rank", "gate_low_rank", 16), (MAMBA, "expand", "expand", 2),
]
RENAMED = [
    (ATTENTION, "n_heads", "num_heads", 4), (ATTENTION, "n_kv_heads", "num_kv_heads", 4),
    (GATED, "gate", "output_gate", "elementwise"), (SPARSE, "block", "block_size", 64),
    (SPARSE, "n_local", "local_blocks", 4), (SPARSE, "n_global", "global_blocks", 1),
    (SPARSE, "n_rand", "random_blocks", 0), (NSA, "l", "compress_size", 32),
    (NSA, "d", "compress_stride", 16), (NSA, "l'", "block_size", 64),
    (NSA, "n", "selected_blocks", 16), (NSA, "w", "window", 512),
    (MAMBA, "d_state", "state_size", 16), (MAMBA, "d_conv", "conv_kernel", 4),
    (MAMBA, "dt_rank", "time_step_rank", 0), (MAMBA, "dt_min", "time_step_min", 0.001),
    (MAMBA, "dt_max", "time_step_max", 0.1), (MAMBA, "dt_floor", "time_step_floor", 0.0001),
    (MAMBA2, "headdim", "head_dim", 64), (MAMBA2, "ngroups", "num_groups", 1),
    (MAMBA2, "d_state", "state_size", 128), (MAMBA2, "A_init_range", "decay_range", (1.0, 16.0)),
    (MAMBA2, "dt_limit", "time_step_limit", (0.0, float("inf"))),
]


@pytest.mark.parametrize(("block", "knob", "setting", "default"), SAME + RENAMED, ids=str)
def test_defaults(block: str, knob: str, setting: str, default: Any) -> None:
    settings = registry.find("mixer", block).Settings
    assert setting in {field.name for field in fields(settings)}
    assert getattr(settings(), setting) == default


def test_the_page_translates_the_names() -> None:
    found = {tuple(row) for row in rows("6-blocks.md", "names")}
    assert found == {(block, knob, setting, written(default)) for block, knob, setting, default in RENAMED}


def written(default: Any) -> str:
    if isinstance(default, tuple):
        return ", ".join(map(written, default))
    return "∞" if default == float("inf") else f"{default:g}" if isinstance(default, float) else str(default)
