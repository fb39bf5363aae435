"""A packed model in one safetensors file that is mapped, not read: a model of half the memory starts at once.

    save(model, "model.packed", "bf16")            # weights are packed one after the other into the file
    packed = load(model, "model.packed")           # `model` says the architecture; nothing of it is drawn

Packed weights are uint8 tensors at multiples of 64 bytes; "packed" in the file's metadata has {name:
[format, shape, gated]}, "layout" which layout of panels that is (nn/packed/layout.py).  Everything else lies
behind them, under the names of state_dict."""

import json
import struct
from pathlib import Path
from typing import Any

import numpy as np

from nn.dtypes import DType, Shape
from nn.errors import InputError
from nn.files import replacing
from nn.layers.packed.convert import Parts, from_parts, packed, shape_of
from nn.packed.layout import LINE, VERSION, Format
from nn.packed.memory import mapped
from nn.packed.weight import PackedWeight

NAMES = {DType.float64: "F64", DType.float32: "F32", DType.float16: "F16", DType.bfloat16: "BF16"}
Packed = tuple[str, list[int], bool]                          # format, shape, gated
Stored = tuple[str, list[int], tuple[int, int]]               # dtype, shape, from where to where


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
    """The packed model of a file, its weights mapped; `model` stays as it is.  InputError if the file is
    damaged, or not of this architecture and dtype."""
    meta, tensors, start = _read_header(Path(path))
    if not meta:
        raise InputError(f"{path}: holds no packed weights; nn.layers.packed.file.save writes them")
    file = mapped(path)

    def tensor(name: str, dtype: str, shape: Shape, size: int) -> np.ndarray:
        if name not in tensors:
            raise InputError(f"{path}: has no {name}; it is of another model")
        its_dtype, its_shape, (a, b) = tensors.pop(name)
        if (its_dtype, tuple(its_shape)) != (dtype, shape):
            raise InputError(f"{path}: {name} is {its_dtype} {its_shape}, the model has {dtype} "
                             f"{list(shape)}; load it into a model of its configuration and dtype")
        if not 0 <= a <= b <= len(file) - start or b - a != size:
            raise InputError(f"{path}: {name} takes {size} bytes, the file has {b - a} of them at {a} of "
                             f"{len(file) - start}; it is damaged or cut off, save it again")
        return file[start + a : start + b]

    def stored(name: str, parts: Parts, gated: bool) -> PackedWeight:
        shape = shape_of(parts)
        form, its_shape, its_gated = meta.get(name, (None, shape, gated))
        if form is None:
            raise InputError(f"{path}: has no packed {name}; it is of another model")
        if tuple(its_shape) != shape or its_gated != gated:
            raise InputError(f"{path}: {name} is {its_shape}, the model has {list(shape)}")
        size = PackedWeight.size(Format.of(form), shape, gated)
        return PackedWeight(tensor(name, "U8", (size,), size), Format.of(form), shape, gated)

    result = packed(model, next(iter(meta.values()))[0], stored, share=False)
    for name, parameter in result.named_parameters().items():
        size = parameter.size * parameter.dtype.itemsize
        values = tensor(name, NAMES[DType.of(parameter.dtype)], parameter.shape, size)
        parameter.load(values.view(parameter.dtype).reshape(parameter.shape).copy())
    if tensors:
        raise InputError(f"{path}: has {', '.join(list(tensors)[:3])}, which this model has not; it is of "
                         "another")
    return result


def _write_header(path: Path, form: Format, found: dict[str, tuple[Parts, bool]],
                  rest: dict[str, Any]) -> tuple[dict[str, tuple[int, int]], int]:
    """({name: its bytes, from the data's beginning}, where that is) of a file of its final size"""
    meta = {name: [form.name, shape_of(parts), gated] for name, (parts, gated) in found.items()}
    header: dict[str, Any] = {"__metadata__": {"packed": json.dumps(meta), "layout": VERSION}}
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


def _read_header(path: Path) -> tuple[dict[str, Packed], dict[str, Stored], int]:
    """What is packed, all tensors, and where their data begin; of these types whatever the file holds"""
    try:
        with open(path, "rb") as file:
            (size,) = struct.unpack("<Q", file.read(8))
            if size > path.stat().st_size - 8:
                raise ValueError(f"its header of {size} bytes is cut off")
            header = json.loads(file.read(size))
        about = header.pop("__metadata__", {})
        meta, layout = json.loads(about.get("packed", "{}")), about.get("layout")
        weights = {name: (str(form), [int(n) for n in shape], bool(gated))
                   for name, (form, shape, gated) in meta.items()}
        tensors = {name: (str(one["dtype"]), [int(n) for n in one["shape"]], _pair(one["data_offsets"]))
                   for name, one in header.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, struct.error) as error:
        raise InputError(f"{path}: not a file of packed weights ({error})") from None
    if layout != VERSION and any(Format.of(form).quantized for form, _, _ in weights.values()):
        raise InputError(f"{path}: its weights are laid out as in another version of this library; save it "
                         "again from the model's weights")
    return weights, tensors, 8 + size


def _pair(values: Any) -> tuple[int, int]:
    a, b = values
    return int(a), int(b)
