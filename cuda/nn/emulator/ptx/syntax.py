"""What the parser makes of PTX: dataclasses of a module, its functions and variables, their statements and
operands.

Names are as written.  Nothing is resolved here: which register, label or symbol a name means depends on the
scope, and is the translator's business (translate/emitter.py)."""

from dataclasses import dataclass, field

# ---- operands ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Name:
    """A register, special register, variable, function, label or parameter; `component` is the x of
    %tid.x."""

    name: str
    component: str = ""


@dataclass(frozen=True)
class Immediate:
    """A constant.  `kind` says how it was written: int, f32 (0f3F800000), f64 (0d... or 1.5).  Floats are
    kept as their bits."""

    value: int
    kind: str = "int"
    unsigned: bool = False


@dataclass(frozen=True)
class SymbolOffset:
    """`symbol+4`: an address constant.  `generic` for generic(symbol), `mask` for 0xFF00(symbol) in
    initialisers."""

    name: str
    offset: int = 0
    generic: bool = False
    mask: int = 0


@dataclass(frozen=True)
class Vector:
    """`{a, b}`."""

    elements: tuple["Operand", ...]


@dataclass(frozen=True)
class Address:
    """`[base+offset]`, or `[base, {c0, c1}]` with coordinates of a tensor (also `[base, {..}, {..}]`)."""

    base: "Name | Immediate"
    offset: int = 0
    coordinates: tuple["Operand", ...] = ()


@dataclass(frozen=True)
class Pair:
    """`a|b`: a destination and a second one."""

    first: "Operand"
    second: "Operand"


@dataclass(frozen=True)
class Negated:
    """`!p` (predicates)  or `-r` (`minus`)."""

    operand: "Operand"
    minus: bool = False


@dataclass(frozen=True)
class Sink:
    """`_`: a result that nobody wants, or an operand left out."""


@dataclass(frozen=True)
class Group:
    """`(a, b)`: the arguments or results of a call."""

    elements: tuple["Operand", ...]


Operand = Name | Immediate | SymbolOffset | Vector | Address | Pair | Negated | Sink | Group


# ---- statements --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Location:
    """A .loc: where the next instructions come from.  `inlined_at` is the position of the call that was
    inlined."""

    file: int
    line: int
    column: int
    inlined_at: tuple[int, int, int] | None = None


@dataclass
class Declaration:
    """A variable or parameter: `.shared .align 16 .b8 tile[1024]`.  `count` None for `[]`."""

    space: str  # reg, local, shared, global, const, param, tex
    type: str
    name: str
    line: int
    alignment: int = 0  # 0: that of the type
    vector: int = 1  # .v2, .v4
    count: int | None = 1  # elements; 1 for a scalar
    is_array: bool = False
    range: int = 0  # N of %r<N>
    linkage: str = ""  # extern, visible, weak, common
    initializer: tuple[Operand, ...] | None = None  # flat, by element
    initializer_shape: tuple[int, ...] = ()
    attributes: tuple[str, ...] = ()


@dataclass
class Instruction:
    """`@p ld.global.f32 %f1, [%rd1];`"""

    opcode: str
    modifiers: tuple[str, ...]
    operands: tuple[Operand, ...]
    line: int
    guard: str = ""  # the predicate register
    guard_negated: bool = False

    @property
    def spelling(self) -> str:
        return ".".join((self.opcode, *self.modifiers))


@dataclass
class LabelDefinition:
    name: str
    line: int


@dataclass
class TargetList:
    """`name: .branchtargets L1, L2;` or `.calltargets f, g;`."""

    name: str
    kind: str  # branchtargets, calltargets
    targets: tuple[str, ...]
    line: int


@dataclass
class Prototype:
    """`name: .callprototype (.param .b32 _) _ (.param .b64 _);`"""

    name: str
    results: list[Declaration]
    parameters: list[Declaration]
    line: int
    no_return: bool = False


@dataclass
class Scope:
    """`{ ... }`: its registers, labels and parameters are its own."""

    statements: list["Statement"] = field(default_factory=list)


Statement = Declaration | Instruction | LabelDefinition | TargetList | Prototype | Location | Scope


# ---- module ------------------------------------------------------------------------------------------------


@dataclass
class Function:
    """An .entry (kernel) or a .func.  `body` None for a declaration only."""

    name: str
    is_entry: bool
    line: int
    results: list[Declaration]
    parameters: list[Declaration]
    body: Scope | None
    linkage: str = ""
    directives: dict[str, tuple[int, ...]] = field(
        default_factory=dict
    )  # maxntid, reqntid, minnctapersm, ...


@dataclass
class Module:
    """A whole PTX text."""

    version: tuple[int, int] = (0, 0)
    target: str = ""  # "sm_90a"
    files: dict[int, str] = field(default_factory=dict)  # of .file
    variables: list[Declaration] = field(default_factory=list)
    functions: list[Function] = field(default_factory=list)
    aliases: dict[str, str] = field(default_factory=dict)
