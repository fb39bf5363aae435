"""One table, kernel x backend x case: every backend that can run here, on every kernel it serves.

A new backend is tested by its entry in nn.backends.BACKENDS,
a new kernel fails until cases/ has cases for it."""

import inspect

import numpy as np
import pytest

from nn.backends import BACKENDS, Backend, devices
from nn.backends.protocol import KERNELS
from tests.conformance import naive
from tests.conformance.cases import DTYPES, Case, cases, kernels_with_cases
from tests.conformance.compare import LAYOUTS, check_on, in_layout, positional, served
from tests.gradients import about

READY = [backend for backend in BACKENDS if not backend.missing()]
EVERY_CASE = [case for kernel in KERNELS for dtype in DTYPES for case in cases(kernel, dtype)]
EVERY_PAIR = [(backend, case) for backend in READY for case in EVERY_CASE if served(backend, case)]


def findings(backend: Backend) -> list:
    """What the emulated device has found since the last time."""
    if backend.name != "emulated":
        return []
    device = devices.open_device("emulated")
    found = device.reports()
    device.clear()
    return found


def name(value: object) -> str | None:
    return value.name if isinstance(value, Backend) else value.id if isinstance(value, Case) else None


@pytest.mark.parametrize(("backend", "case"), EVERY_PAIR, ids=name)
def test_matches_the_formula(backend: Backend, case: Case) -> None:
    check_on(backend, case)
    assert findings(backend) == []


@pytest.mark.parametrize("backend", READY, ids=name)
@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_strided_arrays(backend: Backend, kernel: str, dtype: str) -> None:
    for ready, case in EVERY_PAIR:
        if (ready, case.kernel, case.dtype) == (backend, kernel, dtype):
            for layout in LAYOUTS:
                with about(f"{case.name}-{layout}"):
                    check_on(backend, in_layout(case, layout))
                    assert findings(backend) == []


def test_every_kernel_has_cases_and_a_formula() -> None:
    assert kernels_with_cases() == set(KERNELS)
    assert all(callable(getattr(naive, kernel)) for kernel in KERNELS)


def test_every_case_is_drawn_once() -> None:
    ids = [case.id for case in EVERY_CASE]
    assert len(set(ids)) == len(ids)


def test_the_reference_serves_every_kernel_in_every_type() -> None:
    tested = {(case.kernel, case.dtype) for backend, case in EVERY_PAIR if backend.name == "reference"}
    assert tested == {(kernel, dtype) for kernel in KERNELS for dtype in DTYPES}


@pytest.mark.parametrize("backend", READY, ids=name)
def test_every_ready_backend_is_in_the_table(backend: Backend) -> None:
    assert any(tested is backend for tested, _ in EVERY_PAIR)


@pytest.mark.parametrize("backend", READY, ids=name)
@pytest.mark.parametrize("kernel", KERNELS)
def test_arguments_are_called_as_in_the_protocol(backend: Backend, kernel: str) -> None:
    function = backend.kernel(kernel)
    if function is None or not inspect.isroutine(function) or not hasattr(function, "__code__"):
        return                                       # compiled functions have no Python signature
    parameters = inspect.signature(function).parameters.values()
    given = [p.name for p in parameters if p.kind == p.POSITIONAL_OR_KEYWORD]
    assert given == [match["name"] for match in positional(KERNELS[kernel])]
    options = {text.split("=")[0] for text in KERNELS[kernel].arguments.partition(";")[2].split()}
    keywords = {p.name for p in parameters if p.kind == p.KEYWORD_ONLY}
    takes_any = any(p.kind == p.VAR_KEYWORD for p in parameters)
    assert keywords <= options
    assert takes_any or keywords == options


def test_a_wrong_result_fails() -> None:
    """The judge itself: a value off by one part in a thousand,
    a wrong type and a wrong shape are all seen."""
    from tests.conformance.compare import judge
    case = next(iter(cases("rms_norm", "float32")))
    case = next(c for c in cases("rms_norm", "float32") if c.name == "3x5")
    y, rstd = naive.rms_norm(*case.arguments)
    judge(case, [y, rstd])
    for wrong in ([y * np.float32(1.001), rstd], [y.astype(np.float64), rstd], [y, rstd[:, 0]], [y, -rstd]):
        with pytest.raises(AssertionError):
            judge(case, wrong)
