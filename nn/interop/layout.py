"""What the folders of several architectures share: tables of names read both ways, models written and read by
them, fields of config.json, and rotary scalings."""

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from nn.dtypes import DType, Shape
from nn.errors import InputError
from nn.interop.folder import Stored, open_tensors, write
from nn.layers.rotary import RopeScaling
from nn.models.decoder import Decoder

ROPE_TYPES = {"default": "none", "linear": "linear", "dynamic": "dynamic", "yarn": "yarn"}     # theirs: ours
YARN = {"beta_fast": 32.0, "beta_slow": 1.0}     # and what leaving them out means


@dataclass(frozen=True)
class Table:
    """Our names of a model's parameters, and theirs."""

    plain: Mapping[str, str]                 # {ours: theirs} of what is one tensor on both sides
    # {our stacked name: [[their names of expert 0, rows in order], [expert 1], ...]}
    stacked: Mapping[str, list[list[str]]] = field(default_factory=dict)

    def to_theirs(self, ours: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Our state dict as their tensors.  InputError for a parameter that they have no name for."""
        if nameless := [name for name in ours if name not in self.plain and name not in self.stacked]:
            raise InputError(f"{nameless[0]}: has no name in this layout; adapters are merged and removed "
                             "first, or saved by themselves (nn.interop.peft)")
        tensors = {theirs: np.ascontiguousarray(ours[name]) for name, theirs in self.plain.items()}
        for name, experts in self.stacked.items():
            for weight, parts in zip(ours[name], experts, strict=True):
                for part, rows in zip(parts, np.split(weight, len(parts)), strict=True):
                    tensors[part] = np.ascontiguousarray(rows)
        return tensors

    def to_ours(self, stored: Mapping[str, Stored]) -> dict[str, np.ndarray]:
        """Their tensors as our state dict."""
        ours = {name: stored[theirs].read() for name, theirs in self.plain.items()}
        for name, experts in self.stacked.items():
            ours[name] = np.stack([_joined(stored[part] for part in parts) for parts in experts])
        return ours

    def check(self, ours: Mapping[str, Shape], stored: Mapping[str, Stored], redundant: tuple[str, ...],
              folder: Path) -> None:
        """InputError names what of these shapes is missing, mis-shaped, or too much; names that end with a
        redundant one are passed over."""
        expected = self._shapes(ours)
        problems = [f"{name} is missing" for name in expected if name not in stored]
        for name, tensor in stored.items():
            if name not in expected and not name.endswith(redundant):
                problems.append(f"{name} is not a tensor of this model")
            elif expected.get(name, tensor.shape) != tensor.shape:
                problems.append(f"{name} has shape {list(tensor.shape)}, expected {list(expected[name])}")
        if problems:
            more = f" (and {len(problems) - 3} more)" if len(problems) > 3 else ""
            raise InputError(f"{folder}: weights and config.json disagree: {'; '.join(problems[:3])}{more}")

    def _shapes(self, ours: Mapping[str, Shape]) -> dict[str, Shape]:
        """{their name: shape}"""
        shapes = {theirs: ours[name] for name, theirs in self.plain.items()}
        for name, experts in self.stacked.items():
            _, rows, columns = ours[name]
            shapes |= {part: (rows // len(parts), columns) for parts in experts for part in parts}
        return shapes


def write_model(model: Decoder, folder: Path, config: dict[str, Any], table: Table) -> None:
    """A folder with config.json, which says the weights' type too, and the weights.  Files are written aside
    and renamed."""
    dtype = DType.of(model.embed_tokens.weight.dtype).value
    write(folder, config | {"torch_dtype": dtype}, table.to_theirs(model.state_dict()))


def read_model(model: Decoder, folder: Path,
               table: Callable[[Iterable[str]], Table]) -> dict[str, np.ndarray]:
    """Our state dict for a model of the folder's configuration, none of whose weights exist yet.

    table: of the names stored.  InputError names a damaged file, or tensors that are missing, unexpected or
    mis-shaped, before any weight is read."""
    shapes = {name: parameter.shape for name, parameter in model.named_parameters().items()}
    with open_tensors(folder) as stored:
        ours = table(stored)
        redundant = ("rotary_emb.inv_freq", *["lm_head.weight"] * (model.lm_head is None))
        ours.check(shapes, stored, redundant, folder)
        return ours.to_ours(stored)


def _joined(parts: Iterable[Stored]) -> np.ndarray:
    return np.concatenate([part.read() for part in parts])


# ---- fields of config.json ----

def require(theirs: Mapping[str, Any], required: Mapping[str, Any]) -> None:
    """InputError unless these fields have these values, or are left out."""
    for key, value in required.items():
        if theirs.get(key) not in (None, value):
            raise InputError(f"config.json: {key} is {theirs[key]!r}; only {value!r} is computed here")


def read_field(theirs: Mapping[str, Any], key: str, default: Any) -> Any:
    """A field of the default's type, which is also what leaving it out means; else an InputError."""
    value = default if theirs.get(key) is None else theirs[key]
    kind = int | float if isinstance(default, float) else type(default)
    if not isinstance(value, kind) or isinstance(value, bool) != isinstance(default, bool):
        raise InputError(f"config.json: {key} is {value!r}; expected a value like {default!r}")
    return value


# ---- rotary positions ----

def rope_to_hugging_face(theta: float, scaling: RopeScaling, width: int, max_seq_len: int) -> dict[str, Any]:
    """rope_theta and rope_scaling, the two keys that every version of Transformers reads.

    width: channels that are turned.  NTK scaling is a larger base and has no name there.  Neither has our
    dynamic kind, which is fixed for the whole context: theirs is plain up to max_position_embeddings and
    grows beyond."""
    trained = scaling.original_max_position_embeddings or round(max_seq_len / scaling.factor)
    if scaling.type == "none":
        return {"rope_theta": theta, "rope_scaling": None}
    if scaling.type == "ntk" or (scaling.type == "dynamic" and max_seq_len > trained):
        s = scaling.factor
        s = s if scaling.type == "ntk" else s * max_seq_len / trained - (s - 1.0)
        return {"rope_theta": theta * s ** (width / (width - 2)), "rope_scaling": None}
    theirs: dict[str, Any] = {"rope_type": scaling.type, "factor": float(scaling.factor)}
    if scaling.type == "yarn":
        theirs |= {"original_max_position_embeddings": trained, "beta_fast": float(scaling.beta_fast),
                   "beta_slow": float(scaling.beta_slow)}
        theirs |= {"attention_factor": float(scaling.attention_factor)} if scaling.attention_factor else {}
    return {"rope_theta": theta, "rope_scaling": theirs}


def rope_from_hugging_face(theirs: Mapping[str, Any], max_seq_len: int,
                           theta: float) -> tuple[float, RopeScaling]:
    """Our base and scaling; `theta` is what leaving the base out means.  Transformers 5 writes both into
    rope_parameters."""
    rope = read_field(theirs, "rope_scaling", {}) or read_field(theirs, "rope_parameters", {})
    kind = rope.get("rope_type") or rope.get("type") or "default"
    if kind not in ROPE_TYPES:
        known = ", ".join(ROPE_TYPES)
        raise InputError(f"config.json: rope_type is {kind!r}; only {known} are computed here")
    if kind != "default" and not rope.get("factor"):
        raise InputError(f"config.json: rope_type {kind!r} needs a factor")
    require(rope, {"partial_rotary_factor": 1.0, "truncate": True})
    base = read_field(theirs if rope.get("rope_theta") is None else rope, "rope_theta", theta)
    scaling: dict[str, Any] = {}
    if kind != "default":
        scaling = {"factor": read_field(rope, "factor", 1.0), "original_max_position_embeddings": max_seq_len}
    if kind == "yarn":
        defaults = YARN | {"original_max_position_embeddings": max_seq_len, "attention_factor": _mscale(rope)}
        scaling |= {key: read_field(rope, key, default) for key, default in defaults.items()}
    return base, RopeScaling(ROPE_TYPES[kind], **scaling)


def _mscale(rope: Mapping[str, Any]) -> float:
    """DeepSeek's m(s, mscale) / m(s, mscale_all_dim), m(s, a) = 0.1 a ln s + 1; 0 if not given."""
    s, above, below = (read_field(rope, key, 0.0) for key in ("factor", "mscale", "mscale_all_dim"))
    log = 0.1 * math.log(max(s, 1.0))
    return (above * log + 1.0) / (below * log + 1.0) if above and below else 0.0
