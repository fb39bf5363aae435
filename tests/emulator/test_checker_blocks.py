"""Races between blocks: global memory, fences and flags, tickets, grid barriers, clusters."""

import numpy as np
import pytest

from tests.emulator.checking import SCHEDULES, Case, Checked

CASES = [
    Case("own_rows", grid=3, block=32, args=("out",)),
    Case("overlapping", "race", "overlap", "overlap", grid=3, block=32, args=("out",), says="of block ("),
    Case("reads_neighbour", "race", "neighbour read", "neighbour write", grid=2, block=32, args=("out",)),
    Case("reads_only", grid=4, block=32, args=("out", "in")),
    Case("clears_input", "race", "input write", "input read", grid=4, block=32, args=("in",)),
    Case("atomics", grid=4, block=32, args=("zero",)),
    Case("atomic_and_plain", "race", "block plain", "block atomic", grid=2, block=1, args=("zero",)),
    Case("volatile_flag", grid=4, block=32, args=("zero",)),
    Case("ticket_all_fence", grid=4, block=32, args=("zero", "zero", "zero")),
    Case("ticket_one_fence", grid=4, block=32, args=("zero", "zero", "zero")),
    Case(
        "ticket_block_fence",
        "race",
        "part read",
        "part write",
        grid=4,
        block=32,
        args=("zero", "zero", "zero"),
    ),
    Case(
        "ticket_no_fence", "race", "part read", "part write", grid=4, block=32, args=("zero", "zero", "zero")
    ),
    Case("chain_gpu", grid=4, block=1, args=("zero", "zero", "zero")),
    Case("chain_cta", "race", "chain read", "chain write", grid=4, block=1, args=("zero", "zero", "zero")),
    Case("cluster_ok", grid=4, block=32, args=("out",)),
    Case("cluster_bad", "race", "cluster read", "cluster write", grid=4, block=32, args=("out",)),
]


@pytest.fixture(scope="module")
def checked() -> Checked:
    return Checked("blocks.cu", arch="sm_90")


@pytest.mark.parametrize("case", CASES, ids=str)
def test_race_between_blocks_is_found_on_its_lines(case: Case, checked: Checked) -> None:
    checked.verify(case)


def test_a_block_that_leaves_its_cluster_is_found(checked: Checked) -> None:
    """Without a last cluster.sync() its shared memory may be gone: some schedule meets that."""
    case = Case("cluster_leaves", grid=2, block=32, args=("out",))
    found = [report for schedule in SCHEDULES for report in checked.run(case, **schedule)]
    assert {(r.kind, r.line) for r in found} <= {("out_of_bounds", checked.line("cluster read"))}
    assert any("exited" in r.message for r in found)


def test_many_blocks_with_tickets_stay_cheap(checked: Checked) -> None:
    out, part, tickets = np.zeros(1, np.int32), np.zeros(32 * 600, np.int32), np.zeros(1, np.uint32)
    checked.module.clear()
    checked.module.launch("ticket_one_fence", 600, 32, [out, part, tickets])
    assert not checked.module.reports
