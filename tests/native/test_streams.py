"""Results written past the caches: the bits are the same."""

from typing import Any

import ml_dtypes
import numpy as np
import pytest

from nn.backends import kernels, native

pytestmark = pytest.mark.skipif(native.missing() is not None, reason=str(native.missing()))
LEVELS = native.levels() if native.missing() is None else []


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16], ids=["float32", "bfloat16"])
def test_as_the_same_rows_a_few_at_a_time(dtype: Any, level: str) -> None:
    """Results of 24 MiB and more are written so; a tenth of them is not."""
    x = np.random.default_rng(0).standard_normal((4100, 1600 if dtype == np.float32 else 3232), np.float32)
    x = x.astype(dtype)
    flat = x.reshape(-1)[: x.size - 5]                       # the last register is not whole
    with native.use_level(level):
        for kernel, count in ((kernels.softmax, 1), (kernels.softmax_backward, 2)):
            parts = [kernel(*[x[i : i + 410]] * count) for i in range(0, len(x), 410)]
            assert kernel(*[x] * count).tobytes() == b"".join(part.tobytes() for part in parts), kernel
        for kernel, count in ((kernels.add, 2), (kernels.widen, 1), (kernels.to_bfloat16, 1)):
            parts = [kernel(*[part] * count) for part in np.array_split(flat, 20)]
            assert kernel(*[flat] * count).tobytes() == b"".join(part.tobytes() for part in parts), kernel
