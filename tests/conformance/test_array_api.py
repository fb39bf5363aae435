"""The reference uses nothing but the Python array API standard: it runs on array_api_strict,
which offers nothing else."""

from typing import Any

import numpy as np
import pytest

from nn.backends import BACKENDS, use_backend
from nn.backends.protocol import KERNELS
from tests.conformance.cases import Case, cases
from tests.conformance.compare import check

strict = pytest.importorskip("array_api_strict")
EVERY_CASE = [case for kernel in KERNELS for dtype in ("float64", "float32") for case in cases(kernel, dtype)]


def back(array: Any) -> Any:
    return np.from_dlpack(array) if hasattr(array, "__dlpack__") else array


@pytest.mark.parametrize("case", EVERY_CASE, ids=lambda case: case.id)
def test_runs_on_nothing_but_the_standard(case: Case) -> None:
    reference = BACKENDS[-1]
    assert reference.name == "reference"
    with use_backend("reference"):
        check(reference.kernel(case.kernel), case, strict.asarray, back)
