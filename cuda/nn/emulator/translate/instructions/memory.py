"""ld, ldu, st and prefetches.

A load or store announces itself to the checker (EMU_ACCESS) and then copies its elements; a vector is one
access of its full width, as on the hardware.  Strong accesses (volatile, relaxed and stronger) first let
other threads run now and then, as whoever spins on one waits for another thread's store.

Cache operators, eviction priorities and prefetch sizes are hints without an effect on results; the ones
listed here are accepted."""

from types import SimpleNamespace

from cuda.nn.emulator.ptx.syntax import Operand, Sink
from cuda.nn.emulator.ptx.types import SCALARS
from cuda.nn.emulator.translate.emitter import Emitter
from cuda.nn.emulator.translate.table import Unsupported, instruction

TYPES = "b8|b16|b32|b64|u8|u16|u32|u64|s8|s16|s32|s64|f32|f64|b128"
SPACES = "global|shared|shared::cta|shared::cluster|local|const|param|param::entry|param::func"
SCOPES = "cta|cluster|gpu|sys"
_LEVEL1 = "L1::evict_normal|L1::evict_unchanged|L1::evict_first|L1::evict_last|L1::no_allocate"
_LEVEL2 = "L2::evict_normal|L2::evict_first|L2::evict_last"
_HINTS = f"level1:{_LEVEL1}? level2:{_LEVEL2}? policy:L2::cache_hint?"
_PREFETCH = "prefetch:L2::64B|L2::128B|L2::256B?"
_SHAPE = f"vector:v2|v4|v8? type:{TYPES}"
_LOAD_CACHE = "cache:ca|cg|cs|lu|cv?"
_STORE_CACHE = "cache:wb|cg|cs|wt?"

# The flag of Access (device.h) that a named space sets.
_FLAGS = {"global": "GLOBAL", "local": "LOCAL", "const": "CONSTANT"}
_ORDER_FLAGS = {"acquire": "STRONG | ACQUIRE", "release": "STRONG | RELEASE"}


def access_flags(kind: str, space: str | None, ordering: str | None = None, scope: str | None = None) -> str:
    """The `what` of EMU_ACCESS: a kind (READ, WRITE, ATOMIC), the space, the memory order and its scope."""
    flags = [kind]
    if space:
        flags.append("SHARED" if space.startswith("shared") else _FLAGS.get(space, ""))
    if ordering not in (None, "weak"):
        flags.append(_ORDER_FLAGS.get(ordering, "STRONG"))
    if scope == "cta":
        flags.append("SCOPE_BLOCK")
    return " | ".join(flag for flag in flags if flag)


def _width(e: Emitter, m: SimpleNamespace, elements: list[Operand]) -> int:
    """Bytes of one element, after checking the vector against its operand."""
    size = SCALARS[m.type].bytes
    count = int(m.vector[1:]) if m.vector else 1
    if len(elements) != count:
        raise Unsupported(f"{e.current.opcode!r} needs {count} elements and has {len(elements)}")
    if count * size == 32 and size in (4, 8) and m.space in (None, "global"):
        e.require(100)
    elif count * size > 16 or count == 8:
        raise Unsupported(f"{e.current.opcode!r} would access {count * size} bytes at once")
    return size


def _is_parameter(space: str | None) -> bool:
    return space is not None and space.startswith("param")


# ---- loads -------------------------------------------------------------------------------------------------


def load(
    e: Emitter,
    m: SimpleNamespace,
    destination: Operand,
    source: Operand,
    ordering: str | None,
    scope: str | None,
) -> str:
    """Statement of a load.  m has space, vector and type."""
    elements = e.vector(destination)
    size = _width(e, m, elements)
    loaded = SCALARS[m.type].read_as
    if _is_parameter(m.space) and len(elements) == 1:
        return e.assign(destination, m.type, f"load<{loaded}>({e.address(source, 'param')})")
    address = e.address(source, "param" if _is_parameter(m.space) else m.space or "generic")
    strong = ordering not in (None, "weak")
    statements = ["spin(t);"] if strong else []
    statements.append(f"const char* const a = {address};")
    if not _is_parameter(m.space):
        flags = access_flags("READ", m.space, ordering, scope)
        statements.append(f"EMU_ACCESS(t, a, {size * len(elements)}, {flags}, {e.site()});")
    function = "load_strong" if strong and size <= 8 else "load"
    for index, element in enumerate(elements):
        if not isinstance(element, Sink):
            at = f"a + {index * size}" if index else "a"
            statements.append(e.assign(element, m.type, f"{function}<{loaded}>({at})"))
    return f"{{ {' '.join(statements)} }}"


@instruction("ld", f"weak? space:{SPACES}? {_LOAD_CACHE} {_HINTS} {_PREFETCH} {_SHAPE}")
def ld(
    e: Emitter, m: SimpleNamespace, destination: Operand, source: Operand, policy: Operand | None = None
) -> str:
    _check_policy(m, policy)
    return load(e, m, destination, source, None, None)


@instruction("ld", f"volatile space:{SPACES}? {_PREFETCH} {_SHAPE}")
def ld_volatile(e: Emitter, m: SimpleNamespace, destination: Operand, source: Operand) -> str:
    return load(e, m, destination, source, "volatile", None)


@instruction("ld", f"ordering:relaxed|acquire scope:{SCOPES} space:{SPACES}? {_HINTS} {_PREFETCH} {_SHAPE}")
def ld_ordered(
    e: Emitter, m: SimpleNamespace, destination: Operand, source: Operand, policy: Operand | None = None
) -> str:
    _check_policy(m, policy)
    return load(e, m, destination, source, m.ordering, m.scope)


@instruction("ld", f"mmio ordering:relaxed scope:sys space:global? {_SHAPE}")
def ld_mmio(e: Emitter, m: SimpleNamespace, destination: Operand, source: Operand) -> str:
    return load(e, m, destination, source, m.ordering, m.scope)


@instruction("ld", f"space:global cache:ca|cg|cs? nc {_HINTS} {_PREFETCH} {_SHAPE}")
def ld_nc(
    e: Emitter, m: SimpleNamespace, destination: Operand, source: Operand, policy: Operand | None = None
) -> str:
    """Through the read-only cache: what it reads must not be written while the kernel runs, which the checker
    sees as a race."""
    _check_policy(m, policy)
    return load(e, m, destination, source, None, None)


@instruction("ldu", f"space:global? {_SHAPE}")
def ldu(e: Emitter, m: SimpleNamespace, destination: Operand, source: Operand) -> str:
    return load(e, m, destination, source, None, None)


def _check_policy(m: SimpleNamespace, policy: Operand | None) -> None:
    if (policy is None) == bool(m.policy):
        raise Unsupported("a cache policy operand and .L2::cache_hint belong together")


# ---- stores ------------------------------------------------------------------------------------------------


def store(
    e: Emitter, m: SimpleNamespace, target: Operand, source: Operand, ordering: str | None, scope: str | None
) -> str:
    """Statement of a store.  m has space, vector and type."""
    elements = e.vector(source)
    size = _width(e, m, elements)
    held = SCALARS[m.type]
    values = [f"({held.cpp})({e.value(element, m.type)})" for element in elements]
    address = e.address(target, "param" if _is_parameter(m.space) else m.space or "generic")
    if _is_parameter(m.space) and len(elements) == 1:
        return f"store<{held.cpp}>({address}, {values[0]});"
    strong = ordering not in (None, "weak")
    statements = ["spin(t);"] if strong else []
    statements.append(f"char* const a = {address};")
    if not _is_parameter(m.space):
        flags = access_flags("WRITE", m.space, ordering, scope)
        statements.append(f"EMU_ACCESS(t, a, {size * len(elements)}, {flags}, {e.site()});")
    function = "store_strong" if strong and size <= 8 else "store"
    for index, value in enumerate(values):
        statements.append(f"{function}<{held.cpp}>({f'a + {index * size}' if index else 'a'}, {value});")
    return f"{{ {' '.join(statements)} }}"


@instruction("st", f"weak? space:{SPACES}? {_STORE_CACHE} {_HINTS} {_SHAPE}")
def st(
    e: Emitter, m: SimpleNamespace, target: Operand, source: Operand, policy: Operand | None = None
) -> str:
    _check_policy(m, policy)
    _check_writable(m)
    return store(e, m, target, source, None, None)


@instruction("st", f"volatile space:{SPACES}? {_SHAPE}")
def st_volatile(e: Emitter, m: SimpleNamespace, target: Operand, source: Operand) -> str:
    _check_writable(m)
    return store(e, m, target, source, "volatile", None)


@instruction("st", f"ordering:relaxed|release scope:{SCOPES} space:{SPACES}? {_HINTS} {_SHAPE}")
def st_ordered(
    e: Emitter, m: SimpleNamespace, target: Operand, source: Operand, policy: Operand | None = None
) -> str:
    _check_policy(m, policy)
    _check_writable(m)
    return store(e, m, target, source, m.ordering, m.scope)


@instruction("st", f"mmio ordering:relaxed scope:sys space:global? {_SHAPE}")
def st_mmio(e: Emitter, m: SimpleNamespace, target: Operand, source: Operand) -> str:
    return store(e, m, target, source, m.ordering, m.scope)


def _check_writable(m: SimpleNamespace) -> None:
    if m.space in ("const", "param::entry"):
        raise Unsupported(f"a store to .{m.space} memory is not possible")


# ---- prefetches: no effect on results ----------------------------------------------------------------------


@instruction("prefetch", "space:global|local? level:L1|L2")
def prefetch(e: Emitter, m: SimpleNamespace, source: Operand) -> str:
    return f"(void)({e.address(source, m.space or 'generic')});"


@instruction("prefetch", "global eviction:L2::evict_last|L2::evict_normal")
def prefetch_eviction(e: Emitter, m: SimpleNamespace, source: Operand) -> str:
    return f"(void)({e.address(source, 'global')});"


@instruction("prefetch", "space:const|param? tensormap")
def prefetch_tensormap(e: Emitter, m: SimpleNamespace, source: Operand) -> str:
    e.require(90)
    return f"(void)({e.address(source, m.space or 'generic')});"


@instruction("prefetchu", "L1")
def prefetchu(e: Emitter, m: SimpleNamespace, source: Operand) -> str:
    return f"(void)({e.address(source, 'generic')});"
