"""Reads of shared and global memory that was never written."""

import numpy as np
import pytest

from tests.emulator.checking import Case, Checked

CASES = [
    Case("shared_filled", block=32, args=("out",)),
    Case(
        "shared_edge",
        "uninitialized",
        "edge read",
        block=64,
        args=("out", 60),
        says="no thread of the block has written",
    ),
    Case("shared_edge", block=64, args=("out", 64)),
    Case("shared_bins", "uninitialized", "bins", block=32, args=("out", "in"), says="bins["),
    Case("shared_exchange", block=32, args=("out",)),
    Case("shared_half", "uninitialized", "half read", block=64, args=("out",)),
    Case("shared_other_block", "uninitialized", "other block", grid=2, block=32, args=("out",)),
    Case("read_global", block=32, args=("out", "in")),
]


@pytest.fixture(scope="module")
def checked() -> Checked:
    return Checked("init.cu")


@pytest.mark.parametrize("case", CASES, ids=lambda c: f"{c.kernel}-{len(c.kind)}")
def test_reads_before_any_write_are_found(case: Case, checked: Checked) -> None:
    checked.verify(case)


def test_global_memory_counts_as_written_byte_by_byte(checked: Checked) -> None:
    x, y = checked.module.empty(32, np.int32), np.zeros(32, np.int32)
    checked.module.clear()
    checked.module.launch("fill", 1, 32, [x, np.int32(31)])
    checked.module.launch("read_global", 1, 31, [y, x])
    assert not checked.module.reports
    checked.module.launch("read_global", 1, 32, [y, x])
    (report,) = checked.module.reports
    assert (report.kind, report.line, report.thread) == (
        "uninitialized",
        checked.line("global read"),
        (31, 0, 0),
    )
    assert "never written" in report.message
    assert report.count == 1


def test_memory_used_again_counts_as_never_written(checked: Checked) -> None:
    """A freed and reallocated buffer may sit at the same address."""
    y = np.zeros(32, np.int32)
    for _ in range(3):
        x = checked.module.empty(32, np.int32)
        checked.module.clear()
        checked.module.launch("read_global", 1, 32, [y, x])
        assert [r.kind for r in checked.module.reports] == ["uninitialized"]
        checked.module.launch("fill", 1, 32, [x, np.int32(32)])
        x.free()
