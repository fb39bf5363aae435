"""cvt: between integers, f16, bf16, f32 and f64, to tf32, and to and from pairs of 8-, 6- and 4-bit floats.

Every conversion rounds once, from the exact value (csrc/emulator/formats.h, convert.h).
cvt.rs, whose result depends on random bits, is refused."""

from types import SimpleNamespace as Modifiers

from cuda.nn.emulator.ptx.syntax import Operand
from cuda.nn.emulator.ptx.types import SCALARS
from cuda.nn.emulator.translate.emitter import Emitter
from cuda.nn.emulator.translate.instructions.floating import ROUNDS
from cuda.nn.emulator.translate.instructions.half import FORMATS, widened
from cuda.nn.emulator.translate.table import Unsupported, instruction

INTEGERS = "u8|s8|u16|s16|u32|s32|u64|s64"
FLOATS = "f16|bf16|f32|f64"
_INTEGRAL = {"rni": "rn", "rzi": "rz", "rmi": "rm", "rpi": "rp"}
_WIDTH = {"f16": 11, "bf16": 8, "f32": 24, "f64": 53}        # significant bits


def _check_flush(e: Emitter, m: Modifiers) -> None:
    if m.ftz and "f32" not in (m.to, m.source):
        raise Unsupported(f"modifier '.ftz' of {e.current.opcode!r} is not supported: no .f32 takes part")


def _require(e: Emitter, m: Modifiers) -> None:
    """bf16 converts from and to f32 since sm_80, everything else since sm_90."""
    if "bf16" in (m.to, m.source):
        e.require(80 if {m.to, m.source} == {"bf16", "f32"} else 90)


def _source(e: Emitter, m: Modifiers, a: Operand) -> str:
    """A floating-point operand as a C++ float (f64: double), flushed under .ftz where it is an f32."""
    if m.source in FORMATS:
        return widened(m.source, e.value(a, "b16"))
    value = e.value(a, m.source)
    return f"emu::flush({value})" if m.ftz and m.source == "f32" else value


def _narrowed(to: str, value: str, source: str, rnd: str, finite: bool = False) -> str:
    """A C++ float or double rounded to a narrower type: its bits for f16 and bf16, a float for f32."""
    direction = ROUNDS[rnd] + (", emu::Overflow::finite" if finite else "")
    if to == "f32":
        directed = f"emu::float_of(emu::round_to<emu::F32>({value}, {direction}))"
        return f"(float){value}" if rnd == "rn" else directed
    if rnd == "rn" and not finite and source != "f64":
        return f"emu::float_to_{to}({value})"
    return f"emu::round_to<{FORMATS[to]}>({value}, {direction})"


# ---- with an integer on either side --------------------------------------------------------------------


@instruction("cvt", f"sat? to:{INTEGERS} source:{INTEGERS}")
def integer_to_integer(e: Emitter, m: Modifiers, destination: Operand, a: Operand) -> str:
    value = e.value(a, m.source)
    if m.sat:
        value = f"emu::clamp_to<{SCALARS[m.to].read_as}>({value})"
    return e.assign(destination, m.to, f"({SCALARS[m.to].read_as}){value}")


@instruction("cvt", f"rnd:rni|rzi|rmi|rpi ftz? sat? to:{INTEGERS} source:{FLOATS}")
def float_to_integer(e: Emitter, m: Modifiers, destination: Operand, a: Operand) -> str:
    """Values beyond the range are limited to it, with .sat and without."""
    _check_flush(e, m)
    _require(e, m)
    direction = ROUNDS[_INTEGRAL[m.rnd]]
    word = SCALARS[m.to].read_as
    return e.assign(destination, m.to, f"emu::to_integer<{word}>({_source(e, m, a)}, {direction})")


@instruction("cvt", f"rnd:rn|rz|rm|rp ftz? sat? to:{FLOATS} source:{INTEGERS}")
def integer_to_float(e: Emitter, m: Modifiers, destination: Operand, a: Operand) -> str:
    _check_flush(e, m)
    _require(e, m)
    value = e.value(a, m.source)
    if m.sat:
        value = f"(uint32_t)({value} > 0)"                  # all integers but 0 and 1 lie beyond [0, 1]
    if m.rnd == "rn" and m.to in ("f32", "f64"):
        return e.assign(destination, m.to, f"({SCALARS[m.to].cpp}){value}")
    format = FORMATS.get(m.to, f"emu::{m.to.upper()}")
    bits = f"emu::from_integer<{format}>({value}, {ROUNDS[m.rnd]})"
    if m.to in FORMATS:
        return e.assign(destination, "b16", bits)
    return e.assign(destination, m.to, f"emu::float_of({bits})")


# ---- float to float ------------------------------------------------------------------------------------


@instruction("cvt", f"rnd:rni|rzi|rmi|rpi ftz? sat? to:{FLOATS} source:{FLOATS}")
def to_integral(e: Emitter, m: Modifiers, destination: Operand, a: Operand) -> str:
    if m.to != m.source:
        raise Unsupported(f"modifier '.{m.rnd}' of {e.current.opcode!r} is not supported: its types differ")
    _check_flush(e, m)
    _require(e, m)
    value = f"emu::to_integral({_source(e, m, a)}, {ROUNDS[_INTEGRAL[m.rnd]]})"
    return _store(e, m, destination, f"emu::saturate({value})" if m.sat else value)


@instruction("cvt", f"rnd:rn|rz|rm|rp? ftz? sat? to:{FLOATS} source:{FLOATS}")
def float_to_float(e: Emitter, m: Modifiers, destination: Operand, a: Operand) -> str:
    _check_flush(e, m)
    _require(e, m)
    narrowing = _WIDTH[m.to] < _WIDTH[m.source] or (m.source, m.to) == ("bf16", "f16")
    if narrowing and m.rnd is None and {m.to, m.source} != {"f16", "bf16"}:
        raise Unsupported(f"{e.current.opcode!r} is not supported: a rounding modifier is missing")
    if m.rnd and m.to == m.source:
        raise Unsupported(f"modifier '.{m.rnd}' of {e.current.opcode!r} is not supported: nothing is rounded")
    value = _source(e, m, a)
    if m.sat:
        value = f"emu::saturate({value})"
    if not narrowing and m.to != m.source:
        value = f"({SCALARS[m.to].cpp}){value}"
    return _store(e, m, destination, value)


def _store(e: Emitter, m: Modifiers, destination: Operand, value: str) -> str:
    """Assign a C++ float or double of the source's precision, rounded to the destination's type."""
    rnd = m.rnd if m.rnd in ROUNDS else "rn"
    if m.to in FORMATS:
        return e.assign(destination, "b16", _narrowed(m.to, value, m.source, rnd))
    if m.to == "f32":
        if m.source == "f64":
            value = _narrowed("f32", value, m.source, rnd)
        value = f"emu::flush({value})" if m.ftz else value
    return e.assign(destination, m.to, value)


@instruction("cvt", "rnd:rn|rz relu satfinite? to:f16|bf16 f32")
@instruction("cvt", "rnd:rn|rz satfinite relu? to:f16|bf16 f32")
def narrow_limited(e: Emitter, m: Modifiers, destination: Operand, a: Operand) -> str:
    e.require(80 if m.relu or m.to == "bf16" else 0)
    return e.assign(destination, "b16", _limited(m, m.to, e.value(a, "f32")))


@instruction("cvt", "rnd:rn|rz relu? satfinite? to:f16x2|bf16x2 f32")
@instruction("cvt", "rnd:rn|rz satfinite relu to:f16x2|bf16x2 f32")
def narrow_pair(e: Emitter, m: Modifiers, destination: Operand, high: Operand, low: Operand) -> str:
    e.require(80)
    halves = [_limited(m, m.to.removesuffix("x2"), e.value(operand, "f32")) for operand in (low, high)]
    return e.assign(destination, "b32", f"emu::half_pair({', '.join(halves)})")


def _limited(m: Modifiers, to: str, value: str) -> str:
    """A C++ float narrowed under .relu and .satfinite."""
    value = f"emu::relu({value})" if m.relu else value
    return _narrowed(to, value, "f32", m.rnd, finite=bool(m.satfinite))


@instruction("cvt", "rnd:rna satfinite? tf32 f32")
@instruction("cvt", "rnd:rn|rz relu? satfinite? tf32 f32")
@instruction("cvt", "rnd:rn|rz satfinite relu tf32 f32")
def to_tf32(e: Emitter, m: Modifiers, destination: Operand, a: Operand) -> str:
    e.require(80 if m.rnd == "rna" else 100 if m.satfinite else 90)
    value = e.value(a, "f32")
    value = f"emu::relu({value})" if getattr(m, "relu", None) else value
    overflow = ", emu::Overflow::finite" if m.satfinite else ""
    return e.assign(destination, "b32", f"emu::tf32({value}, {ROUNDS[m.rnd]}{overflow})")


# ---- pairs of narrow floats ----------------------------------------------------------------------------

_NARROW = {
    "e4m3x2": ("emu::E4M3", 89), "e5m2x2": ("emu::E5M2", 89),
    "e2m3x2": ("emu::E2M3", 100), "e3m2x2": ("emu::E3M2", 100), "e2m1x2": ("emu::E2M1", 100),
}
_PAIRS = "e4m3x2|e5m2x2|e2m3x2|e3m2x2|e2m1x2"


@instruction("cvt", f"rn satfinite relu? to:{_PAIRS} f32")
@instruction("cvt", f"rn relu satfinite to:{_PAIRS} f32")
def floats_to_narrow(e: Emitter, m: Modifiers, destination: Operand, high: Operand, low: Operand) -> str:
    return _to_narrow(e, m, destination, e.value(high, "f32"), e.value(low, "f32"))


@instruction("cvt", "rn satfinite relu? to:e4m3x2|e5m2x2|e2m1x2 f16x2")
@instruction("cvt", "rn relu satfinite to:e4m3x2|e5m2x2|e2m1x2 f16x2")
def halves_to_narrow(e: Emitter, m: Modifiers, destination: Operand, pair: Operand) -> str:
    word = e.value(pair, "b32")
    high, low = f"(uint16_t)({word} >> 16)", f"(uint16_t)({word})"
    return _to_narrow(e, m, destination, widened("f16", high), widened("f16", low))


def _to_narrow(e: Emitter, m: Modifiers, destination: Operand, high: str, low: str) -> str:
    format, architecture = _NARROW[m.to]
    e.require(architecture)
    values = [f"emu::relu({value})" if m.relu else value for value in (high, low)]
    bits = [f"emu::round_to<{format}>({value}, {ROUNDS['rn']}, emu::Overflow::finite)" for value in values]
    return e.assign(destination, m.to, f"{bits[0]} << {4 if m.to == 'e2m1x2' else 8} | {bits[1]}")


@instruction("cvt", f"rn relu? f16x2 source:{_PAIRS}")
def narrow_to_halves(e: Emitter, m: Modifiers, destination: Operand, pair: Operand) -> str:
    format, architecture = _NARROW[m.source]
    e.require(architecture)
    bits, mask = (4, "15") if m.source == "e2m1x2" else (8, "255")
    word = e.value(pair, m.source)
    values = [f"emu::decode<{format}>({word} & {mask})", f"emu::decode<{format}>({word} >> {bits} & {mask})"]
    values = [f"emu::relu({value})" if m.relu else value for value in values]
    halves = [f"emu::float_to_f16({value})" for value in values]
    return e.assign(destination, "b32", f"emu::half_pair({', '.join(halves)})")


@instruction("cvt", "rnd:rz|rp satfinite? ue8m0x2 f32")
def floats_to_scale(e: Emitter, m: Modifiers, destination: Operand, high: Operand, low: Operand) -> str:
    return _to_scale(e, m, destination, e.value(high, "f32"), e.value(low, "f32"))


@instruction("cvt", "rnd:rz|rp satfinite? ue8m0x2 bf16x2")
def halves_to_scale(e: Emitter, m: Modifiers, destination: Operand, pair: Operand) -> str:
    word = e.value(pair, "b32")
    high, low = f"(uint16_t)({word} >> 16)", f"(uint16_t)({word})"
    return _to_scale(e, m, destination, widened("bf16", high), widened("bf16", low))


def _to_scale(e: Emitter, m: Modifiers, destination: Operand, high: str, low: str) -> str:
    e.require(100)
    overflow = ", emu::Overflow::finite" if m.satfinite else ""
    bits = [f"emu::round_to_ue8m0({value}, {ROUNDS[m.rnd]}{overflow})" for value in (high, low)]
    return e.assign(destination, "ue8m0x2", f"{bits[0]} << 8 | {bits[1]}")


@instruction("cvt", "rn bf16x2 ue8m0x2")
def scale_to_halves(e: Emitter, m: Modifiers, destination: Operand, pair: Operand) -> str:
    e.require(100)
    word = e.value(pair, "ue8m0x2")
    values = [f"emu::float_to_bf16(emu::ue8m0_to_float((uint8_t)({word}{shift})))" for shift in ("", " >> 8")]
    return e.assign(destination, "b32", f"emu::half_pair({', '.join(values)})")


# ---- cvt.pack ------------------------------------------------------------------------------------------


@instruction("cvt", "pack sat to:u16|s16 s32")
def pack_words(e: Emitter, m: Modifiers, destination: Operand, high: Operand, low: Operand) -> str:
    return _pack(e, m, destination, high, low, "0")


@instruction("cvt", "pack sat to:u8|s8|u4|s4|u2|s2 s32 b32")
def pack_narrow(
    e: Emitter, m: Modifiers, destination: Operand, high: Operand, low: Operand, above: Operand
) -> str:
    e.require(72 if m.to.endswith("8") else 75)
    return _pack(e, m, destination, high, low, e.value(above, "b32"))


def _pack(e: Emitter, m: Modifiers, destination: Operand, high: Operand, low: Operand, above: str) -> str:
    kind = f"{m.to[1:]}, {'true' if m.to.startswith('s') else 'false'}"
    values = f"{e.value(high, 's32')}, {e.value(low, 's32')}, {above}"
    return e.assign(destination, "b32", f"emu::pack_limited<{kind}>({values})")
