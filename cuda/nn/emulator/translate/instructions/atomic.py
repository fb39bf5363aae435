"""atom and red: read-modify-write in one step.  Semantics in csrc/emulator/atomics.h.

Threads wait for each other by the result of an atom in a loop, so atom lets others run now and then; red has
no result and does not."""

from types import SimpleNamespace

from cuda.nn.emulator.ptx.syntax import Operand
from cuda.nn.emulator.ptx.types import SCALARS
from cuda.nn.emulator.translate.emitter import Emitter
from cuda.nn.emulator.translate.instructions.memory import access_flags
from cuda.nn.emulator.translate.table import Unsupported, instruction

_PLACE = (
    "sem:relaxed|acquire|release|acq_rel? scope:cta|cluster|gpu|sys? "
    "space:global|shared|shared::cta|shared::cluster?"
)
_OPERATIONS = "add|min|max|and|or|xor|inc|dec|exch"
_TYPES = "b32|b64|u32|s32|u64|s64|f32|f64|f16|f16x2|bf16|bf16x2"

REDUCE = {"and": "bit_and", "or": "bit_or", "xor": "bit_xor", "exch": "exchange"}  # names in C++ that differ
_ELEMENTS = {"f16": "F16", "f16x2": "F16x2", "bf16": "BF16", "bf16x2": "BF16x2"}
_HALVES = frozenset(_ELEMENTS)
# Which types each operation has (scalar forms).
_ALLOWED = {
    "add": {"u32", "s32", "u64", "f32", "f64"} | _HALVES,
    "min": {"u32", "s32", "u64", "s64"},
    "max": {"u32", "s32", "u64", "s64"},
    "and": {"b32", "b64"},
    "or": {"b32", "b64"},
    "xor": {"b32", "b64"},
    "inc": {"u32"},
    "dec": {"u32"},
    "exch": {"b32", "b64"},
}
# Vector forms: element type -> vectors that exist.
_VECTORS = {
    "f32": {"v2", "v4"},
    "f16": {"v2", "v4", "v8"},
    "bf16": {"v2", "v4", "v8"},
    "f16x2": {"v2", "v4"},
    "bf16x2": {"v2", "v4"},
}


def reduction(operation: str) -> str:
    """The C++ name of a reduction."""
    return f"emu::Reduce::{REDUCE.get(operation, operation)}"


def _check_place(e: Emitter, m: SimpleNamespace) -> None:
    if m.scope == "cluster" or m.space == "shared::cluster":
        e.require(90)
    if m.sem and not m.scope:
        raise Unsupported(f"{e.current.opcode!r} has an order but no scope")


def _flags(m: SimpleNamespace) -> str:
    flags = access_flags("ATOMIC", m.space, m.sem or "relaxed", m.scope)
    return flags + " | ACQUIRE | RELEASE" if m.sem == "acq_rel" else flags


def _check_type(e: Emitter, m: SimpleNamespace) -> None:
    """The operation must have this type, in this shape, with .noftz exactly where the manual wants it."""
    if m.vector:
        fits = m.vector in _VECTORS.get(m.type, ()) and m.operation in (
            ("add",) if m.type == "f32" else ("add", "min", "max")
        )
        e.require(90)
    else:
        fits = m.type in _ALLOWED[m.operation]
    if not fits or bool(m.noftz) != (m.type in _HALVES):
        raise Unsupported(f"{e.current.opcode!r} does not exist: this operation has no such type")
    if m.vector and (m.space or "global") != "global":
        raise Unsupported(f"{e.current.opcode!r}: vector atomics exist for global memory only")


def _update(m: SimpleNamespace, at: str, value: str) -> str:
    """Expression that performs the operation on one element and gives the old value."""
    if m.type == "f32" and m.operation == "add" and not m.space:
        if not m.vector:
            return f"emu::atomic_add_generic(t, {at}, {value})"
        m.space = "global"
    element = _ELEMENTS.get(m.type, m.type.upper())
    if m.type == "f32" and m.operation == "add" and m.space == "global":
        element = "F32Flushed"
    return f"emu::atomic_reduce<emu::numbers::{element}>({reduction(m.operation)}, {at}, {value})"


def _begin(e: Emitter, m: SimpleNamespace, address: Operand, size: int, waits: bool) -> list[str]:
    """What every atomic statement begins with: let others run, take the address, announce the access."""
    place = f"char* const a = {e.address(address, m.space or 'generic')};"
    return ["spin(t);"] * waits + [place, f"EMU_ACCESS(t, a, {size}, {_flags(m)}, {e.site()});"]


def _reduce(e: Emitter, m: SimpleNamespace, old: Operand | None, address: Operand, source: Operand) -> str:
    _check_place(e, m)
    _check_type(e, m)
    values, results = e.vector(source), e.vector(old) if old is not None else []
    count, size = int(m.vector[1:]) if m.vector else 1, SCALARS[m.type].bytes
    if len(values) != count or (old is not None and len(results) != count):
        raise Unsupported(f"{e.current.opcode!r} needs {count} elements")
    statements = _begin(e, m, address, size * count, old is not None)
    held = SCALARS[m.type].read_as
    statements += [f"const {held} v{i} = {e.value(value, m.type)};" for i, value in enumerate(values)]
    for i in range(count):
        done = _update(m, f"a + {i * size}" if i else "a", f"v{i}")
        statements.append(e.assign(results[i], m.type, done) if results else f"{done};")
    return f"{{ {' '.join(statements)} }}"


def _check_policy(m: SimpleNamespace, policy: tuple[Operand, ...]) -> None:
    if len(policy) != bool(m.hint):
        raise Unsupported("a cache policy operand and .L2::cache_hint belong together")


_SHAPE = f"noftz? hint:L2::cache_hint? vector:v2|v4|v8? type:{_TYPES}"


@instruction("atom", f"{_PLACE} operation:{_OPERATIONS} {_SHAPE}")
def atom(
    e: Emitter, m: SimpleNamespace, old: Operand, address: Operand, value: Operand, *policy: Operand
) -> str:
    _check_policy(m, policy)
    return _reduce(e, m, old, address, value)


@instruction("red", f"{_PLACE} operation:add|min|max|and|or|xor|inc|dec {_SHAPE}")
def red(e: Emitter, m: SimpleNamespace, address: Operand, value: Operand, *policy: Operand) -> str:
    _check_policy(m, policy)
    return _reduce(e, m, None, address, value)


@instruction("atom", f"{_PLACE} cas hint:L2::cache_hint? type:b16|b32|b64|b128")
def cas(
    e: Emitter,
    m: SimpleNamespace,
    old: Operand,
    address: Operand,
    expected: Operand,
    value: Operand,
    *policy: Operand,
) -> str:
    _check_policy(m, policy)
    _check_place(e, m)
    statements = _begin(e, m, address, SCALARS[m.type].bytes, True)
    operands = f"a, {e.value(expected, m.type)}, {e.value(value, m.type)}"
    if m.type == "b128":
        e.require(90)
        done = f"emu::atomic_swap_if_128({operands})"
    else:
        done = f"emu::atomic_swap_if<emu::numbers::{m.type.upper()}>({operands})"
    return f"{{ {' '.join(statements)} {e.assign(old, m.type, done)} }}"


@instruction("atom", f"{_PLACE} exch hint:L2::cache_hint? b128")
def exchange_128(
    e: Emitter, m: SimpleNamespace, old: Operand, address: Operand, value: Operand, *policy: Operand
) -> str:
    e.require(90)
    _check_policy(m, policy)
    _check_place(e, m)
    statements = _begin(e, m, address, 16, True)
    done = f"emu::atomic_exchange_128(a, {e.value(value, 'b128')})"
    return f"{{ {' '.join(statements)} {e.assign(old, 'b128', done)} }}"
