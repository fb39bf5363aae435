"""cp.async: sizes and zero fill, groups, lazy and eager completion, mbarriers that track it, misuse."""

import numpy as np
import pytest

from tests.emulator.snippets import Snippet, refusal, run_all, run_module

THREADS = 32
DATA = np.random.default_rng(1).integers(0, 2**32, (THREADS, 4), np.uint32)

# Every thread copies to its own 16 bytes, and reads them after waiting for them.
BEGIN = """
    .shared .align 16 .b8 tile[512]; .reg .b32 %at; .reg .b32 %v<4>;
    mov.u32 %at, tile; mad.lo.u32 %at, %tid32, 16, %at; st.shared.v4.u32 [%at], {7, 7, 7, 7};
"""
END = "ld.shared.v4.u32 {%v0, %v1, %v2, %v3}, [%at]; st.global.v4.u32 [%rd_out], {%v0, %v1, %v2, %v3};"
REGISTERS = ".reg .b32 %size; .reg .pred %p; .reg .b64 %hint;"


def _copy(name: str, code: str) -> Snippet:
    body = f"{BEGIN} {code} cp.async.wait_all; {END}"
    return Snippet(name, body, registers=REGISTERS, inputs={"a": DATA}, output=((THREADS, 4), np.uint32))


def _filled(size: int, read: "np.ndarray | int") -> np.ndarray:
    """Bytes [0, read) of the source, zeros up to the copy size, what was there before behind it."""
    source, before = DATA.view(np.uint8).reshape(THREADS, 16), np.full(4, 7, np.uint32).view(np.uint8)
    place = np.arange(16)[None]
    taken = np.where(place < np.broadcast_to(np.asarray(read).reshape(-1, 1), (THREADS, 1)), source, 0)
    return np.where(place < size, taken, before).astype(np.uint8).view(np.uint32)


LANE = np.arange(THREADS)
COPIES = {
    "ca4": ("cp.async.ca.shared.global [%at], [%rd_a], 4;", _filled(4, 4)),
    "ca8": ("cp.async.ca.shared::cta.global [%at], [%rd_a], 8;", _filled(8, 8)),
    "ca16": ("cp.async.ca.shared.global.L2::256B [%at], [%rd_a], 16;", _filled(16, 16)),
    "cg16": ("cp.async.cg.shared.global.L2::128B [%at], [%rd_a], 16;", _filled(16, 16)),
    "hint": (
        "mov.b64 %hint, 0; cp.async.cg.shared.global.L2::cache_hint [%at], [%rd_a], 16, %hint;",
        _filled(16, 16),
    ),
    "size": (
        "rem.u32 %size, %tid32, 17; cp.async.ca.shared.global [%at], [%rd_a], 16, %size;",
        _filled(16, LANE % 17),
    ),
    "size4": (
        "rem.u32 %size, %tid32, 5; cp.async.ca.shared.global [%at], [%rd_a], 4, %size;",
        _filled(4, LANE % 5),
    ),
    "none": ("cp.async.cg.shared.global [%at], [%rd_a], 16, 0;", _filled(16, 0)),
    "hint_size": (
        "mov.b64 %hint, 0; cp.async.ca.shared.global.L2::cache_hint.L2::64B [%at], [%rd_a], 8, 6, %hint;",
        _filled(8, 6),
    ),
    "ignore": (
        "and.b32 %size, %tid32, 1; setp.eq.u32 %p, %size, 1; cp.async.ca.shared.global [%at], [%rd_a], "
        "16, %p;",
        _filled(16, np.where(LANE % 2, 0, 16)),
    ),
    "ignore_not": (
        "and.b32 %size, %tid32, 1; setp.eq.u32 %p, %size, 1; cp.async.ca.shared.global [%at], [%rd_a], "
        "8, !%p;",
        _filled(8, np.where(LANE % 2, 8, 0)),
    ),
}


@pytest.mark.parametrize("completion", ["lazy", "eager"])
@pytest.mark.parametrize("mode", ["fast", "check"])
def test_bytes_that_arrive(completion: str, mode: str) -> None:
    results = run_all(
        [_copy(name, code) for name, (code, _) in COPIES.items()], mode=mode, cp_async=completion
    )
    for name, (_, expected) in COPIES.items():
        np.testing.assert_array_equal(results[name], expected, err_msg=name)


# A thread copies its four numbers in one group each, waits for all but the youngest, and stores what arrived.
GROUPS = "\n".join(
    f"cp.async.ca.shared.global [%at+{4 * i}], [%rd_a+{4 * i}], 4; cp.async.commit_group;" for i in range(4)
)


def test_groups_complete_oldest_first() -> None:
    """As late as allowed: exactly the groups that must be complete have landed."""
    cases = [
        Snippet(
            f"left{left}",
            f"{BEGIN} {GROUPS} cp.async.wait_group {left}; {END} cp.async.wait_all;",
            registers=REGISTERS,
            inputs={"a": DATA},
            output=((THREADS, 4), np.uint32),
        )
        for left in range(5)
    ]
    results = run_all(cases)
    eager = run_all(cases, cp_async="eager")
    for left in range(5):
        expected = np.where(np.arange(4) < 4 - left, DATA, 7)
        np.testing.assert_array_equal(results[f"left{left}"], expected)
        np.testing.assert_array_equal(eager[f"left{left}"], DATA)


def test_empty_groups_count() -> None:
    """A commit without copies makes a group, as software pipelines rely on at their end."""
    one = "cp.async.ca.shared.global [%at], [%rd_a], 16; cp.async.commit_group;"
    body = f"{BEGIN} {one} cp.async.commit_group; cp.async.commit_group; cp.async.wait_group 2; {END}"
    case = Snippet("empty", body, registers=REGISTERS, inputs={"a": DATA}, output=((THREADS, 4), np.uint32))
    np.testing.assert_array_equal(run_all([case], mode="check")["empty"], DATA)


# All threads copy, the mbarrier tracks the copies, and every thread reads its neighbour's 16 bytes.
TRACKED = """
    .shared .align 16 .b8 tile[512]; .shared .align 8 .b64 full;
    .reg .b32 %at, %n; .reg .b32 %v<4>; .reg .pred %done; .reg .b64 %s;
    setp.eq.u32 %done, %tid32, 0; @%done mbarrier.init.shared.b64 [full], 32; bar.sync 0;
    mov.u32 %at, tile; mad.lo.u32 %at, %tid32, 16, %at;
    cp.async.ca.shared.global [%at], [%rd_a], 16;
    ARRIVE
    wait: mbarrier.test_wait.parity.shared.b64 %done, [full], 0; @!%done bra wait;
    xor.b32 %n, %tid32, 1; mov.u32 %at, tile; mad.lo.u32 %at, %n, 16, %at;
"""
ARRIVALS = {
    "noinc": "cp.async.mbarrier.arrive.noinc.shared.b64 [full];",
    "counted": "cp.async.mbarrier.arrive.shared.b64 [full]; mbarrier.arrive.shared.b64 %s, [full];",
}


@pytest.mark.parametrize("completion", ["lazy", "eager"])
@pytest.mark.parametrize("schedule", ["forward", "reverse", "random"])
def test_mbarrier_tracks_copies(completion: str, schedule: str) -> None:
    cases = [
        Snippet(
            name,
            f"{TRACKED.replace('ARRIVE', code)} {END}",
            inputs={"a": DATA},
            output=((THREADS, 4), np.uint32),
        )
        for name, code in ARRIVALS.items()
    ]
    results = run_all(cases, mode="check", cp_async=completion, schedule=schedule)
    for name in ARRIVALS:
        np.testing.assert_array_equal(results[name], DATA[LANE ^ 1], err_msg=name)


# ---- misuse ------------------------------------------------------------------------------------------------

WRONG = {
    "read before the wait": f"{BEGIN} cp.async.ca.shared.global [%at], [%rd_a], 16; {END} cp.async.wait_all;",
    "write before the wait": (
        f"{BEGIN} cp.async.ca.shared.global [%at], [%rd_a], 16; st.shared.u32 [%at], 1; "
        f"cp.async.wait_all; {END}"
    ),
    "wait leaves one in flight": f"{BEGIN} {GROUPS} cp.async.wait_group 1; {END} cp.async.wait_all;",
    "no wait at all": f"{BEGIN} cp.async.ca.shared.global [%at], [%rd_a], 16; cp.async.commit_group;",
    "source too long": (f"{BEGIN} cp.async.ca.shared.global [%at], [%rd_a], 4, 8; cp.async.wait_all; {END}"),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_misuse_is_reported(wrong: str) -> None:
    case = Snippet(
        "wrong", WRONG[wrong], registers=REGISTERS, inputs={"a": DATA}, output=((THREADS, 4), np.uint32)
    )
    module, _ = run_module([case], mode="check")
    assert {report.kind for report in module.reports} == {"async"}, module.reports


def test_other_threads_copy_needs_a_barrier() -> None:
    """wait_all waits for the thread's own copies only."""
    body = (
        f"{BEGIN} cp.async.ca.shared.global [%at], [%rd_a], 16; cp.async.wait_all; BARRIER"
        f" .reg .b32 %n; xor.b32 %n, %tid32, 1; mov.u32 %at, tile; mad.lo.u32 %at, %n, 16, %at; {END}"
    )
    for barrier in ("bar.sync 0;", ""):
        case = Snippet(
            "neighbour",
            body.replace("BARRIER", barrier),
            inputs={"a": DATA},
            output=((THREADS, 4), np.uint32),
        )
        module, _ = run_module([case], mode="check")
        assert ("race" in {report.kind for report in module.reports}) == (not barrier), module.reports
        assert barrier == "" or not module.reports


REFUSED = {
    "cp.async.cg.shared.global [%at], [%rd_out], 8;": "8 bytes",
    "cp.async.ca.shared.global [%at], [%rd_out], 12;": "12 bytes",
    "cp.async.cg.global.shared [%at], [%rd_out], 16;": "'.global'",
    "cp.async.cs.shared.global [%at], [%rd_out], 16;": "'.cs'",
    "cp.async.ca.shared.global.L2::512B [%at], [%rd_out], 16;": "'.L2::512B'",
    "cp.async.wait_group %at;": "constant",
}


@pytest.mark.parametrize("body", REFUSED)
def test_refused(body: str) -> None:
    assert REFUSED[body] in refusal(body, registers=".reg .b32 %at;")


def test_needs_sm_80() -> None:
    assert "sm_80" in refusal("cp.async.commit_group;", arch="sm_75")
