"""Where the elements of mma's matrices lie among the lanes: the PTX manual's figures, shape by shape, as its
text gives them.

With group g = lane >> 2 and t = lane % 4, place(g, t, i) is the (row, column) of element i that a lane
holds; registers hold elements from the low bits up.

    words = pack(codes, A_PLACES["m16n8k16", 16], 16)    # bits [rows, columns] -> uint32 [32, registers]
    matrix = unpack(words, c_place("m16n8k16"), (16, 8), 32)
"""

import re
from collections.abc import Callable

import ml_dtypes
import numpy as np

Place = Callable[[int, int, int], tuple[int, int]]

# By shape and bits per element.
A_PLACES: dict[tuple[str, int], Place] = {
    ("m8n8k4", 64): lambda g, t, i: (g, t),
    ("m8n8k16", 8): lambda g, t, i: (g, t * 4 + i),
    ("m8n8k32", 4): lambda g, t, i: (g, t * 8 + i),
    ("m8n8k128", 1): lambda g, t, i: (g, t * 32 + i),
    ("m16n8k4", 32): lambda g, t, i: (g if i == 0 else g + 8, t),
    ("m16n8k4", 64): lambda g, t, i: (g if i == 0 else g + 8, t),
    ("m16n8k8", 16): lambda g, t, i: (g if i in (0, 1) else g + 8, t * 2 + (i & 1)),
    ("m16n8k8", 32): lambda g, t, i: (g if i in (0, 2) else g + 8, t if i in (0, 1) else t + 4),
    ("m16n8k8", 64): lambda g, t, i: (g if i in (0, 2) else g + 8, t if i in (0, 1) else t + 4),
    ("m16n8k16", 16): lambda g, t, i: (
        g if i in (0, 1, 4, 5) else g + 8,
        t * 2 + (i & 1) + (8 if i >= 4 else 0),
    ),
    ("m16n8k16", 64): lambda g, t, i: (g if i % 2 == 0 else g + 8, (i * 2 if i % 2 == 0 else i * 2 - 2) + t),
    ("m16n8k16", 8): lambda g, t, i: (g if i < 4 else g + 8, t * 4 + (i & 3)),
    ("m16n8k32", 4): lambda g, t, i: (g if i < 8 else g + 8, t * 8 + (i & 7)),
    ("m16n8k32", 8): lambda g, t, i: (
        g if i < 4 or 8 <= i < 12 else g + 8,
        t * 4 + (i & 3) + (16 if i >= 8 else 0),
    ),
    ("m16n8k64", 4): lambda g, t, i: (
        g if i < 8 or 16 <= i < 24 else g + 8,
        t * 8 + (i & 7) + (32 if i >= 16 else 0),
    ),
    ("m16n8k128", 1): lambda g, t, i: (g if i < 32 else g + 8, t * 32 + (i & 31)),
    ("m16n8k256", 1): lambda g, t, i: (
        g if i < 32 or 64 <= i < 96 else g + 8,
        t * 32 + (i & 31) + (128 if i >= 64 else 0),
    ),
}
B_PLACES: dict[tuple[str, int], Place] = {
    ("m8n8k4", 64): lambda g, t, i: (t, g),
    ("m8n8k16", 8): lambda g, t, i: (t * 4 + i, g),
    ("m8n8k32", 4): lambda g, t, i: (t * 8 + i, g),
    ("m8n8k128", 1): lambda g, t, i: (t * 32 + i, g),
    ("m16n8k4", 32): lambda g, t, i: (t, g),
    ("m16n8k4", 64): lambda g, t, i: (t, g),
    ("m16n8k8", 16): lambda g, t, i: (t * 2 + i, g),
    ("m16n8k8", 32): lambda g, t, i: (t if i == 0 else t + 4, g),
    ("m16n8k8", 64): lambda g, t, i: (t if i == 0 else t + 4, g),
    ("m16n8k16", 16): lambda g, t, i: (t * 2 + (i & 1) + (8 if i >= 2 else 0), g),
    ("m16n8k16", 64): lambda g, t, i: (t + i * 4, g),
    ("m16n8k16", 8): lambda g, t, i: (t * 4 + i, g),
    ("m16n8k32", 4): lambda g, t, i: (t * 8 + i, g),
    ("m16n8k32", 8): lambda g, t, i: (t * 4 + (i & 3) + (16 if i >= 4 else 0), g),
    ("m16n8k64", 4): lambda g, t, i: (t * 8 + (i & 7) + (32 if i >= 8 else 0), g),
    ("m16n8k128", 1): lambda g, t, i: (t * 32 + i, g),
    ("m16n8k256", 1): lambda g, t, i: (t * 32 + (i & 31) + (128 if i >= 32 else 0), g),
}


def c_place(shape: str) -> Place:
    """C and D, of any type."""
    if shape.startswith("m8"):
        return lambda g, t, i: (g, t * 2 + i)
    return lambda g, t, i: (g if i < 2 else g + 8, t * 2 + (i & 1))


def extents(shape: str) -> tuple[int, int, int]:
    """m, n and k of a spelled shape."""
    m, n, k = map(int, re.fullmatch(r"m(\d+)n(\d+)k(\d+)", shape).groups())
    return m, n, k


def pack(codes: np.ndarray, place: Place, bits: int) -> np.ndarray:
    """Bit patterns of a matrix -> each lane's registers, [32, words] of 32 bits (64 for f64)."""
    count = codes.size // 32
    width = max(bits, 32)
    words = np.zeros((32, count * bits // width), np.uint64 if width == 64 else np.uint32)
    for lane in range(32):
        for i in range(count):
            row, column = place(lane >> 2, lane % 4, i)
            words[lane, i * bits // width] |= words.dtype.type(int(codes[row, column]) << i * bits % width)
    return words


def unpack(words: np.ndarray, place: Place, shape: tuple[int, int], bits: int) -> np.ndarray:
    """Each lane's registers -> bit patterns of the matrix; every element must be covered."""
    width = max(bits, 32)
    codes = np.full(shape, -1, object)
    for lane in range(32):
        for i in range(words.shape[1] * width // bits):
            row, column = place(lane >> 2, lane % 4, i)
            assert codes[row, column] == -1, "a layout gives one place twice"
            codes[row, column] = int(words[lane, i * bits // width]) >> i * bits % width & (1 << bits) - 1
    return codes.astype(np.uint64)


# ---- element types -----------------------------------------------------------------------------------------

BITS = {
    "f16": 16,
    "bf16": 16,
    "tf32": 32,
    "e4m3": 8,
    "e5m2": 8,
    "s8": 8,
    "u8": 8,
    "s4": 4,
    "u4": 4,
    "b1": 1,
    "f32": 32,
    "s32": 32,
    "f64": 64,
}
_FLOATS = {
    "f16": np.float16,
    "bf16": ml_dtypes.bfloat16,
    "tf32": np.float32,
    "f32": np.float32,
    "f64": np.float64,
    "e4m3": ml_dtypes.float8_e4m3fn,
    "e5m2": ml_dtypes.float8_e5m2,
}


def is_float(kind: str) -> bool:
    return kind in _FLOATS


def encode(values: np.ndarray, kind: str) -> np.ndarray:
    """Values -> bit patterns of a type.  tf32 gets bits below its last place, which must not be looked at."""
    bits = BITS[kind]
    if is_float(kind):
        codes = np.asarray(values).astype(_FLOATS[kind]).view(f"u{bits // 8}").astype(np.uint64)
        finite = np.isfinite(np.asarray(values, np.float64))
        return np.where(finite, codes & 0xFFFFE000 | 0x1ABC, codes) if kind == "tf32" else codes
    return np.asarray(values).astype(np.int64).astype(np.uint64) & np.uint64((1 << bits) - 1)


def decode(codes: np.ndarray, kind: str) -> np.ndarray:
    """Bit patterns -> float64, or int64 for integers."""
    bits = BITS[kind]
    codes = np.asarray(codes, np.uint64)
    if is_float(kind):
        if kind == "tf32":
            codes = codes & np.uint64(0xFFFFE000)
        return codes.astype(f"u{bits // 8}").view(_FLOATS[kind]).astype(np.float64)
    values = codes.astype(np.int64)
    return np.where(values >> (bits - 1) & 1, values - (1 << bits), values) if kind[0] == "s" else values


def integers(kind: str, shape: tuple[int, int], generator: np.random.Generator) -> np.ndarray:
    """Random values of a type whose products and sums every accumulator holds exactly."""
    low, high = {
        "b1": (0, 1),
        "u8": (0, 255),
        "s8": (-128, 127),
        "u4": (0, 15),
        "s4": (-8, 7),
        "s32": (-999, 999),
    }.get(kind, (-7, 7))
    return generator.integers(low, high, shape, endpoint=True)
