"""Rows with NaN and infinities through the kernels that subtract a row's maximum, at every level and around
the sizes of registers; expected values written out here."""

from typing import Any

import ml_dtypes
import numpy as np
import pytest

from nn.backends import kernels, native, use_backend

pytestmark = pytest.mark.skipif(native.missing() is not None, reason=str(native.missing()))
LEVELS = native.levels() if native.missing() is None else []
COLS = (1, 15, 16, 17, 63, 64, 65, 200)


def odd_rows(cols: int) -> np.ndarray:
    """[R,C]: plain, NaN at either end and in the middle, +inf, -inf alone and among others, a wide range"""
    x = np.tile(np.linspace(-3.0, 3.0, cols), (8, 1))
    x[1, 0] = x[2, cols // 2] = x[3, -1] = np.nan
    x[4, cols // 3] = np.inf
    x[5], x[6, : cols - 1] = -np.inf, -np.inf
    x[7] *= 1e4
    return x


@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("level", LEVELS)
def test_softmax_and_losses_of_odd_rows(level: str, dtype: Any) -> None:
    before = native.fallbacks()
    for cols in COLS:
        given = odd_rows(cols).astype(dtype)
        x = given.astype(np.float64)
        with np.errstate(invalid="ignore", divide="ignore"):
            top = np.where(np.isneginf(x.max(1)), 0.0, x.max(1))[:, None]      # NaN where the row has one
            total = np.exp(x - top).sum(1, keepdims=True)
            log_sum = np.log(total)
            y, logs = np.exp(x - top) / np.where(total == 0.0, 1.0, total), x - top - log_sum
            logs[5] = -np.inf
        targets = np.full(len(x), cols - 1)
        with native.use_level(level), use_backend("native"):
            found = kernels.softmax(given), kernels.log_softmax(given)
            lse = kernels.cross_entropy(given, targets)[1]
        unit = 2.0**-22 if dtype is np.float32 else 2.0**-8
        for one, right in zip(found, (y, logs), strict=True):
            np.testing.assert_allclose(one.astype(np.float64), right, rtol=4 * unit, atol=unit)
        np.testing.assert_allclose(lse.astype(np.float64), (top + log_sum)[:, 0], rtol=2.0**-21, atol=1e-6)
    assert native.fallbacks() == before
