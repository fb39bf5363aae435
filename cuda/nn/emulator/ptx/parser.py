"""PTX text -> Module.

    >>> module = parse(open("kernels.ptx").read())
    >>> [function.name for function in module.functions if function.is_entry]

Raises PtxError, with line and column, at whatever is not PTX.  DWARF sections are skipped."""

from cuda.nn.emulator.ptx.declarations import declarations, parameter
from cuda.nn.emulator.ptx.reader import Reader
from cuda.nn.emulator.ptx.syntax import (
    Declaration,
    Function,
    Group,
    Instruction,
    LabelDefinition,
    Location,
    Module,
    Operand,
    Prototype,
    Scope,
    Statement,
    TargetList,
)
from cuda.nn.emulator.ptx.tokens import PtxError, tokenize

_LINKAGE = {".extern": "extern", ".visible": "visible", ".weak": "weak", ".common": "common"}
_SPACES = frozenset({".reg", ".local", ".shared", ".global", ".const", ".param", ".tex"})
_LIMITS = frozenset(
    {
        ".maxntid",
        ".reqntid",
        ".minnctapersm",
        ".maxnctapersm",
        ".maxnreg",
        ".reqnctapercluster",
        ".maxclusterrank",
        ".explicitcluster",
        ".noreturn",
        ".abi_preserve",
        ".abi_preserve_control",
        ".blocksareclusters",
    }
)


def parse(text: str) -> Module:
    """The module that a PTX text describes."""
    reader = Reader(tokenize(text.rstrip("\0")))
    module = Module()
    try:
        while reader.token.kind != "end":
            _module_statement(reader, module)
    except RecursionError:
        raise reader.error("nested too deeply") from None
    if not module.target:
        raise reader.error("no .target: this is not a PTX module")
    return module


def _module_statement(reader: Reader, module: Module) -> None:
    token = reader.token
    if token.text in _MODULE_DIRECTIVES:
        reader.advance()
        _MODULE_DIRECTIVES[token.text](reader, module)
        return
    linkage = ""
    while reader.token.text in _LINKAGE:
        linkage = _LINKAGE[reader.advance().text]
    text = reader.token.text
    if text in (".entry", ".func"):
        _add_function(module, _function(reader, linkage))
    elif text in _SPACES:
        module.variables.extend(declarations(reader, linkage))
    elif not reader.accept(";"):
        raise reader.error(f"expected a directive of a PTX module, found {text!r}")


# ---- module directives -------------------------------------------------------------------------------------


def _version(reader: Reader, module: Module) -> None:
    token = reader.advance()
    major, _, minor = token.text.partition(".")
    if not (major.isdigit() and minor.isdigit()):
        raise reader.error(f"expected a version such as 9.0, found {token.text!r}", token)
    module.version = (int(major), int(minor))


def _target(reader: Reader, module: Module) -> None:
    module.target = reader.name("a target such as sm_80")
    while reader.accept(","):
        reader.name("a target option")


def _address_size(reader: Reader, module: Module) -> None:
    token = reader.token
    if reader.integer("64") != 64:
        raise reader.error("only .address_size 64 is supported", token)


def _file(reader: Reader, module: Module) -> None:
    number = reader.integer("the number of a file")
    token = reader.advance()
    if token.kind != "string":
        raise reader.error(f"expected the name of a file in quotes, found {token.text!r}", token)
    module.files[number] = _unquote(token.text)
    while reader.accept(","):
        reader.integer()


def _section(reader: Reader, module: Module) -> None:
    """Debug information: balanced braces, contents of no interest."""
    reader.advance()
    reader.expect("{")
    depth = 1
    while depth:
        depth += {"{": 1, "}": -1}.get(reader.advance().text, 0)


def _alias(reader: Reader, module: Module) -> None:
    name = reader.name("a function")
    reader.expect(",")
    module.aliases[name] = reader.name("a function")
    reader.expect(";")


def _pragma(reader: Reader, module: Module | None = None) -> None:
    while True:
        token = reader.advance()
        if token.kind != "string":
            raise reader.error(f"expected a pragma in quotes, found {token.text!r}", token)
        if not reader.accept(","):
            break
    reader.expect(";")


_MODULE_DIRECTIVES = {
    ".version": _version,
    ".target": _target,
    ".address_size": _address_size,
    ".file": _file,
    ".section": _section,
    ".alias": _alias,
    ".pragma": _pragma,
}


def _unquote(text: str) -> str:
    return text[1:-1].replace('\\"', '"').replace("\\\\", "\\")


# ---- functions ---------------------------------------------------------------------------------------------


def _function(reader: Reader, linkage: str) -> Function:
    first = reader.advance()
    directives: dict[str, tuple[int, ...]] = {}
    _limits(reader, directives)
    results = _parameters(reader) if reader.token.text == "(" else []
    name = reader.name("the name of a function")
    parameters = _parameters(reader) if reader.token.text == "(" else []
    _limits(reader, directives)
    body = None
    if reader.accept("{"):
        body = _scope(reader)
    else:
        reader.expect(";")
    return Function(name, first.text == ".entry", first.line, results, parameters, body, linkage, directives)


def _parameters(reader: Reader) -> list[Declaration]:
    reader.expect("(")
    found: list[Declaration] = []
    while not reader.accept(")"):
        found.append(parameter(reader))
        if reader.token.text != ")":
            reader.expect(",")
    return found


def _limits(reader: Reader, directives: dict[str, tuple[int, ...]]) -> None:
    """Performance directives: .maxntid 128, 1, 1 and their like."""
    while reader.token.kind == "directive":
        token = reader.advance()
        if token.text == ".pragma":
            _pragma(reader)
            continue
        if token.text == ".attribute":
            reader.group_of_directives()
            continue
        if token.text not in _LIMITS:
            raise reader.error(f"unknown directive {token.text!r} of a function", token)
        values = []
        while reader.token.kind == "number":
            values.append(reader.integer())
            if not reader.accept(","):
                break
        directives[token.text[1:]] = tuple(values)


def _add_function(module: Module, function: Function) -> None:
    """A definition replaces the declarations before it."""
    for index, known in enumerate(module.functions):
        if known.name == function.name:
            if known.body is None:
                module.functions[index] = function
            elif function.body is not None:
                raise PtxError(f"PTX line {function.line}: function {function.name} is defined twice")
            return
    module.functions.append(function)


# ---- statements --------------------------------------------------------------------------------------------


def _scope(reader: Reader) -> Scope:
    """The statements up to and including the closing brace; the opening one is read."""
    scope = Scope()
    statements = scope.statements
    while True:
        kind, text, _, _ = reader.token
        if kind == "name" or text == "@":
            statements.append(_named_statement(reader))
        elif text == "}":
            reader.advance()
            return scope
        elif text == "{":
            reader.advance()
            statements.append(_scope(reader))
        elif kind == "directive":
            statements.extend(_directive(reader))
        elif not reader.accept(";"):
            raise reader.error(f"expected an instruction, found {text!r}")


def _directive(reader: Reader) -> list[Statement]:
    text = reader.token.text
    if text == ".loc":
        return [_location(reader)]
    if text == ".pragma":
        reader.advance()
        _pragma(reader)
        return []
    linkage = ""
    if text in _LINKAGE:
        linkage = _LINKAGE[reader.advance().text]
    if reader.token.text in _SPACES:
        return list(declarations(reader, linkage))
    raise reader.error(f"unknown directive {text!r} in a function")


def _location(reader: Reader) -> Location:
    """`.loc 2 107 3, function_name $L__info_string0, inlined_at 1 26 30`: no semicolon ends it."""
    reader.advance()
    file, line, column = (reader.plain() for _ in range(3))
    inlined_at = None
    while reader.accept(","):
        word = reader.name("function_name or inlined_at")
        if word == "inlined_at":
            inlined_at = (reader.plain(), reader.plain(), reader.plain())
        elif word == "function_name":
            reader.name("a label")
            if reader.accept("+"):
                reader.plain()
        else:
            raise reader.error(f"unknown word {word!r} in .loc")
    return Location(file, line, column, inlined_at)


def _named_statement(reader: Reader) -> Statement:
    """An instruction, or a label, or a list of targets with its name."""
    token = reader.token
    if token.text != "@" and reader.tokens[reader.at + 1].text == ":":
        reader.at += 2
        following = reader.token.text
        if following == ".callprototype":
            return _prototype(reader, token.text)
        if following in (".branchtargets", ".calltargets"):
            return _targets(reader, token.text)
        return LabelDefinition(token.text, token.line)
    return _instruction(reader)


def _targets(reader: Reader, name: str) -> TargetList:
    token = reader.advance()
    targets = [reader.name("a target")]
    while reader.accept(","):
        targets.append(reader.name("a target"))
    reader.expect(";")
    return TargetList(name, token.text[1:], tuple(targets), token.line)


def _prototype(reader: Reader, name: str) -> Prototype:
    token = reader.advance()
    results = _parameters(reader) if reader.token.text == "(" else []
    reader.name("_ for the function's name")
    parameters = _parameters(reader) if reader.token.text == "(" else []
    directives: dict[str, tuple[int, ...]] = {}
    _limits(reader, directives)
    reader.expect(";")
    return Prototype(name, results, parameters, token.line, "noreturn" in directives)


def _instruction(reader: Reader) -> Instruction:
    guard, negated = "", False
    if reader.accept("@"):
        negated = reader.accept("!")
        guard = reader.name("a predicate register")
    token = reader.token
    opcode, *modifiers = reader.name("an instruction").split(".")
    while reader.token.kind == "directive":  # `mov .u32`: modifiers apart from their opcode
        modifiers.append(reader.advance().text[1:])
    operands = _call_operands(reader) if opcode == "call" else _operands(reader)
    return Instruction(opcode, tuple(modifiers), operands, token.line, guard, negated)


def _operands(reader: Reader) -> tuple[Operand, ...]:
    if reader.accept(";"):
        return ()
    return reader.separated(reader.operand, ";")


def _call_operands(reader: Reader) -> tuple[Operand, ...]:
    """(results), function, (arguments) [, prototype]: always three or four, with empty groups where left
    out."""
    results = Group(())
    if reader.token.text == "(":
        results = reader.group()
        reader.expect(",")
    found: list[Operand] = [results, reader.operand()]
    arguments = Group(())
    if reader.accept(",") and reader.token.text == "(":
        arguments = reader.group()
        reader.accept(",")
    found.append(arguments)
    if reader.token.text != ";":
        found.append(reader.operand())
    reader.expect(";")
    return tuple(found)
