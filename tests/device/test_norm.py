"""RMSNorm and LayerNorm kernels."""

import numpy as np
import pytest

from cuda.nn.device import EmulatedDevice


@pytest.mark.parametrize(("rows", "cols"), [(1, 1), (7, 33), (3, 1000)])
def test_rms_norm(device: EmulatedDevice, rows: int, cols: int) -> None:
    x = np.random.default_rng(0).standard_normal((rows, cols), np.float32)
    w = np.ones(cols, np.float32)
    y, rstd = device.empty((rows, cols), np.float32), device.empty((rows,), np.float32)
    device.call("rms_norm_forward", y, rstd, device.asarray(x), device.asarray(w), rows, cols, 1e-6, 0)
    np.testing.assert_allclose(y.numpy(), x / np.sqrt((x * x).mean(1, keepdims=True) + 1e-6), rtol=2e-6)
