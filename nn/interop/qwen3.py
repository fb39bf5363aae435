"""The Hugging Face folders of Qwen3 and Qwen3-MoE, both ways, from one table of names.

Reference: transformers, models/qwen3 and models/qwen3_moe.  What only training needs (z-loss, dropping) has
no field there and is kept under "cuda_nn", which Transformers carries along unread.  Their auxiliary loss
counts an expert's share over all k choices, so it is k times ours (one layer)."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, fields
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
from nn.layers.stack import LayerSettings
from nn.models.language_config import LanguageModelConfig

if TYPE_CHECKING:
    from nn.models.language_model import LanguageModel

DENSE, SPARSE = "qwen3", "qwen3_moe"
ARCHITECTURES = {DENSE: "Qwen3ForCausalLM", SPARSE: "Qwen3MoeForCausalLM"}
ATTENTIONS = ("full_attention", "sliding_attention")       # also their names of layer types

# our field: (theirs, what a config.json that leaves it out means), of the model and of its blocks
FIELDS: dict[str, tuple[str, Any]] = {
    "vocab_size": ("vocab_size", 151936),
    "hidden_size": ("hidden_size", 4096),
    "num_layers": ("num_hidden_layers", 32),
    "max_seq_len": ("max_position_embeddings", 32768),
    "norm_eps": ("rms_norm_eps", 1e-6),
    "tie_embeddings": ("tie_word_embeddings", False),
    "init_std": ("initializer_range", 0.02),
    "attn_dropout": ("attention_dropout", 0.0),
}
ATTENTION_FIELDS: dict[str, tuple[str, Any]] = {
    "num_heads": ("num_attention_heads", 32),
    "num_kv_heads": ("num_key_value_heads", 32),
    "head_dim": ("head_dim", 128),
    "attn_bias": ("attention_bias", False),
    "out_bias": ("attention_bias", False),
}
MOE_FIELDS: dict[str, tuple[str, Any]] = {
    "intermediate_size": ("moe_intermediate_size", 768),
    "num_experts": ("num_experts", 128),
    "top_k": ("num_experts_per_tok", 8),
    "renormalize": ("norm_topk_prob", False),
    "balance_coef": ("router_aux_loss_coef", 0.001),
}
# Where the two leave different things out.
MOE_DEFAULTS = {"hidden_size": 2048, "num_hidden_layers": 24, "num_key_value_heads": 4, "head_dim": 0,
                "intermediate_size": 6144}
DENSE_WIDTH = 22016           # Qwen3's intermediate_size, left out
THETA = 1e4
# Their fields that would change the arithmetic: theirs must be this value, if there at all.
REQUIRED = {"hidden_act": "silu", "quantization_config": None}
# What only training needs: it may be what it likes, and Transformers does not know it.
TRAINING_ONLY = frozenset({
    "init_std", "out_std", "init_scheme", "dropout", "resid_dropout", "attn_dropout", "router_jitter",
    "jitter_affects_experts", "balance", "balance_coef", "router_z_coef", "capacity_factor", "drop_policy",
    "min_capacity", "renormalize_after_drop"})
# Compared layer by layer instead, or without meaning where there is nothing that it is of.
BY_LAYER = frozenset({"mixer", "feed_forward", "options", "memory_at", "prelude_residual", "mtp_weight"})
COMPUTED_ALIKE = frozenset({"backend", "rope_theta", "rope_scaling"})     # ways to the same result; see _rope

NAMES = {
    "embed_tokens.weight": "model.embed_tokens.weight",
    "norm.weight": "model.norm.weight",
    "lm_head.weight": "lm_head.weight",
}
PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj")
LAYER_NAMES = {
    "connection.norms.0.weight": "input_layernorm.weight",
    **{f"mixer.{name}.weight": f"self_attn.{name}.weight" for name in PROJECTIONS},
    "mixer.q_norm.weight": "self_attn.q_norm.weight",
    "mixer.k_norm.weight": "self_attn.k_norm.weight",
    "connection.norms.1.weight": "post_attention_layernorm.weight",
}
BIAS_NAMES = {f"mixer.{name}.bias": f"self_attn.{name}.bias" for name in PROJECTIONS}
FEED_FORWARD_NAMES = {
    "swiglu": {f"feed_forward.ffn.{name}.weight": f"mlp.{name}.weight"
               for name in ("gate_proj", "up_proj", "down_proj")},
    "moe": {"feed_forward.moe.router.weight": "mlp.gate.weight"},
}
# Rows one after the other; as Transformers 5 has them in memory, both are one tensor.
EXPERT_NAMES = {"gate_up_proj": ("gate_proj", "up_proj"), "down_proj": ("down_proj",)}


def table(config: LanguageModelConfig, stacked: bool = False) -> Table:
    """All names; stacked: the experts' as they are in memory."""
    plain, experts = dict(NAMES), {}
    if config.tie_embeddings:
        del plain["lm_head.weight"]
    for i, layer in enumerate(config.stack.layers()):
        kind = layer.names["feed_forward"]
        biases = BIAS_NAMES if getattr(layer.blocks["mixer"], "attn_bias", False) else {}
        for ours, theirs in (LAYER_NAMES | biases | FEED_FORWARD_NAMES[kind]).items():
            plain[f"body.layers.{i}.{ours}"] = f"model.layers.{i}.{theirs}"
        count = layer.blocks["feed_forward"].num_experts if kind == "moe" else 0      # type: ignore[attr-defined]
        for ours, parts in EXPERT_NAMES.items() if count else ():
            name = f"body.layers.{i}.feed_forward.moe.experts.{ours}"
            prefix = f"model.layers.{i}.mlp.experts."
            if stacked:
                plain[name] = prefix + ours
            else:
                experts[name] = [[f"{prefix}{e}.{part}.weight" for part in parts] for e in range(count)]
    return Table(plain, experts)


def save(model: "LanguageModel", folder: Path) -> None:
    """InputError if the architecture is not Qwen3's.  Files are written aside and renamed."""
    write_model(model, folder, to_hugging_face(model.config), table(model.config))


def load(folder: Path) -> tuple[LanguageModelConfig, dict[str, np.ndarray]]:
    """(configuration, our state dict).  InputError names a damaged file, tensors that are missing, unexpected
    or mis-shaped, or what in the architecture is not Qwen3's; all before any weight is read."""
    from nn.models.language_model import LanguageModel

    config = from_hugging_face(read_json(folder / CONFIG))
    return config, read_model(LanguageModel(config), folder, lambda stored: table(
        config, stacked=any(name.endswith(".experts.down_proj") for name in stored)))


# ---- config.json ----

def to_hugging_face(config: LanguageModelConfig) -> dict[str, Any]:
    """Their config.json as a dictionary; InputError names the setting that makes the model not Qwen3's."""
    theirs = _to_theirs(config, config.stack.layers())
    for what, found, expected in _differences(config, _from_theirs(theirs)):
        kind = theirs["model_type"]
        raise InputError(f"{what}: {found!r} cannot be saved as {kind}, which has {expected!r}")
    return theirs | {"cuda_nn": asdict(config)}


def _to_theirs(config: LanguageModelConfig, layers: list[LayerSettings]) -> dict[str, Any]:
    mixers = _names(layers, "mixer", ATTENTIONS)
    feed_forwards = _names(layers, "feed_forward", FEED_FORWARD_NAMES)
    sparse = "moe" in feed_forwards
    attention: Any = layers[0].blocks["mixer"]
    theirs = {key: getattr(config, ours) for ours, (key, _) in FIELDS.items()}
    theirs |= {key: getattr(attention, ours) for ours, (key, _) in ATTENTION_FIELDS.items()}
    kind = SPARSE if sparse else DENSE
    theirs |= {"architectures": [ARCHITECTURES[kind]], "model_type": kind, "hidden_act": "silu"}
    theirs |= dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id"))
    theirs |= _rope(attention) | _windows(mixers, layers, sparse)
    return theirs | _feed_forwards(feed_forwards, layers)


def _rope(attention: Any) -> dict[str, Any]:
    return rope_to_hugging_face(attention.rope_theta, attention.rope_scaling, attention.head_dim,
                                attention.max_seq_len)


def _names(layers: list[LayerSettings], role: str, known: Iterable[str]) -> list[str]:
    names = [layer.names.get(role, "none") for layer in layers]
    for name in names:
        if name not in known:
            raise InputError(f"{role}: {name!r} cannot be saved as Qwen3, which has {' or '.join(known)}")
    return names


def _windows(mixers: list[str], layers: list[LayerSettings], sparse: bool) -> dict[str, Any]:
    windows: list[Any] = [layer.blocks["mixer"] for layer in layers if layer.names["mixer"] == ATTENTIONS[1]]
    theirs = {"use_sliding_window": bool(windows), "sliding_window": windows[0].window if windows else None}
    if sparse:
        return theirs
    return theirs | {"layer_types": mixers, "max_window_layers": mixers.count(ATTENTIONS[0])}


def _feed_forwards(names: list[str], layers: list[LayerSettings]) -> dict[str, Any]:
    found: dict[str, Any] = {layer.names["feed_forward"]: layer.blocks["feed_forward"] for layer in layers}
    theirs = {"intermediate_size": found["swiglu"].intermediate_size} if "swiglu" in found else {}
    if "moe" in found:
        theirs |= {key: getattr(found["moe"], ours) for ours, (key, _) in MOE_FIELDS.items()}
        theirs |= {"decoder_sparse_step": 1,
                   "mlp_only_layers": [i for i, name in enumerate(names) if name != "moe"]}
    return theirs


def from_hugging_face(theirs: dict[str, Any]) -> LanguageModelConfig:
    """Our configuration; InputError names the field that asks for what we do not compute."""
    config = _from_theirs(theirs)
    own = read_field(theirs, "cuda_nn", {})
    if not own:
        return config
    try:
        full = LanguageModelConfig(**own)
    except TypeError as error:
        raise InputError(f"config.json: cuda_nn: {error}; another version of cuda-nn wrote it") from None
    same = _from_theirs(_to_theirs(full, full.stack.layers())) == config
    return full if same else config             # what it says counts while it means what the rest does


def _from_theirs(theirs: Mapping[str, Any]) -> LanguageModelConfig:
    kind = theirs.get("model_type")
    if kind not in ARCHITECTURES:
        raise InputError(f"config.json: model_type is {kind!r}; {DENSE} and {SPARSE} are read here")
    require(theirs, REQUIRED)
    if "num_local_experts" in theirs:           # as Transformers 5 writes it
        theirs = {**theirs, "num_experts": theirs["num_local_experts"]}
    defaults = MOE_DEFAULTS if kind == SPARSE else {"intermediate_size": DENSE_WIDTH}
    ours = {name: read_field(theirs, key, defaults.get(key, default))
            for name, (key, default) in FIELDS.items()}
    count = ours["num_layers"]
    mixers, feed_forwards = _mixers(theirs, count), list(_kinds(theirs, count, kind == SPARSE))
    attention = _attention(theirs, ours, defaults)
    options: dict[str, Any] = {name: attention for name in ATTENTIONS if name in mixers}
    if ATTENTIONS[1] in mixers:
        options[ATTENTIONS[1]] = attention | {"window": read_field(theirs, "sliding_window", 4096)}
    if "swiglu" in feed_forwards:
        width = read_field(theirs, "intermediate_size", defaults["intermediate_size"])
        options["swiglu"] = {"intermediate_size": width}
    if "moe" in feed_forwards:
        options["moe"] = {"router_z_coef": 0.0} | {
            name: read_field(theirs, key, default) for name, (key, default) in MOE_FIELDS.items()}
    return LanguageModelConfig(**ours, mixer=_shortest(mixers), feed_forward=_shortest(feed_forwards),
                               options=options, init_scheme="normal")


def _attention(theirs: Mapping[str, Any], ours: dict[str, Any],
               defaults: Mapping[str, Any]) -> dict[str, Any]:
    """Options of the attention blocks; those that are off are left out."""
    found = {name: read_field(theirs, key, defaults.get(key, default))
             for name, (key, default) in ATTENTION_FIELDS.items()}
    if "num_key_value_heads" in theirs and theirs["num_key_value_heads"] is None:
        found["num_kv_heads"] = found["num_heads"]
    found["head_dim"] = found["head_dim"] or ours["hidden_size"] // found["num_heads"]
    found["rope_theta"], scaling = rope_from_hugging_face(theirs, ours["max_seq_len"], THETA)
    found |= {"rope_scaling": asdict(scaling)} if scaling.type != "none" else {}
    return {name: value for name, value in found.items() if value} | {"qk_norm": "head"}


def _mixers(theirs: Mapping[str, Any], count: int) -> list[str]:
    """The attention of each layer."""
    if not read_field(theirs, "use_sliding_window", False):
        found = theirs.get("layer_types") or [ATTENTIONS[0]] * count
    elif theirs["model_type"] == SPARSE:
        found = [ATTENTIONS[1]] * count
    else:
        first = read_field(theirs, "max_window_layers", 28)
        found = theirs.get("layer_types") or [ATTENTIONS[i >= first] for i in range(count)]
    if len(found) != count or not set(found) <= set(ATTENTIONS):
        raise InputError(f"config.json: layer_types {found} are not {count} of {' and '.join(ATTENTIONS)}")
    return list(found)


def _kinds(theirs: Mapping[str, Any], count: int, sparse: bool) -> Iterator[str]:
    """The feed-forward of each layer."""
    step = read_field(theirs, "decoder_sparse_step", 1)
    dense = read_field(theirs, "mlp_only_layers", [])
    if step < 1:
        raise InputError(f"config.json: decoder_sparse_step is {step}; expected 1 or more")
    for i in range(count):
        yield "moe" if sparse and i not in dense and (i + 1) % step == 0 else "swiglu"


def _shortest(names: list[str]) -> str | tuple[str, ...]:
    return names[0] if len(set(names)) == 1 else tuple(names)


Difference = tuple[str, Any, Any]      # a setting, its value, Qwen3's


def _differences(config: LanguageModelConfig, expected: LanguageModelConfig) -> Iterator[Difference]:
    """Of everything that changes what is computed"""
    yield from _compared("", config, expected, BY_LAYER)
    for i, (ours, theirs) in enumerate(zip(config.stack.layers(), expected.stack.layers(), strict=True)):
        for role, name in ours.names.items():
            if name != theirs.names.get(role):
                yield f"layer {i}, {role}", name, theirs.names.get(role)
            else:
                where = f"layer {i}, {name}."
                yield from _compared(where, ours.blocks[role], theirs.blocks[role], COMPUTED_ALIKE)
        turned, expected_turn = _rope(ours.blocks["mixer"]), _rope(theirs.blocks["mixer"])
        if turned != expected_turn:
            yield f"layer {i}, rotary positions", turned, expected_turn


def _compared(where: str, ours: Any, theirs: Any, but: frozenset[str]) -> Iterator[Difference]:
    for each in fields(ours):
        one, other = getattr(ours, each.name), getattr(theirs, each.name)
        if each.name not in but | TRAINING_ONLY and one != other:
            yield where + each.name, one, other
