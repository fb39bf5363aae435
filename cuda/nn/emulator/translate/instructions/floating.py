"""Arithmetic on f32 and f64, on pairs of f32 in 64 bits, and the approximate functions.

Rounding to nearest is the C++ operation, the other directions are functions of csrc/emulator/floating.h.
FLOPs are counted as profilers do: add, sub and mul one, fma two, nothing else."""

from types import SimpleNamespace as Modifiers

from cuda.nn.emulator.ptx.syntax import Operand
from cuda.nn.emulator.translate.emitter import Emitter
from cuda.nn.emulator.translate.instructions.half import widened
from cuda.nn.emulator.translate.table import Unsupported, instruction

ROUNDS = {
    "rn": "emu::Round::nearest_even",
    "rna": "emu::Round::nearest_away",
    "rz": "emu::Round::zero",
    "rm": "emu::Round::down",
    "rp": "emu::Round::up",
}
RND = "rnd:rn|rz|rm|rp"
_ARITY = {"add": 2, "sub": 2, "mul": 2, "fma": 3, "mad": 3}
_NEAREST = {"add": "({} + {})", "sub": "({} - {})", "mul": "({} * {})", "fma": "std::fma({}, {}, {})"}


def opcode(e: Emitter) -> str:
    """Of the instruction being translated, without its modifiers."""
    return e.current.opcode.split(".")[0]


def read(e: Emitter, m: Modifiers, operand: Operand, type: str) -> str:
    """An operand, flushed under .ftz."""
    value = e.value(operand, type)
    return f"emu::flush({value})" if getattr(m, "ftz", None) else value


def finished(m: Modifiers, value: str) -> str:
    """A result, flushed under .ftz and limited to [0, 1] under .sat."""
    for modifier, wrapper in (("ftz", "flush"), ("sat", "saturate")):
        if getattr(m, modifier, None):
            value = f"emu::{wrapper}({value})"
    return value


def rounded(operation: str, rnd: str | None, *values: str) -> str:
    """add, sub, mul or fma of C++ floats or doubles, rounded once in the given direction."""
    if rnd in (None, "rn"):
        return _NEAREST[operation].format(*values)
    if operation == "sub":
        operation, values = "add", (values[0], f"-{values[1]}")
    return f"emu::{operation}_directed({', '.join(values)}, {ROUNDS[rnd]})"


# ---- add, sub, mul, fma --------------------------------------------------------------------------------


@instruction("add", f"{RND}? ftz? sat? type:f32")
@instruction("sub", f"{RND}? ftz? sat? type:f32")
@instruction("mul", f"{RND}? ftz? sat? type:f32")
@instruction("fma", f"{RND} ftz? sat? type:f32")
@instruction("mad", f"{RND} ftz? sat? type:f32")
@instruction("add", f"{RND}? type:f64")
@instruction("sub", f"{RND}? type:f64")
@instruction("mul", f"{RND}? type:f64")
@instruction("fma", f"{RND} type:f64")
@instruction("mad", f"{RND} type:f64")
def arithmetic(e: Emitter, m: Modifiers, destination: Operand, *operands: Operand) -> str:
    operation = _checked(e, operands)
    e.flops(m.type, 2 if operation == "fma" else 1)
    values = [read(e, m, operand, m.type) for operand in operands]
    return e.assign(destination, m.type, finished(m, rounded(operation, m.rnd, *values)))


@instruction("add", f"{RND}? ftz? f32x2")
@instruction("sub", f"{RND}? ftz? f32x2")
@instruction("mul", f"{RND}? ftz? f32x2")
@instruction("fma", f"{RND} ftz? f32x2")
def arithmetic_pairs(e: Emitter, m: Modifiers, destination: Operand, *operands: Operand) -> str:
    e.require(100)
    operation = _checked(e, operands)
    e.flops("f32", 4 if operation == "fma" else 2)
    results = []
    for half in ("low", "high"):
        values = [f"emu::{half}_float({e.value(operand, 'b64')})" for operand in operands]
        if m.ftz:
            values = [f"emu::flush({value})" for value in values]
        results.append(finished(m, rounded(operation, m.rnd, *values)))
    return e.assign(destination, "b64", f"emu::float_pair({', '.join(results)})")


@instruction("add", f"{RND}? sat? f32 narrow:f16|bf16")
@instruction("sub", f"{RND}? sat? f32 narrow:f16|bf16")
@instruction("fma", f"{RND} sat? f32 narrow:f16|bf16")
def arithmetic_mixed(e: Emitter, m: Modifiers, destination: Operand, *operands: Operand) -> str:
    """All operands but the last are f16 or bf16, widened exactly; the last and the result are f32."""
    e.require(100)
    operation = _checked(e, operands)
    e.flops("f32", 2 if operation == "fma" else 1)
    values = [widened(m.narrow, e.value(operand, "b16")) for operand in operands[:-1]]
    values.append(e.value(operands[-1], "f32"))
    return e.assign(destination, "f32", finished(m, rounded(operation, m.rnd, *values)))


def _checked(e: Emitter, operands: tuple[Operand, ...]) -> str:
    """The operation's name, mad as fma.  Raises Unsupported for a wrong number of operands."""
    name = opcode(e)
    if len(operands) != _ARITY[name]:
        raise Unsupported(f"{e.current.opcode!r} takes {_ARITY[name]} operands, not {len(operands)}")
    return "fma" if name == "mad" else name


# ---- division, roots -----------------------------------------------------------------------------------


@instruction("div", f"{RND} ftz? type:f32")
@instruction("div", f"{RND} type:f64")
def div(e: Emitter, m: Modifiers, destination: Operand, a: Operand, b: Operand) -> str:
    quotient = _quotient(m, read(e, m, a, m.type), read(e, m, b, m.type))
    return e.assign(destination, m.type, finished(m, quotient))


@instruction("rcp", f"{RND} ftz? type:f32")
@instruction("rcp", f"{RND} type:f64")
def rcp(e: Emitter, m: Modifiers, destination: Operand, a: Operand) -> str:
    one = "1.0f" if m.type == "f32" else "1.0"
    return e.assign(destination, m.type, finished(m, _quotient(m, one, read(e, m, a, m.type))))


def _quotient(m: Modifiers, a: str, b: str) -> str:
    return f"({a} / {b})" if m.rnd == "rn" else f"emu::div_directed({a}, {b}, {ROUNDS[m.rnd]})"


@instruction("div", "kind:approx|full ftz? f32")
def div_approx(e: Emitter, m: Modifiers, destination: Operand, a: Operand, b: Operand) -> str:
    x, y = read(e, m, a, "f32"), read(e, m, b, "f32")
    quotient = f"emu::div_approx({x}, {y})" if m.kind == "approx" else f"({x} / {y})"
    return e.assign(destination, "f32", finished(m, quotient))


@instruction("sqrt", f"{RND} ftz? type:f32")
@instruction("sqrt", f"{RND} type:f64")
def sqrt(e: Emitter, m: Modifiers, destination: Operand, a: Operand) -> str:
    value = read(e, m, a, m.type)
    root = f"std::sqrt({value})" if m.rnd == "rn" else f"emu::sqrt_directed({value}, {ROUNDS[m.rnd]})"
    return e.assign(destination, m.type, finished(m, root))


@instruction("rcp", "approx ftz f64")
@instruction("rsqrt", "approx ftz f64")
def gross(e: Emitter, m: Modifiers, destination: Operand, a: Operand) -> str:
    """Of the upper 32 bits only: the first step of a longer computation."""
    return e.assign(destination, "f64", f"emu::{opcode(e)}_gross({e.value(a, 'f64')})")


# ---- approximations ------------------------------------------------------------------------------------

_FUNCTIONS = {
    "rcp": "emu::rcp_approx",
    "sqrt": "std::sqrt",
    "rsqrt": "emu::rsqrt_approx",
    "sin": "std::sin",
    "cos": "std::cos",
    "lg2": "std::log2",
    "ex2": "std::exp2",
}


@instruction("rcp", "approx ftz? type:f32")
@instruction("sqrt", "approx ftz? type:f32")
@instruction("rsqrt", "approx ftz? type:f32")
@instruction("rsqrt", "approx type:f64")
@instruction("sin", "approx ftz? type:f32")
@instruction("cos", "approx ftz? type:f32")
@instruction("lg2", "approx ftz? type:f32")
@instruction("ex2", "approx ftz? type:f32")
def approximation(e: Emitter, m: Modifiers, destination: Operand, a: Operand) -> str:
    return e.assign(destination, m.type, finished(m, f"{_FUNCTIONS[opcode(e)]}({read(e, m, a, m.type)})"))


@instruction("tanh", "approx f32")
def tanh(e: Emitter, m: Modifiers, destination: Operand, a: Operand) -> str:
    return e.assign(destination, "f32", f"std::tanh({e.value(a, 'f32')})")


# ---- min, max, signs, tests ----------------------------------------------------------------------------


@instruction("min", "ftz? NaN? abs? type:f32")
@instruction("max", "ftz? NaN? abs? type:f32")
@instruction("min", "type:f64")
@instruction("max", "type:f64")
def extreme(e: Emitter, m: Modifiers, destination: Operand, a: Operand, b: Operand, *c: Operand) -> str:
    """Of two operands, or of three; .abs, of their absolute values, belongs to three."""
    magnitudes = getattr(m, "abs", None)
    if len(c) > (m.type == "f32") or (magnitudes and not c):
        raise Unsupported(f"{e.current.opcode!r} with {2 + len(c)} operands is not supported")
    if c:
        e.require(100)
    values = [read(e, m, operand, m.type) for operand in (a, b, *c)]
    if magnitudes:
        values = [f"std::fabs({value})" for value in values]
    function = _extreme_name(e, m)
    result = f"{function}({values[0]}, {values[1]})"
    return e.assign(destination, m.type, f"{function}({result}, {values[2]})" if c else result)


@instruction("min", "ftz? NaN? xorsign abs type:f32")
@instruction("max", "ftz? NaN? xorsign abs type:f32")
def extreme_magnitude(e: Emitter, m: Modifiers, destination: Operand, a: Operand, b: Operand) -> str:
    e.require(86)
    x, y = read(e, m, a, "f32"), read(e, m, b, "f32")
    magnitude = f"{_extreme_name(e, m)}(std::fabs({x}), std::fabs({y}))"
    return e.assign(destination, "f32", f"emu::xor_sign({magnitude}, {x}, {y})")


def _extreme_name(e: Emitter, m: Modifiers) -> str:
    if getattr(m, "NaN", None):
        e.require(80)
        return f"emu::{opcode(e)}_nan"
    return f"emu::{opcode(e)}_number"


@instruction("abs", "ftz? type:f32")
@instruction("abs", "type:f64")
def absolute(e: Emitter, m: Modifiers, destination: Operand, a: Operand) -> str:
    return e.assign(destination, m.type, f"std::fabs({read(e, m, a, m.type)})")


@instruction("neg", "ftz? type:f32")
@instruction("neg", "type:f64")
def negate(e: Emitter, m: Modifiers, destination: Operand, a: Operand) -> str:
    return e.assign(destination, m.type, f"-{read(e, m, a, m.type)}")


@instruction("copysign", "type:f32|f64")
def copysign(e: Emitter, m: Modifiers, destination: Operand, sign: Operand, magnitude: Operand) -> str:
    values = f"{e.value(magnitude, m.type)}, {e.value(sign, m.type)}"
    return e.assign(destination, m.type, f"std::copysign({values})")


_TESTS = {
    "finite": "std::isfinite",
    "infinite": "std::isinf",
    "number": "!std::isnan",
    "notanumber": "std::isnan",
    "normal": "emu::is_normal",
    "subnormal": "emu::is_subnormal",
}


@instruction("testp", f"test:{'|'.join(_TESTS)} type:f32|f64")
def testp(e: Emitter, m: Modifiers, destination: Operand, a: Operand) -> str:
    return e.assign(destination, "pred", f"{_TESTS[m.test]}({e.value(a, m.type)})")
