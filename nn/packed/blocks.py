"""Quantization to GGUF's blocks of 32 weights with one float16 scale, bit by bit as llama.cpp does it.

    q8_0  34 bytes: d, then 32 int8;    w = d q,        d = max|w| / 127
    q4_0  18 bytes: d, then 16 bytes;   w = d (q − 8),  d = (the w of largest magnitude) / −8
          byte i holds q of element i in its low half and of element i + 16 in its high half

Rows are [..., I] with I a multiple of 32; blocks are uint8 [..., I/32, bytes]."""

import numpy as np

BLOCK = 32


def quantize_q8_0(rows: np.ndarray) -> np.ndarray:
    """uint8 [..., I/32, 34] of float rows [..., I]"""
    blocks = _blocks(rows)
    d = np.abs(blocks).max(axis=-1, keepdims=True) / np.float32(127)
    with np.errstate(divide="ignore"):
        inverse = np.where(d == 0, np.float32(0), np.float32(1) / d)
    scaled = blocks * inverse
    size = np.abs(scaled)
    whole = np.floor(size)
    whole += np.floor(2 * (size - whole))                           # halves away from zero
    return _joined(d, np.copysign(whole, scaled).astype(np.int8).view(np.uint8))


def quantize_q4_0(rows: np.ndarray) -> np.ndarray:
    """uint8 [..., I/32, 18] of float rows [..., I]"""
    blocks = _blocks(rows)
    place = np.abs(blocks).argmax(axis=-1, keepdims=True)
    d = np.take_along_axis(blocks, place, axis=-1) / np.float32(-8)
    with np.errstate(divide="ignore"):
        inverse = np.where(d == 0, np.float32(0), np.float32(1) / d)
    q = np.trunc(blocks * inverse + np.float32(8.5)).astype(np.uint8).clip(0, 15)
    return _joined(d, q[..., :16] | q[..., 16:] << np.uint8(4))


def dequantize_q8_0(blocks: np.ndarray) -> np.ndarray:
    """float32 [..., I] of uint8 [..., I/32, 34]"""
    values = blocks[..., 2:].view(np.int8).astype(np.float32) * _scales(blocks)
    return values.reshape(*values.shape[:-2], -1)


def dequantize_q4_0(blocks: np.ndarray) -> np.ndarray:
    """float32 [..., I] of uint8 [..., I/32, 18]"""
    q = blocks[..., 2:]
    both = np.concatenate([q & np.uint8(15), q >> np.uint8(4)], axis=-1).astype(np.float32)
    values = (both - np.float32(8)) * _scales(blocks)
    return values.reshape(*values.shape[:-2], -1)


def _blocks(rows: np.ndarray) -> np.ndarray:
    wide = np.asarray(rows).astype(np.float32)
    return wide.reshape(*wide.shape[:-1], wide.shape[-1] // BLOCK, BLOCK)


def _joined(d: np.ndarray, quants: np.ndarray) -> np.ndarray:
    with np.errstate(over="ignore"):
        return np.concatenate([d.astype(np.float16).view(np.uint8), quants], axis=-1)


def _scales(blocks: np.ndarray) -> np.ndarray:
    """float32 [..., I/32, 1]"""
    return np.ascontiguousarray(blocks[..., :2]).view(np.float16).astype(np.float32)
