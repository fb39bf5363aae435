"""cp.async: copies of 4, 8 or 16 bytes from global to shared memory that land when their group is waited for.

The cache operators (.ca, .cg), prefetch sizes and cache policies change speed only.  The bytes behind
src-size are zeros; with the predicate form, ignore-src true makes all of them zeros."""

from types import SimpleNamespace

from cuda.nn.emulator.ptx.syntax import Immediate, Negated, Operand
from cuda.nn.emulator.translate.emitter import Emitter
from cuda.nn.emulator.translate.table import Unsupported, instruction

_HINTS = "hint:L2::cache_hint? prefetch:L2::64B|L2::128B|L2::256B?"


def _is_predicate(e: Emitter, operand: Operand) -> bool:
    if isinstance(operand, Immediate):
        return False
    return isinstance(operand, Negated) or e.register(operand).scalar.kind == "pred"


def _source_bytes(e: Emitter, operand: Operand, size: int) -> str:
    """How many bytes are read: src-size, or none where ignore-src is true."""
    if _is_predicate(e, operand):
        return f"({e.value(operand, 'pred')} ? 0u : {size}u)"
    return e.value(operand, "u32")


@instruction("cp", f"async cache:ca|cg space:shared|shared::cta global {_HINTS}")
def copy(
    e: Emitter, m: SimpleNamespace, destination: Operand, source: Operand, size: Operand, *rest: Operand
) -> str:
    e.require(80)
    count = e.immediate(size)
    if count not in ((16,) if m.cache == "cg" else (4, 8, 16)):
        raise Unsupported(f"cp.async.{m.cache} of {count} bytes does not exist")
    extra = rest[:-1] if m.hint else rest
    if len(extra) > 1:
        raise Unsupported("cp.async has too many operands")
    read = _source_bytes(e, extra[0], count) if extra else f"{count}u"
    to, source_address = e.address(destination, "shared"), e.address(source, "global")
    return f"emu::copy_async(t, {to}, {source_address}, {count}u, {read}, {e.site()});"


@instruction("cp", "async commit_group")
def commit(e: Emitter, m: SimpleNamespace) -> str:
    e.require(80)
    return "emu::copy_async_commit(t);"


@instruction("cp", "async wait_group")
def wait(e: Emitter, m: SimpleNamespace, groups: Operand) -> str:
    e.require(80)
    return f"emu::copy_async_wait(t, {e.immediate(groups)}u);"


@instruction("cp", "async wait_all")
def wait_all(e: Emitter, m: SimpleNamespace) -> str:
    e.require(80)
    return "emu::copy_async_wait_all(t);"


@instruction("cp", "async mbarrier arrive noinc? space:shared|shared::cta? b64")
def arrive(e: Emitter, m: SimpleNamespace, barrier: Operand) -> str:
    e.require(80)
    counted = "false" if m.noinc else "true"
    return f"emu::copy_async_arrive(t, {e.address(barrier, m.space or 'generic')}, {counted}, {e.site()});"
