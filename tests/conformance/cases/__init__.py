"""The arguments on which every kernel is tried, for each floating-point type.

`cases(kernel, dtype)` yields Case objects; their arrays are NumPy's, already rounded to the type.  Arguments
that the protocol keeps in float (statistics, router weights, optimizer state) are float32 where dtype is half
precision.  One file per family of kernels, named as in nn/backends/reference."""

from tests.conformance.cases import (
    activation,
    attention,
    conv,
    elementwise,
    loss,
    matmul,
    moe,
    norm,
    optimizer,
    packed,
    rotary,
    sampling,
    scan,
    softmax,
)
from tests.conformance.cases.table import DTYPES, HALF, Case, cases, kernels_with_cases

FAMILIES = (                                # whose import fills the table
    activation, attention, conv, elementwise, loss, matmul, moe, norm, optimizer, packed, rotary,
    sampling, scan, softmax,
)

__all__ = ["DTYPES", "FAMILIES", "HALF", "Case", "cases", "kernels_with_cases"]
