"""PTX text -> the C++ of a translated module: variables, functions, and the tables of descriptor.h.

    translation = translate(open("kernels.ptx").read())
    translation.cpp, translation.kernels

Raises PtxError for text that is not PTX, TranslationError for what the emulator does not have: all of it at
once, each with the line of the .cu file.  With partial=True kernels that reach something unsupported are left
out, and named in `refused`."""

import json
import re
from dataclasses import dataclass, field

from cuda.nn.emulator.errors import EmulatorError
from cuda.nn.emulator.ptx import parse
from cuda.nn.emulator.ptx.syntax import Declaration, Function, Module
from cuda.nn.emulator.translate import instructions as _rows  # noqa: F401  (enters the rows of every instruction)
from cuda.nn.emulator.translate.emitter import function_cpp
from cuda.nn.emulator.translate.function import SIGNATURE, FunctionTranslator, Output, Problem, Translated
from cuda.nn.emulator.translate.layout import SharedLayout, lay_out_shared, reachable, stack_bytes
from cuda.nn.emulator.translate.names import FunctionName, Names, Symbols, scalar_bytes
from cuda.nn.emulator.translate.sites import SourceLines
from cuda.nn.emulator.translate.table import Unsupported
from cuda.nn.emulator.translate.variables import addresses_taken, declare

_SHOWN = 20  # problems listed in an error


class TranslationError(EmulatorError):
    """The PTX uses what the emulator does not have."""


@dataclass(frozen=True)
class Translation:
    """A module's C++."""

    cpp: str
    kernels: list[str]  # mangled names
    target: str  # "sm_90a"
    files: list[str]  # sources that the sites name
    refused: dict[str, list[str]] = field(default_factory=dict)  # kernels left out (partial=True), and why


def translate(ptx_text: str, *, partial: bool = False) -> Translation:
    """The C++ of a PTX text.  See the top of the file."""
    return ModuleTranslator(parse(ptx_text), partial).translate()


class ModuleTranslator:
    """One module on its way from syntax to C++."""

    def __init__(self, module: Module, partial: bool) -> None:
        self._module, self._partial = module, partial
        self._symbols = Symbols()
        functions = {function.name: function for function in module.functions}
        self._output = Output(_target(module.target), SourceLines(module.files), functions)
        self._functions: dict[str, Translated] = {}
        self._taken: set[str] = set()

    def translate(self) -> Translation:
        self._enter_symbols()
        for function in self._module.functions:
            if function.body is not None:
                translator = FunctionTranslator(function, self._symbols, self._output)
                self._functions[function.name] = translator.translate()
        variables = self._variables()
        refused = self._refused()
        kernels = [name for name, t in self._functions.items() if t.function.is_entry and name not in refused]
        reached = {name: reachable(name, self._functions, self._taken) for name in kernels}
        layout = lay_out_shared(self._symbols.shared, reached, self._functions)
        cpp = self._assembled(variables, kernels, layout, set(refused))
        return Translation(cpp, kernels, self._module.target, self._output.lines.files[1:], refused)

    # ---- symbols

    def _enter_symbols(self) -> None:
        names = self._symbols.names
        for function in self._module.functions:
            names.entities[function.name] = FunctionName(function.name)
        for alias, name in self._module.aliases.items():
            names.entities[alias] = FunctionName(name)
        for declaration in self._module.variables:
            self._enter_variable(declaration, names)

    def _enter_variable(self, declaration: Declaration, names: Names) -> None:
        try:
            known = names.entities.get(declaration.name)
            if known is None or declaration.linkage != "extern":
                names.entities[declaration.name] = self._symbols.variable(declaration)
        except Unsupported as refusal:
            self._output.problems.append(Problem(str(refusal), "", declaration.line, "", 0))

    def _variables(self) -> list[str]:
        names = self._symbols.names
        variables = self._symbols.variables
        self._taken = addresses_taken(variables, names)
        for translated in self._functions.values():
            self._taken |= translated.usage.addresses_taken
        try:
            return declare(variables, names)
        except Unsupported as refusal:
            self._output.problems.append(Problem(str(refusal), "", 0, "", 0))
            return []

    # ---- what is refused

    def _refused(self) -> dict[str, list[str]]:
        """Kernels that cannot be had.  Raises TranslationError unless that was asked for."""
        problems = self._output.problems
        if not problems:
            return {}
        if not self._partial or any(not problem.function for problem in problems):
            raise TranslationError(*_message(problems))
        refused: dict[str, list[str]] = {}
        for name, translated in self._functions.items():
            if not translated.function.is_entry:
                continue
            within = set(reachable(name, self._functions, ()))
            texts = [_line(problem) for problem in problems if problem.function in within]
            if texts:
                refused[name] = texts
        return refused

    # ---- C++

    def _assembled(
        self, variables: list[str], kernels: list[str], layout: SharedLayout, refused: set[str]
    ) -> str:
        shared = [
            f"constexpr uint32_t {variable.cpp} = {offset};    // {variable.declaration.name}"
            for variable, offset in zip(self._symbols.shared, layout.offsets, strict=True)
        ]
        kept = {name: t for name, t in self._functions.items() if name not in refused}
        forward = [f"void {function_cpp(name)}{SIGNATURE};" for name in kept]
        bodies: list[str] = []
        for name, translated in kept.items():
            bodies.extend(_trapping(name) if translated.refused else translated.text)
        tables = [
            *self._site_table(),
            *self._variable_table(),
            *(
                line
                for index, name in enumerate(kernels)
                for line in self._kernel_tables(index, name, layout)
            ),
            *self._kernel_table(kernels, layout),
        ]
        return "\n".join(
            [
                "// Translated from PTX; see cuda/nn/emulator/translate.",
                '#include "device.h"',
                "",
                "namespace emu {",
                "namespace {",
                "",
                *forward,
                *shared,
                *variables,
                "",
                *bodies,
                "",
                *tables,
                "",
                "}  // namespace",
                "",
                self._descriptor(kernels),
                "",
                "}  // namespace emu",
                "",
            ]
        )

    def _site_table(self) -> list[str]:
        rows = [
            f'{{{s.file}, {s.line}, {s.ptx_line}, {s.basic_block}, "{s.opcode}", '
            f"FlopKind::{s.flop_kind}, {s.flops}}},"
            for s in self._output.sites
        ]
        return ["const Site sites[] = {", *(rows or ['{0, 0, 0, 0, "", FlopKind::none, 0},']), "};"]

    def _variable_table(self) -> list[str]:
        rows = [
            f"{{{_quoted(v.declaration.name)}, (uint64_t){v.cpp}, {scalar_bytes(v.declaration)}, "
            f"Space::{'constant' if v.declaration.space == 'const' else 'global'}}},"
            for v in self._symbols.variables
        ]
        return ["const Variable variables[] = {", *(rows or ["{nullptr, 0, 0, Space::global},"]), "};"]

    def _kernel_tables(self, index: int, name: str, layout: SharedLayout) -> list[str]:
        translated = self._functions[name]
        sizes = [scalar_bytes(parameter) for parameter in translated.function.parameters]
        shared = [self._shared_row(number, layout) for number in layout.used.get(name, [])]
        return [
            f"const uint32_t offsets_{index}[] = {{{_listed(translated.parameter_offsets)}}};",
            f"const uint32_t sizes_{index}[] = {{{_listed(sizes)}}};",
            f"const Variable shared_{index}[] = {{{', '.join(shared) or '{nullptr, 0, 0, Space::shared}'}}};",
        ]

    def _shared_row(self, number: int, layout: SharedLayout) -> str:
        declaration = self._symbols.shared[number].declaration
        place = f"{layout.offsets[number]}, {scalar_bytes(declaration)}"
        return f"{{{_quoted(declaration.name)}, {place}, Space::shared}}"

    def _kernel_table(self, kernels: list[str], layout: SharedLayout) -> list[str]:
        rows = [self._kernel_row(index, name, layout) for index, name in enumerate(kernels)]
        return ["const KernelDescriptor kernels[] = {", *(rows or ["{},"]), "};"]

    def _kernel_row(self, index: int, name: str, layout: SharedLayout) -> str:
        translated = self._functions[name]
        function = translated.function
        count = len(function.parameters)
        stack = stack_bytes(name, self._functions, self._taken)
        fields = [
            _quoted(name),
            f"&{function_cpp(name)}",
            str(count),
            f"offsets_{index}",
            f"sizes_{index}",
            str(translated.parameter_bytes),
            str(layout.declared_bytes.get(name, 0)),
            str(layout.dynamic_offset[name]),
            f"shared_{index}",
            str(len(layout.used.get(name, []))),
            str(stack),
            _triple(function, "maxntid"),
            _triple(function, "reqntid"),
            _triple(function, "reqnctapercluster"),
            str(self._output.basic_blocks),
        ]
        return f"{{{', '.join(fields)}}},"

    def _descriptor(self, kernels: list[str]) -> str:
        files = self._output.lines.files
        return "\n".join(
            [
                f"static const char* const files[] = {{{', '.join(map(_quoted, files))}}};",
                'extern "C" __attribute__((visibility("default"))) const ModuleDescriptor emu_module = {',
                f"DESCRIPTOR_VERSION, EMU_HOOKS, {_quoted(self._module.target)}, files, {len(files)}, sites, "
                f"{len(self._output.sites)},",
                f"kernels, {len(kernels)}, variables, {len(self._symbols.variables)},",
                "};",
            ]
        )


def _trapping(name: str) -> list[str]:
    """A device function that could not be translated: only a call through a pointer can reach it."""
    return [f"void {function_cpp(name)}{SIGNATURE} {{ trap(t, 0); }}"]


def _target(text: str) -> tuple[int, str]:
    match = re.fullmatch(r"(?:sm|compute)_(\d+)([a-z]?)", text)
    if match is None:
        raise TranslationError(f".target {text} is not one that the emulator knows")
    return int(match[1]), match[2]


def _triple(function: Function, directive: str) -> str:
    """x, y, z of a directive; where it is given, what it leaves out is 1."""
    values = function.directives.get(directive, ())
    filled = [*values, 1, 1][:3] if values else [0, 0, 0]
    return f"{{{_listed(filled)}}}"


def _listed(values: list[int]) -> str:
    return ", ".join(map(str, values)) or "0"


def _quoted(text: str) -> str:
    """A C++ string literal."""
    return json.dumps(text, ensure_ascii=False)


# ---- messages ----------------------------------------------------------------------------------------------


def _line(problem: Problem) -> str:
    place = f"{problem.file}:{problem.line}: " if problem.file and problem.line else ""
    inside = f", in {problem.function}" if problem.function else ""
    return f"{place}{problem.message} (PTX line {problem.ptx_line}{inside})"


def _message(problems: list[Problem]) -> tuple[str, str]:
    """The first line, and the others where there are several; equal messages of one source line are told
    once."""
    lines: dict[tuple[str, str, int], str] = {}
    for problem in problems:
        lines.setdefault((problem.message, problem.file, problem.line), _line(problem))
    texts = list(lines.values())
    if len(texts) == 1:
        return texts[0], ""
    more = [f"... and {len(texts) - _SHOWN} more"] if len(texts) > _SHOWN else []
    return f"{len(texts)} things in these kernels are not supported; the first: {texts[0]}", "\n".join(
        texts[1:_SHOWN] + more
    )
