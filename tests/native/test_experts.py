"""What the experts' kernels promise beyond values: bits of random numbers, order, independence of tokens."""

from typing import Any

import ml_dtypes
import numpy as np
import pytest

from nn.backends import kernels, native, use_backend
from nn.random import counter

pytestmark = pytest.mark.skipif(native.missing() is not None, reason=str(native.missing()))
LEVELS = native.levels() if native.missing() is None else []
DTYPES = [np.float32, ml_dtypes.bfloat16]


def on(backend: str, name: str, *arguments: Any, **options: Any) -> Any:
    with use_backend(backend):
        return getattr(kernels, name)(*arguments, **options)


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("dtype", DTYPES, ids=["float32", "bfloat16"])
def test_jitter_draws_the_references_numbers_to_the_bit(level: str, dtype: Any) -> None:
    x, place = np.random.default_rng(0).standard_normal((37, 131)).astype(dtype), counter(3, "jitter", 5, 6)
    with native.use_level(level):
        for epsilon in (0.0, 0.01, 0.37, 1.0):
            y, expected = (on(name, "jitter", x, place, epsilon=epsilon) for name in ("native", "reference"))
            assert y.tobytes() == expected.tobytes()


def test_ties_and_what_is_no_number() -> None:
    inf, nan = np.inf, np.nan
    logits = np.array([[1, 1, 1, 1], [0, inf, 0, inf], [-inf, 2, -inf, -inf], [nan, 1, 2, nan]], np.float32)
    experts = on("native", "router_topk", logits, 3)[1]
    assert experts[:3].tolist() == [[0, 1, 2], [1, 3, 0], [1, 0, 2]]
    assert experts[3, :2].tolist() == [2, 1]


def test_wrong_indices_are_the_references_to_judge() -> None:
    x, order = np.ones((2, 3), np.float32), np.array([0, 4, 1, 2])
    with pytest.raises(IndexError):
        on("native", "moe_dispatch", x, order, 2)
    with pytest.raises(IndexError):
        on("native", "moe_combine", x, np.ones((2, 1), np.float32), np.array([0, 2]))
