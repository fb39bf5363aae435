"""Integer arithmetic: add to rem, extended precision with the carry bit, bit fields, dot products.

C++ arithmetic on unsigned words wraps as PTX does, so most rows are an operator.
What needs more is in csrc/emulator/integer.h."""

from types import SimpleNamespace as Modifiers

from cuda.nn.emulator.ptx.syntax import Operand
from cuda.nn.emulator.ptx.types import SCALARS
from cuda.nn.emulator.translate.emitter import Emitter
from cuda.nn.emulator.translate.table import instruction

ALL = "u16|s16|u32|s32|u64|s64"
WORDS = "u32|s32|u64|s64"           # sizes that have a carry
NARROW = "u16|s16|u32|s32"          # sizes that have a product of twice the size


def unsigned(type: str) -> str:
    """The unsigned type of the same size: for arithmetic that must wrap."""
    return f"u{8 * SCALARS[type].bytes}"


def doubled(type: str) -> str:
    """The type of twice the size: that of a .wide product."""
    return f"{type[0]}{16 * SCALARS[type].bytes}"


def call(e: Emitter, type: str, function: str, *operands: Operand) -> str:
    """function<T>(operands...), T and the operands of one PTX type."""
    values = ", ".join(e.value(operand, type) for operand in operands)
    return f"emu::{function}<{SCALARS[type].read_as}>({values})"


# ---- add, sub, min, max --------------------------------------------------------------------------------


@instruction("add", f"type:{ALL}")
def add(e: Emitter, m: Modifiers, destination: Operand, a: Operand, b: Operand) -> str:
    word = unsigned(m.type)
    return e.assign(destination, m.type, f"{e.value(a, word)} + {e.value(b, word)}")


@instruction("sub", f"type:{ALL}")
def sub(e: Emitter, m: Modifiers, destination: Operand, a: Operand, b: Operand) -> str:
    word = unsigned(m.type)
    return e.assign(destination, m.type, f"{e.value(a, word)} - {e.value(b, word)}")


@instruction("add", "sat s32")
def add_saturated(e: Emitter, m: Modifiers, destination: Operand, a: Operand, b: Operand) -> str:
    return e.assign(destination, "s32", f"emu::add_sat({e.value(a, 's32')}, {e.value(b, 's32')})")


@instruction("sub", "sat s32")
def sub_saturated(e: Emitter, m: Modifiers, destination: Operand, a: Operand, b: Operand) -> str:
    return e.assign(destination, "s32", f"emu::sub_sat({e.value(a, 's32')}, {e.value(b, 's32')})")


@instruction("add", "type:u16x2|s16x2")
def add_pairs(e: Emitter, m: Modifiers, destination: Operand, a: Operand, b: Operand) -> str:
    e.require(90)
    return e.assign(destination, "b32", _pairs(e, m.type, "add", a, b))


@instruction("min", f"type:{ALL}")
@instruction("max", f"type:{ALL}")
def extreme(e: Emitter, m: Modifiers, destination: Operand, a: Operand, b: Operand) -> str:
    function = "least" if e.current.opcode.startswith("min") else "greatest"
    return e.assign(destination, m.type, call(e, m.type, function, a, b))


@instruction("min", "type:u16x2|s16x2")
@instruction("max", "type:u16x2|s16x2")
def extreme_pairs(e: Emitter, m: Modifiers, destination: Operand, a: Operand, b: Operand) -> str:
    e.require(90)
    return e.assign(destination, "b32", _pairs(e, m.type, e.current.opcode[:3], a, b))


@instruction("min", "relu type:s32|s16x2")
@instruction("min", "type:s32|s16x2 relu")
@instruction("max", "relu type:s32|s16x2")
@instruction("max", "type:s32|s16x2 relu")
def extreme_relu(e: Emitter, m: Modifiers, destination: Operand, a: Operand, b: Operand) -> str:
    """The greater of the min or max and zero."""
    e.require(90)
    if m.type == "s16x2":
        return e.assign(destination, "b32", f"emu::relu_x2({_pairs(e, m.type, e.current.opcode[:3], a, b)})")
    function = "least" if e.current.opcode.startswith("min") else "greatest"
    return e.assign(destination, "s32", f"emu::greatest<int32_t>({call(e, 's32', function, a, b)}, 0)")


def _pairs(e: Emitter, type: str, function: str, a: Operand, b: Operand) -> str:
    half = SCALARS[type.removesuffix("x2")].read_as
    return f"emu::{function}_x2<{half}>({e.value(a, 'b32')}, {e.value(b, 'b32')})"


# ---- products ------------------------------------------------------------------------------------------


def product(e: Emitter, m: Modifiers, a: Operand, b: Operand) -> str:
    """The low half (.lo) or the high half (.hi) of a product."""
    if m.part == "hi":
        return call(e, m.type, "mul_hi", a, b)
    word = unsigned(m.type)
    return f"({e.value(a, word)} * {e.value(b, word)})"


@instruction("mul", f"part:lo|hi type:{ALL}")
def mul(e: Emitter, m: Modifiers, destination: Operand, a: Operand, b: Operand) -> str:
    return e.assign(destination, m.type, product(e, m, a, b))


@instruction("mul", f"wide type:{NARROW}")
def mul_wide(e: Emitter, m: Modifiers, destination: Operand, a: Operand, b: Operand) -> str:
    return e.assign(destination, doubled(m.type), call(e, m.type, "mul_wide", a, b))


@instruction("mad", f"part:lo|hi type:{ALL}")
def mad(e: Emitter, m: Modifiers, destination: Operand, a: Operand, b: Operand, c: Operand) -> str:
    return e.assign(destination, m.type, f"{product(e, m, a, b)} + {e.value(c, unsigned(m.type))}")


@instruction("mad", f"wide type:{NARROW}")
def mad_wide(e: Emitter, m: Modifiers, destination: Operand, a: Operand, b: Operand, c: Operand) -> str:
    wide = doubled(m.type)
    return e.assign(destination, wide, f"{call(e, m.type, 'mul_wide', a, b)} + {e.value(c, unsigned(wide))}")


@instruction("mad", "hi sat s32")
@instruction("mad24", "hi sat s32")
def mad_saturated(e: Emitter, m: Modifiers, destination: Operand, a: Operand, b: Operand, c: Operand) -> str:
    function = "mad24_hi_sat" if e.current.opcode.startswith("mad24") else "mad_hi_sat"
    values = ", ".join(e.value(operand, "s32") for operand in (a, b, c))
    return e.assign(destination, "s32", f"emu::{function}({values})")


@instruction("mul24", "part:lo|hi type:u32|s32")
def mul24(e: Emitter, m: Modifiers, destination: Operand, a: Operand, b: Operand) -> str:
    return e.assign(destination, m.type, call(e, m.type, f"mul24_{m.part}", a, b))


@instruction("mad24", "part:lo|hi type:u32|s32")
def mad24(e: Emitter, m: Modifiers, destination: Operand, a: Operand, b: Operand, c: Operand) -> str:
    return e.assign(destination, m.type, f"{call(e, m.type, f'mul24_{m.part}', a, b)} + {e.value(c, 'u32')}")


# ---- extended precision: the carry bit is a local variable of the function -----------------------------


@instruction("add", f"cc type:{WORDS}")
@instruction("addc", f"cc? type:{WORDS}")
def add_with_carry(e: Emitter, m: Modifiers, destination: Operand, a: Operand, b: Operand) -> str:
    word = unsigned(m.type)
    return _carried(e, m, "add_carry", "+", destination, e.value(a, word), e.value(b, word))


@instruction("sub", f"cc type:{WORDS}")
@instruction("subc", f"cc? type:{WORDS}")
def sub_with_borrow(e: Emitter, m: Modifiers, destination: Operand, a: Operand, b: Operand) -> str:
    word = unsigned(m.type)
    return _carried(e, m, "sub_borrow", "-", destination, e.value(a, word), e.value(b, word))


@instruction("mad", f"part:lo|hi cc type:{WORDS}")
@instruction("madc", f"part:lo|hi cc? type:{WORDS}")
def mad_with_carry(e: Emitter, m: Modifiers, destination: Operand, a: Operand, b: Operand, c: Operand) -> str:
    return _carried(e, m, "add_carry", "+", destination, product(e, m, a, b), e.value(c, unsigned(m.type)))


def _carried(
    e: Emitter, m: Modifiers, function: str, operator: str, destination: Operand, a: str, b: str
) -> str:
    """addc, subc and madc take the carry in; those with .cc write it."""
    carry_in = e.carry if e.current.opcode.split(".")[0].endswith("c") else "false"
    if m.cc is None:
        return e.assign(destination, m.type, f"{a} {operator} {b} {operator} {carry_in}")
    word = SCALARS[unsigned(m.type)].cpp
    return e.assign(destination, m.type, f"emu::{function}<{word}>({a}, {b}, {carry_in}, {e.carry})")


# ---- division, absolute values, sums -------------------------------------------------------------------


@instruction("div", f"type:{ALL}")
def div(e: Emitter, m: Modifiers, destination: Operand, a: Operand, b: Operand) -> str:
    return e.assign(destination, m.type, call(e, m.type, "divide", a, b))


@instruction("rem", f"type:{ALL}")
def rem(e: Emitter, m: Modifiers, destination: Operand, a: Operand, b: Operand) -> str:
    return e.assign(destination, m.type, call(e, m.type, "remainder", a, b))


@instruction("abs", "type:s16|s32|s64")
def absolute(e: Emitter, m: Modifiers, destination: Operand, a: Operand) -> str:
    value, word = e.value(a, m.type), e.value(a, unsigned(m.type))
    return e.assign(destination, m.type, f"{value} < 0 ? 0 - {word} : {word}")


@instruction("neg", "type:s16|s32|s64")
def negate(e: Emitter, m: Modifiers, destination: Operand, a: Operand) -> str:
    return e.assign(destination, m.type, f"0 - {e.value(a, unsigned(m.type))}")


@instruction("sad", f"type:{ALL}")
def sad(e: Emitter, m: Modifiers, destination: Operand, a: Operand, b: Operand, c: Operand) -> str:
    return e.assign(destination, m.type, call(e, m.type, "sad", a, b, c))


@instruction("dp4a", "a:u32|s32 b:u32|s32")
def dp4a(e: Emitter, m: Modifiers, destination: Operand, a: Operand, b: Operand, c: Operand) -> str:
    lanes = f"{_lane(m.a, 8)}, {_lane(m.b, 8)}"
    values = ", ".join(e.value(operand, "b32") for operand in (a, b, c))
    return e.assign(destination, "b32", f"emu::dp4a<{lanes}>({values})")


@instruction("dp2a", "part:lo|hi a:u32|s32 b:u32|s32")
def dp2a(e: Emitter, m: Modifiers, destination: Operand, a: Operand, b: Operand, c: Operand) -> str:
    lanes = f"{_lane(m.a, 16)}, {_lane(m.b, 8)}"
    values = ", ".join(e.value(operand, "b32") for operand in (a, b, c))
    return e.assign(destination, "b32", f"emu::dp2a<{lanes}>({values}, {2 if m.part == 'hi' else 0})")


def _lane(type: str, bits: int) -> str:
    """The C++ type of a part of an operand that is signed as `type` is."""
    return SCALARS[f"{type[0]}{bits}"].read_as


# ---- bits ----------------------------------------------------------------------------------------------


@instruction("popc", "type:b32|b64")
@instruction("clz", "type:b32|b64")
def count_bits(e: Emitter, m: Modifiers, destination: Operand, a: Operand) -> str:
    return e.assign(destination, "u32", f"emu::{e.current.opcode.split('.')[0]}({e.value(a, m.type)})")


@instruction("brev", "type:b32|b64")
def brev(e: Emitter, m: Modifiers, destination: Operand, a: Operand) -> str:
    return e.assign(destination, m.type, f"emu::brev({e.value(a, m.type)})")


@instruction("bfind", f"shiftamt? type:{WORDS}")
def bfind(e: Emitter, m: Modifiers, destination: Operand, a: Operand) -> str:
    return e.assign(destination, "u32", call(e, m.type, "bfind_shiftamt" if m.shiftamt else "bfind", a))


@instruction("fns", "b32")
def fns(e: Emitter, m: Modifiers, destination: Operand, mask: Operand, base: Operand, offset: Operand) -> str:
    values = f"{e.value(mask, 'b32')}, {e.value(base, 'b32')}, {e.value(offset, 's32')}"
    return e.assign(destination, "b32", f"emu::fns({values})")


@instruction("bfe", f"type:{WORDS}")
def bfe(e: Emitter, m: Modifiers, destination: Operand, a: Operand, *field: Operand) -> str:
    position, length = (e.value(operand, "u32") for operand in field)
    values = f"{e.value(a, m.type)}, {position}, {length}"
    return e.assign(destination, m.type, f"emu::bfe<{SCALARS[m.type].read_as}>({values})")


@instruction("bfi", "type:b32|b64")
def bfi(e: Emitter, m: Modifiers, destination: Operand, a: Operand, b: Operand, *field: Operand) -> str:
    words = f"{e.value(a, m.type)}, {e.value(b, m.type)}"
    position, length = (e.value(operand, "u32") for operand in field)
    return e.assign(destination, m.type, f"emu::bfi<{SCALARS[m.type].cpp}>({words}, {position}, {length})")


@instruction("bmsk", "mode:clamp|wrap b32")
def bmsk(e: Emitter, m: Modifiers, destination: Operand, position: Operand, width: Operand) -> str:
    values = f"{e.value(position, 'b32')}, {e.value(width, 'b32')}, {_truth(m.mode == 'clamp')}"
    return e.assign(destination, "b32", f"emu::bmsk({values})")


@instruction("szext", "mode:clamp|wrap type:u32|s32")
def szext(e: Emitter, m: Modifiers, destination: Operand, a: Operand, width: Operand) -> str:
    values = f"{e.value(a, m.type)}, {e.value(width, 'u32')}, {_truth(m.mode == 'clamp')}"
    return e.assign(destination, m.type, f"emu::szext<{SCALARS[m.type].read_as}>({values})")


def _truth(value: bool) -> str:
    return "true" if value else "false"
