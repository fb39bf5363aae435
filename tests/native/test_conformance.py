"""Every native kernel on every level of instructions that this processor has, by the conformance suite's cases.

tests/conformance runs the level that would be chosen; here each is forced in turn, and every call must be taken:
the reference's answer would prove nothing."""

import pytest

from nn.backends import BACKENDS, native
from nn.backends.protocol import KERNELS
from tests.conformance.cases import Case, cases
from tests.conformance.compare import LAYOUTS, check_on, in_layout
from tests.gradients import about

pytestmark = pytest.mark.skipif(native.missing() is not None, reason=str(native.missing()))
BACKEND = next(backend for backend in BACKENDS if backend.name == "native")
SERVED = sorted(native.extension().kernels()) if native.missing() is None else []
LEVELS = native.levels() if native.missing() is None else []
# What a kernel declines by rule, and the reference then computes: (kernel, case)
DECLINED = {("swiglu_packed_backward", "odd")}


def fits(case: Case) -> bool:
    """Whether the first array that decides the call's type is of one that has kernels."""
    return case.dtype in ("float32", "bfloat16")


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("kernel", SERVED)
def test_every_level(level: str, kernel: str) -> None:
    with native.use_level(level):
        for dtype in ("float32", "bfloat16"):
            for case in cases(kernel, dtype):
                with about(f"{level} {case.id}"):
                    before = native.fallbacks()
                    check_on(BACKEND, case)
                    taken = native.fallbacks() == before
                    assert taken or (kernel, case.name) in DECLINED, f"{case.id} ran on the reference"


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("kernel", SERVED)
def test_every_level_with_strides(level: str, kernel: str) -> None:
    with native.use_level(level):
        for case in cases(kernel, "float32"):
            for layout in LAYOUTS:
                with about(f"{level} {case.id} {layout}"):
                    check_on(BACKEND, in_layout(case, layout))


def test_texts_are_the_protocols() -> None:
    """Without native's own marks, a kernel's text is its line of the protocol."""
    for name, (text, _, _) in native.extension().kernels().items():
        arguments, _, results = text.partition("(")[2].rpartition(")")[0], "", text.partition(" -> ")[2]
        assert plain(arguments) == plain(KERNELS[name].arguments), name
        assert plain(results, keep_types=True) == plain(KERNELS[name].results or "", keep_types=True), name
