"""PackedWeight: a matrix, or one per expert, in the layout that the kernels read."""

from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np

from nn.dtypes import Shape
from nn.errors import InputError
from nn.packed import blocks as quantization
from nn.packed.layout import (
    BLOCK,
    PANEL,
    Format,
    check,
    from_panels,
    packed_bytes,
    panel_bytes,
    row_bytes,
    to_panels,
)
from nn.packed.memory import room

BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
ROWS_AT_ONCE = 2048        # what is converted at a time: keeps temporary arrays small


@dataclass(frozen=True)
class PackedWeight:
    """A weight [O,I], or [E,O,I] of E experts, for inference: read-only, without a gradient.

    gated: rows are a gate's, then as many of up's; their panels alternate, so that one pass gives SwiGLU."""

    data: np.ndarray         # uint8 [bytes], on huge pages or mapped from a file
    format: Format
    shape: Shape
    gated: bool = False

    def __post_init__(self) -> None:
        expected = self.size(self.format, self.shape, self.gated)
        if self.data.dtype != np.uint8 or self.data.shape != (expected,):
            raise InputError(f"packed weight: {self.format.name} of {list(self.shape)} takes {expected} "
                             f"bytes, given {self.data.dtype} {list(self.data.shape)}")

    @staticmethod
    def size(form: Format, shape: Shape, gated: bool = False) -> int:
        """Bytes of a packed weight.  InputError for a shape that has no such format."""
        *experts, outputs, inputs = shape
        check(form, inputs)
        if len(experts) > 1 or (gated and outputs % 2):
            raise InputError(f"packed weight: shape {list(shape)}; expected [O,I] or [E,O,I]"
                             + ", O even" * gated)
        halves = 2 if gated else 1
        return int(np.prod(experts, dtype=np.int64)) * halves * packed_bytes(form, outputs // halves, inputs)

    @classmethod
    def pack(cls, weight: Any, form: Format | str, *, gated: bool = False) -> "PackedWeight":
        """Of a float array [O,I] or [E,O,I]; bf16 rounds to nearest, q8_0 and q4_0 quantize as GGUF does."""
        form, weight = Format.of(form), np.asarray(weight)
        return cls._filled(lambda part: _encoded(part, form), weight, form, weight.shape, gated)

    @classmethod
    def from_rows(cls, rows: np.ndarray, form: Format | str, inputs: int, *,
                  gated: bool = False) -> "PackedWeight":
        """Of rows as GGUF stores them, uint8 [O, bytes] or [E, O, bytes], bit by bit."""
        form = Format.of(form)
        check(form, inputs)
        if rows.dtype != np.uint8 or rows.shape[-1] != row_bytes(form, inputs):
            raise InputError(f"rows: {rows.dtype} {list(rows.shape)}; {form.name} of {inputs} weights takes "
                             f"uint8 [..., {row_bytes(form, inputs)}]")
        return cls._filled(lambda part: part, rows, form, (*rows.shape[:-1], inputs), gated)

    @classmethod
    def _filled(cls, encode: Any, source: np.ndarray, form: Format, shape: Shape,
                gated: bool) -> "PackedWeight":
        data = room(cls.size(form, shape, gated))
        packed = cls(data, form, shape, gated)
        for part, panels in zip(_matrices(source, gated), packed._panels(), strict=True):
            for first in range(0, len(part), ROWS_AT_ONCE):
                rows = encode(part[first : first + ROWS_AT_ONCE])
                made = to_panels(form, rows, shape[-1])
                panels[first // PANEL : first // PANEL + len(made)] = made
        return packed

    def _panels(self) -> list[np.ndarray]:
        """Views [panels, panel_bytes] of each matrix: of each expert, gate and up by themselves"""
        halves, size = 2 if self.gated else 1, panel_bytes(self.format, self.shape[-1])
        experts = int(np.prod(self.shape[:-2], dtype=np.int64))
        count = -(-(self.shape[-2] // halves) // PANEL)
        whole = self.data.reshape(experts, count, halves, size)
        return [whole[e, :, half] for e in range(experts) for half in range(halves)]

    def rows(self) -> np.ndarray:
        """uint8 [O, bytes] or [E, O, bytes]: float32, bfloat16 or GGUF's blocks, bit by bit."""
        halves, (*experts, outputs, inputs) = 2 if self.gated else 1, self.shape
        parts = [from_panels(self.format, np.ascontiguousarray(panels), outputs // halves, inputs)
                 for panels in self._panels()]
        size = row_bytes(self.format, inputs)
        return np.concatenate([*parts, np.zeros((0, size), np.uint8)]).reshape(*experts, outputs, size)

    def unpack(self, dtype: Any = np.float32) -> np.ndarray:
        """The weights as an array of that type, [O,I] or [E,O,I]"""
        return decoded(self.rows(), self.format).astype(dtype)

    @property
    def outputs(self) -> int:
        return self.shape[-2]

    @property
    def nbytes(self) -> int:
        return self.data.nbytes

    def __repr__(self) -> str:
        return f"PackedWeight({self.format.name}, shape={list(self.shape)}, {self.nbytes} bytes)"


def unpacked(data: np.ndarray, form: Any, shape: Shape, gated: bool = False) -> np.ndarray:
    """float32 [O,I] or [E,O,I] of the bytes of a packed weight.  InputError if they are not its."""
    return PackedWeight(data, Format.of(form), shape, gated).unpack()


def decoded(rows: np.ndarray, form: Format) -> np.ndarray:
    """float32 (bfloat16's values too) of rows as bytes"""
    if form is Format.f32:
        return rows.view(np.float32)
    if form is Format.bf16:
        return rows.view(BFLOAT16).astype(np.float32)
    blocks = rows.reshape(*rows.shape[:-1], rows.shape[-1] // form.block_bytes, form.block_bytes)
    if not blocks.size:
        return np.zeros((*rows.shape[:-1], blocks.shape[-2] * BLOCK), np.float32)
    return (quantization.dequantize_q8_0 if form is Format.q8_0 else quantization.dequantize_q4_0)(blocks)


def _encoded(part: np.ndarray, form: Format) -> np.ndarray:
    """rows uint8 [O, bytes] of floats [O,I]"""
    if form.quantized:
        quantize = quantization.quantize_q8_0 if form is Format.q8_0 else quantization.quantize_q4_0
        return quantize(part).reshape(len(part), -1)
    stored = np.ascontiguousarray(part.astype(np.float32 if form is Format.f32 else BFLOAT16))
    return stored.view(np.uint8).reshape(len(part), row_bytes(form, part.shape[1]))


def _matrices(source: np.ndarray, gated: bool) -> list[np.ndarray]:
    """As _panels has them"""
    experts = list(source) if source.ndim == 3 else [source]
    return [part for matrix in experts for part in (np.split(matrix, 2) if gated else [matrix])]
