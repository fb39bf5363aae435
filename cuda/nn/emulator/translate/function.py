"""One PTX function -> one C++ function: declarations, scopes, labels, guards, basic blocks around what the
table's rows return.

    void f_name(Thread& t, const char* parameters, char* result) {
        uint32_t r1_, r2_;               // every register that occurs: goto must not cross an initialisation
        EMU_EXECUTE(t, 0);               // counts the basic block
        r1_ = load<uint32_t>(parameters + 8);
        if (p1_) { step(t, 7); goto L_loop; }
        ..."""

import inspect
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache

from cuda.nn.emulator.ptx.syntax import (
    Declaration,
    Function,
    Instruction,
    LabelDefinition,
    Location,
    Name,
    Scope,
    Statement,
)
from cuda.nn.emulator.ptx.types import SCALARS
from cuda.nn.emulator.translate.accumulators import early_uses
from cuda.nn.emulator.translate.emitter import Emitter, Usage, function_cpp
from cuda.nn.emulator.translate.names import (
    Collector,
    Names,
    ParameterPlace,
    Symbols,
    Variable,
    lay_out,
    natural_alignment,
    scalar_bytes,
)
from cuda.nn.emulator.translate.products import merge_products
from cuda.nn.emulator.translate.sites import Site, SourceLines
from cuda.nn.emulator.translate.table import Unsupported, find

SIGNATURE = "(Thread& t, const char* parameters, char* result)"
# After these, what follows without a label is a new basic block.
_ENDS_BLOCK = frozenset({"bra", "brx", "ret", "exit", "trap"})


@dataclass(frozen=True)
class Problem:
    """An instruction or declaration that the translator refuses."""

    message: str
    function: str
    ptx_line: int
    file: str
    line: int


@dataclass
class Output:
    """What grows with every function of a module."""

    target: tuple[int, str]
    lines: SourceLines
    functions: dict[str, Function]  # declared and defined
    sites: list[Site] = field(default_factory=list)
    basic_blocks: int = 0
    problems: list[Problem] = field(default_factory=list)


@dataclass
class Translated:
    """One function's C++ and what its module must know of it."""

    function: Function
    text: list[str]
    usage: Usage
    frame_bytes: int
    registers: int
    parameter_offsets: list[int]
    parameter_bytes: int
    refused: bool = False
    statics: list[Variable] = field(default_factory=list)


class FunctionTranslator:
    """Translates one function; the result is in `translated`."""

    def __init__(self, function: Function, symbols: Symbols, output: Output) -> None:
        self._function, self._output = function, output
        self._text: list[str] = []
        self._block_pending = True
        self._where = (0, 0)  # file and line of the last .loc
        self._collector = Collector(symbols, function.name)
        self._outermost = Names(symbols.names)
        self._register_parameters: list[tuple[Declaration, int]] = []
        self._e = Emitter(output.target, symbols, self._outermost, function, output.functions)
        self._early: dict[int, Instruction] = {}  # instructions that use a wgmma's result too early
        self._numbers: dict[int, int] = {}  # sites by id() of the instruction

    def translate(self) -> Translated:
        function = self._function
        assert function.body is not None
        self._output.lines.begin_function()
        before = len(self._output.problems)
        offsets, total = lay_out(function.parameters)
        names = Names(self._outermost)
        try:
            self._enter_parameters(offsets)
            names = self._collector.collect(function.body, self._outermost)
        except Unsupported as refusal:
            self._refuse(str(refusal), function.line)
        else:
            self._load_register_parameters()
            self._early = early_uses(function)
            self._scope(function.body, names)
        return Translated(
            function,
            self._assembled(),
            self._e.usage,
            self._collector.frame_bytes,
            self._collector.registers,
            offsets,
            total,
            refused=len(self._output.problems) > before,
        )

    # ---- parameters

    def _enter_parameters(self, offsets: list[int]) -> None:
        for declaration, offset in zip(self._function.parameters, offsets, strict=True):
            self._enter_parameter(declaration, "parameters", offset)
        if len(self._function.results) > 1:
            raise Unsupported(f"function {self._function.name} returns several values")
        for declaration in self._function.results:
            self._enter_parameter(declaration, "result", 0)

    def _enter_parameter(self, declaration: Declaration, buffer: str, offset: int) -> None:
        if declaration.space == "reg":
            self._collector.declare(declaration, self._outermost)
            if buffer == "parameters":
                self._register_parameters.append((declaration, offset))
            return
        if declaration.count is None:
            raise Unsupported(
                f"parameter {declaration.name} has no size: variadic functions are not supported"
            )
        place = ParameterPlace(buffer, offset, scalar_bytes(declaration))
        self._outermost.entities[declaration.name] = place

    def _load_register_parameters(self) -> None:
        for declaration, offset in self._register_parameters:
            cpp = SCALARS[declaration.type].cpp
            self._line(
                self._e.assign(
                    Name(declaration.name), declaration.type, f"load<{cpp}>(parameters + {offset})"
                )
            )

    # ---- statements

    def _scope(self, scope: Scope, names: Names) -> None:
        outer, self._e.names = self._e.names, names
        inner = iter(names.inner)
        for statement in scope.statements:
            self._e.position += 1
            if isinstance(statement, Instruction):
                self._instruction(statement)
            elif isinstance(statement, Location):
                where = self._output.lines.enter(statement)
                self._where = where if where[1] else self._where
            elif isinstance(statement, Scope):
                self._line("{")
                self._scope(statement, next(inner))
                self._line("}")
            else:
                self._other(statement, names)
        self._e.names = outer

    def _other(self, statement: Statement, names: Names) -> None:
        if isinstance(statement, LabelDefinition):
            self._line(f"{self._e.label(Name(statement.name)).cpp}:;")
            self._block_pending = True
        elif isinstance(statement, Declaration) and statement.space == "param":
            place = names.entities[statement.name]
            assert isinstance(place, ParameterPlace)
            alignment = max(8, natural_alignment(statement))
            self._line(f"alignas({alignment}) char {place.buffer}[{max(1, place.bytes)}];")
            self._e.usage.call_bytes += place.bytes

    def _instruction(self, instruction: Instruction) -> None:
        output, e = self._output, self._e
        if self._block_pending:
            self._new_block()
        file, line = self._where
        site = Site(file, line, instruction.line, output.basic_blocks - 1, instruction.spelling)
        e.current, e.site_number = site, len(output.sites)
        output.sites.append(site)
        self._numbers[id(instruction)] = e.site_number
        try:
            code = translate_instruction(e, instruction)
            if product := self._early.get(id(instruction)):
                code = (
                    f"wgmma_early_use(t, {self._numbers.get(id(product), e.site_number)}, {e.site()}); {code}"
                )
            if instruction.guard:
                code = self._guarded(instruction, site, code)
        except Unsupported as refusal:
            self._refuse(str(refusal), instruction.line)
            return
        self._line(code)
        if instruction.opcode in _ENDS_BLOCK:
            self._block_pending = True

    def _guarded(self, instruction: Instruction, site: Site, code: str) -> str:
        """An instruction under a predicate counts by itself; a branch counts with its block, as it is always
        issued."""
        condition = self._e.value(Name(instruction.guard), "pred")
        if instruction.guard_negated:
            condition = f"!{condition}"
        if instruction.opcode in _ENDS_BLOCK:
            return f"if ({condition}) {{ {code} }}"
        site.basic_block = self._output.basic_blocks
        self._output.basic_blocks += 1
        self._block_pending = True
        return f"if ({condition}) {{ EMU_EXECUTE(t, {site.basic_block}); {code} }}"

    def _new_block(self) -> None:
        self._line(f"EMU_EXECUTE(t, {self._output.basic_blocks});")
        self._output.basic_blocks += 1
        self._block_pending = False

    def _line(self, text: str) -> None:
        self._text.append(text)

    def _refuse(self, message: str, ptx_line: int) -> None:
        file, line = self._where
        name = self._output.lines.files[file]
        self._output.problems.append(Problem(message, self._function.name, ptx_line, name, line))

    # ---- the whole

    def _assembled(self) -> list[str]:
        """Declarations at the top, then the statements."""
        usage = self._e.usage
        head = [f"void {function_cpp(self._function.name)}{SIGNATURE} {{    // {self._function.name}"]
        by_type: dict[str, list[str]] = {}
        for cpp, scalar in usage.registers.items():
            by_type.setdefault(scalar.cpp, []).append(cpp)
        for cpp_type, names in by_type.items():
            # A bool that holds neither 0 nor 1 would be two values at once.
            initial = " = false" if cpp_type == "bool" else ""
            head.append(f"{cpp_type} {', '.join(name + initial for name in names)};")
        if "carry" in usage.flags:
            head.append("bool carry_ = false;")
        if "alloca" in usage.flags:
            head.append("const FrameMark mark_(t);")
        if "frame" in usage.flags and self._collector.frame_bytes:
            head.append(f"alignas(16) char frame[{self._collector.frame_bytes}];")
            head.append(f"EMU_FRAME(t, frame, {self._collector.frame_bytes});")
        return [*head, *merge_products(self._text), "}"]


def translate_instruction(e: Emitter, instruction: Instruction) -> str:
    """The C++ of one instruction without its guard.  Raises Unsupported."""
    row, modifiers = find(instruction.opcode, instruction.modifiers)
    fewest, most = _operand_counts(row.translate)
    given = len(instruction.operands)
    if not fewest <= given <= most:
        wanted = str(fewest) if fewest == most else f"{fewest} to {most}"
        raise Unsupported(
            f"{instruction.spelling!r} with {given} operands is not supported (it takes {wanted})"
        )
    return row.translate(e, modifiers, *instruction.operands)


@cache
def _operand_counts(translate: Callable[..., str]) -> tuple[int, int]:
    """How few and how many operands a row takes besides (emitter, modifiers)."""
    parameters = list(inspect.signature(translate).parameters.values())[2:]
    if any(parameter.kind is parameter.VAR_POSITIONAL for parameter in parameters):
        return sum(p.kind is p.POSITIONAL_OR_KEYWORD and p.default is p.empty for p in parameters), 1 << 10
    needed = sum(parameter.default is parameter.empty for parameter in parameters)
    return needed, len(parameters)
