"""Mixtral's Hugging Face folder, both ways, from one table of names.

Reference: transformers, models/mixtral (Jiang et al. 2024).  Experts are stored one by one there (w1 = gate,
w3 = up, w2 = down) and stacked here; files that hold them stacked, as Transformers 5 has them in memory, are
read too.  Two meanings differ, in training only: their auxiliary loss counts an expert's share over all k
choices, so it is k times ours (one layer), and their jitter also reaches the experts' inputs."""

from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from nn.errors import InputError
from nn.interop.folder import CONFIG, read_json
from nn.interop.layout import (
    Table,
    read_field,
    read_model,
    require,
    rope_from_hugging_face,
    rope_to_hugging_face,
    write_model,
)
from nn.layers.rotary import RopeScaling
from nn.models.config import MoETransformerConfig

if TYPE_CHECKING:
    from nn.models.moe_transformer import MoETransformer

# our field: (theirs, what a config.json that leaves it out means)
FIELDS: dict[str, tuple[str, Any]] = {
    "vocab_size": ("vocab_size", 32000),
    "hidden_size": ("hidden_size", 4096),
    "num_layers": ("num_hidden_layers", 32),
    "num_heads": ("num_attention_heads", 32),
    "num_kv_heads": ("num_key_value_heads", 8),
    "head_dim": ("head_dim", 0),
    "intermediate_size": ("intermediate_size", 14336),
    "num_experts": ("num_local_experts", 8),
    "top_k": ("num_experts_per_tok", 2),
    "max_seq_len": ("max_position_embeddings", 131072),
    "sliding_window": ("sliding_window", 0),
    "norm_eps": ("rms_norm_eps", 1e-5),
    "tie_embeddings": ("tie_word_embeddings", False),
    "balance_coef": ("router_aux_loss_coef", 0.001),
    "router_jitter": ("router_jitter_noise", 0.0),
    "init_std": ("initializer_range", 0.02),
}
THETA = 1e6
# What Mixtral's architecture has no field for: our value must be this one.
FIXED = {"norm": "rmsnorm", "qk_norm": False, "attention_bias": False, "ffn": "swiglu",
         "rope_interleaved": False, "renormalize": True, "capacity_factor": 0.0}
# What only training or a description needs.  Kept under "cuda_nn", which Transformers carries along unread.
OWN = ("rope_theta", "rope_scaling", "router_z_coef", "drop_policy")
# Their fields that would change the arithmetic: theirs must be this value, if there at all.
REQUIRED = {"hidden_act": "silu", "attention_bias": False, "attention_dropout": 0.0,
            "partial_rotary_factor": 1.0, "quantization_config": None}

NAMES = {
    "embed_tokens.weight": "model.embed_tokens.weight",
    "norm.weight": "model.norm.weight",
    "lm_head.weight": "lm_head.weight",
}
LAYER_NAMES = {
    "input_layernorm.weight": "input_layernorm.weight",
    "self_attn.q_proj.weight": "self_attn.q_proj.weight",
    "self_attn.k_proj.weight": "self_attn.k_proj.weight",
    "self_attn.v_proj.weight": "self_attn.v_proj.weight",
    "self_attn.o_proj.weight": "self_attn.o_proj.weight",
    "post_attention_layernorm.weight": "post_attention_layernorm.weight",
    "mlp.router.weight": "block_sparse_moe.gate.weight",
}
EXPERT_NAMES = {"gate_up_proj": ("w1", "w3"), "down_proj": ("w2",)}     # rows one after the other
STACKED_NAMES = {
    "mlp.router.weight": "mlp.gate.weight",
    "mlp.experts.gate_up_proj": "mlp.experts.gate_up_proj",
    "mlp.experts.down_proj": "mlp.experts.down_proj",
}


def names(config: MoETransformerConfig, stacked: bool = False) -> dict[str, str]:
    """{our name: theirs} of every parameter that is one tensor on both sides; stacked: the experts' too."""
    table = dict(NAMES)
    if config.tie_embeddings:
        del table["lm_head.weight"]
    layer = LAYER_NAMES | STACKED_NAMES if stacked else LAYER_NAMES
    for i in range(config.num_layers):
        table |= {f"layers.{i}.{ours}": f"model.layers.{i}.{theirs}" for ours, theirs in layer.items()}
    return table


def expert_names(config: MoETransformerConfig) -> dict[str, list[list[str]]]:
    """{our stacked name: [[their names of expert 0, rows in order], [expert 1], ...]}"""
    return {
        f"layers.{i}.mlp.experts.{ours}":
            [[f"model.layers.{i}.block_sparse_moe.experts.{e}.{part}.weight" for part in parts]
             for e in range(config.num_experts)]
        for i in range(config.num_layers) for ours, parts in EXPERT_NAMES.items()
    }


def table(config: MoETransformerConfig, stacked: bool = False) -> Table:
    """All names; stacked: the experts' as Transformers 5 has them in memory."""
    return Table(names(config, stacked), {} if stacked else expert_names(config))


def save(model: "MoETransformer", folder: Path) -> None:
    """InputError if the architecture is not Mixtral's.  Files are written aside and renamed."""
    write_model(model, folder, to_hugging_face(model.config), table(model.config))


def load(folder: Path) -> tuple[MoETransformerConfig, dict[str, np.ndarray]]:
    """(configuration, our state dict).  InputError names a damaged file, tensors that are missing, unexpected
    or mis-shaped, or what in the architecture is not Mixtral's; all before any weight is read."""
    from nn.models.moe_transformer import MoETransformer

    config = from_hugging_face(read_json(folder / CONFIG))
    return config, read_model(MoETransformer(config), folder, lambda stored: table(
        config, stacked=any(".mlp.experts." in name for name in stored)))


def to_hugging_face(config: MoETransformerConfig) -> dict[str, Any]:
    """Their config.json as a dictionary; InputError names the field that makes the model not Mixtral's."""
    for field, value in FIXED.items():
        if getattr(config, field) != value:
            found = getattr(config, field)
            raise InputError(f"{field}: {found!r} cannot be saved as Mixtral, which has {value!r}")
    if not config.num_experts:
        raise InputError("num_experts: 0 cannot be saved as Mixtral, which has experts in every layer")
    theirs = {key: getattr(config, field) for field, (key, _) in FIELDS.items()}
    theirs |= {"architectures": ["MixtralForCausalLM"], "model_type": "mixtral", "hidden_act": "silu",
               "attention_dropout": 0.0, "sliding_window": config.sliding_window or None}
    theirs |= dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id"))      # left out, eos would be 2
    own = {field: value for field, value in asdict(config).items() if field in OWN}
    return theirs | _rope(config) | {"cuda_nn": own}


def _rope(config: MoETransformerConfig) -> dict[str, Any]:
    return rope_to_hugging_face(config.rope_theta, config.rope_scaling, config.head_dim, config.max_seq_len)


def from_hugging_face(theirs: dict[str, Any]) -> MoETransformerConfig:
    """Our configuration; InputError names the field that asks for what we do not compute."""
    if theirs.get("model_type") != "mixtral":
        kind = theirs.get("model_type")
        raise InputError(f"config.json: model_type is {kind!r}; only mixtral is read so far")
    require(theirs, REQUIRED)
    ours = {field: read_field(theirs, key, default) for field, (key, default) in FIELDS.items()}
    if theirs.get("num_key_value_heads", 0) is None:
        ours["num_kv_heads"] = ours["num_heads"]
    theta, scaling = rope_from_hugging_face(theirs, ours["max_seq_len"], THETA)
    config = MoETransformerConfig(**ours, rope_theta=theta, rope_scaling=scaling)
    return _with_own(config, read_field(theirs, "cuda_nn", {}))


def _with_own(config: MoETransformerConfig, own: dict[str, Any]) -> MoETransformerConfig:
    """With the fields that Mixtral has no name for.  The rotary ones count only while they mean what the rest
    of config.json says, which may have been edited since."""
    for key in own:
        if key not in OWN:
            raise InputError(f"config.json: cuda_nn.{key} is unknown; another version of cuda-nn wrote it")
    try:
        scaling = RopeScaling(**own.get("rope_scaling", asdict(config.rope_scaling)))
        full = replace(config, **own | {"rope_scaling": scaling})
    except TypeError as error:
        raise InputError(f"config.json: cuda_nn: {error}") from None
    if _rope(full) == _rope(config):
        return full
    return full.replace(rope_theta=config.rope_theta, rope_scaling=config.rope_scaling)
