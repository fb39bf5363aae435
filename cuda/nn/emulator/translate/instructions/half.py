"""Arithmetic on f16 and bf16, alone and in pairs (f16x2, bf16x2).

A row is written for one value; for pairs the same C++ expression becomes a lambda that each_half() applies
to both halves."""

from collections.abc import Callable
from types import SimpleNamespace as Modifiers

from cuda.nn.emulator.ptx.syntax import Operand
from cuda.nn.emulator.translate.emitter import Emitter
from cuda.nn.emulator.translate.table import instruction

FORMATS = {"f16": "emu::F16", "bf16": "emu::BF16"}
_NAMES = "xyz"


def widened(type: str, value: str, flushed: bool = False) -> str:
    """The bits of an f16 or bf16 as a float."""
    if flushed:
        value = f"emu::flush_half<{FORMATS[type]}>({value})"
    return f"emu::{type}_to_float({value})"


def lanewise(
    e: Emitter, type: str, destination: Operand, build: Callable[..., str], *operands: Operand
) -> str:
    """Assign build(a, b, ...), of operands as uint16_t in C++, to one value or a pair."""
    if not type.endswith("x2"):
        return e.assign(destination, "b16", build(*(e.value(operand, "b16") for operand in operands)))
    names = _NAMES[: len(operands)]
    parameters = ", ".join(f"uint16_t {name}" for name in names)
    values = ", ".join(e.value(operand, "b32") for operand in operands)
    each = f"[]({parameters}) {{ return {build(*names)}; }}"
    return e.assign(destination, "b32", f"emu::each_half({each}, {values})")


def _operation(e: Emitter, m: Modifiers, function: str) -> Callable[..., str]:
    """The call of function<F> and m's modifiers around it: .ftz on operands and result, .sat, .relu."""
    format = FORMATS[m.type.removesuffix("x2")]

    def build(*values: str) -> str:
        if getattr(m, "ftz", None):
            values = tuple(f"emu::flush_half<{format}>({value})" for value in values)
        result = f"emu::{function}<{format}>({', '.join(values)})"
        for modifier, wrapper in (("ftz", "flush_half"), ("sat", "saturate_half"), ("relu", "relu_half")):
            if getattr(m, modifier, None):
                result = f"emu::{wrapper}<{format}>({result})"
        return result

    return build


def _require(e: Emitter, m: Modifiers, bf16: int, f16: int = 0) -> None:
    e.require(bf16 if m.type.startswith("bf16") else f16)


def _count(e: Emitter, m: Modifiers, each: int) -> None:
    e.flops(m.type.removesuffix("x2"), each * (2 if m.type.endswith("x2") else 1))


# ---- arithmetic ----------------------------------------------------------------------------------------


@instruction("add", "rn? ftz? sat? type:f16|f16x2")
@instruction("sub", "rn? ftz? sat? type:f16|f16x2")
@instruction("mul", "rn? ftz? sat? type:f16|f16x2")
@instruction("add", "rn? type:bf16|bf16x2")
@instruction("sub", "rn? type:bf16|bf16x2")
@instruction("mul", "rn? type:bf16|bf16x2")
def arithmetic(e: Emitter, m: Modifiers, destination: Operand, a: Operand, b: Operand) -> str:
    _require(e, m, bf16=90)
    _count(e, m, 1)
    return lanewise(e, m.type, destination, _operation(e, m, f"{e.current.opcode[:3]}_half"), a, b)


@instruction("fma", "rn ftz? sat? type:f16|f16x2")
@instruction("fma", "rn ftz? relu type:f16|f16x2")
@instruction("fma", "rn relu? type:bf16|bf16x2")
def fma(e: Emitter, m: Modifiers, destination: Operand, a: Operand, b: Operand, c: Operand) -> str:
    _require(e, m, bf16=80, f16=80 if getattr(m, "relu", None) else 0)
    _count(e, m, 2)
    return lanewise(e, m.type, destination, _operation(e, m, "fma_half"), a, b, c)


@instruction("neg", "ftz? type:f16|f16x2")
@instruction("abs", "ftz? type:f16|f16x2")
@instruction("neg", "type:bf16|bf16x2")
@instruction("abs", "type:bf16|bf16x2")
def sign(e: Emitter, m: Modifiers, destination: Operand, a: Operand) -> str:
    _require(e, m, bf16=80)
    return lanewise(e, m.type, destination, _operation(e, m, f"{e.current.opcode[:3]}_half"), a)


@instruction("ex2", "approx type:f16|f16x2")
@instruction("ex2", "approx ftz type:bf16|bf16x2")
def ex2(e: Emitter, m: Modifiers, destination: Operand, a: Operand) -> str:
    _require(e, m, bf16=90, f16=75)
    return lanewise(e, m.type, destination, _operation(e, m, "ex2_half"), a)


@instruction("tanh", "approx type:f16|f16x2|bf16|bf16x2")
def tanh(e: Emitter, m: Modifiers, destination: Operand, a: Operand) -> str:
    _require(e, m, bf16=90, f16=75)
    return lanewise(e, m.type, destination, _operation(e, m, "tanh_half"), a)


# ---- min and max ---------------------------------------------------------------------------------------


@instruction("min", "ftz? NaN? type:f16|f16x2")
@instruction("max", "ftz? NaN? type:f16|f16x2")
@instruction("min", "NaN? type:bf16|bf16x2")
@instruction("max", "NaN? type:bf16|bf16x2")
def extreme(e: Emitter, m: Modifiers, destination: Operand, a: Operand, b: Operand) -> str:
    e.require(80)
    return lanewise(e, m.type, destination, _operation(e, m, _extreme_name(e, m)), a, b)


@instruction("min", "ftz? NaN? xorsign abs type:f16|f16x2")
@instruction("max", "ftz? NaN? xorsign abs type:f16|f16x2")
@instruction("min", "NaN? xorsign abs type:bf16|bf16x2")
@instruction("max", "NaN? xorsign abs type:bf16|bf16x2")
def extreme_magnitude(e: Emitter, m: Modifiers, destination: Operand, a: Operand, b: Operand) -> str:
    """.xorsign.abs: min or max of the absolute values, with the product of the signs."""
    e.require(86)
    format = FORMATS[m.type.removesuffix("x2")]
    choose = _operation(e, m, _extreme_name(e, m))

    def build(x: str, y: str) -> str:
        magnitude = choose(f"emu::abs_half<{format}>({x})", f"emu::abs_half<{format}>({y})")
        return f"emu::xor_sign_half({magnitude}, {x}, {y})"

    return lanewise(e, m.type, destination, build, a, b)


def _extreme_name(e: Emitter, m: Modifiers) -> str:
    return f"{e.current.opcode[:3]}{'_nan' if m.NaN else ''}_half"
