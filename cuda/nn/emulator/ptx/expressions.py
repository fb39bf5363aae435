"""Constant expressions of PTX: C's operators on 64-bit integers, casts to .s64 and .u64, signs of floats.

Precedence climbs as in C.  nvcc writes hardly more than `-1`; people write `(1<<4)|3` in inline assembly."""

import operator
from collections.abc import Callable
from typing import TYPE_CHECKING

from cuda.nn.emulator.ptx.syntax import Immediate

if TYPE_CHECKING:
    from cuda.nn.emulator.ptx.reader import Reader

_MASK = (1 << 64) - 1


def _divide(a: int, b: int) -> int:
    quotient = abs(a) // abs(b)
    return quotient if (a < 0) == (b < 0) else -quotient


def _remainder(a: int, b: int) -> int:
    return a - b * _divide(a, b)


_BINARY: dict[str, tuple[int, Callable[[int, int], int]]] = {
    "||": (1, lambda a, b: int(bool(a) or bool(b))),
    "&&": (2, lambda a, b: int(bool(a) and bool(b))),
    "|": (3, operator.or_),
    "^": (4, operator.xor),
    "&": (5, operator.and_),
    "==": (6, lambda a, b: int(a == b)),
    "!=": (6, lambda a, b: int(a != b)),
    "<": (7, lambda a, b: int(a < b)),
    ">": (7, lambda a, b: int(a > b)),
    "<=": (7, lambda a, b: int(a <= b)),
    ">=": (7, lambda a, b: int(a >= b)),
    "<<": (8, lambda a, b: a << (b & 63)),
    ">>": (8, lambda a, b: a >> (b & 63)),
    "+": (9, operator.add),
    "-": (9, operator.sub),
    "*": (10, operator.mul),
    "/": (10, _divide),
    "%": (10, _remainder),
}


def evaluate(reader: "Reader") -> Immediate:
    """The constant expression at the reader's position."""
    value = _binary(reader, 1)
    if not reader.accept("?"):
        return value
    chosen = evaluate(reader)
    reader.expect(":")
    other = evaluate(reader)
    return chosen if value.value else other


def _binary(reader: "Reader", lowest: int) -> Immediate:
    left = _unary(reader)
    while True:
        token = reader.token
        precedence, compute = (
            _BINARY.get(token.text, (0, operator.add)) if token.kind == "mark" else (0, operator.add)
        )
        if precedence < lowest:
            return left
        reader.advance()
        right = _binary(reader, precedence + 1)
        if left.kind != "int" or right.kind != "int":
            raise reader.error("constant expressions are over integers only", token)
        if token.text in "/%" and right.value == 0:
            raise reader.error("a constant expression divides by zero", token)
        left = _wrap(compute(left.value, right.value), left.unsigned or right.unsigned)


def _wrap(value: int, unsigned: bool) -> Immediate:
    value &= _MASK
    if not unsigned and value >> 63:
        value -= 1 << 64
    return Immediate(value, "int", unsigned)


def _unary(reader: "Reader") -> Immediate:
    from cuda.nn.emulator.ptx.reader import literal

    token = reader.advance()
    if token.kind == "number":
        return literal(token)
    if token.text == "WARP_SZ":
        return Immediate(32)
    if token.text == "(":
        return _parenthesised(reader)
    if token.text in ("-", "+", "~", "!"):
        return _apply(token.text, _unary(reader))
    raise reader.error(f"expected a constant, found {token.text!r}", token)


def _parenthesised(reader: "Reader") -> Immediate:
    if reader.token.text in (".s64", ".u64"):
        unsigned = reader.advance().text == ".u64"
        reader.expect(")")
        return _wrap(_unary(reader).value, unsigned)
    value = evaluate(reader)
    reader.expect(")")
    return value


def _apply(sign: str, value: Immediate) -> Immediate:
    if sign == "+":
        return value
    if value.kind != "int":
        top = 1 << (31 if value.kind == "f32" else 63)
        return Immediate(value.value ^ top, value.kind)
    results = {"-": -value.value, "~": ~value.value, "!": int(not value.value)}
    return _wrap(results[sign], value.unsigned)
