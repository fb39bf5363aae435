"""mov, cvta and isspacep: registers, packing and unpacking, addresses of symbols.

Addresses: generic, global, local, constant and parameter addresses are plain pointers, so cvta leaves them
alone; a shared address is an offset from the cluster's windows, t.shared."""

from types import SimpleNamespace

from cuda.nn.emulator.ptx.syntax import Name, Operand, Sink, Vector
from cuda.nn.emulator.ptx.types import SCALARS
from cuda.nn.emulator.translate.emitter import Emitter
from cuda.nn.emulator.translate.names import Label
from cuda.nn.emulator.translate.table import Unsupported, instruction

MOVABLE = "pred|b16|b32|b64|u16|u32|u64|s16|s32|s64|f32|f64|f16|bf16|f16x2|bf16x2|b128"


@instruction("mov", f"type:{MOVABLE}")
def mov(e: Emitter, m: SimpleNamespace, destination: Operand, source: Operand) -> str:
    if isinstance(destination, Vector):
        return _unpack(e, m.type, destination, source)
    if isinstance(source, Vector):
        return _pack(e, m.type, destination, source)
    if isinstance(source, Name) and isinstance(e.names.find(source.name), Label):
        raise Unsupported("the address of a label is not supported")
    return e.assign(destination, m.type, e.value(source, m.type))


@instruction("mov", "v4 type:u32")
def mov_special(e: Emitter, m: SimpleNamespace, destination: Operand, source: Operand) -> str:
    """All of %tid and its like at once."""
    elements = e.vector(destination)
    if len(elements) != 4 or not isinstance(source, Name) or source.component:
        raise Unsupported("mov.v4 is for special registers such as %tid")
    return " ".join(
        e.assign(element, "u32", e.value(Name(source.name, axis), "u32"))
        for element, axis in zip(elements, "xyzw", strict=True)
    )


def _element_type(type: str, parts: Vector) -> tuple[str, int]:
    """Type and bits of the elements of a packed register."""
    bits = 8 * SCALARS[type].bytes // len(parts.elements)
    if len(parts.elements) not in (2, 4) or bits < 8:
        raise Unsupported(f"mov of {len(parts.elements)} elements as .{type} is not supported")
    return f"b{bits}", bits


def _pack(e: Emitter, type: str, destination: Operand, source: Vector) -> str:
    element, bits = _element_type(type, source)
    values = [e.value(part, element) for part in source.elements]
    if type == "b128":
        return e.assign(
            destination,
            type,
            f"b128{{{_join(values[: len(values) // 2], bits)}, {_join(values[len(values) // 2 :], bits)}}}",
        )
    return e.assign(destination, f"b{8 * SCALARS[type].bytes}", _join(values, bits))


def _join(values: list[str], bits: int) -> str:
    """The first element in the lowest bits."""
    wide = "uint64_t" if bits * len(values) > 32 else "uint32_t"
    shifted = [f"({wide}){value}" + (f" << {bits * i}" if i else "") for i, value in enumerate(values)]
    return " | ".join(shifted) if len(shifted) > 1 else shifted[0]


def _unpack(e: Emitter, type: str, destination: Vector, source: Operand) -> str:
    element, bits = _element_type(type, destination)
    whole = "b128" if type == "b128" else f"b{8 * SCALARS[type].bytes}"
    statements = [f"const {SCALARS[whole].cpp} whole = {e.value(source, whole)};"]
    for index, part in enumerate(destination.elements):
        if isinstance(part, Sink):
            continue
        at = index * bits
        word = "whole" if type != "b128" else ("whole.low" if at < 64 else "whole.high")
        statements.append(
            e.assign(part, element, f"(uint{bits}_t)({word} >> {at % 64 if type == 'b128' else at})")
        )
    return f"{{ {' '.join(statements)} }}"


# ---- address spaces ----------------------------------------------------------------------------------------

_PLAIN = "global|local|const|param|param::entry"
_SHARED = "shared|shared::cta|shared::cluster"


@instruction("cvta", f"space:{_PLAIN} type:u64")
def cvta_plain(e: Emitter, m: SimpleNamespace, destination: Operand, source: Operand) -> str:
    return e.assign(destination, "u64", e.value(source, "u64"))


@instruction("cvta", f"space:{_SHARED} type:u64")
def cvta_shared(e: Emitter, m: SimpleNamespace, destination: Operand, source: Operand) -> str:
    return e.assign(destination, "u64", f"(uint64_t)(t.shared + {e.value(source, 'u32')})")


@instruction("cvta", f"to space:{_PLAIN} type:u64")
def cvta_to_plain(e: Emitter, m: SimpleNamespace, destination: Operand, source: Operand) -> str:
    return e.assign(destination, "u64", e.value(source, "u64"))


@instruction("cvta", f"to space:{_SHARED} type:u64")
def cvta_to_shared(e: Emitter, m: SimpleNamespace, destination: Operand, source: Operand) -> str:
    return e.assign(destination, "u64", f"{e.value(source, 'u64')} - (uint64_t)t.shared")


_PREDICATES = {
    "shared": "is_shared(t, {})",
    "shared::cta": "is_shared(t, {})",
    "shared::cluster": "is_cluster_shared(t, {})",
    "local": "is_local(t, {})",
    "const": "is_constant(t, {})",
    "global": "is_global(t, {})",
    "param": "is_parameter(t, {})",
    "param::entry": "is_parameter(t, {})",
}


@instruction("isspacep", f"space:{'|'.join(_PREDICATES)}")
def isspacep(e: Emitter, m: SimpleNamespace, destination: Operand, address: Operand) -> str:
    return e.assign(destination, "pred", _PREDICATES[m.space].format(e.value(address, "u64")))
