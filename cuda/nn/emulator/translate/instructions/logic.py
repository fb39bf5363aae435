"""Logic, shifts, byte permutation, comparison and selection."""

from types import SimpleNamespace as Modifiers

from cuda.nn.emulator.ptx.syntax import Immediate, Operand
from cuda.nn.emulator.ptx.types import SCALARS
from cuda.nn.emulator.translate.emitter import Emitter
from cuda.nn.emulator.translate.instructions.floating import opcode
from cuda.nn.emulator.translate.instructions.half import FORMATS, widened
from cuda.nn.emulator.translate.table import Unsupported, instruction

BITS = "b16|b32|b64"
_OPERATORS = {"and": "&", "or": "|", "xor": "^"}


# ---- logic ---------------------------------------------------------------------------------------------


@instruction("and", f"type:{BITS}|pred")
@instruction("or", f"type:{BITS}|pred")
@instruction("xor", f"type:{BITS}|pred")
def logic(e: Emitter, m: Modifiers, destination: Operand, a: Operand, b: Operand) -> str:
    operator = _OPERATORS[opcode(e)]
    return e.assign(destination, m.type, f"{e.value(a, m.type)} {operator} {e.value(b, m.type)}")


@instruction("not", f"type:{BITS}|pred")
def invert(e: Emitter, m: Modifiers, destination: Operand, a: Operand) -> str:
    return e.assign(destination, m.type, f"{'!' if m.type == 'pred' else '~'}{e.value(a, m.type)}")


@instruction("cnot", f"type:{BITS}")
def is_zero(e: Emitter, m: Modifiers, destination: Operand, a: Operand) -> str:
    return e.assign(destination, m.type, f"{e.value(a, m.type)} == 0")


@instruction("lop3", "b32")
def lop3(
    e: Emitter, m: Modifiers, destination: Operand, a: Operand, b: Operand, c: Operand, table: Operand
) -> str:
    return e.assign(destination, "b32", _lop3(e, a, b, c, table))


@instruction("lop3", "operation:and|or b32")
def lop3_predicate(e: Emitter, m: Modifiers, destination: Operand, *sources: Operand) -> str:
    """d|p, a, b, c, table, q: p is whether the result has a bit set, combined with q."""
    *words, q = sources
    word, predicate = e.pair(destination)
    if predicate is None:
        raise Unsupported(f"{e.current.opcode!r} needs a predicate destination: d|p")
    combined = f"(word != 0) {_OPERATORS[m.operation]} {e.value(q, 'pred')}"
    writes = f"{e.assign(predicate, 'pred', combined)} {e.assign(word, 'b32', 'word')}"
    return f"{{ const uint32_t word = {_lop3(e, *words)}; {writes} }}"


def _lop3(e: Emitter, a: Operand, b: Operand, c: Operand, table: Operand) -> str:
    values = ", ".join(e.value(operand, "b32") for operand in (a, b, c))
    return f"emu::lop3<{e.immediate(table) & 255}, uint32_t>({values})"


# ---- shifts and bytes ----------------------------------------------------------------------------------


@instruction("shl", f"type:{BITS}")
@instruction("shr", f"type:{BITS}|u16|s16|u32|s32|u64|s64")
def shift(e: Emitter, m: Modifiers, destination: Operand, a: Operand, amount: Operand) -> str:
    scalar = SCALARS[m.type]
    value, operator = e.value(a, m.type), "<<" if e.current.opcode.startswith("shl") else ">>"
    if isinstance(amount, Immediate) and 0 <= amount.value < 8 * scalar.bytes:
        return e.assign(destination, m.type, f"{value} {operator} {amount.value}")
    shifted = f"emu::{opcode(e)}<{scalar.read_as}>({value}, {e.value(amount, 'u32')})"
    return e.assign(destination, m.type, shifted)


@instruction("shf", "direction:l|r mode:wrap|clamp b32")
def shf(e: Emitter, m: Modifiers, destination: Operand, *sources: Operand) -> str:
    values = ", ".join(e.value(operand, "b32") for operand in sources)      # low word, high word, amount
    return e.assign(destination, "b32", f"emu::shf_{m.direction}_{m.mode}({values})")


@instruction("prmt", "b32 mode:f4e|b4e|rc8|ecl|ecr|rc16?")
def prmt(e: Emitter, m: Modifiers, destination: Operand, a: Operand, b: Operand, selectors: Operand) -> str:
    values = ", ".join(e.value(operand, "b32") for operand in (a, b, selectors))
    if m.mode:
        return e.assign(destination, "b32", f"emu::prmt_mode({values}, emu::PRMT_{m.mode.upper()})")
    return e.assign(destination, "b32", f"emu::prmt({values})")


# ---- comparison ----------------------------------------------------------------------------------------

# Of floats: those with u are true where an operand is NaN, the others false.
_ORDERED = {
    "eq": "({a} == {b})", "ne": "({a} < {b} || {a} > {b})",
    "lt": "({a} < {b})", "le": "({a} <= {b})", "gt": "({a} > {b})", "ge": "({a} >= {b})",
    "equ": "(!({a} < {b} || {a} > {b}))", "neu": "({a} != {b})",
    "ltu": "(!({a} >= {b}))", "leu": "(!({a} > {b}))", "gtu": "(!({a} <= {b}))", "geu": "(!({a} < {b}))",
    "num": "({a} == {a} && {b} == {b})", "nan": "({a} != {a} || {b} != {b})",
}
_UNSIGNED_NAMES = {"lo": "lt", "ls": "le", "hi": "gt", "hs": "ge"}

SIGNED_COMPARE = "compare:eq|ne|lt|le|gt|ge"
UNSIGNED_COMPARE = f"{SIGNED_COMPARE}|lo|ls|hi|hs"
FLOAT_COMPARE = "compare:" + "|".join(_ORDERED)
COMBINE = "combine:and|or|xor?"
FLOATS = "f32|f64|f16|bf16"

# The spellings of what is compared, for setp and set alike: (comparison, combination, .ftz, type).
_SOURCES = [
    ("compare:eq|ne", "", BITS),
    (UNSIGNED_COMPARE, "", "u16|u32|u64"),
    (SIGNED_COMPARE, "", "s16|s32|s64"),
    (FLOAT_COMPARE, "", FLOATS),
    (FLOAT_COMPARE, "ftz", "f32|f16"),
]
_PAIRS = [(FLOAT_COMPARE, "", "f16x2|bf16x2"), (FLOAT_COMPARE, "ftz", "f16x2")]


def comparison(m: Modifiers, a: str, b: str) -> str:
    """C++ condition of two expressions that may be named twice."""
    return _ORDERED[_UNSIGNED_NAMES.get(m.compare, m.compare)].format(a=a, b=b)


def _compared(e: Emitter, m: Modifiers, a: Operand, b: Operand) -> str:
    """The condition that setp and set test, as a C++ expression over their operands."""
    values = []
    for operand in (a, b):
        value = e.value(operand, m.source)
        if m.source in FORMATS:
            value = widened(m.source, value, flushed=_flushes(m))
        elif _flushes(m):
            value = f"emu::flush({value})"
        values.append(value)
    return comparison(m, *values)


def _flushes(m: Modifiers) -> bool:
    return bool(getattr(m, "ftz", None))


def _combined(m: Modifiers, condition: str) -> str:
    return f"{condition} {_OPERATORS[m.combine]} with" if m.combine else condition


def _with(e: Emitter, m: Modifiers, operands: tuple[Operand, ...]) -> str:
    """Declares the predicate to combine with, as the first destination may overwrite it."""
    if "bf16" in m.source or "bf16" in getattr(m, "to", ""):
        e.require(90)
    if bool(m.combine) != bool(operands):
        raise Unsupported(f"{e.current.opcode!r} has {2 + len(operands)} operands to compare and combine")
    return f"const bool with = {e.value(operands[0], 'pred')}; " if operands else ""


def setp(e: Emitter, m: Modifiers, destination: Operand, a: Operand, b: Operand, *c: Operand) -> str:
    """p|q: the comparison and its negation."""
    first, second = e.pair(destination)
    begin = f"{_with(e, m, c)}const bool holds = {_compared(e, m, a, b)};"
    writes = e.assign(first, "pred", _combined(m, "holds"))
    if second is not None:
        writes += " " + e.assign(second, "pred", _combined(m, "!holds"))
    return f"{{ {begin} {writes} }}"


def setp_pairs(e: Emitter, m: Modifiers, destination: Operand, a: Operand, b: Operand, *c: Operand) -> str:
    """p|q: the comparison of the low halves and that of the high ones."""
    first, second = e.pair(destination)
    low, high = _compared_pairs(e, m, a, b)
    begin = f"{_with(e, m, c)}const bool low = {low}, high = {high};"
    writes = e.assign(first, "pred", _combined(m, "low"))
    if second is not None:
        writes += " " + e.assign(second, "pred", _combined(m, "high"))
    return f"{{ {begin} {writes} }}"


def _compared_pairs(e: Emitter, m: Modifiers, a: Operand, b: Operand) -> tuple[str, str]:
    type = m.source.removesuffix("x2")
    words = e.value(a, "b32"), e.value(b, "b32")
    low = [widened(type, f"(uint16_t)({word})", flushed=_flushes(m)) for word in words]
    high = [widened(type, f"(uint16_t)(({word}) >> 16)", flushed=_flushes(m)) for word in words]
    return comparison(m, *low), comparison(m, *high)


# What set writes for true; false is 0.
_TRUE = {
    "u32": "0xffffffffu", "s32": "-1", "u16": "0xffff", "s16": "-1",
    "f32": "1.0f", "f16": "0x3c00", "bf16": "0x3f80",
}


def set_(e: Emitter, m: Modifiers, destination: Operand, a: Operand, b: Operand, *c: Operand) -> str:
    chosen = f"({_combined(m, 'holds')}) ? {_TRUE[m.to]} : 0"
    begin = f"{_with(e, m, c)}const bool holds = {_compared(e, m, a, b)};"
    return f"{{ {begin} {e.assign(destination, m.to, chosen)} }}"


def set_pairs(e: Emitter, m: Modifiers, destination: Operand, a: Operand, b: Operand, *c: Operand) -> str:
    low, high = _compared_pairs(e, m, a, b)
    true = _TRUE["u16" if m.to in ("u32", "s32") else m.to.removesuffix("x2")]
    halves = [f"({_combined(m, name)}) ? {true} : 0" for name in ("low", "high")]
    begin = f"{_with(e, m, c)}const bool low = {low}, high = {high};"
    return f"{{ {begin} {e.assign(destination, 'b32', f'emu::half_pair({halves[0]}, {halves[1]})')} }}"


for _compare, _ftz, _types in _SOURCES:
    # .ftz may stand before or after the operator that combines.
    for _order in ([COMBINE, _ftz], [_ftz, COMBINE]) if _ftz else ([COMBINE],):
        _middle = " ".join(_order)
        instruction("setp", f"{_compare} {_middle} source:{_types}")(setp)
        instruction("set", f"{_compare} {_middle} to:u32|s32|f32|f16|bf16|u16|s16 source:{_types}")(set_)
for _compare, _ftz, _types in _PAIRS:
    for _order in ([COMBINE, _ftz], [_ftz, COMBINE]) if _ftz else ([COMBINE],):
        _middle = " ".join(_order)
        instruction("setp", f"{_compare} {_middle} source:{_types}")(setp_pairs)
        instruction("set", f"{_compare} {_middle} to:f16x2|bf16x2|u32|s32 source:{_types}")(set_pairs)


# ---- selection -----------------------------------------------------------------------------------------


@instruction("selp", f"type:{BITS}|u16|s16|u32|s32|u64|s64|f32|f64")
def selp(e: Emitter, m: Modifiers, destination: Operand, a: Operand, b: Operand, condition: Operand) -> str:
    chosen = f"{e.value(condition, 'pred')} ? {e.value(a, m.type)} : {e.value(b, m.type)}"
    return e.assign(destination, m.type, chosen)


@instruction("slct", f"ftz? type:{BITS}|u16|s16|u32|s32|u64|s64|f32|f64 f32")
@instruction("slct", f"type:{BITS}|u16|s16|u32|s32|u64|s64|f32|f64 s32")
def slct(e: Emitter, m: Modifiers, destination: Operand, a: Operand, b: Operand, c: Operand) -> str:
    """a where c >= 0, also for -0 and for a flushed subnormal; b where c is negative or NaN."""
    test = e.value(c, "f32" if hasattr(m, "f32") else "s32")
    test = f"emu::flush({test})" if getattr(m, "ftz", None) else test
    return e.assign(destination, m.type, f"{test} >= 0 ? {e.value(a, m.type)} : {e.value(b, m.type)}")
