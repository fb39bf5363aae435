"""How a packed weight [O,I] lies in memory: the same on every processor, so that files can be mapped.

A panel is 16 rows of the weight, interleaved so that what 16 outputs need next lies together in 64 bytes:

    f32   [I][16] float32
    bf16  [I/2][16][2] bfloat16, I filled up with zeros to a multiple of 32
    q8_0  [I/64] of: [2][8][16][4] int8,  then [2][16] float16 scales
    q4_0  [I/64] of: [2][4][16][4] uint8, then [2][16] float16: GGUF's bytes, elements i and i + 16 of a block

Blocks go in pairs, their scales behind them, an odd last block by itself.  Rows behind the last are zeros; a
panel's bytes are filled up to a multiple of 64.  Nothing is lost: the rows come back bit by bit.
csrc/native/kernels/packed.h reads it.

`rows` here are bytes, uint8 [O, row_bytes]: float32, bfloat16, or GGUF's blocks one after the other."""

from collections.abc import Iterator
from enum import IntEnum
from typing import Any

import numpy as np

from nn.errors import InputError

PANEL, BLOCK, LINE = 16, 32, 64
VERSION = "2"           # of this layout, in files; the first had a panel's scales behind all its blocks


class Format(IntEnum):
    """A packed weight's number type; the numbers are GGUF's."""

    f32 = 0
    q4_0 = 2
    q8_0 = 8
    bf16 = 30

    @classmethod
    def of(cls, given: Any) -> "Format":
        """The member for a name, a number or a member; InputError lists the names otherwise."""
        try:
            return cls[given] if isinstance(given, str) else cls(int(given))
        except (KeyError, ValueError):
            raise InputError(f"format: {given!r} is none; choose one of "
                             f"{', '.join(one.name for one in cls)}") from None

    @property
    def quantized(self) -> bool:
        return self in (Format.q4_0, Format.q8_0)

    @property
    def block_bytes(self) -> int:
        """Bytes of a block of 32 weights, its scale included."""
        return {Format.f32: 128, Format.bf16: 64, Format.q8_0: 34, Format.q4_0: 18}[self]


def check(form: Format, inputs: int) -> None:
    """InputError if rows of that length have no such format."""
    if form.quantized and inputs % BLOCK:
        raise InputError(f"format: {form.name} has blocks of {BLOCK}; rows of {inputs} do not fit")


def row_bytes(form: Format, inputs: int) -> int:
    return inputs * form.block_bytes // BLOCK


def panel_bytes(form: Format, inputs: int) -> int:
    filled = -(-inputs // BLOCK) * BLOCK if form is Format.bf16 else inputs
    return -(-PANEL * row_bytes(form, filled) // LINE) * LINE


def packed_bytes(form: Format, outputs: int, inputs: int) -> int:
    return -(-outputs // PANEL) * panel_bytes(form, inputs)


def to_panels(form: Format, rows: np.ndarray, inputs: int) -> np.ndarray:
    """uint8 [panels, panel_bytes] of rows uint8 [O, row_bytes]"""
    check(form, inputs)
    count = -(-len(rows) // PANEL)
    panels = np.zeros((count, panel_bytes(form, inputs)), np.uint8)
    if not panels.size:
        return panels
    if not form.quantized:
        filled = panels.shape[1] // PANEL
        whole = np.zeros((count * PANEL, filled), np.uint8)
        whole[: len(rows), : rows.shape[1]] = rows
        words = whole.view(np.uint32).reshape(count, PANEL, -1)
        panels.view(np.uint32).reshape(count, -1, PANEL)[...] = words.transpose(0, 2, 1)
        return panels
    blocks = np.zeros((count * PANEL, inputs // BLOCK, form.block_bytes), np.uint8)
    blocks[: len(rows)] = rows.reshape(len(rows), *blocks.shape[1:])
    words = np.ascontiguousarray(blocks[..., 2:]).view(np.uint32)                            # [O,I/32,8 or 4]
    lines = words.reshape(count, PANEL, *words.shape[1:]).transpose(0, 2, 3, 1)
    halves = np.ascontiguousarray(blocks[..., :2]).view(np.uint16)
    factors = halves.reshape(count, PANEL, -1).transpose(0, 2, 1)
    for own, quants, scales in _parts(form, panels, inputs):
        quants[...] = lines[:, own].reshape(quants.shape)
        scales[...] = factors[:, own].reshape(scales.shape)
    return panels


def from_panels(form: Format, panels: np.ndarray, outputs: int, inputs: int) -> np.ndarray:
    """rows uint8 [O, row_bytes] of uint8 [panels, panel_bytes]"""
    count = len(panels)
    if not panels.size:
        return np.zeros((outputs, row_bytes(form, inputs)), np.uint8)
    if not form.quantized:
        words = panels.view(np.uint32).reshape(count, -1, PANEL).transpose(0, 2, 1)
        whole = np.ascontiguousarray(words).reshape(count * PANEL, -1).view(np.uint8)
        return np.ascontiguousarray(whole[:outputs, : row_bytes(form, inputs)])
    rows = np.empty((count, PANEL, inputs // BLOCK, form.block_bytes), np.uint8)
    for own, quants, scales in _parts(form, panels, inputs):
        lines = quants.reshape(count, -1, (form.block_bytes - 2) // 4, PANEL).transpose(0, 3, 1, 2)
        factors = scales.reshape(count, -1, PANEL, 1).transpose(0, 2, 1, 3)
        rows[:, :, own, 2:] = np.ascontiguousarray(lines).view(np.uint8)
        rows[:, :, own, :2] = np.ascontiguousarray(factors).view(np.uint8)
    return rows.reshape(count * PANEL, -1)[:outputs]


def scales(form: Format, panels: np.ndarray, inputs: int) -> list[np.ndarray]:
    """Views float16 of all the scales in panels [P, panel_bytes]"""
    return [halves.view(np.float16) for _, _, halves in _parts(form, panels, inputs)]


def _parts(form: Format, panels: np.ndarray, inputs: int) -> Iterator[tuple[slice, np.ndarray, np.ndarray]]:
    """Of the blocks in pairs, then of an odd last one: which they are, and views of their quants,
    uint32 [P, pairs, 2 or 1 times 8 or 4 times 16], and scales, uint16 [P, pairs, 2 or 1 times 16]"""
    blocks, size = inputs // BLOCK, PANEL * form.block_bytes
    even = blocks // 2 * 2
    for own, together in ((slice(0, even), 2), (slice(even, blocks), 1)):
        if own.start < own.stop:
            shape = len(panels), (own.stop - own.start) // together, together * size
            units = panels[:, own.start * size : own.stop * size].reshape(shape)
            split = together * (size - 2 * PANEL)
            yield own, units[..., :split].view(np.uint32), units[..., split:].view(np.uint16)
