"""Mixtral's Hugging Face folder: config.json + model.safetensors (or its shards), both ways, from one table of names.

Reference: transformers, models/mixtral (Jiang et al. 2024).  Experts are stored one by one there (w1 = gate, w3 = up,
w2 = down) and stacked here."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from nn.dtypes import DType
from nn.errors import InputError
from nn.layers.rotary import RopeScaling
from nn.models.config import MoETransformerConfig

if TYPE_CHECKING:
    from nn.models.moe_transformer import MoETransformer

# our field: theirs
FIELDS = {
    "vocab_size": "vocab_size", "hidden_size": "hidden_size", "num_layers": "num_hidden_layers",
    "num_heads": "num_attention_heads", "num_kv_heads": "num_key_value_heads", "head_dim": "head_dim",
    "intermediate_size": "intermediate_size", "num_experts": "num_local_experts", "top_k": "num_experts_per_tok",
    "max_seq_len": "max_position_embeddings", "norm_eps": "rms_norm_eps", "tie_embeddings": "tie_word_embeddings",
    "rope_theta": "rope_theta", "balance_coef": "router_aux_loss_coef", "router_jitter": "router_jitter_noise",
    "init_std": "initializer_range",
}
# What Mixtral's architecture has no field for: our value must be this one.
FIXED = {"norm": "rmsnorm", "qk_norm": False, "attention_bias": False, "rope_interleaved": False, "renormalize": True,
         "capacity_factor": 0.0}

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


def names(config: MoETransformerConfig) -> dict[str, str]:
    """{our name: theirs} of every parameter that is one tensor on both sides."""
    table = {ours: theirs for ours, theirs in NAMES.items() if not (config.tie_embeddings and ours == "lm_head.weight")}
    for i in range(config.num_layers):
        table |= {f"layers.{i}.{ours}": f"model.layers.{i}.{theirs}" for ours, theirs in LAYER_NAMES.items()}
    return table


def expert_names(config: MoETransformerConfig) -> dict[str, list[list[str]]]:
    """{our stacked name: [[their names of expert 0, rows in order], [expert 1], ...]}"""
    return {
        f"layers.{i}.mlp.experts.{ours}":
            [[f"model.layers.{i}.block_sparse_moe.experts.{e}.{part}.weight" for part in parts]
             for e in range(config.num_experts)]
        for i in range(config.num_layers) for ours, parts in EXPERT_NAMES.items()
    }


def save(model: "MoETransformer", folder: Path) -> None:
    """InputError if the architecture is not Mixtral's.  Files are written aside and renamed."""
    from safetensors.numpy import save_file

    config = to_hugging_face(model.config)
    config["dtype"] = DType.of(model.embed_tokens.weight.dtype).value
    ours = model.state_dict()
    tensors = {theirs: np.ascontiguousarray(ours[name]) for name, theirs in names(model.config).items()}
    for name, experts in expert_names(model.config).items():
        for weight, parts in zip(ours[name], experts, strict=True):
            for part, rows in zip(parts, np.split(weight, len(parts)), strict=True):
                tensors[part] = np.ascontiguousarray(rows)
    folder.mkdir(parents=True, exist_ok=True)
    _replace(folder / "model.safetensors", lambda path: save_file(tensors, path, metadata={"format": "pt"}))
    _replace(folder / "config.json", lambda path: path.write_text(json.dumps(config, indent=2) + "\n"))


def _replace(path: Path, write: Any) -> None:
    aside = path.with_name(path.name + ".tmp")
    try:
        write(aside)
        aside.replace(path)
    finally:
        aside.unlink(missing_ok=True)


def load(folder: Path) -> tuple[MoETransformerConfig, dict[str, np.ndarray]]:
    """(configuration, our state dict).  InputError names a missing file, a missing tensor or an unknown architecture."""
    config = from_hugging_face(_read_json(folder / "config.json"))
    theirs = _read_tensors(folder)
    ours = {}
    for name, source in names(config).items():
        ours[name] = _take(theirs, source, folder)
    for name, experts in expert_names(config).items():
        ours[name] = np.stack([np.concatenate([_take(theirs, part, folder) for part in parts]) for parts in experts])
    unused = [name for name in theirs if not name.endswith("rotary_emb.inv_freq") and not
              (config.tie_embeddings and name == "lm_head.weight")]
    if unused:
        raise InputError(f"{folder}: {unused[0]} (and {len(unused) - 1} more) is not a tensor of Mixtral")
    return config, ours


def _take(tensors: dict[str, np.ndarray], name: str, folder: Path) -> np.ndarray:
    if name not in tensors:
        raise InputError(f"{folder}: tensor {name} is missing; the checkpoint is incomplete or not Mixtral's")
    return tensors.pop(name)


def _read_json(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text())
    except FileNotFoundError:
        raise InputError(f"{path}: no such file; a Hugging Face folder holds config.json and model.safetensors") from None
    except json.JSONDecodeError as error:
        raise InputError(f"{path}: not JSON ({error})") from None


def _read_tensors(folder: Path) -> dict[str, np.ndarray]:
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    index = folder / "model.safetensors.index.json"
    files = sorted(set(_read_json(index)["weight_map"].values())) if index.exists() else ["model.safetensors"]
    tensors: dict[str, np.ndarray] = {}
    for file in files:
        try:
            tensors |= load_file(folder / file)
        except FileNotFoundError:
            raise InputError(f"{folder / file}: no such file") from None
        except SafetensorError as error:
            raise InputError(f"{folder / file}: damaged or not safetensors ({error})") from None
    return tensors


def to_hugging_face(config: MoETransformerConfig) -> dict[str, Any]:
    """Their config.json as a dictionary; InputError names the field that makes the model something else than Mixtral."""
    for field, value in FIXED.items():
        if getattr(config, field) != value:
            raise InputError(f"{field}: {getattr(config, field)!r} cannot be saved as Mixtral, which has {value!r}")
    if not config.num_experts:
        raise InputError("num_experts: 0 cannot be saved as Mixtral, which has experts in every layer")
    theirs = {theirs: getattr(config, ours) for ours, theirs in FIELDS.items()}
    theirs |= {"architectures": ["MixtralForCausalLM"], "model_type": "mixtral", "hidden_act": "silu",
               "attention_dropout": 0.0, "sliding_window": config.sliding_window or None}
    theirs["rope_parameters"] = {"rope_theta": config.rope_theta} | _scaling_to_hugging_face(config)
    return theirs


def _scaling_to_hugging_face(config: MoETransformerConfig) -> dict[str, Any]:
    scaling = config.rope_scaling
    if scaling.type == "none":
        return {"rope_type": "default"}
    if scaling.type == "ntk":      # a fixed larger base: Hugging Face has no name for it, but needs none
        width = config.head_dim
        return {"rope_type": "default", "rope_theta": config.rope_theta * scaling.factor ** (width / (width - 2))}
    trained = scaling.original_max_position_embeddings or round(config.max_seq_len / scaling.factor)
    theirs: dict[str, Any] = {"rope_type": scaling.type, "factor": scaling.factor, "original_max_position_embeddings": trained}
    if scaling.type == "yarn":
        theirs |= {"beta_fast": scaling.beta_fast, "beta_slow": scaling.beta_slow}
        theirs |= {"attention_factor": scaling.attention_factor} if scaling.attention_factor else {}
    return theirs


def from_hugging_face(theirs: dict[str, Any]) -> MoETransformerConfig:
    """Our configuration; InputError for another architecture or an activation, rope type we do not compute."""
    if theirs.get("model_type") != "mixtral":
        raise InputError(f"config.json: model_type is {theirs.get('model_type')!r}; only mixtral is read so far")
    if theirs.get("hidden_act", "silu") != "silu":
        raise InputError(f"config.json: hidden_act {theirs['hidden_act']!r} is not silu, which experts compute")
    rope = theirs.get("rope_parameters") or theirs.get("rope_scaling") or {}
    ours = {ours: theirs[name] for ours, name in FIELDS.items() if theirs.get(name) is not None}
    ours["rope_theta"] = rope.get("rope_theta", theirs.get("rope_theta", 10000.0))
    kind = rope.get("rope_type", rope.get("type", "default"))
    scaling = {key: rope[key] for key in ("factor", "original_max_position_embeddings", "beta_fast", "beta_slow",
                                          "attention_factor") if rope.get(key) is not None}
    ours["rope_scaling"] = RopeScaling("none" if kind == "default" else kind, **scaling)
    return MoETransformerConfig(**ours, sliding_window=theirs.get("sliding_window") or 0)
