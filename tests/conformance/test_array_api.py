"""The reference uses nothing but the Python array API standard: it runs on array_api_strict,
which offers nothing else."""

from typing import Any

import numpy as np
import pytest

from nn.backends import BACKENDS, use_backend
from nn.backends.protocol import KERNELS
from tests.conformance.cases import cases
from tests.conformance.compare import check
from tests.gradients import about

strict = pytest.importorskip("array_api_strict")


def back(array: Any) -> Any:
    return np.from_dlpack(array) if hasattr(array, "__dlpack__") else array


@pytest.mark.parametrize("kernel", [k for k in KERNELS if k != "to_bfloat16"])     # which it does not know
def test_needs_nothing_but_the_standard(kernel: str) -> None:
    reference = BACKENDS[-1]
    assert reference.name == "reference"
    with use_backend("reference"):
        for dtype in ("float64", "float32"):
            for case in cases(kernel, dtype):
                with about(case.id):
                    check(reference.kernel(kernel), case, strict.asarray, back)
