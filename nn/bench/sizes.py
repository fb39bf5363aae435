"""The sizes of the single operations, and what they must do at least: for us and for the others."""

from dataclasses import dataclass
from typing import Any

FORWARD = ("rms_norm", "softmax", "linear_cross_entropy", "attention", "swiglu")


@dataclass(frozen=True)
class Sizes:
    rows: int = 4096                   # rms_norm: rows x width
    width: int = 768
    square: int = 4096                 # softmax: square x square
    tokens: int = 2048                 # linear_cross_entropy, swiglu
    vocab: int = 32000
    length: int = 1024                 # attention: causal, multi-query
    heads: int = 12
    head_dim: int = 64
    inner: int = 2048                  # swiglu
    tensors: int = 50                  # adamw: tensors x tensor parameters
    tensor: int = 1_000_000


FULL = Sizes()
SMALL = Sizes(rows=8, width=16, square=8, tokens=8, vocab=32, length=8, heads=2, head_dim=8, inner=16,
              tensors=2, tensor=100)


def work(op: str, sizes: Sizes, backward: bool = False, dtype: str = "float32") -> dict[str, Any]:
    """{"flops": ..., "dtype": ...} or {"bytes": ...} of one repetition: multiply-adds, three times the
    forward's with the backward; or the fewest bytes that pass between memory and processor."""
    found = _work(op, sizes, backward, 4.0 if dtype == "float32" else 2.0)
    return found | ({"dtype": dtype} if "flops" in found else {})


def _work(op: str, sizes: Sizes, backward: bool, size: float) -> dict[str, float]:
    s, times = sizes, 3 if backward else 1
    if op == "linear_cross_entropy":
        return {"flops": times * 2.0 * s.tokens * s.width * s.vocab}
    if op == "swiglu":
        return {"flops": times * 2.0 * s.tokens * s.width * s.inner * 3}
    if op == "attention":              # half of the scores; the backward forms them again
        return {"flops": (3.5 if backward else 1) * 4.0 * s.heads * s.length**2 * s.head_dim / 2}
    if op == "adamw":                  # p, m, v read and written, the gradient read
        return {"bytes": 7.0 * s.tensors * s.tensor * size}
    each = (s.rows * s.width if op == "rms_norm" else s.square**2) * size
    return {"bytes": (5 if backward else 2) * each}      # x, y; y's gradient, x or y again, x's gradient
