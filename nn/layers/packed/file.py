"""A packed model in one safetensors file that is mapped, not read: a model of half the memory starts at once.

    save(model, "model.packed", "bf16")            # weights are packed one after the other into the file
    packed = load(model, "model.packed")           # `model` says the architecture; nothing of it is drawn

Packed weights are uint8 tensors at multiples of 64 bytes; "packed" in the file's metadata has {name:
[format, shape, gated]}.  Everything else lies behind them, under the names of state_dict."""

import json
import struct
from pathlib import Path
from typing import Any

import numpy as np

from nn.dtypes import DType
from nn.errors import InputError
from nn.files import replacing
from nn.layers.packed.convert import Parts, from_parts, packed, shape_of
from nn.packed.layout import LINE, Format
from nn.packed.weight import PackedWeight

NAMES = {DType.float64: "F64", DType.float32: "F32", DType.float16: "F16", DType.bfloat16: "BF16"}


def save(model: Any, path: str | Path, form: Format | str) -> None:
    """Write a model with weights of that format; needs memory for one weight at a time."""
    form, found = Format.of(form), dict[str, tuple[Parts, bool]]()

    def plan(name: str, parts: Parts, gated: bool) -> PackedWeight:
        found[name] = parts, gated
        shape = shape_of(parts)
        nothing = np.broadcast_to(np.zeros(1, np.uint8), (PackedWeight.size(form, shape, gated),))
        return PackedWeight(nothing, form, shape, gated)

    rest = packed(model, form, plan).named_parameters()
    with replacing(Path(path)) as temporary:
        places, start = _write_header(temporary, form, found, rest)
        file = np.memmap(temporary, np.uint8, "r+")
        for name, (parts, gated) in found.items():
            a, b = places[name]
            file[start + a : start + b] = from_parts(parts, form, gated).data
        for name, parameter in rest.items():
            a, b = places[name]
            file[start + a : start + b] = np.ascontiguousarray(parameter.data).reshape(-1).view(np.uint8)
        file.flush()
        del file


def load(model: Any, path: str | Path) -> Any:
    """The packed model of a file, its weights mapped.  InputError if the file is not of this architecture."""
    header, start = _read_header(Path(path))
    meta = json.loads(header.get("__metadata__", {}).get("packed", "{}"))
    if not meta:
        raise InputError(f"{path}: holds no packed weights; nn.layers.packed.file.save writes them")
    file = np.memmap(path, np.uint8, "r")

    def tensor(name: str) -> np.ndarray:
        if name not in header:
            raise InputError(f"{path}: has no {name}; it is of another model")
        a, b = header[name]["data_offsets"]
        return np.asarray(file[start + a : start + b])

    def stored(name: str, parts: Parts, gated: bool) -> PackedWeight:
        data = tensor(name)
        form, shape, was_gated = meta[name]
        if tuple(shape) != shape_of(parts) or was_gated != gated:
            raise InputError(f"{path}: {name} is {shape}, the model has {list(shape_of(parts))}")
        return PackedWeight(data, Format.of(form), tuple(shape), gated)

    result = packed(model, next(iter(meta.values()))[0], stored)
    for name, parameter in result.named_parameters().items():
        parameter.load(tensor(name).view(parameter.dtype).reshape(parameter.shape).copy())
    return result


def _write_header(path: Path, form: Format, found: dict[str, tuple[Parts, bool]],
                  rest: dict[str, Any]) -> tuple[dict[str, tuple[int, int]], int]:
    """({name: its bytes, from the data's beginning}, where that is) of a file of its final size"""
    meta = {name: [form.name, shape_of(parts), gated] for name, (parts, gated) in found.items()}
    header: dict[str, Any] = {"__metadata__": {"packed": json.dumps(meta)}}
    places, end = dict[str, tuple[int, int]](), 0
    for name, (parts, gated) in found.items():
        size = PackedWeight.size(form, shape_of(parts), gated)
        places[name], end = (end, end + size), end + size
        header[name] = {"dtype": "U8", "shape": [size], "data_offsets": places[name]}
    for name, parameter in rest.items():
        size = parameter.size * parameter.dtype.itemsize
        places[name], end = (end, end + size), end + size
        header[name] = {"dtype": NAMES[DType.of(parameter.dtype)], "shape": list(parameter.shape),
                        "data_offsets": places[name]}
    text = json.dumps(header).encode()
    text += b" " * (-(len(text) + 8) % LINE)
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.truncate(8 + len(text) + end)
    return places, 8 + len(text)


def _read_header(path: Path) -> tuple[dict[str, Any], int]:
    try:
        with open(path, "rb") as file:
            (size,) = struct.unpack("<Q", file.read(8))
            return json.loads(file.read(size)), 8 + size
    except (OSError, ValueError, struct.error) as error:
        raise InputError(f"{path}: not a file of packed weights ({error})") from None
