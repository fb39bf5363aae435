"""Element types of the C ABI, by NumPy dtype, and how they mix."""

from functools import lru_cache
from typing import Any

import ml_dtypes
import numpy as np

from cuda.nn.errors import DeviceArgumentError

BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
FLOAT32, FLOAT16, FLOAT64 = np.dtype(np.float32), np.dtype(np.float16), np.dtype(np.float64)
INT64, INT32, UINT32, UINT8 = np.dtype(np.int64), np.dtype(np.int32), np.dtype(np.uint32), np.dtype(np.uint8)
BOOL = np.dtype(np.bool_)
CODES: dict[np.dtype, int] = {
    FLOAT32: 0, FLOAT16: 1, BFLOAT16: 2, INT64: 3, INT32: 4, UINT8: 5, BOOL: 6, UINT32: 7, FLOAT64: 8,
}
FLOATING = (FLOAT32, FLOAT16, BFLOAT16)     # what kernels compute with
HALVES = (FLOAT16, BFLOAT16)
INTEGERS = (INT64, INT32, UINT32, UINT8)


def code(dtype: Any) -> int:
    """The nn_dtype of a NumPy dtype.  DeviceArgumentError for one that device memory does not hold."""
    try:
        return CODES[np.dtype(dtype)]
    except (KeyError, TypeError):
        names = ", ".join(known.name for known in CODES)
        raise DeviceArgumentError(f"dtype: {dtype} is no type of the device; choose one of {names}") from None


def is_floating(dtype: np.dtype) -> bool:
    return dtype in FLOATING or dtype == FLOAT64


@lru_cache(256)
def promoted(a: np.dtype, b: np.dtype) -> np.dtype:
    """The type of a + b.  As NumPy's, but integers beside a float take the float's type (NumPy: float64),
    and bfloat16 beside float16 gives float32."""
    if a == b:
        return a
    floats = [dtype for dtype in (a, b) if is_floating(dtype)]
    if len(floats) == 1:
        return floats[0]
    if len(floats) == 2:
        return FLOAT64 if FLOAT64 in floats else FLOAT32
    return np.promote_types(a, b)


@lru_cache(256)
def promoted_with(dtype: np.dtype, kind: type) -> np.dtype:
    """The type of an array and a Python number: the number's type is weak."""
    if kind is bool or is_floating(dtype) or (kind is int and dtype != BOOL):
        return dtype
    return INT64 if kind is int else FLOAT32
