"""Element types of the C ABI, by NumPy dtype."""

from typing import Any

import ml_dtypes
import numpy as np

from cuda.nn.errors import DeviceArgumentError

BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
CODES: dict[np.dtype, int] = {
    np.dtype(np.float32): 0, np.dtype(np.float16): 1, BFLOAT16: 2, np.dtype(np.int64): 3, np.dtype(np.int32): 4,
    np.dtype(np.uint8): 5, np.dtype(np.bool_): 6, np.dtype(np.uint32): 7, np.dtype(np.float64): 8,
}
FLOATING = (np.dtype(np.float32), np.dtype(np.float16), BFLOAT16)     # what kernels compute with


def code(dtype: Any) -> int:
    """The nn_dtype of a NumPy dtype.  DeviceArgumentError for one that device memory does not hold."""
    try:
        return CODES[np.dtype(dtype)]
    except (KeyError, TypeError):
        names = ", ".join(known.name for known in CODES)
        raise DeviceArgumentError(f"dtype: {dtype} is no type of the device; choose one of {names}") from None
