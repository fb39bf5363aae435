"""Races within a block: what orders accesses, exactly, and what does not."""

import re

import numpy as np
import pytest

from tests.emulator.checking import Case, Checked

CASES = [
    Case("reversed_ok", args=("out", "in")),
    Case("reversed_bad", "race", "reversed read", "reversed write", args=("out", "in"), says="tile["),
    Case("reuse_ok", args=("out", "in")),
    Case("reuse_bad", "race", "reuse read", "reuse write", args=("out", "in")),
    Case("lanes_ok", block=32, args=("out", "in")),
    Case("lanes_shuffled", "race", "lane read", "lane write", block=32, args=("out", "in")),
    Case("lanes_half_ok", block=32, args=("out", "in")),
    Case("lanes_half_bad", "race", "half read", "half write", block=32, args=("out", "in")),
    Case("lanes_chain", block=32, args=("out", "in")),
    Case("lanes_chain_bad", "race", "broken chain read", "broken chain write", block=32, args=("out", "in")),
    Case("bytes_ok", args=("out",)),
    Case("bytes_bad", "race", "byte read", "byte write", args=("out",)),
    Case("same_place", "race", "same place", "same place", args=("out",), says="one"),
    Case("atomics_ok", args=("out",)),
    Case("atomics_bad", "race", "plain beside atomic", "atomic", args=("out",)),
    Case("flag_ok", args=("out", "zero")),
    Case("flag_bad", "race", "flag data read", "flag data write", args=("out", "zero")),
    Case("flag_shared_ok", args=("out",)),
    Case("lock_ok", block=48, args=("out",)),
    Case("lock_bad", "race", "unfenced lock", "unfenced lock", block=48, args=("out",)),
    Case("named_ok", args=("out", "in")),
    Case("named_bad", "race", "named read", "named write", args=("out", "in")),
    Case("named_third", "race", "third read", "third write", block=96, args=("out", "in")),
    Case("leavers_ok", args=("out", "in")),
    Case("mbarrier_ok", args=("out", "in")),
    Case("mbarrier_bad", "race", "mbarrier read", "mbarrier write", args=("out", "in")),
]


@pytest.fixture(scope="module")
def checked() -> Checked:
    return Checked("races.cu")


@pytest.mark.parametrize("case", CASES, ids=str)
def test_race_is_found_on_its_lines(case: Case, checked: Checked) -> None:
    checked.verify(case)


def test_a_race_names_both_threads_and_the_fix(checked: Checked) -> None:
    (report,) = [r for r in checked.run(CASES[1]) if r.kind == "race"]
    assert report.thread is not None
    assert re.search(r"the (read|write) by thread \(\d+,0,0\) of the same block", report.message)
    assert "__syncthreads()" in report.fix
    assert report.count > 1


def test_a_race_in_a_warp_asks_for_syncwarp(checked: Checked) -> None:
    (report,) = [r for r in checked.run(CASES[5]) if r.kind == "race"]
    assert "__syncwarp()" in report.fix


def test_launches_are_ordered(checked: Checked) -> None:
    """The same kernel twice on the same memory: no race between the two."""
    y = checked.module.array(np.zeros(64, np.int32))
    checked.module.clear()
    for _ in range(2):
        checked.module.launch("atomics_ok", 1, 64, [y])
    assert not checked.module.reports
