"""Packed weights of random bytes, made as fast as memory can be written: in memory, or for a model too large
for that in files, a piece at a time, from which they are mapped.

    model = in_memory(SMOL_135M, "q4_0");  model = mapped(MOE_6_9B, "q8_0", Path("/tmp/weights"))

Their numbers, all of a size near 0.02, are only good for measuring."""

import math
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from nn.errors import InputError
from nn.files import replacing
from nn.layers.packed.convert import packed, shape_of
from nn.models import from_config
from nn.packed.layout import VERSION, Format, panel_bytes, scales
from nn.packed.memory import mapped as mapped_file
from nn.packed.memory import room
from nn.packed.weight import PackedWeight

PIECE = 64 << 20          # bytes that are drawn at a time
ROOM = 1 << 30            # bytes that must stay free on the disk
# Of random bits the sign and the fraction are kept, the exponent becomes that of 1/64.
BITS: dict[Format, tuple[Any, Any]] = {
    Format.f32: (np.uint32(0x807FFFFF), np.uint32(0x3C800000)),
    Format.bf16: (np.uint16(0x807F), np.uint16(0x3C80))}
# Scales of blocks whose integers are drawn evenly: 0.02 over their standard deviation
SCALES = {Format.q8_0: np.float16(0.02 / 73), Format.q4_0: np.float16(0.02 / 4.6)}


def in_memory(config: Any, dtype: str) -> Any:
    """The packed model of that format: f32, bf16, q8_0 or q4_0."""
    form = Format.of(dtype)

    def made(name: str, parts: list[Any], gated: bool) -> PackedWeight:
        shape = shape_of(parts)
        size, place = PackedWeight.size(form, shape, gated), 0
        data = room(size)
        for piece in _pieces(size, form, shape[-1], name):
            data[place : place + len(piece)] = piece
            place += len(piece)
        return PackedWeight(data, form, shape, gated)

    return packed(_described(config, form), form, made)


def mapped(config: Any, dtype: str, folder: Path) -> Any:
    """The same, its large weights mapped from files in the folder, which are written when they are not there.
    InputError where the disk has no room for them."""
    form = Format.of(dtype)
    folder.mkdir(parents=True, exist_ok=True)

    def stored(name: str, parts: list[Any], gated: bool) -> PackedWeight:
        shape = shape_of(parts)
        size = PackedWeight.size(form, shape, gated)
        path = folder / f"{name}.layout{VERSION}.{form.name}"
        if not path.exists():
            _write(path, size, form, shape[-1], name)
        return PackedWeight(mapped_file(path), form, shape, gated)

    return packed(_described(config, form), form, stored)


def _described(config: Any, form: Format) -> Any:
    """The model, nothing of it drawn yet; what is not packed is bfloat16 beside bfloat16, else float32"""
    return from_config(config, dtype="bfloat16" if form is Format.bf16 else "float32")


def _write(path: Path, size: int, form: Format, inputs: int, seed: str) -> None:
    free = shutil.disk_usage(path.parent).free
    if free < size + ROOM:
        raise InputError(f"{path.parent}: {free / 1e9:.1f} GB are free, the next weight takes "
                         f"{size / 1e9:.1f}; NN_BENCH_CACHE names another folder")
    with replacing(path) as temporary, open(temporary, "wb") as file:
        for piece in _pieces(size, form, inputs, seed):
            file.write(piece.data)


def _pieces(size: int, form: Format, inputs: int, seed: str) -> Iterator[np.ndarray]:
    """uint8 arrays of whole panels (nn/packed/layout.py), together `size` bytes"""
    panel, random = panel_bytes(form, inputs), np.random.Generator(np.random.SFC64(list(seed.encode())))
    step = max(1, PIECE // panel) * panel
    for start in range(0, size, step):
        count = min(step, size - start)
        piece = np.frombuffer(random.bytes(math.ceil(count / 8) * 8), np.uint8)[:count].copy()
        if form.quantized:
            for part in scales(form, piece.reshape(-1, panel), inputs):
                part[...] = SCALES[form]
        else:
            kept, exponent = BITS[form]
            words = piece.view(kept.dtype)
            words &= kept
            words |= exponent
        yield piece
