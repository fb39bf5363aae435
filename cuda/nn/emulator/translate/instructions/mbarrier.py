"""mbarrier: barriers in shared memory that count arrivals and bytes.  See csrc/emulator/mbarrier.cpp.

.scope (.cta, .cluster) changes nothing: what a barrier orders, it orders for the whole cluster.  .relaxed is
told to the checker: such an arrival or wait orders no memory."""

from types import SimpleNamespace

from cuda.nn.emulator.ptx.syntax import Operand, Sink
from cuda.nn.emulator.translate.emitter import Emitter
from cuda.nn.emulator.translate.table import Unsupported, instruction

_SCOPE = "scope:cta|cluster?"
_OWN = "space:shared|shared::cta?"
_ANY = "space:shared|shared::cta|shared::cluster?"


def _barrier(e: Emitter, m: SimpleNamespace, operand: Operand) -> str:
    return e.address(operand, m.space or "generic")


def _require_scope(e: Emitter, m: SimpleNamespace) -> None:
    """.relaxed, .cluster and the cluster's addresses came with sm_90."""
    e.require(90 if m.sem == "relaxed" or m.scope == "cluster" or m.space == "shared::cluster" else 80)


@instruction("mbarrier", f"init {_OWN} b64")
def init(e: Emitter, m: SimpleNamespace, barrier: Operand, count: Operand) -> str:
    e.require(80)
    return f"emu::mbarrier_init(t, {_barrier(e, m, barrier)}, {e.value(count, 'u32')}, {e.site()});"


@instruction("mbarrier", f"inval {_OWN} b64")
def invalidate(e: Emitter, m: SimpleNamespace, barrier: Operand) -> str:
    e.require(80)
    return f"emu::mbarrier_invalidate(t, {_barrier(e, m, barrier)}, {e.site()});"


@instruction("mbarrier", f"operation:expect_tx|complete_tx sem:relaxed? {_SCOPE} {_ANY} b64")
def count_bytes(e: Emitter, m: SimpleNamespace, barrier: Operand, size: Operand) -> str:
    e.require(90)
    function = "mbarrier_expect" if m.operation == "expect_tx" else "mbarrier_complete"
    return f"emu::{function}(t, {_barrier(e, m, barrier)}, {e.value(size, 'u32')}, {e.site()});"


def _state(
    e: Emitter, m: SimpleNamespace, operands: tuple[Operand, ...]
) -> tuple[Operand, Operand, tuple[Operand, ...]]:
    """The operands (state, barrier, rest).  `_` stands for the state, which another block's barrier lacks."""
    state, barrier, *rest = operands
    if m.space == "shared::cluster" and not isinstance(state, Sink):
        raise Unsupported(
            "an arrival at a barrier in .shared::cluster memory returns no state: its first operand must be _"
        )
    return state, barrier, tuple(rest)


def _flags(m: SimpleNamespace) -> str:
    chosen = [
        "emu::DROP" if m.operation == "arrive_drop" else "",
        "emu::RELAXED" if m.sem == "relaxed" else "",
        "emu::NO_COMPLETE" if getattr(m, "noComplete", None) else "",
    ]
    return " | ".join(flag for flag in chosen if flag) or "emu::ARRIVE"


@instruction("mbarrier", f"operation:arrive|arrive_drop noComplete? sem:release|relaxed? {_SCOPE} {_ANY} b64")
def arrive(e: Emitter, m: SimpleNamespace, *operands: Operand) -> str:
    _require_scope(e, m)
    state, barrier, rest = _state(e, m, operands)
    count = e.value(rest[0], "u32") if rest else "1u"
    call = f"emu::mbarrier_arrive(t, {_barrier(e, m, barrier)}, {count}, {_flags(m)}, {e.site()})"
    return e.assign(state, "b64", call)


@instruction("mbarrier", f"operation:arrive|arrive_drop expect_tx sem:release|relaxed? {_SCOPE} {_ANY} b64")
def arrive_expect(e: Emitter, m: SimpleNamespace, *operands: Operand) -> str:
    e.require(90)
    state, barrier, rest = _state(e, m, operands)
    size = e.value(rest[0], "u32")
    call = f"emu::mbarrier_arrive_expect(t, {_barrier(e, m, barrier)}, {size}, {_flags(m)}, {e.site()})"
    return e.assign(state, "b64", call)


@instruction("mbarrier", f"operation:test_wait|try_wait parity? sem:acquire|relaxed? {_SCOPE} {_OWN} b64")
def wait(
    e: Emitter, m: SimpleNamespace, done: Operand, barrier: Operand, phase: Operand, *time_limit: Operand
) -> str:
    """The time limit of try_wait is a hint: the emulated one returns after all others had their turn."""
    e.require(90 if m.operation == "try_wait" else 80)
    how = "emu::Poll::wait" if m.operation == "try_wait" else "emu::Poll::look"
    acquire = "false" if m.sem == "relaxed" else "true"
    function, type = ("mbarrier_wait_parity", "u32") if m.parity else ("mbarrier_wait", "b64")
    place = _barrier(e, m, barrier)
    return e.assign(
        done, "pred", f"emu::{function}(t, {how}, {place}, {e.value(phase, type)}, {acquire}, {e.site()})"
    )


@instruction("mbarrier", "pending_count b64")
def pending_count(e: Emitter, m: SimpleNamespace, count: Operand, state: Operand) -> str:
    e.require(80)
    return e.assign(count, "u32", f"emu::mbarrier_pending_count({e.value(state, 'b64')})")
