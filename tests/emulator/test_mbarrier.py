"""mbarrier: phases, counts, bytes and states as the manual has them; producers and consumers; misuse."""

import numpy as np
import pytest

from cuda.nn.emulator.errors import LaunchError
from tests.emulator.snippets import Snippet, refusal, run_all, run_module

BARRIER = ".shared .align 8 .b64 bar; .reg .b64 %s<4>; .reg .b32 %r<8>; .reg .pred %p<8>;"


def _log(*steps: str) -> str:
    """One thread: each step sets %p0, and its outcome is stored."""
    stores = (
        f"{step} selp.u32 %r7, 1, 0, %p0; st.global.u32 [%rd_out+{4 * i}], %r7;"
        for i, step in enumerate(steps)
    )
    return BARRIER + " ".join(stores)


def _case(name: str, *steps: str) -> Snippet:
    return Snippet(name, _log(*steps), output=((1, len(steps)), np.uint32))


PARITY0 = "mbarrier.test_wait.parity.shared.b64 %p0, [bar], 0;"
PARITY1 = "mbarrier.test_wait.parity.shared.b64 %p0, [bar], 1;"
STATE0 = "mbarrier.test_wait.shared.b64 %p0, [bar], %s0;"
SEQUENCES = {
    # A fresh barrier is in phase 0: the phase before it (parity 1) counts as over.
    "fresh": ((f"mbarrier.init.shared.b64 [bar], 1; {PARITY0}", 0), (PARITY1, 1)),
    "phases": (
        (f"mbarrier.init.shared.b64 [bar], 2; mbarrier.arrive.shared.b64 %s0, [bar]; {PARITY0}", 0),
        (f"mbarrier.arrive.shared.b64 %s1, [bar]; {PARITY0}", 1),
        (PARITY1, 0),
        (STATE0, 1),
        ("mbarrier.test_wait.shared.b64 %p0, [bar], %s1;", 1),
        (f"mbarrier.arrive.shared.b64 _, [bar], 2; {PARITY1}", 1),
        (PARITY0, 0),
    ),
    "count": (
        (f"mbarrier.init.shared.b64 [bar], 5; mbarrier.arrive.shared.b64 %s0, [bar], 3; {STATE0}", 0),
        (f"mbarrier.arrive.release.cta.shared::cta.b64 %s1, [bar], 2; {STATE0}", 1),
    ),
    "drop": (  # a dropped arrival is missing from every later phase
        (f"mbarrier.init.shared.b64 [bar], 3; mbarrier.arrive_drop.shared.b64 %s0, [bar], 2; {STATE0}", 0),
        (f"mbarrier.arrive.shared.b64 %s1, [bar]; {STATE0}", 1),
        (f"mbarrier.arrive.shared.b64 %s1, [bar]; {PARITY1}", 1),
    ),
    "no_complete": (
        (
            f"mbarrier.init.shared.b64 [bar], 3; mbarrier.arrive.noComplete.shared.b64 %s0, [bar], 2; "
            f"{STATE0}",
            0,
        ),
        (f"mbarrier.arrive.shared.b64 %s1, [bar]; {STATE0}", 1),
    ),
    "bytes": (  # a phase ends when nothing is pending: neither arrivals nor bytes
        (
            f"mbarrier.init.shared.b64 [bar], 1; mbarrier.arrive.expect_tx.shared.b64 %s0, [bar], 48; "
            f"{PARITY0}",
            0,
        ),
        (f"mbarrier.complete_tx.relaxed.cluster.shared::cluster.b64 [bar], 16; {PARITY0}", 0),
        (f"mbarrier.complete_tx.relaxed.cta.shared::cta.b64 [bar], 32; {PARITY0}", 1),
    ),
    "bytes_first": (  # bytes may come before they are expected
        (f"mbarrier.init.shared.b64 [bar], 1; mbarrier.complete_tx.shared.b64 [bar], 64; {PARITY0}", 0),
        (f"mbarrier.expect_tx.relaxed.cta.shared::cta.b64 [bar], 64; {PARITY0}", 0),
        (f"mbarrier.arrive.relaxed.cta.shared::cta.b64 _, [bar]; {PARITY0}", 1),
    ),
    "drop_expecting": (
        (
            f"mbarrier.init.shared.b64 [bar], 2; "
            f"mbarrier.arrive_drop.expect_tx.release.cta.shared::cta.b64 _, [bar], 8; {PARITY0}",
            0,
        ),
        (f"mbarrier.arrive.shared.b64 _, [bar]; {PARITY0}", 0),
        (f"mbarrier.complete_tx.shared.b64 [bar], 8; {PARITY0}", 1),
        (f"mbarrier.arrive.shared.b64 _, [bar]; {PARITY1}", 1),
    ),
    "try_wait": (
        ("mbarrier.init.shared.b64 [bar], 1; mbarrier.try_wait.parity.shared.b64 %p0, [bar], 0;", 0),
        ("mbarrier.try_wait.parity.relaxed.cluster.shared::cta.b64 %p0, [bar], 1, 1000;", 1),
        (
            "mbarrier.arrive.shared.b64 %s0, [bar]; mbarrier.try_wait.acquire.cta.shared::cta.b64 %p0, "
            "[bar], %s0, 20;",
            1,
        ),
        ("mbarrier.test_wait.parity.acquire.cluster.shared::cta.b64 %p0, [bar], 0;", 1),
    ),
    "invalidated": (
        (
            "mbarrier.init.shared.b64 [bar], 1; mbarrier.inval.shared.b64 [bar]; "
            "mbarrier.init.shared.b64 [bar], 1; " + PARITY0,
            0,
        ),
    ),
    "generic": (
        (
            "mov.u32 %r0, bar; cvt.u64.u32 %s2, %r0; cvta.shared.u64 %s2, %s2; mbarrier.init.b64 [%s2], 1;"
            "mbarrier.arrive.b64 %s0, [%s2]; mbarrier.test_wait.b64 %p0, [%s2], %s0;",
            1,
        ),
    ),
    "counts": (
        (
            "mbarrier.init.shared.b64 [bar], 1048575; mbarrier.arrive.shared.b64 %s0, [bar], 1048570;"
            "mbarrier.pending_count.b64 %r0, %s0; setp.eq.u32 %p0, %r0, 1048575;",
            1,
        ),
        (
            "mbarrier.arrive.shared.b64 %s0, [bar]; mbarrier.pending_count.b64 %r0, %s0; setp.eq.u32 "
            "%p0, %r0, 5;",
            1,
        ),
    ),
}


@pytest.mark.parametrize("mode", ["fast", "check"])
def test_sequences(mode: str) -> None:
    results = run_all(
        [_case(name, *(code for code, _ in steps)) for name, steps in SEQUENCES.items()], mode=mode
    )
    for name, steps in SEQUENCES.items():
        np.testing.assert_array_equal(results[name][0], [outcome for _, outcome in steps], err_msg=name)


# Warp 0 produces into a ring of two buffers, warp 1 consumes; full and empty barriers order both ways.
ROUNDS = 9
PRODUCER_CONSUMER = f"""
    .shared .align 8 .b64 full[2]; .shared .align 8 .b64 empty[2]; .shared .align 16 .b32 ring[64];
    .reg .b32 %round, %stage, %full, %empty, %slot, %parity, %v, %sum, %lane, %t;
    .reg .pred %p, %consumer; .reg .b64 %s;
    setp.eq.u32 %p, %tid32, 0;
    @%p mbarrier.init.shared.b64 [full], 32; @%p mbarrier.init.shared.b64 [full+8], 32;
    @%p mbarrier.init.shared.b64 [empty], 32; @%p mbarrier.init.shared.b64 [empty+8], 32;
    bar.sync 0;
    setp.ge.u32 %consumer, %tid32, 32; and.b32 %lane, %tid32, 31; mov.u32 %sum, 0; mov.u32 %round, 0;
    next:
    and.b32 %stage, %round, 1; shr.u32 %parity, %round, 1; and.b32 %parity, %parity, 1;
    mov.u32 %t, full; mad.lo.u32 %full, %stage, 8, %t; mov.u32 %t, empty; mad.lo.u32 %empty, %stage, 8, %t;
    mov.u32 %t, ring; mad.lo.u32 %slot, %stage, 128, %t; mad.lo.u32 %slot, %lane, 4, %slot;
    @%consumer bra consume;
    xor.b32 %t, %parity, 1;                                   // the first round finds the buffers empty
    drained: mbarrier.try_wait.parity.shared.b64 %p, [%empty], %t; @!%p bra drained;
    mad.lo.u32 %v, %round, 1000, %lane; st.shared.u32 [%slot], %v;
    mbarrier.arrive.FULLSEM.shared.b64 %s, [%full];
    bra done;
    consume:
    filled: mbarrier.try_wait.parity.shared.b64 %p, [%full], %parity; @!%p bra filled;
    xor.b32 %t, %slot, 4; ld.shared.u32 %v, [%t]; add.u32 %sum, %sum, %v;
    mbarrier.arrive.shared.b64 %s, [%empty];
    done:
    add.u32 %round, %round, 1; setp.lt.u32 %p, %round, {ROUNDS}; @%p bra next;
    st.global.u32 [%rd_out], %sum;
"""


def _producer(name: str, sem: str = "") -> Snippet:
    return Snippet(name, PRODUCER_CONSUMER.replace(".FULLSEM", sem), output=((64,), np.uint32))


@pytest.mark.parametrize("schedule", ["forward", "reverse", "random"])
@pytest.mark.parametrize("mode", ["fast", "check"])
def test_producer_and_consumer(schedule: str, mode: str) -> None:
    out = run_all([_producer("ring")], mode=mode, schedule=schedule)["ring"]
    neighbour = np.arange(32) ^ 1
    expected = sum(1000 * step + neighbour for step in range(ROUNDS))
    np.testing.assert_array_equal(out, np.concatenate([np.zeros(32), expected]))


def test_relaxed_arrival_orders_nothing() -> None:
    module, _ = run_module([_producer("relaxed", ".relaxed.cta")], mode="check")
    assert {report.kind for report in module.reports} == {"race"}, module.reports


def test_ignored_wait_is_a_race() -> None:
    """Who looks once and does not care for the answer has not waited."""
    body = (
        ".shared .align 8 .b64 bar; .shared .b32 word; .reg .pred %p, %first; .reg .b64 %s; .reg .b32 %v;"
        "setp.eq.u32 %first, %tid32, 0; @%first mbarrier.init.shared.b64 [bar], 2; bar.sync 0;"
        "setp.eq.u32 %first, %tid32, 40; @%first st.shared.u32 [word], 5; @%first "
        "mbarrier.arrive.shared.b64 %s, [bar];"
        "setp.eq.u32 %first, %tid32, 0; @%first mbarrier.test_wait.parity.shared.b64 %p, [bar], 0;"
        "@%first ld.shared.u32 %v, [word]; @%first st.global.u32 [%rd_out], %v;"
    )
    module, _ = run_module(
        [Snippet("ignored", body, output=((64,), np.uint32))], mode="check", schedule="reverse"
    )
    assert "race" in {report.kind for report in module.reports}, module.reports


WRONG = {
    "not initialised": ("mbarrier.arrive.shared.b64 %s0, [bar];", "async", "not initialised"),
    "used after inval": (
        "mbarrier.init.shared.b64 [bar], 1; mbarrier.inval.shared.b64 [bar]; " + PARITY0,
        "async",
        "not initialised",
    ),
    "too many arrivals": (
        "mbarrier.init.shared.b64 [bar], 2; mbarrier.arrive.shared.b64 %s0, [bar], 3;",
        "async",
        "3 arrivals in a phase that waits for 2",
    ),
    "count of zero": ("mbarrier.init.shared.b64 [bar], 0;", "async", "0 arrivals"),
    "count too large": (
        "mov.u32 %r0, 1048576; mbarrier.init.shared.b64 [bar], %r0;",
        "async",
        "1048576 arrivals",
    ),
    "noComplete that completes": (
        "mbarrier.init.shared.b64 [bar], 1; mbarrier.arrive.noComplete.shared.b64 %s0, [bar], 1;",
        "async",
        "noComplete",
    ),
    "too many bytes": (
        "mbarrier.init.shared.b64 [bar], 1; mbarrier.expect_tx.shared.b64 [bar], 1048575; "
        "mbarrier.expect_tx.shared.b64 [bar], 1;",
        "async",
        "1048576 bytes outstanding",
    ),
    "a phase that never ends": (
        "mbarrier.init.shared.b64 [bar], 2; mbarrier.arrive.expect_tx.shared.b64 %s0, [bar], 64;"
        f"wait: {PARITY0} @!%p0 bra wait;",
        "deadlock",
        "1 of 2 arrivals and 64 bytes are missing",
    ),
    "a phase that never ends, tried": (
        "mbarrier.init.shared.b64 [bar], 1; wait: mbarrier.try_wait.parity.shared.b64 %p0, [bar], 0; "
        "@!%p0 bra wait;",
        "deadlock",
        "1 of 1 arrivals and 0 bytes are missing",
    ),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_misuse(wrong: str) -> None:
    code, kind, words = WRONG[wrong]
    case = Snippet("wrong", BARRIER + code, output=((1,), np.uint32))
    module, _ = run_module([case], mode="check")
    assert module.reports[-1].kind == kind, module.reports
    assert words in module.reports[-1].message
    with pytest.raises(LaunchError, match=words):
        run_module([case], mode="fast")


def test_misaligned_barrier() -> None:
    code = ".shared .align 8 .b8 raw[16]; mbarrier.init.shared.b64 [raw+4], 1;"
    with pytest.raises(LaunchError, match="not aligned to 8 bytes"):
        run_all([Snippet("misaligned", code, output=((1,), np.uint32))])


REFUSED = {
    "mbarrier.arrive.shared::cluster.b64 %s, [%r];": "must be _",
    "mbarrier.try_wait.parity.shared::cluster.b64 %p, [%r], 0;": "'.shared::cluster'",
    "mbarrier.arrive.acquire.cta.shared.b64 %s, [%r];": "'.acquire'",
    "mbarrier.test_wait.release.cta.shared.b64 %p, [%r], %s;": "'.release'",
    "mbarrier.arrive.expect_tx.noComplete.shared.b64 %s, [%r], 4;": "'.noComplete'",
    "mbarrier.init.global.b64 [%r], 1;": "'.global'",
}


@pytest.mark.parametrize("body", REFUSED)
def test_refused(body: str) -> None:
    assert REFUSED[body] in refusal(body, registers=".reg .b64 %s; .reg .b32 %r; .reg .pred %p;")


def test_older_targets_refuse_what_came_later() -> None:
    registers = ".reg .b64 %s; .reg .b32 %r; .reg .pred %p;"
    assert "sm_90" in refusal(
        "mbarrier.try_wait.parity.shared.b64 %p, [%r], 0;", registers=registers, arch="sm_80"
    )
    assert "sm_80" in refusal("mbarrier.init.shared.b64 [%r], 1;", registers=registers, arch="sm_75")
