"""What memory-bound kernels move: no more than 1.05 times what has to be moved, in whole sectors.

A formula gives the bytes that must pass through DRAM once: streams.  Vectors (a norm's weight) are read again
by every block, from the L2 cache; they are counted apart, once per block and launch."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest

from cuda.nn.device import EmulatedDevice
from tests.device.accuracy import counted, moved_bytes
from tests.device.calls import make

MARGIN = 1.05
SIZE = {"float32": 4, "bfloat16": 2}
SECTOR = 32
Formula = Callable[..., float]


def nothing(**_: Any) -> float:
    return 0


@dataclass(frozen=True)
class Traffic:
    """Bytes, as formulas of the call's sizes and s, the bytes of a number."""

    streams: Formula
    vectors: Formula = nothing           # of each block
    again: Formula = nothing             # of sectors that two requests share, one after the other


def arrays(count: int) -> Traffic:
    """So many arrays of n elements"""
    return Traffic(lambda n, s: count * n * s)


def matrices(count: int) -> Traffic:
    return Traffic(lambda rows, cols, s: count * rows * cols * s)


def norm(matrices: int, statistics: int, weights: int, gradients: int = 0) -> Traffic:
    """So many matrices, float32 numbers of a row, weights of a column, float32 gradients of a column, whose
    partial sums have no allowance."""
    return Traffic(lambda rows, cols, s: (matrices * rows * cols * s
                                          + 4 * (statistics * rows + gradients * cols)),
                   lambda cols, s, **_: cols * weights * s)


def triangle(rows: int, cols: int, s: int, offset: int = 3) -> float:
    """What the rows of a causal softmax see, read; whole rows written"""
    return s * (sum(min(i + offset + 6, cols) for i in range(rows)) + rows * cols)


def tables(heads: int, groups: int, length: int, width: int, s: int) -> float:
    """Cosines and sines of a batch of 2, whose second sequence finds them in the cache"""
    return 2 * length * width * 4


TRAFFIC: dict[str, Traffic] = {
    **{f"{name}_forward": arrays(2) for name in ("silu", "gelu", "gelu_tanh", "sigmoid", "relu", "scale")},
    **{f"{name}_backward": arrays(3) for name in ("silu", "gelu", "gelu_tanh", "sigmoid", "relu")},
    **{f"{name}_forward": arrays(3) for name in ("add", "mul", "swiglu")},
    "fill_forward": arrays(1),
    "cast_forward": Traffic(lambda n, s: n * (4 + s)),
    "swiglu_backward": arrays(5),
    "swiglu_packed_forward": matrices(3),
    "swiglu_packed_backward": matrices(5),
    "softmax_forward": matrices(2),
    "log_softmax_forward": matrices(2),
    # each thread asks for the offset, one sector for a warp; of several rows at once, some end in mid-sector
    "softmax_causal_forward": Traffic(triangle, lambda cols, **_: 8 * (128 if cols <= 256 else 256),
                                      lambda cols, **_: SECTOR if cols == 64 else 0),
    "softmax_backward": matrices(3),
    "log_softmax_backward": matrices(3),
    "rms_norm_forward": norm(2, 1, 1),
    "rms_norm_residual_forward": norm(4, 1, 1),
    "rms_norm_backward": norm(4, 1, 1, gradients=1),                     # with that of the residual
    "layer_norm_forward": norm(2, 2, 2),
    "layer_norm_backward": norm(3, 2, 1, gradients=2),
    "cross_entropy_forward": Traffic(lambda rows, vocabulary, s: rows * (vocabulary * s + 16)),
    "cross_entropy_backward": Traffic(lambda rows, vocabulary, s: rows * (2 * vocabulary * s + 16)),
    "rope_forward": Traffic(lambda heads, groups, length, width, s: 4 * (heads + groups) * length * width * s
                            + tables(heads, groups, length, width, s), again=tables),
    # float32 master and moments read and written, gradient read, parameter written
    "adamw_forward": Traffic(lambda counts, s: sum(counts) * (24 + 2 * s)),
    "gradient_norm_forward": Traffic(lambda counts, s: sum(counts) * s),
    "zero_gradients": Traffic(lambda counts, s: sum(counts) * s),
    "sum_of_squares": Traffic(lambda count, s: count * s),
    "random_bits": Traffic(lambda count, s: count * 4, lambda **_: 256 * 32),     # each thread: key and words
}
ROWS = ({"rows": 2048, "cols": 64}, {"rows": 24, "cols": 2048}, {"rows": 4, "cols": 8192})
TWO_SHARES = ({"rows": 86, "cols": 2048},)       # MiB of a block, almost, in bfloat16
SHORTER = ({"rows": 512, "cols": 64}, {"rows": 4, "cols": 4096})
CAUSAL = ({"rows": 512, "cols": 64}, {"rows": 256, "cols": 256}, {"rows": 8, "cols": 4096, "offset": 2000})
LOGITS = ({"rows": 256, "vocabulary": 256}, {"rows": 4, "vocabulary": 8192})


def sizes_of(function: str) -> tuple[dict[str, Any], ...]:
    if "_norm_" in function and "gradient" not in function:
        return ROWS + TWO_SHARES if function == "layer_norm_backward" else ROWS
    if function == "softmax_causal_forward":
        return CAUSAL
    if "softmax" in function or "packed" in function:
        return SHORTER
    if "cross_entropy" in function:
        return LOGITS
    if function == "rope_forward":
        return {"heads": 4, "groups": 2, "length": 900, "width": 64},
    if function in ("adamw_forward", "gradient_norm_forward", "zero_gradients"):
        return {"counts": (24_576,)},
    return ({"count": 24_576},) if function in ("sum_of_squares", "random_bits") else ({"n": 8192},)


@pytest.mark.parametrize("dtype", SIZE)
@pytest.mark.parametrize(("function", "sizes"), [(f, sizes) for f in TRAFFIC for sizes in sizes_of(f)])
def test_each_byte_is_moved_once(device: EmulatedDevice, function: str, dtype: str,
                                 sizes: dict[str, Any]) -> None:
    call, known = make(device, function, dtype, **sizes), sizes | {"s": SIZE[dtype]}
    kernels, traffic = counted(device, call.launch, check=False), TRAFFIC[function]
    blocks = sum(counts.blocks for name, counts in kernels.items() if name != "norm_weight_gradients")
    found = kernels.values()
    allowed = MARGIN * traffic.streams(**known) + blocks * traffic.vectors(**known)
    assert sum(map(moved_bytes, found)) <= allowed
    more = sum(counts.sectors - counts.ideal_sectors for counts in found)
    again = traffic.again(**known) * (1 if function == "rope_forward" else blocks)
    assert more <= again / SECTOR, f"{more} sectors more than their bytes fill"
    if "n" in sizes and function != "cast_forward":                      # 16 bytes of each lane
        assert sum(counts.requests for counts in found) == traffic.streams(**known) / 512
