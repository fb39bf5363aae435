"""Warp collectives: shfl, vote, match, redux, elect, activemask, bar.warp.sync; and what a thread asks
of the scheduler.

The lanes of the membermask meet first, see csrc/emulator/warp.cpp.  The forms without .sync are not valid for
any architecture that is emulated (sm_75 and later), and so are not in the table."""

from types import SimpleNamespace

from cuda.nn.emulator.ptx.syntax import Operand
from cuda.nn.emulator.translate.emitter import Emitter
from cuda.nn.emulator.translate.table import Unsupported, instruction

_SHUFFLES = {"up": "up", "down": "down", "bfly": "butterfly", "idx": "index"}


@instruction("shfl", f"sync mode:{'|'.join(_SHUFFLES)} b32")
def shfl(
    e: Emitter,
    m: SimpleNamespace,
    destination: Operand,
    value: Operand,
    lane: Operand,
    clamp: Operand,
    mask: Operand,
) -> str:
    result, predicate = e.pair(destination)
    operands = ", ".join(e.value(operand, "b32") for operand in (value, lane, clamp, mask))
    call = f"emu::shuffle(t, emu::Shuffle::{_SHUFFLES[m.mode]}, {operands}, {{}}, {e.site()})"
    if predicate is None:
        return e.assign(result, "b32", call.format("nullptr"))
    return (
        f"{{ bool inside; const uint32_t shuffled = {call.format('&inside')}; "
        f"{e.assign(result, 'b32', 'shuffled')} {e.assign(predicate, 'pred', 'inside')} }}"
    )


@instruction("vote", "sync ballot b32")
def ballot(e: Emitter, m: SimpleNamespace, destination: Operand, predicate: Operand, mask: Operand) -> str:
    votes = f"emu::ballot(t, {e.value(predicate, 'pred')}, {e.value(mask, 'b32')}, {e.site()})"
    return e.assign(destination, "b32", votes)


@instruction("vote", "sync mode:all|any|uni pred")
def vote(e: Emitter, m: SimpleNamespace, destination: Operand, predicate: Operand, mask: Operand) -> str:
    outcome = (
        f"emu::vote(t, emu::Vote::{m.mode}, {e.value(predicate, 'pred')}, {e.value(mask, 'b32')}, {e.site()})"
    )
    return e.assign(destination, "pred", outcome)


@instruction("match", "any sync type:b32|b64")
@instruction("match", "sync any type:b32|b64")  # the manual's text has one order, its examples the other
def match_any(e: Emitter, m: SimpleNamespace, destination: Operand, value: Operand, mask: Operand) -> str:
    lanes = f"emu::match_any(t, {e.value(value, m.type)}, {e.value(mask, 'b32')}, {e.site()})"
    return e.assign(destination, "b32", lanes)


@instruction("match", "all sync type:b32|b64")
@instruction("match", "sync all type:b32|b64")
def match_all(e: Emitter, m: SimpleNamespace, destination: Operand, value: Operand, mask: Operand) -> str:
    result, predicate = e.pair(destination)
    call = f"emu::match_all(t, {e.value(value, m.type)}, {e.value(mask, 'b32')}, &all, {e.site()})"
    agreed = e.assign(predicate, "pred", "all") if predicate is not None else ""
    return f"{{ bool all; const uint32_t matching = {call}; {e.assign(result, 'b32', 'matching')} {agreed} }}"


def _redux(e: Emitter, kind: str, type: str, destination: Operand, value: Operand, mask: Operand) -> str:
    reduced = (
        f"emu::redux(t, emu::Redux::{kind}, {e.value(value, 'b32')}, {e.value(mask, 'b32')}, {e.site()})"
    )
    return e.assign(destination, type, reduced)


@instruction("redux", "sync operation:add|min|max type:u32|s32")
def redux_arithmetic(
    e: Emitter, m: SimpleNamespace, destination: Operand, value: Operand, mask: Operand
) -> str:
    e.require(80)
    kind = "add" if m.operation == "add" else f"{m.operation}_{m.type[0]}"
    return _redux(e, kind, "b32", destination, value, mask)


@instruction("redux", "sync operation:and|or|xor b32")
def redux_logic(e: Emitter, m: SimpleNamespace, destination: Operand, value: Operand, mask: Operand) -> str:
    e.require(80)
    return _redux(e, f"bit_{m.operation}", "b32", destination, value, mask)


@instruction("redux", "sync operation:min|max abs? NaN? f32")
def redux_float(e: Emitter, m: SimpleNamespace, destination: Operand, value: Operand, mask: Operand) -> str:
    e.require(100, "a")
    kind = m.operation + ("_abs" if m.abs else "") + ("_nan" if m.NaN else "") + "_f"
    return _redux(e, kind, "b32", destination, value, mask)


@instruction("elect", "sync")
def elect(e: Emitter, m: SimpleNamespace, destination: Operand, mask: Operand) -> str:
    e.require(90)
    result, predicate = e.pair(destination)
    call = f"emu::elect(t, {e.value(mask, 'b32')}, &elected, {e.site()})"
    chosen = e.assign(predicate, "pred", "elected") if predicate is not None else ""
    return f"{{ bool elected; const uint32_t leader = {call}; {e.assign(result, 'b32', 'leader')} {chosen} }}"


@instruction("activemask", "b32")
def activemask(e: Emitter, m: SimpleNamespace, destination: Operand) -> str:
    return e.assign(destination, "b32", f"emu::active_mask(t, {e.site()})")


@instruction("bar", "warp sync")
def bar_warp(e: Emitter, m: SimpleNamespace, mask: Operand) -> str:
    return f"emu::warp_sync(t, {e.value(mask, 'b32')}, {e.site()});"


# ---- the thread itself -------------------------------------------------------------------------------------


@instruction("nanosleep", "u32")
def nanosleep(e: Emitter, m: SimpleNamespace, nanoseconds: Operand) -> str:
    """Time is not emulated: the others run."""
    return f"(void)({e.value(nanoseconds, 'u32')}); emu::yield(t);"


@instruction("trap")
@instruction("brkpt")
def trap(e: Emitter, m: SimpleNamespace) -> str:
    """A breakpoint ends a kernel, too, where no debugger is attached."""
    return f"emu::trap(t, {e.site()});"


@instruction("griddepcontrol", "action:launch_dependents|wait")
def griddepcontrol(e: Emitter, m: SimpleNamespace) -> str:
    """Launches run one after the other: what this one waits for has ended already."""
    e.require(90)
    return ";"


@instruction("setmaxnreg", "action:inc|dec sync aligned u32")
def setmaxnreg(e: Emitter, m: SimpleNamespace, count: Operand) -> str:
    """Registers are not emulated; the manual's range of counts is."""
    e.require(90, "a")
    registers = e.immediate(count)
    if registers % 8 or not 24 <= registers <= 256:
        raise Unsupported(f"setmaxnreg takes a multiple of 8 from 24 to 256, not {registers}")
    return ";"
