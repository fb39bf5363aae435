"""csrc/kernels/elementwise."""

import pytest

from cuda.nn.device import EmulatedDevice
from tests.conformance import naive
from tests.device import test_counts as counts
from tests.device import test_elementwise as tests
from tests.mutants.device.workshop import Mutant, without

MAPS, SWIGLU, TILE = (f"kernels/elementwise/{name}" for name in ("maps.cu", "swiglu.cu", "tile.cuh"))
NEEDS = ("array", "elementwise")
TRIMS = without("FLOAT16")
UNITS = {TILE: SWIGLU}


def maps(device: EmulatedDevice) -> None:
    with pytest.MonkeyPatch.context() as patch:
        for name, formula in tests.EXTRA.items():
            patch.setattr(naive, name, formula, raising=False)
        for place in ("aligned", "odd"):
            tests.test_one_operand(device, "relu", "bfloat16", place)
    tests.test_extremes(device, "float32")


def casts(device: EmulatedDevice) -> None:
    tests.test_cast(device, "float32", "bfloat16", "aligned")
    tests.test_fill(device, "bfloat16", "aligned")


def swiglu(device: EmulatedDevice) -> None:
    for rows, cols in ((3, 5), (33, 72)):
        tests.test_swiglu_packed(device, rows, cols, "float32", "aligned")
    tests.test_swiglu_in_place(device)
    tests.test_conformance(device, "swiglu_backward", "float32")


def traffic(device: EmulatedDevice) -> None:
    counts.test_each_byte_is_moved_once(device, "swiglu_forward", "bfloat16", {"n": 8192})


MUTANTS = [
    Mutant(MAPS, "the slope's tail where x squared overflows", "return tail == 0.0f ? s : s + more;",
           "return s + more;", maps),
    Mutant(MAPS, "NaN becomes 0", "case RELU: each(v, [](float x) { return x <= 0.0f ? 0.0f : x; });",
           "case RELU: each(v, [](float x) { return x > 0.0f ? x : 0.0f; });", maps),
    Mutant(MAPS, "the last elements of a cast are left out",
           "for (int64_t i = done + me; i < n; i += threads) y[i]",
           "for (int64_t i = done + me; i < done; i += threads) y[i]", casts),
    Mutant(MAPS, "one element too many is filled", "int64_t packs = vector ? n / (16 / bytes) : 0;",
           "int64_t packs = vector ? (n + 16 / bytes - 1) / (16 / bytes) : 0;", casts),
    Mutant(MAPS, "packs at any address", "bool vector = aligned(y, 16) && aligned(x, 16);",
           "bool vector = true;", maps, host=True),
    Mutant(TILE, "gate and up overlap", "static_cast<uint32_t>(i) / static_cast<uint32_t>(cols) * gap;",
           "static_cast<uint32_t>(i) / static_cast<uint32_t>(cols + gap) * gap;", swiglu),
    Mutant(SWIGLU, "silu's slope without its first term", "(silu * (1.0f - s) + s) * g[j] * b[j]",
           "(silu * (1.0f - s)) * g[j] * b[j]", swiglu),
    Mutant(TILE, "an element at a time although packs would do", "bool whole() const { return step == 1 &&",
           "bool whole() const { return step == 0 &&", traffic),
]
