"""Global and constant variables as C++ arrays, and their initialisers.

Plain bytes become a string literal, which compiles fastest; elements that hold addresses become an array of
integers, filled in when the module is loaded.  Each array is followed by a red zone."""

import struct
from collections.abc import Iterable

from cuda.nn.emulator.ptx.syntax import Immediate, Name, Operand, SymbolOffset
from cuda.nn.emulator.ptx.types import SCALARS, Scalar
from cuda.nn.emulator.translate.emitter import function_cpp
from cuda.nn.emulator.translate.layout import RED_ZONE
from cuda.nn.emulator.translate.names import (
    FunctionName,
    GlobalPlace,
    Names,
    Variable,
    natural_alignment,
    scalar_bytes,
)
from cuda.nn.emulator.translate.table import Unsupported


def declare(variables: Iterable[Variable], names: Names) -> list[str]:
    """The C++ of all variables.  Raises Unsupported for an initialiser that has no meaning here."""
    plain, addressed = [], []
    for variable in variables:
        values = variable.declaration.initializer or ()
        if any(isinstance(value, Name | SymbolOffset) for value in values):
            addressed.append(variable)
        else:
            plain.append(_plain(variable))
    return [
        *plain,
        *(_addressed(variable, names) for variable in addressed),
    ]  # PTX lets them name only what came before


def addresses_taken(variables: Iterable[Variable], names: Names) -> set[str]:
    """Functions whose addresses stand in initialisers: tables of virtual functions, function pointers."""
    found: set[str] = set()
    for variable in variables:
        for value in variable.declaration.initializer or ():
            entity = names.find(value.name) if isinstance(value, Name | SymbolOffset) else None
            if isinstance(entity, FunctionName):
                found.add(entity.name)
    return found


def _plain(variable: Variable) -> str:
    declaration = variable.declaration
    scalar = SCALARS[declaration.type]
    data = b"".join(element_bytes(value, scalar, declaration.name) for value in declaration.initializer or ())
    data = data.rstrip(b"\0")
    begin = (
        f"alignas({max(16, natural_alignment(declaration))}) char "
        f"{variable.cpp}[{scalar_bytes(declaration) + RED_ZONE}]"
    )
    return (
        f"{begin} = {_string(data)};    // {declaration.name}"
        if data
        else f"{begin};    // {declaration.name}"
    )


def _string(data: bytes) -> str:
    pieces = ["".join(f"\\{byte:03o}" for byte in data[at : at + 4000]) for at in range(0, len(data), 4000)]
    return "\n".join(f'"{piece}"' for piece in pieces)


def _array(variable: Variable) -> str:
    declaration = variable.declaration
    size = SCALARS[declaration.type].bytes
    count = scalar_bytes(declaration) // size
    alignment = max(16, natural_alignment(declaration))
    return f"alignas({alignment}) uint{8 * size}_t {variable.cpp}[{count + RED_ZONE // size}]"


def _addressed(variable: Variable, names: Names) -> str:
    declaration = variable.declaration
    scalar = SCALARS[declaration.type]
    values = [_element(value, scalar, declaration.name, names) for value in declaration.initializer or ()]
    return f"{_array(variable)} = {{{', '.join(values)}}};    // {declaration.name}"


def _element(value: Operand, scalar: Scalar, variable: str, names: Names) -> str:
    integer = f"uint{8 * scalar.bytes}_t"
    if not isinstance(value, Name | SymbolOffset):
        return f"({integer}){int.from_bytes(element_bytes(value, scalar, variable), 'little')}ull"
    address = _address(value, variable, names)
    mask = value.mask if isinstance(value, SymbolOffset) else 0
    if mask:
        lowest = (mask & -mask).bit_length() - 1
        return f"({integer})(({address} & {mask}ull) >> {lowest})"
    if scalar.bytes != 8:
        raise Unsupported(f"variable {variable}: an address does not fit an element of type .{scalar.name}")
    return address


def _address(value: Name | SymbolOffset, variable: str, names: Names) -> str:
    entity = names.find(value.name)
    offset = value.offset if isinstance(value, SymbolOffset) else 0
    if isinstance(entity, FunctionName):
        return f"(uint64_t)&{function_cpp(entity.name)}"
    if isinstance(entity, GlobalPlace):
        return f"((uint64_t){entity.cpp} + {offset}ull)" if offset else f"(uint64_t){entity.cpp}"
    raise Unsupported(f"variable {variable}: the address of {value.name} cannot stand in an initialiser")


def element_bytes(value: Operand, scalar: Scalar, variable: str) -> bytes:
    """One element of an initialiser in memory."""
    if not isinstance(value, Immediate):
        raise Unsupported(f"variable {variable}: its initialiser is not constant")
    if value.kind == "int" and not scalar.floating:
        return (value.value & ((1 << (8 * scalar.bytes)) - 1)).to_bytes(scalar.bytes, "little")
    if value.kind == scalar.name:
        return value.value.to_bytes(scalar.bytes, "little")
    number: float = float(value.value)
    if value.kind != "int":
        held = value.value.to_bytes(4 if value.kind == "f32" else 8, "little")
        number = struct.unpack("<f" if value.kind == "f32" else "<d", held)[0]
    if not scalar.floating:
        raise Unsupported(f"variable {variable}: a floating-point constant in an array of .{scalar.name}")
    return struct.pack("<f" if scalar.bytes == 4 else "<d", number)
