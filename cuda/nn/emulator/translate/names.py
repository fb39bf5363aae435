"""What the names of a module and of a function mean, scope by scope: registers, labels, parameters,
variables, functions.

Inline assembly opens scopes of its own (`{ .reg .b32 t; again: ... }`), so each register and label gets a C++
name that is unique in its function.  Registers end in `_` or `_<scope>`, which nothing else in the generated
code does."""

import re
from collections.abc import Iterable
from dataclasses import dataclass, field

from cuda.nn.emulator.ptx.syntax import Declaration, LabelDefinition, Prototype, Scope, TargetList
from cuda.nn.emulator.ptx.types import SCALARS, Scalar
from cuda.nn.emulator.translate.table import Unsupported

MAX_REGISTERS = 1 << 20  # of one function: hundreds of times what nvcc writes
MAX_LOCAL = 512 << 10  # bytes of local memory per thread, as on the hardware
MAX_GLOBAL = 1 << 30  # bytes of variables of a module: what the host's compiler can address with ease
SYSTEM = "(system)"  # owner of shared memory that the program did not declare


@dataclass
class Register:
    cpp: str
    scalar: Scalar


@dataclass
class VectorRegister:
    """`.reg .v4 .f32 q`: q.x, q.y, q.z, q.w."""

    elements: dict[str, Register]


@dataclass
class ParameterPlace:
    """Bytes in a parameter buffer: of this function's parameters, of its result, or of a call that is being
    prepared."""

    buffer: str  # C++ expression of a char*
    offset: int
    bytes: int


@dataclass
class LocalPlace:
    """A local variable: where in the function's frame."""

    offset: int


@dataclass
class SharedPlace:
    """A static shared variable.  `constant` names the C++ constant of its offset, known when the whole module
    is laid out."""

    number: int  # among the module's shared variables
    constant: str


@dataclass
class DynamicShared:
    """`extern __shared__`: begins where the kernel's static variables end.  Several names mean the same
    bytes."""

    alignment: int


@dataclass
class GlobalPlace:
    """A variable in global or constant memory: a C++ array."""

    cpp: str
    space: str  # global, const


@dataclass
class FunctionName:
    name: str


@dataclass
class Undefined:
    """A variable that another module would have to define."""

    name: str


@dataclass
class Label:
    cpp: str
    position: int  # number of the statement at which it stands


Entity = (
    Register
    | VectorRegister
    | ParameterPlace
    | LocalPlace
    | SharedPlace
    | DynamicShared
    | GlobalPlace
    | FunctionName
    | Undefined
    | Label
    | TargetList
    | Prototype
)


@dataclass
class Names:
    """One scope: what it declares, and the scope around it."""

    outer: "Names | None" = None
    entities: dict[str, Entity] = field(default_factory=dict)
    inner: "list[Names]" = field(default_factory=list)  # in the order of the text

    def find(self, name: str) -> Entity | None:
        scope: Names | None = self
        while scope is not None:
            found = scope.entities.get(name)
            if found is not None:
                return found
            scope = scope.outer
        return None


@dataclass
class Variable:
    """A variable of the module: global, constant or static shared, wherever it was declared."""

    declaration: Declaration
    cpp: str  # the C++ array, or for a shared variable the constant of its offset
    owner: str = ""  # the function that declares it; "" for the module, SYSTEM for the system


@dataclass
class Symbols:
    """All variables of a module and its outermost scope."""

    names: Names = field(default_factory=Names)
    variables: list[Variable] = field(default_factory=list)  # global and const
    shared: list[Variable] = field(default_factory=list)
    global_bytes: int = 0
    _reserved: SharedPlace | None = None

    def reserved(self) -> SharedPlace:
        """The shared memory that the system keeps for cooperative groups: 288 bytes at
        %reserved_smem_offset_1."""
        if self._reserved is None:
            name = "(reserved for cooperative groups)"
            place = self.variable(Declaration("shared", "b8", name, 0, alignment=16, count=288), SYSTEM)
            assert isinstance(place, SharedPlace)
            self._reserved = place
        return self._reserved

    def variable(self, declaration: Declaration, owner: str = "") -> Entity:
        """Enter a variable.  Raises Unsupported for a state space that the emulator does not have."""
        space = declaration.space
        if space == "shared" and declaration.count is None:
            return DynamicShared(natural_alignment(declaration))
        if space == "shared":
            number = len(self.shared)
            self.shared.append(Variable(declaration, f"S{number}", owner))
            return SharedPlace(number, f"S{number}")
        if space not in ("global", "const"):
            raise Unsupported(f"variable {declaration.name}: .{space} variables are not supported")
        if declaration.linkage == "extern":
            return Undefined(declaration.name)
        self.global_bytes += scalar_bytes(declaration)
        if self.global_bytes > MAX_GLOBAL:
            raise Unsupported(
                f"variable {declaration.name}: more than {MAX_GLOBAL:,} bytes of variables in a module"
            )
        cpp = f"G{len(self.variables)}"
        self.variables.append(Variable(declaration, cpp, owner))
        return GlobalPlace(cpp, space)


def scalar_bytes(declaration: Declaration) -> int:
    """Bytes of a declared variable; 0 for an array without a size."""
    return SCALARS[declaration.type].bytes * declaration.vector * (declaration.count or 0)


def natural_alignment(declaration: Declaration) -> int:
    return declaration.alignment or max(1, SCALARS[declaration.type].bytes * declaration.vector)


def lay_out(declarations: Iterable[Declaration]) -> tuple[list[int], int]:
    """Offsets of parameters in their buffer, and its size."""
    offsets, at = [], 0
    for declaration in declarations:
        alignment = natural_alignment(declaration)
        at = -(-at // alignment) * alignment
        offsets.append(at)
        at += scalar_bytes(declaration)
    return offsets, at


class Collector:
    """The first walk over a function: enters every declaration and label, so that the second walk finds
    them."""

    def __init__(self, symbols: Symbols, owner: str) -> None:
        self.frame_bytes = 0
        self.registers = 0
        self._symbols, self._owner = symbols, owner
        self._position = 0
        self._scopes = 0
        self._taken = {"carry_", "frame_", "mark_"}  # of function.py and EMU_FRAME

    def collect(self, scope: Scope, outer: Names) -> Names:
        """The names of a scope and of those within."""
        names = Names(outer)
        number = self._scopes
        self._scopes += 1
        for statement in scope.statements:
            self._position += 1
            if isinstance(statement, Scope):
                names.inner.append(self.collect(statement, names))
            elif isinstance(statement, Declaration):
                self.declare(statement, names, number)
            elif isinstance(statement, LabelDefinition):
                cpp = self._unique(f"L_{_identifier(statement.name)}")
                names.entities[statement.name] = Label(cpp, self._position)
            elif isinstance(statement, TargetList | Prototype):
                names.entities[statement.name] = statement
        return names

    def declare(self, declaration: Declaration, names: Names, number: int = 0) -> None:
        """Enter one declaration of the scope with this number."""
        if declaration.space == "reg":
            self._registers(declaration, names, f"_{number}" if number else "_")
        elif declaration.space == "local":
            names.entities[declaration.name] = self._local(declaration)
        elif declaration.space == "param":
            buffer = self._unique(f"a_{_identifier(declaration.name)}_{number}")
            names.entities[declaration.name] = ParameterPlace(buffer, 0, scalar_bytes(declaration))
        else:
            names.entities[declaration.name] = self._symbols.variable(declaration, self._owner)

    def _registers(self, declaration: Declaration, names: Names, suffix: str) -> None:
        scalar = SCALARS[declaration.type]
        count = declaration.range
        if count + self.registers > MAX_REGISTERS:
            raise Unsupported(
                f"{declaration.name}<{count}>: more than {MAX_REGISTERS:,} registers in one function"
            )
        spelled = [f"{declaration.name}{i}" for i in range(count)] if count else [declaration.name]
        self.registers += len(spelled) * declaration.vector
        for name in spelled:
            cpp = self._unique(f"{_identifier(name)}{suffix}")
            if declaration.vector == 1:
                names.entities[name] = Register(cpp, scalar)
            else:
                axes = "xyzw"[: declaration.vector]
                names.entities[name] = VectorRegister(
                    {axis: Register(f"{cpp}{axis}", scalar) for axis in axes}
                )

    def _local(self, declaration: Declaration) -> LocalPlace:
        alignment = natural_alignment(declaration)
        begin = -(-self.frame_bytes // alignment) * alignment
        self.frame_bytes = begin + scalar_bytes(declaration)
        if self.frame_bytes > MAX_LOCAL:
            raise Unsupported(f"{declaration.name}: more than {MAX_LOCAL:,} bytes of local memory per thread")
        return LocalPlace(begin)

    def _unique(self, cpp: str) -> str:
        while cpp in self._taken:
            cpp += "x"
        self._taken.add(cpp)
        return cpp


def _identifier(name: str) -> str:
    return re.sub(r"\W", "_", name.lstrip("%"))
