"""Bulk copies: cp.async.bulk, cp.reduce.async.bulk, tensor maps, st.async and red.async (sm_90 and newer).

Refused by name: im2col modes, .cta_group, gather4/scatter4 and .ignore_oob, which no row lists.
.L2::cache_hint and its operand change speed only."""

from types import SimpleNamespace

from cuda.nn.emulator.ptx.syntax import Address, Operand
from cuda.nn.emulator.ptx.types import SCALARS
from cuda.nn.emulator.translate.emitter import Emitter
from cuda.nn.emulator.translate.instructions.atomic import reduction
from cuda.nn.emulator.translate.table import Unsupported, instruction

_HINT = "hint:L2::cache_hint?"
_CLUSTER = "to:shared::cluster"
_BYTES = "mbarrier::complete_tx::bytes"
_MULTICAST = "multicast:multicast::cluster?"
_DIMENSIONS = "dimensions:1d|2d|3d|4d|5d"
_OPERATIONS = "operation:add|min|max|inc|dec|and|or|xor"


def _rest(m: SimpleNamespace, operands: tuple[Operand, ...], names: tuple[str, ...]) -> dict[str, Operand]:
    """The trailing operands by name; a cache policy comes last where there is a hint, and does nothing."""
    count = len(names) + bool(m.hint)
    if len(operands) != count:
        raise Unsupported(f"{count} operands expected behind the others, found {len(operands)}")
    return dict(zip(names, operands, strict=False))


def _blocks(e: Emitter, m: SimpleNamespace, rest: dict[str, Operand]) -> str:
    """The blocks of a multicast, as a C++ expression."""
    return f"(uint32_t){e.value(rest['blocks'], 'b16')}" if m.multicast else "emu::NO_MULTICAST"


def _places(e: Emitter, target: tuple[Operand, str], source: tuple[Operand, str], size: Operand) -> str:
    """`destination, source, bytes` in C++."""
    return f"{e.address(*target)}, {e.address(*source)}, {e.value(size, 'u32')}"


# ---- plain runs of bytes -----------------------------------------------------------------------------------


@instruction("cp", f"async bulk to:shared::cluster|shared::cta global {_BYTES} {_MULTICAST} {_HINT}")
def load(
    e: Emitter,
    m: SimpleNamespace,
    target: Operand,
    source: Operand,
    size: Operand,
    barrier: Operand,
    *rest: Operand,
) -> str:
    e.require(90)
    named = _rest(m, rest, ("blocks",) if m.multicast else ())
    places = _places(e, (target, m.to), (source, "global"), size)
    barrier_place = e.address(barrier, "shared")
    return f"emu::bulk_load(t, {places}, {barrier_place}, {_blocks(e, m, named)}, {e.site()});"


@instruction("cp", f"async bulk {_CLUSTER} shared::cta {_BYTES}")
def send(
    e: Emitter, m: SimpleNamespace, target: Operand, source: Operand, size: Operand, barrier: Operand
) -> str:
    e.require(90)
    places = _places(e, (target, m.to), (source, "shared"), size)
    return f"emu::bulk_load(t, {places}, {e.address(barrier, 'shared')}, emu::NO_MULTICAST, {e.site()});"


@instruction("cp", f"async bulk global shared::cta bulk_group {_HINT} mask:cp_mask?")
def store(
    e: Emitter, m: SimpleNamespace, target: Operand, source: Operand, size: Operand, *rest: Operand
) -> str:
    e.require(100 if m.mask else 90)
    mask = "0xffffu"
    if m.mask:  # the mask stands behind the cache policy
        *rest_, mask_operand = rest
        rest, mask = tuple(rest_), f"(uint32_t){e.value(mask_operand, 'b16')}"
    _rest(m, tuple(rest), ())
    places = _places(e, (target, "global"), (source, "shared"), size)
    return f"emu::bulk_store(t, {places}, {mask}, {e.site()});"


@instruction("cp", f"async bulk prefetch L2 global {_HINT}")
def prefetch(e: Emitter, m: SimpleNamespace, source: Operand, size: Operand, *rest: Operand) -> str:
    e.require(90)
    _rest(m, rest, ())
    return f"emu::bulk_prefetch(t, {e.address(source, 'global')}, {e.value(size, 'u32')}, {e.site()});"


@instruction("cp", "async bulk commit_group")
def commit(e: Emitter, m: SimpleNamespace) -> str:
    e.require(90)
    return "emu::bulk_commit(t);"


@instruction("cp", "async bulk wait_group read?")
def wait(e: Emitter, m: SimpleNamespace, groups: Operand) -> str:
    e.require(90)
    return f"emu::bulk_wait(t, {e.immediate(groups)}u, {'true' if m.read else 'false'});"


# ---- reductions --------------------------------------------------------------------------------------------

_INTEGERS = {"u32", "s32", "u64", "s64"}
_BITS = {"b32", "b64"}
_GLOBAL_TYPES = {
    "add": {"u32", "s32", "u64", "f16", "bf16", "f32", "f64"},
    "min": _INTEGERS | {"f16", "bf16"},
    "max": _INTEGERS | {"f16", "bf16"},
    "inc": {"u32"},
    "dec": {"u32"},
    "and": _BITS,
    "or": _BITS,
    "xor": _BITS,
}
_SHARED_TYPES = {
    "add": {"u32", "s32", "u64"},
    "min": {"u32", "s32"},
    "max": {"u32", "s32"},
    "inc": {"u32"},
    "dec": {"u32"},
    "and": {"b32"},
    "or": {"b32"},
    "xor": {"b32"},
}


def _reduction(e: Emitter, m: SimpleNamespace, types: dict[str, set[str]]) -> str:
    """`Reduce, Element` in C++, where the operation has the type."""
    if m.type not in types[m.operation] or bool(getattr(m, "noftz", None)) != (
        m.operation == "add" and m.type in ("f16", "bf16")
    ):
        raise Unsupported(f"{e.current.opcode!r} does not exist: this operation has no such type")
    element = {"b32": "u32", "b64": "u64"}.get(m.type, m.type)
    return f"{reduction(m.operation)}, emu::Element::{element}"


_TYPES = "type:u32|s32|u64|s64|b32|b64|f16|bf16|f32|f64"


@instruction("cp", f"reduce async bulk global shared::cta bulk_group {_HINT} {_OPERATIONS} noftz? {_TYPES}")
def reduce_global(
    e: Emitter, m: SimpleNamespace, target: Operand, source: Operand, size: Operand, *rest: Operand
) -> str:
    e.require(90)
    _rest(m, rest, ())
    places = _places(e, (target, "global"), (source, "shared"), size)
    return f"emu::bulk_reduce(t, {places}, {_reduction(e, m, _GLOBAL_TYPES)}, {e.site()});"


@instruction("cp", f"reduce async bulk {_CLUSTER} shared::cta {_BYTES} {_OPERATIONS} {_TYPES}")
def reduce_shared(
    e: Emitter, m: SimpleNamespace, target: Operand, source: Operand, size: Operand, barrier: Operand
) -> str:
    e.require(90)
    places = _places(e, (target, m.to), (source, "shared"), size)
    how = _reduction(e, m, _SHARED_TYPES)
    return f"emu::bulk_reduce_shared(t, {places}, {e.address(barrier, 'shared')}, {how}, {e.site()});"


# ---- st.async, red.async -----------------------------------------------------------------------------------


@instruction(
    "st", f"async weak? space:shared::cluster? {_BYTES} vector:v2|v4? type:b32|b64|u32|u64|s32|s64|f32|f64"
)
def store_async(e: Emitter, m: SimpleNamespace, target: Operand, source: Operand, barrier: Operand) -> str:
    e.require(90)
    elements, scalar = e.vector(source), SCALARS[m.type]
    if len(elements) != (int(m.vector[1:]) if m.vector else 1):
        raise Unsupported(f"{e.current.opcode!r} needs {m.vector or 'one'} value")
    values = ", ".join(f"({scalar.cpp})({e.value(element, m.type)})" for element in elements)
    space = m.space or "generic"
    places = f"{e.address(target, space)}, v, sizeof v, {e.address(barrier, space)}"
    return f"{{ const {scalar.cpp} v[] = {{{values}}}; emu::store_async(t, {places}, {e.site()}); }}"


@instruction(
    "red", f"async relaxed cluster space:shared::cluster? {_BYTES} {_OPERATIONS} type:u32|s32|u64|s64|b32|b64"
)
def reduce_async(e: Emitter, m: SimpleNamespace, target: Operand, source: Operand, barrier: Operand) -> str:
    e.require(90)
    scalar = SCALARS[m.type]
    types = {**_SHARED_TYPES, "add": _SHARED_TYPES["add"] | {"s64"}}
    space = m.space or "generic"
    places = f"{e.address(target, space)}, &v, {e.address(barrier, space)}"
    value = f"const {scalar.cpp} v = {e.value(source, m.type)};"
    return f"{{ {value} emu::reduce_async(t, {places}, {_reduction(e, m, types)}, {e.site()}); }}"


# ---- tensors -----------------------------------------------------------------------------------------------


def _tensor(e: Emitter, m: SimpleNamespace, operand: Operand) -> tuple[str, str]:
    """`map, rank` and the coordinates in C++, of `[map, {c0, c1}]`."""
    rank = int(m.dimensions[0])
    if not isinstance(operand, Address) or len(operand.coordinates) != 1:
        raise Unsupported(
            f"{e.current.opcode!r} needs a tensor map and its coordinates; im2col offsets are not supported"
        )
    places = e.vector(operand.coordinates[0])
    if len(places) != rank:
        raise Unsupported(f"{e.current.opcode!r} needs {rank} coordinates and has {len(places)}")
    at = ", ".join(e.value(place, "s32") for place in places)
    return f"{e.address(operand, 'generic')}, {rank}u", f"emu::Coordinates{{{{{at}}}}}"


_TENSOR = f"async bulk tensor {_DIMENSIONS}"


@instruction("cp", f"{_TENSOR} to:shared::cluster|shared::cta global tile? {_BYTES} {_MULTICAST} {_HINT}")
def tensor_load(
    e: Emitter, m: SimpleNamespace, target: Operand, tensor: Operand, barrier: Operand, *rest: Operand
) -> str:
    e.require(90)
    named = _rest(m, rest, ("blocks",) if m.multicast else ())
    which, at = _tensor(e, m, tensor)
    places = f"{e.address(target, m.to)}, {which}, {at}, {e.address(barrier, 'shared')}"
    return f"emu::tensor_load(t, {places}, {_blocks(e, m, named)}, {e.site()});"


@instruction("cp", f"{_TENSOR} global shared::cta tile? bulk_group {_HINT}")
def tensor_store(e: Emitter, m: SimpleNamespace, tensor: Operand, source: Operand, *rest: Operand) -> str:
    e.require(90)
    _rest(m, rest, ())
    which, at = _tensor(e, m, tensor)
    return f"emu::tensor_store(t, {which}, {at}, {e.address(source, 'shared')}, {e.site()});"


@instruction("cp", f"reduce {_TENSOR} global shared::cta {_OPERATIONS} tile? bulk_group {_HINT}")
def tensor_reduce(e: Emitter, m: SimpleNamespace, tensor: Operand, source: Operand, *rest: Operand) -> str:
    e.require(90)
    _rest(m, rest, ())
    which, at = _tensor(e, m, tensor)
    places = f"{which}, {at}, {e.address(source, 'shared')}, {reduction(m.operation)}"
    return f"emu::tensor_reduce(t, {places}, {e.site()});"


@instruction("cp", f"async bulk prefetch tensor {_DIMENSIONS} L2 global tile? {_HINT}")
def tensor_prefetch(e: Emitter, m: SimpleNamespace, tensor: Operand, *rest: Operand) -> str:
    e.require(90)
    _rest(m, rest, ())
    which, _ = _tensor(e, m, tensor)
    return f"emu::tensor_prefetch(t, {which}, {e.site()});"


# ---- tensor maps made on the device ------------------------------------------------------------------------

_REPLACED = "global_address|rank|box_dim|global_dim|global_stride|element_stride"
_MODES = "elemtype|interleave_layout|swizzle_mode|swizzle_atomicity|fill_mode"
_BY_DIMENSION = ("box_dim", "global_dim", "global_stride", "element_stride")


@instruction(
    "tensormap", f"replace tile field:{_REPLACED}|{_MODES} space:global|shared::cta? b1024 type:b32|b64"
)
def tensormap_replace(e: Emitter, m: SimpleNamespace, tensor: Operand, *values: Operand) -> str:
    e.require(90, "a")
    if len(values) != 1 + (m.field in _BY_DIMENSION) or (m.type == "b64") != (
        m.field in ("global_address", "global_stride")
    ):
        raise Unsupported(f"{e.current.opcode!r} does not fit its operands")
    ordinal = e.immediate(values[0]) if m.field in _BY_DIMENSION else 0
    value = f"(uint64_t){e.value(values[-1], m.type)}"
    place = e.address(tensor, m.space or "generic")
    return f"emu::tensor_map_replace(t, {place}, emu::MapField::{m.field}, {ordinal}u, {value}, {e.site()});"


@instruction(
    "tensormap",
    "cp_fenceproxy global shared::cta tensormap::generic release scope:cta|cluster|gpu|sys sync aligned",
)
def tensormap_copy(e: Emitter, m: SimpleNamespace, target: Operand, source: Operand, size: Operand) -> str:
    e.require(90)
    if e.immediate(size) != 128:
        raise Unsupported("tensormap.cp_fenceproxy copies 128 bytes")
    return (
        f"emu::tensor_map_copy(t, {e.address(target, 'global')}, {e.address(source, 'shared')}, {e.site()});"
    )
