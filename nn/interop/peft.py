"""LoRA adapters by themselves, in the layout of Hugging Face's PEFT: adapter_config.json beside
adapter_model.safetensors.

Layers have the names that they have in the model's Hugging Face folder, if it is of an architecture that has
one here (Mixtral, Qwen3), else our own.  Adapters of experts are written for each expert by itself, with the
gate's and the up projection's A being one and the same.

    peft.save(lora, "adapter");  lora = peft.load(model, "adapter")"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from nn.errors import InputError
from nn.interop import mixtral, qwen3
from nn.interop.folder import Stored, open_tensors, read_json, write
from nn.interop.layout import Table, read_field, require
from nn.layers.lora import LoRA, LoRASettings
from nn.layers.module import Module
from nn.models.config import MoETransformerConfig
from nn.models.language_config import LanguageModelConfig

FILES = ("adapter_config.json", "adapter_model.safetensors")
PREFIX = "base_model.model."
PARTS = ("lora_A", "lora_B")
# What would change the arithmetic: theirs must be this value, if there at all.
REQUIRED = {"peft_type": "LORA", "bias": "none", "fan_in_fan_out": False, "use_dora": False,
            "lora_bias": False, "rank_pattern": {}, "alpha_pattern": {}, "layer_replication": None,
            "target_parameters": None}


def save(lora: LoRA, folder: str | Path, base: str | None = None) -> None:
    """base: name or folder of the model that the adapters belong to, for PEFT."""
    table = _table(lora.model)
    tensors: dict[str, np.ndarray] = {}
    for path, found in lora.adapted().items():
        pair = {part: getattr(found.adapter, part).numpy() for part in PARTS}
        tensors |= _to_theirs(path, pair, table)
    adapted = sorted({name.removeprefix(PREFIX).rpartition(".lora_")[0] for name in tensors})
    own = {name: p.numpy() for name, p in lora.named_parameters().items() if ".lora_" not in name}
    whole = {table.plain.get(name, name): values for name, values in own.items()}
    tensors |= {PREFIX + name: np.ascontiguousarray(values) for name, values in whole.items()}
    config = _config(lora.settings, _targets(adapted, lora.model, table),
                     sorted({name.rpartition(".")[0] for name in whole}), base)
    write(Path(folder), config, tensors, FILES)


def load(model: Module, folder: str | Path) -> LoRA:
    """Put the adapters of a folder into a model that has none.  InputError names what does not fit."""
    folder = Path(folder)
    theirs = read_json(folder / FILES[0])
    require(theirs, REQUIRED)
    with open_tensors(folder, FILES[1]) as stored:
        pairs, whole = _to_ours(stored, _table(model))
    lora = LoRA(model, LoRASettings(
        r=read_field(theirs, "r", 8), alpha=float(read_field(theirs, "lora_alpha", 8.0)),
        dropout=float(read_field(theirs, "lora_dropout", 0.0)),
        rslora=read_field(theirs, "use_rslora", False),
        gaussian=theirs.get("init_lora_weights") == "gaussian",
        targets=tuple(pairs), train_also=tuple(whole)))
    try:
        _fill(lora, pairs, whole)
    except InputError:
        lora.remove()
        raise
    return lora


def _fill(lora: LoRA, pairs: Mapping[str, Mapping[str, np.ndarray]], whole: Mapping[str, np.ndarray]) -> None:
    parameters = lora.named_parameters()
    values = {(path, part): array for path, pair in pairs.items() for part, array in pair.items()}
    targets = {(path, part): getattr(found.adapter, part)
               for path, found in lora.adapted().items() for part in PARTS}
    values |= {(name, ""): array for name, array in whole.items()}
    targets |= {(name, ""): parameters[name] for name in whole}
    for key, parameter in targets.items():
        if tuple(values[key].shape) != parameter.shape:
            raise InputError(f"{'.'.join(filter(None, key))}: shape {list(values[key].shape)}, expected "
                             f"{list(parameter.shape)}; the adapters are of another model")
    for key, parameter in targets.items():
        parameter.load(np.array(values[key], dtype=parameter.dtype))


# ---- names ----

def _table(model: Any) -> Table:
    """Names of the model's parameters in its Hugging Face folder; none if it has no such layout."""
    config = getattr(model, "config", None)
    if isinstance(config, MoETransformerConfig):
        return mixtral.table(config)
    if isinstance(config, LanguageModelConfig):
        try:
            qwen3.to_hugging_face(config)
            return qwen3.table(config)
        except InputError:
            pass
    return Table({})


def _to_theirs(path: str, pair: dict[str, np.ndarray], table: Table) -> dict[str, np.ndarray]:
    """The tensors of one adapter"""
    if path in table.stacked:
        tensors: dict[str, np.ndarray] = {}
        for e, parts in enumerate(table.stacked[path]):
            rows = np.split(pair["lora_B"][e], len(parts))
            for part, b in zip(parts, rows, strict=True):
                tensors |= _named(part.removesuffix(".weight"), pair["lora_A"][e], b)
        return tensors
    weight = table.plain.get(f"{path}.weight")
    return _named(weight.removesuffix(".weight") if weight else path, pair["lora_A"], pair["lora_B"])


def _named(module: str, a: np.ndarray, b: np.ndarray) -> dict[str, np.ndarray]:
    # a copy of A: safetensors refuses two names for one memory
    return {f"{PREFIX}{module}.lora_A.weight": np.array(a), f"{PREFIX}{module}.lora_B.weight": np.array(b)}


def _to_ours(stored: dict[str, Stored],
             table: Table) -> tuple[dict[str, dict[str, np.ndarray]], dict[str, np.ndarray]]:
    """({our path: {"lora_A": ..., "lora_B": ...}}, {our parameter: its values})"""
    modules: dict[str, dict[str, np.ndarray]] = {}
    whole: dict[str, np.ndarray] = {}
    ours = {theirs: name for name, theirs in table.plain.items()}
    for name, tensor in stored.items():
        module, dot, part = name.removeprefix(PREFIX).removesuffix(".weight").rpartition(".lora_")
        if dot:
            modules.setdefault(module, {})[f"lora_{part}"] = tensor.read()
        else:
            theirs = name.removeprefix(PREFIX)
            whole[ours.get(theirs, theirs)] = tensor.read()
    for module, pair in modules.items():
        if pair.keys() != set(PARTS):
            raise InputError(f"{module}: has {', '.join(pair)}, and not {' and '.join(PARTS)}")
    stacked = {path: [[part.removesuffix(".weight") for part in parts] for parts in experts]
               for path, experts in table.stacked.items()}
    pairs = {path: _stacked(path, experts, modules) for path, experts in stacked.items()
             if experts[0][0] in modules}
    rest = modules.keys() - {part for experts in stacked.values() for parts in experts for part in parts}
    for module in modules:
        if module in rest:
            pairs[ours.get(f"{module}.weight", module).removesuffix(".weight")] = modules[module]
    return pairs, whole


def _stacked(path: str, experts: list[list[str]],
             modules: Mapping[str, dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """The adapter of all experts from those of each"""
    a, b = [], []
    for parts in experts:
        if missing := [part for part in parts if part not in modules]:
            raise InputError(f"{missing[0]}: has no adapter, and other experts have; here all have one")
        first, *others = (modules[part]["lora_A"] for part in parts)
        if any(not np.array_equal(first, other) for other in others):
            raise InputError(f"{path}: the A matrices of {' and '.join(parts)} differ; here they are one")
        a.append(first)
        b.append(np.concatenate([modules[part]["lora_B"] for part in parts]))
    return {"lora_A": np.stack(a), "lora_B": np.stack(b)}


# ---- adapter_config.json ----

def _targets(adapted: list[str], model: Any, table: Table) -> list[str]:
    """Last names, where all layers of that name have an adapter, else whole ones."""
    stacked = [part for experts in table.stacked.values() for parts in experts for part in parts]
    names = [table.plain.get(name, name) for name in model.named_parameters() if "adapter" not in name]
    modules = {name.removesuffix(".weight") for name in (*names, *stacked)}

    def last(name: str) -> str:
        return name.rpartition(".")[2]

    partly = {last(name) for name in modules - set(adapted)}
    return sorted({name if last(name) in partly else last(name) for name in adapted})


def _config(settings: LoRASettings, targets: list[str], whole: list[str], base: str | None) -> dict[str, Any]:
    return {
        "peft_type": "LORA", "task_type": "CAUSAL_LM", "base_model_name_or_path": base,
        "inference_mode": True, "r": settings.r, "lora_alpha": settings.alpha,
        "lora_dropout": settings.dropout, "use_rslora": settings.rslora,
        "init_lora_weights": "gaussian" if settings.gaussian else True,
        "target_modules": targets, "modules_to_save": whole or None, "bias": "none", "fan_in_fan_out": False}
