"""Memory under asynchronous copies: touched too early, written twice, used again too soon."""

import pytest

from tests.emulator.checking import Case, Checked

CASES = [
    Case("copy_ok", block=16, args=("out", "in")),
    Case("copy_first_ok", block=16, args=("out", "in")),
    Case(
        "copy_not_waited",
        "async",
        "copied read",
        "second copy",
        block=16,
        args=("out", "in"),
        says="in flight",
        also=("race",),
    ),
    Case(
        "copy_no_barrier",
        "race",
        "copied read",
        "second copy",
        block=16,
        args=("out", "in"),
        also=("async", "uninitialized"),
    ),
    Case(
        "copy_overwritten",
        "async",
        "overwriting",
        "overwritten copy",
        block=16,
        args=("out", "in"),
        also=("race",),
    ),
    Case("copy_reuse", "race", "reusing copy", "reused read", block=16, args=("out", "in"), also=("async",)),
]


@pytest.fixture(scope="module")
def checked() -> Checked:
    return Checked("async.cu")


@pytest.mark.parametrize("case", CASES, ids=str)
def test_copies_in_flight(case: Case, checked: Checked) -> None:
    checked.verify(case)


HOPPER = [
    Case("bulk_ok", args=("out", "in")),
    Case(
        "bulk_not_waited",
        "async",
        "bulk read",
        "bulk load",
        args=("out", "in"),
        says="in flight",
        also=("race",),
    ),
    Case("refill_ok", args=("out", "in")),
    Case("refill_bad", "race", "refill read", "bulk load", args=("out", "in"), also=("async",)),
    Case("store_ok", args=("out", "in")),
    Case("store_late_fence_ok", args=("out", "in")),
    Case(
        "store_no_fence", "async", "bulk store", "tile write", args=("out", "in"), says="no fence.proxy.async"
    ),
    Case("store_rewritten", "async", "tile rewrite", "bulk store", args=("out", "in"), also=("race",)),
]


@pytest.fixture(scope="module")
def hopper() -> Checked:
    return Checked("hopper.cu", arch="sm_90")


@pytest.mark.parametrize("case", HOPPER, ids=str)
def test_bulk_copies_and_the_async_proxy(case: Case, hopper: Checked) -> None:
    hopper.verify(case)
