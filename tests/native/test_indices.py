"""Integer arguments in any memory: rows cut from wider arrays, negative strides, gaps, and of either size."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from nn.backends import BACKENDS, native
from tests.conformance.cases import Case, cases
from tests.conformance.compare import check_on
from tests.gradients import about

pytestmark = pytest.mark.skipif(native.missing() is not None, reason=str(native.missing()))
BACKEND = next(backend for backend in BACKENDS if backend.name == "native")
TEXTS = {} if native.missing() else {name: found[0] for name, found in native.extension().kernels().items()}
INDEXING = sorted(name for name, text in TEXTS.items() if ":int" in text.split(" -> ")[0])


def cut_from_wider(x: np.ndarray) -> np.ndarray:
    wide = np.full((*x.shape[:-1], x.shape[-1] + 3), 1 << 30, x.dtype)
    wide[..., 1:-2] = x
    return wide[..., 1:-2]


def rows_backwards(x: np.ndarray) -> np.ndarray:
    return x[::-1].copy()[::-1]


def with_gaps(x: np.ndarray) -> np.ndarray:
    wide = np.full((*x.shape[:-1], 2 * x.shape[-1]), 1 << 30, x.dtype)
    wide[..., ::2] = x
    return wide[..., ::2]


LAYOUTS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "cut from wider": cut_from_wider, "rows backwards": rows_backwards, "with gaps": with_gaps,
    "backwards": lambda x: x[..., ::-1].copy()[..., ::-1], "columns first": np.asfortranarray}


def is_index(value: Any) -> bool:
    return isinstance(value, np.ndarray) and value.dtype.kind == "i" and value.ndim > 0


def indices_moved(case: Case, dtype: Any, layout: Callable[[np.ndarray], np.ndarray]) -> Iterator[Case]:
    """The case with one of its integer arrays in other memory"""
    for i, value in enumerate(case.arguments):
        if is_index(value) and np.array_equal(value, value.astype(dtype)):
            moved = layout(value.astype(dtype))
            yield replace(case, arguments=(*case.arguments[:i], moved, *case.arguments[i + 1 :]))


def test_some_kernels_index() -> None:
    assert len(INDEXING) > 15


@pytest.mark.parametrize("dtype", [np.int32, np.int64])
@pytest.mark.parametrize("kernel", INDEXING)
def test_integers_lie_where_their_strides_say(kernel: str, dtype: Any) -> None:
    for case in cases(kernel, "float32"):
        for name, layout in LAYOUTS.items():
            for moved in indices_moved(case, dtype, layout):
                with about(f"{case.id} {name}"):
                    check_on(BACKEND, moved)


@pytest.mark.parametrize("layout", ["cut from wider", "rows backwards"])
def test_rows_at_any_distance_are_taken(layout: str) -> None:
    """What has dense rows is not left to the reference."""
    before = native.fallbacks()
    for kernel in ("expert_order", "moe_balance_loss", "router_topk_backward", "packed_experts"):
        for case in cases(kernel, "float32"):
            for moved in indices_moved(case, np.int64, LAYOUTS[layout]):
                check_on(BACKEND, moved)
    assert native.fallbacks() == before
