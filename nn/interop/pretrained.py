"""The model in a Hugging Face folder, whichever of the known architectures it is.

    model = from_pretrained("folder")"""

import importlib
from pathlib import Path
from typing import Any

from nn.errors import InputError
from nn.interop.folder import CONFIG, read_json
from nn.models.decoder import Decoder

# model_type -> module and class, imported when a folder is of that kind
ARCHITECTURES = {"mixtral": ("nn.models.moe_transformer", "MoETransformer"),
                 "qwen3": ("nn.models.qwen3", "Qwen3"), "qwen3_moe": ("nn.models.qwen3", "Qwen3")}


def from_pretrained(folder: str | Path, dtype: Any = None) -> Decoder:
    """Read config.json and the weights; dtype defaults to that of the file."""
    kind = read_json(Path(folder) / CONFIG).get("model_type")
    if kind not in ARCHITECTURES:
        raise InputError(f"{folder}: model_type is {kind!r}; {', '.join(ARCHITECTURES)} are read")
    module, name = ARCHITECTURES[kind]
    found: Decoder = getattr(importlib.import_module(module), name).from_pretrained(folder, dtype=dtype)
    return found
