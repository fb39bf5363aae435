"""Every native kernel on every level of instructions that this processor has, by the conformance suite's
cases.

tests/conformance runs the level that would be chosen; here each is forced in turn, and every call must be
taken: the reference's answer would prove nothing."""

import re
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from nn.backends import BACKENDS, kernels, native
from nn.backends.protocol import KERNELS
from tests.conformance.cases import Case, cases
from tests.conformance.compare import IN_PLACE, LAYOUTS, check_on, in_layout
from tests.gradients import about

pytestmark = pytest.mark.skipif(native.missing() is not None, reason=str(native.missing()))
BACKEND = next(backend for backend in BACKENDS if backend.name == "native")
SERVED = sorted(native.extension().kernels()) if native.missing() is None else []
LEVELS = native.levels() if native.missing() is None else []
DTYPES = ("float32", "bfloat16")


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("kernel", SERVED)
def test_every_level(level: str, kernel: str) -> None:
    with native.use_level(level):
        for dtype in DTYPES:
            for case in cases(kernel, dtype):
                with about(f"{level} {case.id}"):
                    before = native.fallbacks()
                    check_on(BACKEND, case)
                    assert native.fallbacks() == before, "ran on the reference"


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("kernel", SERVED)
def test_every_level_with_strides(level: str, kernel: str) -> None:
    """What lies as no kernel takes it is copied first; what is changed in place is the reference's."""
    before = native.fallbacks()
    with native.use_level(level):
        for case in cases(kernel, "float32"):
            for layout in LAYOUTS:
                with about(f"{level} {case.id} {layout}"):
                    check_on(BACKEND, in_layout(case, layout))
    assert kernel in IN_PLACE or native.fallbacks() == before, "ran on the reference"


def rows_apart(value: Any) -> Any:
    """The same values, the last axis dense, gaps along the one before it and where matrices end."""
    if not isinstance(value, np.ndarray) or value.ndim < 2:
        return value
    rows, width = value.shape[-2:]
    wide = np.full((*value.shape[:-2], rows + 1, width + 3), 99, value.dtype)
    view = wide[..., :rows, :width]
    view[...] = value
    return view


def with_rows_apart(case: Case) -> Case:
    options = {name: rows_apart(value) for name, value in case.options.items()}
    arguments = tuple(map(rows_apart, case.arguments))
    return replace(case, layout="rows-apart", arguments=arguments, options=options)


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("kernel", SERVED)
def test_every_level_with_rows_apart(level: str, kernel: str) -> None:
    """What kernels read where it lies, without a copy."""
    before = native.fallbacks()
    with native.use_level(level):
        for dtype in DTYPES:
            for case in cases(kernel, dtype):
                with about(f"{level} {case.id} rows-apart"):
                    check_on(BACKEND, with_rows_apart(case))
    assert kernel in IN_PLACE or native.fallbacks() == before, "ran on the reference"


def test_integers_of_either_size() -> None:
    logits, targets = np.linspace(-1, 1, 35, dtype=np.float32).reshape(7, 5), np.arange(7) % 5
    before = native.fallbacks()
    wide, short = (kernels.cross_entropy(logits, targets.astype(t)) for t in (np.int64, np.int32))
    assert all(np.array_equal(a, b) for a, b in zip(wide, short, strict=True))
    assert native.fallbacks() == before


def items(text: str, *, results: bool) -> list[str]:
    """The parts of a text, without native's own marks: & :float :bfloat16 :int :bool :bytes :O [axes]= ?"""
    parts = re.findall(r"[^\s,;\[\]]+(?:\[[^\]]*\])?[^\s,;]*", text)
    parts = [part.split("?")[0].removeprefix("&") for part in parts]
    if results:
        return parts
    parts = [re.sub(r":(float|bfloat16|int|bool|bytes|[A-Z#])(?!\w)", "", part) for part in parts]
    return [re.sub(r"\[.*\]=", "=", part) for part in parts]


@pytest.mark.parametrize("kernel", SERVED)
def test_the_text_is_the_protocols(kernel: str) -> None:
    text = native.extension().kernels()[kernel][0]
    name, _, rest = text.partition("(")
    arguments, _, results = rest.partition(")")
    assert name == kernel
    assert items(arguments, results=False) == items(KERNELS[kernel].arguments, results=False)
    results = results.removeprefix(" -> ")
    expected = re.sub(r":(?!b?float|int|number)\w+", "", KERNELS[kernel].results)     # dlogits[R,V]:logits
    assert items(results, results=True) == items(expected, results=True)
