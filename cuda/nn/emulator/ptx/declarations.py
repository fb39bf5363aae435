"""Declarations of registers, variables and parameters, with their initialisers."""

from cuda.nn.emulator.ptx.reader import Reader
from cuda.nn.emulator.ptx.syntax import Declaration, Immediate, Name, Operand, SymbolOffset
from cuda.nn.emulator.ptx.types import DECLARABLE


def declarations(reader: Reader, linkage: str) -> list[Declaration]:
    """`.shared .align 4 .b8 a[4], b[8];`: one for each name."""
    space = reader.advance().text[1:]
    pattern = _attributes(reader, Declaration(space, "", "", reader.token.line, linkage=linkage))
    found = [_named(reader, pattern)]
    while reader.accept(","):
        found.append(_named(reader, pattern))
    reader.expect(";")
    return found


def parameter(reader: Reader) -> Declaration:
    """One parameter of a function: `.param .align 8 .b8 name[24]`, `.param .u64 .ptr .global .align 4
    name`."""
    token = reader.advance()
    if token.text not in (".param", ".reg"):
        raise reader.error(f"expected .param or .reg, found {token.text!r}", token)
    pattern = _attributes(reader, Declaration(token.text[1:], "", "", token.line))
    return _named(reader, pattern)


def _attributes(reader: Reader, pattern: Declaration) -> Declaration:
    """What stands between the space and the name."""
    while reader.token.kind == "directive":
        token = reader.advance()
        word = token.text[1:]
        if word in DECLARABLE:
            pattern.type = word
        elif word == "align":
            alignment = reader.integer("an alignment")
            if not pattern.attributes or pattern.attributes[-1] != "ptr":
                pattern.alignment = _power_of_two(reader, alignment)
        elif word in ("v2", "v4", "v8"):
            pattern.vector = int(word[1:])
        elif word == "ptr":  # .ptr .space .align N: what a pointer points to; says nothing of the parameter
            pattern.attributes += ("ptr",)
        elif word in ("global", "const", "shared", "local", "param") and "ptr" in pattern.attributes:
            continue
        elif word == "attribute":
            pattern.attributes += tuple(reader.group_of_directives())
        else:
            raise reader.error(f"unknown type or attribute {token.text!r} of a declaration", token)
    if not pattern.type:
        raise reader.error(f"a declaration without a type, found {reader.token.text!r}")
    return pattern


def _power_of_two(reader: Reader, alignment: int) -> int:
    if alignment <= 0 or alignment & (alignment - 1):
        raise reader.error(f"an alignment of {alignment} is not a power of two")
    return alignment


def _named(reader: Reader, pattern: Declaration) -> Declaration:
    name = reader.name("a name")
    found = Declaration(
        pattern.space,
        pattern.type,
        name,
        reader.token.line,
        pattern.alignment,
        pattern.vector,
        linkage=pattern.linkage,
        attributes=pattern.attributes,
    )
    if reader.accept("<"):
        found.range = reader.plain("the number of registers")
        reader.expect(">")
    shape = _shape(reader)
    if shape:
        found.is_array = True
        found.count = _product(shape)
    if reader.accept("="):
        found.initializer = _initializer(reader, found, shape)
    return found


def _shape(reader: Reader) -> list[int | None]:
    shape: list[int | None] = []
    while reader.accept("["):
        if reader.accept("]"):
            shape.append(None)
        else:
            shape.append(reader.integer("a number of elements"))
            reader.expect("]")
    return shape


def _product(shape: list[int | None]) -> int | None:
    count = 1
    for extent in shape:
        if extent is None:
            return None
        count *= extent
    return count


# ---- initialisers ------------------------------------------------------------------------------------------

_Nested = Operand | list["_Nested"]


def _initializer(reader: Reader, declaration: Declaration, shape: list[int | None]) -> tuple[Operand, ...]:
    """The elements in their order, with zeros where inner braces leave some out."""
    token = reader.token
    values = _nested(reader)
    if isinstance(values, list):
        inner = [extent or 0 for extent in shape[1:]] + [declaration.vector] * (declaration.vector > 1)
        found = _flatten(values, inner)
    else:
        found = [values]
    if declaration.count is None:
        declaration.count = len(found)
    limit = declaration.count * declaration.vector
    if len(found) > limit:
        raise reader.error(f"{declaration.name} has {limit} elements, its initialiser {len(found)}", token)
    return tuple(found)


def _nested(reader: Reader) -> _Nested:
    if not reader.accept("{"):
        return _element(reader)
    found: list[_Nested] = []
    while not reader.accept("}"):
        found.append(_nested(reader))
        if reader.token.text != "}":
            reader.expect(",")
    return found


def _element(reader: Reader) -> Operand:
    """A constant, an address (`symbol+4`, `generic(symbol)`), or one byte of an address
    (`0xFF00(symbol)`)."""
    if reader.token.kind == "number" and reader.tokens[reader.at + 1].text == "(":
        mask = int(reader.advance().text.rstrip("U"), 0)
        reader.expect("(")
        inner = _element(reader)
        reader.expect(")")
        if isinstance(inner, SymbolOffset):
            return SymbolOffset(inner.name, inner.offset, inner.generic, mask)
        if isinstance(inner, Name):
            return SymbolOffset(inner.name, mask=mask)
        raise reader.error("a byte can be taken of an address only")
    return reader.operand()


def _flatten(values: list[_Nested], inner: list[int]) -> list[Operand]:
    """Row by row; a row in braces is filled up with zeros."""
    size = 1
    for extent in inner:
        size *= extent
    found: list[Operand] = []
    for value in values:
        if isinstance(value, list):
            row = _flatten(value, inner[1:])
            found.extend(row + [Immediate(0)] * (size - len(row)))
        else:
            found.append(value)
    return found
