"""Drives transpose.cu for `cuda-nn kernels check`: every kernel on one matrix, compared with NumPy."""

import numpy as np

KERNELS = ("transpose_naive", "transpose_tiled", "transpose_padded")


def run(module) -> None:
    """Launch each kernel on a 128 x 96 matrix of float32."""
    x = np.arange(128 * 96, dtype=np.float32).reshape(128, 96)
    for kernel in KERNELS:
        out = np.zeros((96, 128), np.float32)
        module.launch(kernel, grid=(3, 4), block=(32, 8), args=[out, x, np.int32(128), np.int32(96)])
        assert np.array_equal(out, x.T), kernel
