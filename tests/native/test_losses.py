"""What the conformance cases are too small for: linear_cross_entropy in several chunks of rows; AdamW that
writes a bfloat16 copy in the same pass.  Against float64 written out here."""

from typing import Any

import ml_dtypes
import numpy as np
import pytest

from nn.backends import kernels, native, use_backend

pytestmark = pytest.mark.skipif(native.missing() is not None, reason=str(native.missing()))
RANDOM = np.random.default_rng(0)
LEVELS = native.levels() if native.missing() is None else []


@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16], ids=["float32", "bfloat16"])
def test_chunks_of_rows_add_up(dtype: Any) -> None:
    rows, width, vocabulary = 700, 3, 48_001            # two chunks of 128 MiB of logits
    x = RANDOM.standard_normal((rows, width)).astype(dtype)
    weight = (8.0 * RANDOM.standard_normal((vocabulary, width))).astype(dtype)
    targets = RANDOM.integers(0, vocabulary, rows)
    targets[5] = -100
    before = native.fallbacks()
    with use_backend("native"):
        loss, dx, dweight = kernels.linear_cross_entropy(x, weight, targets, scale=0.5)
        alone = kernels.linear_cross_entropy(x, weight, targets, gradient=False)
    assert native.fallbacks() == before
    assert alone[1] is None
    assert alone[2] is None
    wide, matrix, rest = x.astype(np.float64), weight.astype(np.float64), targets != -100
    z = wide @ matrix.T
    lse = np.log(np.exp(z - z.max(1, keepdims=True)).sum(1)) + z.max(1)
    expected = np.where(rest, lse - z[np.arange(rows), targets * rest], 0.0)
    slope = np.exp(z - lse[:, None])
    slope[np.arange(rows), targets * rest] -= 1.0
    slope *= 0.5 * rest[:, None]
    unit = 2.0**-20 if dtype is np.float32 else 2.0**-8
    np.testing.assert_allclose(loss, expected, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(alone[0], expected, rtol=1e-5, atol=1e-5)
    for found, right in ((dx, slope @ matrix), (dweight, slope.T @ wide)):
        assert np.max(np.abs(found.astype(np.float64) - right)) <= 4 * unit * np.max(np.abs(right))


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("count", [1, 17, 4096, 70_001])
def test_adamw_stores_its_rounding(level: str, count: int) -> None:
    param, grad, m = (RANDOM.standard_normal(count).astype(np.float32) for _ in range(3))
    v, stored = np.abs(m), np.zeros(count, ml_dtypes.bfloat16)
    options = {"lr": 0.01, "beta1": 0.9, "beta2": 0.95, "eps": 1e-8, "weight_decay": 0.1, "step": 2,
               "grad_scale": 0.5}
    alone = [array.copy() for array in (param, grad, m, v)]
    before = native.fallbacks()
    with native.use_level(level), use_backend("native"):
        kernels.adamw(param, grad, m, v, stored=stored, **options)
        kernels.adamw(*alone, **options)
    assert native.fallbacks() == before
    assert np.array_equal(param, alone[0])
    assert stored.tobytes() == param.astype(ml_dtypes.bfloat16).tobytes()


def test_indices_outside_are_the_references() -> None:
    """Refused by native before anything is read; what the reference makes of them is its own matter."""
    weight, rows = np.ones((4, 3), np.float32), np.ones((2, 3), np.float32)
    for bad in (4, -5):
        with pytest.raises(IndexError):
            kernels.embedding(weight, np.array([0, bad]))
        with pytest.raises(IndexError):
            kernels.scatter_add(rows, np.array([0, bad]), 4)
    assert {name for name, _ in native.fallbacks()} >= {"embedding", "scatter_add"}
