"""What the rows of the instruction table work with: operands of PTX read and written as C++, for one
function.

A row gets the Emitter and the operands and returns one C++ statement:

    @instruction("add", "type:u32|s32")
    def add(e, m, destination, a, b):
        return e.assign(destination, m.type, f"{e.value(a, 'u32')} + {e.value(b, 'u32')}")

In the C++ of a function `t` is the running thread, `parameters` and `result` are its buffers, `frame` its
local memory. A register is a local variable of its declared type (ptx/types.py), unsigned whatever its sign;
read as another type of its size it is converted (integers) or bit-cast (integer and float)."""

import struct
from collections.abc import Mapping
from dataclasses import dataclass, field

from cuda.nn.emulator.ptx.syntax import (
    Address,
    Function,
    Immediate,
    Name,
    Negated,
    Operand,
    Pair,
    Sink,
    SymbolOffset,
    Vector,
)
from cuda.nn.emulator.ptx.types import SCALARS, Scalar
from cuda.nn.emulator.translate.names import (
    DynamicShared,
    Entity,
    FunctionName,
    GlobalPlace,
    Label,
    LocalPlace,
    Names,
    ParameterPlace,
    Register,
    SharedPlace,
    Symbols,
    Undefined,
    VectorRegister,
)
from cuda.nn.emulator.translate.registers import SPECIAL
from cuda.nn.emulator.translate.sites import Site
from cuda.nn.emulator.translate.table import Unsupported

_SHARED_SPACES = frozenset({"shared", "shared::cta", "shared::cluster"})
# Which kind of variable may be named directly in an access to a space.
_NAMED_SPACES = {"generic": ("global", "const"), "global": ("global",), "const": ("const",)}


@dataclass
class Usage:
    """What a function needs of the module around it, found while it is translated."""

    calls: set[str] = field(default_factory=set)
    addresses_taken: set[str] = field(default_factory=set)
    calls_indirectly: bool = False
    shared: set[int] = field(default_factory=set)  # numbers of static shared variables
    dynamic_alignment: int = 0
    registers: dict[str, Scalar] = field(default_factory=dict)  # C++ names that occur
    flags: set[str] = field(default_factory=set)  # "carry", "frame", "alloca"
    call_bytes: int = 0  # of the argument buffers of its calls


class Emitter:
    """The function being translated.  See the contract of each method; instructions/ has the rows that use
    them."""

    def __init__(
        self,
        target: tuple[int, str],
        symbols: Symbols,
        names: Names,
        function: Function,
        functions: Mapping[str, Function],
    ) -> None:
        self.target = target
        self.symbols = symbols
        self.names = names  # of the scope being translated
        self.function = function
        self.functions = functions  # of the module, by name
        self.usage = Usage()
        self.site_number = 0
        self.position = 0  # number of the statement being translated
        self.current = Site(0, 0, 0, 0, "")

    # ---- the instruction

    def site(self) -> str:
        """The number of this instruction's site, as a C++ literal."""
        return str(self.site_number)

    def flops(self, kind: str, count: int) -> None:
        """What the instruction counts for, per thread."""
        self.current.flop_kind, self.current.flops = kind, count

    def require(self, architecture: int, suffix: str = "") -> None:
        """Raise Unsupported where the module's target is older than sm_<architecture>, or lacks the suffix
        ("a")."""
        number, have = self.target
        if number < architecture or (suffix and have not in ("a", "f")):
            raise Unsupported(
                f"{self.current.opcode!r} needs .target sm_{architecture}{suffix} or newer; this module is "
                f"for sm_{number}{have}"
            )

    @property
    def carry(self) -> str:
        """The condition code's carry bit: a bool."""
        self.usage.flags.add("carry")
        return "carry_"

    # ---- names

    def entity(self, name: str) -> Entity:
        found = self.names.find(name)
        if found is None:
            raise Unsupported(f"{name!r} is used but not declared")
        return found

    def register(self, operand: Operand) -> Register:
        """The register that an operand is."""
        if isinstance(operand, Name):
            found = self.names.find(operand.name)
            if isinstance(found, VectorRegister):
                found = found.elements.get(operand.component)
            elif operand.component:
                found = None
            if isinstance(found, Register):
                self.usage.registers[found.cpp] = found.scalar
                return found
            raise Unsupported(f"{self.text(operand)!r} is not a register")
        raise Unsupported(f"expected a register, found {self.text(operand)}")

    def label(self, operand: Operand) -> Label:
        found = self.names.find(operand.name) if isinstance(operand, Name) else None
        if not isinstance(found, Label):
            raise Unsupported(f"{self.text(operand)} is not a label of this function")
        return found

    @staticmethod
    def text(operand: Operand) -> str:
        """An operand for a message."""
        if isinstance(operand, Name):
            return operand.name + (f".{operand.component}" if operand.component else "")
        if isinstance(operand, Immediate):
            return str(operand.value)
        return f"a {type(operand).__name__.lower()} operand"

    # ---- reading

    def value(self, operand: Operand, type: str) -> str:
        """C++ expression of an operand read as a PTX type."""
        wanted = SCALARS[type]
        if isinstance(operand, Name):
            found = self.names.find(operand.name)
            if isinstance(found, Register):
                register = self.register(operand)  # refuses a component: `%r1.b3210` selects bytes
                return read_as(register.cpp, register.scalar, wanted)
            return self._named_value(operand, found, wanted)
        if isinstance(operand, Immediate):
            return literal(operand, wanted)
        if isinstance(operand, SymbolOffset):
            return self._symbol_value(self.entity(operand.name), operand.offset, wanted, operand.name)
        if isinstance(operand, Negated):
            inner = self.value(operand.operand, type)
            if operand.minus == (type == "pred"):
                raise Unsupported(
                    f"{'-' if operand.minus else '!'} before an operand of type .{type} is not supported"
                )
            return f"(-{inner})" if operand.minus else f"(!{inner})"
        raise Unsupported(f"{self.text(operand)} cannot be read as .{type}")

    def _named_value(self, operand: Name, found: Entity | None, wanted: Scalar) -> str:
        if isinstance(found, VectorRegister):
            register = self.register(operand)
            return read_as(register.cpp, register.scalar, wanted)
        if found is not None:
            return self._symbol_value(found, 0, wanted, operand.name)
        spelled = self.text(operand)
        if spelled == "%reserved_smem_offset_1":
            return self._symbol_value(self.symbols.reserved(), 0, wanted, spelled)
        special = SPECIAL.get(spelled)
        if special is None:
            if operand.name.startswith("%"):
                raise Unsupported(
                    f"register {spelled} is neither declared nor a special register that is supported"
                )
            raise Unsupported(f"{spelled!r} is used but not declared")
        return read_as(f"({special.expression})", SCALARS[special.type], wanted)

    def _symbol_value(self, found: Entity, offset: int, wanted: Scalar, name: str) -> str:
        """The address of a symbol."""
        shared = self._shared_symbol(found, offset)
        if shared is not None:
            return read_as(f"({shared})", SCALARS["u32"], wanted)
        if isinstance(found, FunctionName):
            self.usage.addresses_taken.add(found.name)
            return read_as(f"reinterpret_cast<uint64_t>(&{function_cpp(found.name)})", SCALARS["u64"], wanted)
        pointer = self._plain_symbol(found, offset, name)
        return read_as(f"reinterpret_cast<uint64_t>({pointer})", SCALARS["u64"], wanted)

    def _shared_symbol(self, found: Entity, offset: int) -> str | None:
        """The 32-bit shared address of a shared variable, without parentheses."""
        if isinstance(found, SharedPlace):
            self.usage.shared.add(found.number)
            place = found.constant
        elif isinstance(found, DynamicShared):
            self.usage.dynamic_alignment = max(self.usage.dynamic_alignment, found.alignment, 1)
            place = "t.launch->kernel->dynamic_shared_offset"
        else:
            return None
        return f"t.window + {place} + {offset}u" if offset else f"t.window + {place}"

    def _plain_symbol(self, found: Entity, offset: int, name: str) -> str:
        """The address of a variable that is not shared: a char* expression."""
        if isinstance(found, GlobalPlace):
            base = f"(char*){found.cpp}"
        elif isinstance(found, LocalPlace):
            self.usage.flags.add("frame")
            base, offset = "frame", found.offset + offset
        elif isinstance(found, ParameterPlace):
            base, offset = f"(char*){found.buffer}", found.offset + offset
        elif isinstance(found, Undefined):
            raise Unsupported(
                f"variable {name} is defined in another file; modules that must be linked (-rdc=true) are "
                f"not supported"
            )
        else:
            raise Unsupported(f"{name!r} has no address")
        return f"({base} + {offset})" if offset else f"({base})"

    def immediate(self, operand: Operand) -> int:
        """The value of an integer constant."""
        if isinstance(operand, Immediate) and operand.kind == "int":
            return operand.value
        raise Unsupported(f"{self.current.opcode!r} needs a constant here, not {self.text(operand)}")

    # ---- structure of operands

    def vector(self, operand: Operand) -> list[Operand]:
        """The elements of `{a, b}` or of a vector register; an operand by itself is a list of one."""
        if isinstance(operand, Vector):
            return list(operand.elements)
        if isinstance(operand, Name) and not operand.component:
            found = self.names.find(operand.name)
            if isinstance(found, VectorRegister):
                return [Name(operand.name, axis) for axis in found.elements]
        return [operand]

    def pair(self, operand: Operand) -> tuple[Operand, Operand | None]:
        """The two sides of `a|b`; the second is None where there is only one."""
        if isinstance(operand, Pair):
            return operand.first, operand.second
        return operand, None

    # ---- writing

    def assign(self, operand: Operand, type: str, expression: str) -> str:
        """Statement that writes an expression of a PTX type to a register, extended as PTX says where that is
        wider."""
        if isinstance(operand, Sink):
            return f"(void)({expression});"
        register = self.register(operand)
        written, held = SCALARS[type], register.scalar
        if written.cpp == held.cpp:
            return f"{register.cpp} = {expression};"
        if "pred" in (written.kind, held.kind) or 16 in (written.bytes, held.bytes):
            raise Unsupported(
                f"a result of type .{type} does not fit register {self.text(operand)} (.{held.name})"
            )
        if held.floating:
            if written.floating or written.bytes != held.bytes:
                raise Unsupported(
                    f"a result of type .{type} does not fit register {self.text(operand)} (.{held.name})"
                )
            return f"{register.cpp} = bits<{held.cpp}>(({written.cpp})({expression}));"
        if written.floating:
            unsigned = f"uint{8 * written.bytes}_t"
            return f"{register.cpp} = bits<{unsigned}>(({written.cpp})({expression}));"
        extended = f"({held.cpp})(int64_t)" if written.signed else ""
        return f"{register.cpp} = {extended}({written.read_as})({expression});"

    # ---- addresses

    def address(self, operand: Operand, space: str) -> str:
        """`[...]` as a char* expression: where the bytes lie in this process."""
        if space in _SHARED_SPACES:
            return f"(t.shared + (uint32_t)({self.shared_address(operand)}))"
        if not isinstance(operand, Address):
            return f"(char*)({self.value(operand, 'u64')})"
        base, offset = operand.base, operand.offset
        if isinstance(base, Immediate):
            return f"((char*){(base.value + offset) & 0xFFFFFFFFFFFFFFFF}ull)"
        found = self.names.find(base.name)
        if found is None or isinstance(found, Register | VectorRegister):
            return f"(char*)({_plus(self.value(base, 'u64'), offset)})"
        self._check_space(found, space, base.name)
        return self._plain_symbol(found, offset, base.name)

    @staticmethod
    def _check_space(found: Entity, space: str, name: str) -> None:
        """A variable named in an access must lie in the space that the access names."""
        if isinstance(found, GlobalPlace):
            fits = found.space in _NAMED_SPACES.get(space, ())
        elif isinstance(found, ParameterPlace):
            fits = space == "param"
        elif isinstance(found, LocalPlace):
            fits = space == "local"
        else:
            fits = isinstance(found, Undefined)
        if not fits:
            raise Unsupported(f"{name!r} is not in .{space} memory")

    def shared_address(self, operand: Operand) -> str:
        """`[...]` of shared memory as the uint32_t shared address."""
        if not isinstance(operand, Address):
            return f"({self.value(operand, 'u32')})"
        base, offset = operand.base, operand.offset
        if isinstance(base, Immediate):
            return f"{(base.value + offset) & 0xFFFFFFFF}u"
        found = self.names.find(base.name)
        if found is None or isinstance(found, Register | VectorRegister):
            return f"({_plus(self.value(base, 'u32'), offset)})"
        address = self._shared_symbol(found, offset)
        if address is None:
            raise Unsupported(f"{base.name!r} is not in shared memory")
        return f"({address})"


def function_cpp(name: str) -> str:
    """The C++ name of a PTX function."""
    return "f_" + "".join(c if c.isalnum() or c == "_" else f"_{ord(c):x}_" for c in name) + "_f"


def _plus(base: str, offset: int) -> str:
    if not offset:
        return base
    return f"{base} + {offset}" if offset > 0 else f"{base} - {-offset}"


def read_as(expression: str, held: Scalar, wanted: Scalar) -> str:
    """A value of one type read as another.  Narrower: the low bits.  Float and integer of one size: the same
    bits."""
    if held.cpp == wanted.cpp and not wanted.signed:
        return expression
    if "pred" in (held.kind, wanted.kind) or 16 in (held.bytes, wanted.bytes):
        raise Unsupported(f"a value of type .{held.name} cannot be read as .{wanted.name}")
    if not held.floating and not wanted.floating:
        if wanted.bytes > held.bytes and wanted.signed:
            expression = f"(int{8 * held.bytes}_t){expression}"
        return f"({wanted.read_as}){expression}"
    if (held.floating and wanted.floating) or held.bytes < wanted.bytes:
        raise Unsupported(f"a value of type .{held.name} cannot be read as .{wanted.name}")
    if wanted.floating:
        return f"bits<{wanted.cpp}>((uint{8 * wanted.bytes}_t){expression})"
    return f"({wanted.read_as})bits<uint{8 * held.bytes}_t>({expression})"


# ---- literals ----------------------------------------------------------------------------------------------


def literal(constant: Immediate, wanted: Scalar) -> str:
    """A constant as a C++ expression of the wanted type."""
    if wanted.kind == "pred":
        return "true" if constant.value else "false"
    if wanted.floating:
        return _float_literal(_as_float(constant, wanted), wanted)
    if wanted.bytes == 16:
        raise Unsupported("a constant cannot be read as .b128")
    if constant.kind != "int" and 8 * wanted.bytes != int(constant.kind[1:]):
        raise Unsupported(f"a constant of type .{constant.kind} cannot be read as .{wanted.name}")
    return _integer_literal(constant.value, wanted)


_SUFFIXES = {32: "u", 64: "ull"}


def _integer_literal(value: int, wanted: Scalar) -> str:
    bits = 8 * wanted.bytes
    value &= (1 << bits) - 1
    text = str(value) + _SUFFIXES.get(bits, "")
    return f"(({wanted.read_as}){text})" if wanted.signed or bits < 32 else text


def _as_float(constant: Immediate, wanted: Scalar) -> bytes:
    """The constant's bytes in the wanted float type."""
    pattern, size = ("<f", "<I") if wanted.bytes == 4 else ("<d", "<Q")
    if constant.kind == wanted.name:
        return struct.pack(size, constant.value)
    if constant.kind == "int":
        if constant.value:
            raise Unsupported(f"the integer constant {constant.value} cannot be read as .{wanted.name}")
        return struct.pack(size, 0)
    held = struct.pack("<I", constant.value) if constant.kind == "f32" else struct.pack("<Q", constant.value)
    number = struct.unpack("<f" if constant.kind == "f32" else "<d", held)[0]
    try:
        return struct.pack(pattern, number)
    except OverflowError:
        return struct.pack(pattern, float("inf") if number > 0 else float("-inf"))


def _float_literal(data: bytes, wanted: Scalar) -> str:
    value = struct.unpack("<f" if wanted.bytes == 4 else "<d", data)[0]
    if value != value or value in (float("inf"), float("-inf")):
        bits = int.from_bytes(data, "little")
        return f"bits<{wanted.cpp}>((uint{8 * wanted.bytes}_t)0x{bits:x}ull)"
    return (
        f"({value.hex()}{'f' if wanted.bytes == 4 else ''})"
        if value or data[-1]
        else f"0.0{'f' if wanted.bytes == 4 else ''}"
    )
