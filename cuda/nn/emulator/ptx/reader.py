"""The parser's hold on the tokens: looking ahead, demanding, and the operands that all statements are made
of."""

import struct
from collections.abc import Callable

from cuda.nn.emulator.ptx.expressions import evaluate
from cuda.nn.emulator.ptx.syntax import (
    Address,
    Group,
    Immediate,
    Name,
    Negated,
    Operand,
    Pair,
    Sink,
    SymbolOffset,
    Vector,
)
from cuda.nn.emulator.ptx.tokens import PtxError, Token

_EXPRESSION_STARTS = frozenset("+-~(")


class Reader:
    """A position in the tokens.  Every method that consumes says in a PtxError what it expected instead."""

    def __init__(self, tokens: list[Token]) -> None:
        self.tokens = tokens
        self.at = 0

    @property
    def token(self) -> Token:
        return self.tokens[self.at]

    def advance(self) -> Token:
        token = self.tokens[self.at]
        if token.kind == "end":
            raise self.error("the text ends in the middle of a statement")
        self.at += 1
        return token

    def error(self, message: str, token: Token | None = None) -> PtxError:
        token = token or self.token
        return PtxError(f"PTX line {token.line}, column {token.column}: {message}")

    def accept(self, text: str) -> bool:
        if self.tokens[self.at].text == text:
            self.at += 1
            return True
        return False

    def expect(self, text: str) -> Token:
        token = self.tokens[self.at]
        if token.text != text:
            raise self.error(f"expected {text!r}, found {token.text!r}")
        self.at += 1
        return token

    def name(self, what: str) -> str:
        """An identifier; `what` describes it in the error."""
        token = self.tokens[self.at]
        if token.kind != "name":
            raise self.error(f"expected {what}, found {token.text!r}")
        self.at += 1
        return token.text

    def integer(self, what: str = "an integer") -> int:
        token = self.token
        value = self.constant()
        if not isinstance(value, Immediate) or value.kind != "int":
            raise self.error(f"expected {what}, found {token.text!r}", token)
        return value.value

    def plain(self, what: str = "a number") -> int:
        """A decimal number where no constant expression can stand (.loc, %r<N>)."""
        token = self.advance()
        if token.kind != "number" or not token.text.isdigit():
            raise self.error(f"expected {what}, found {token.text!r}", token)
        return int(token.text)

    def separated(self, read: Callable[[], Operand], end: str) -> tuple[Operand, ...]:
        """What `read` reads, between commas, up to and including `end`."""
        found: list[Operand] = []
        if self.accept(end):
            return ()
        while True:
            found.append(read())
            if self.accept(end):
                return tuple(found)
            if not self.accept(","):
                raise self.error(f"expected ',' or {end!r}, found {self.token.text!r}")

    def group_of_directives(self) -> list[str]:
        """The words of `.attribute(.managed)`."""
        self.expect("(")
        words = []
        depth = 1
        while depth:
            token = self.advance()
            depth += {"(": 1, ")": -1}.get(token.text, 0)
            if token.kind == "directive":
                words.append(token.text[1:])
        return words

    # ---- operands

    def operand(self) -> Operand:
        """One operand; a destination pair `a|b` is one operand."""
        first = self._single()
        if self.tokens[self.at].text == "|":
            self.at += 1
            return Pair(first, self._single())
        return first

    def _single(self) -> Operand:
        kind, text, _, _ = self.tokens[self.at]
        if kind == "name":
            return self._named()
        if kind == "number" or text in _EXPRESSION_STARTS:
            return self._minus() if text == "-" else self.constant()
        self.at += 1
        if text == "[":
            return self._address()
        if text == "{":
            return Vector(self.separated(self.operand, "}"))
        if text == "!":
            return Negated(self._single())
        self.at -= 1
        raise self.error(f"expected an operand, found {text!r}")

    def _minus(self) -> Operand:
        """`-1` is a constant, `-%r1` a register negated."""
        if self.tokens[self.at + 1].kind == "name" and self.tokens[self.at + 1].text != "WARP_SZ":
            self.at += 1
            return Negated(self._single(), minus=True)
        return self.constant()

    def _named(self) -> Operand:
        text = self.tokens[self.at].text
        if text == "WARP_SZ":
            return self.constant()
        self.at += 1
        if text == "_":
            return Sink()
        following = self.tokens[self.at].text
        if following in ("+", "-"):
            return SymbolOffset(text, self.integer("an offset"))
        if text == "generic" and following == "(":
            return self._generic()
        name, _, component = text.partition(".")
        return Name(name, component)

    def _generic(self) -> SymbolOffset:
        self.expect("(")
        name = self.name("the name of a variable")
        offset = self.integer("an offset") if self.token.text in ("+", "-") else 0
        self.expect(")")
        return SymbolOffset(name, offset, generic=True)

    def group(self) -> Group:
        """`(a, b)` of a call."""
        self.expect("(")
        return Group(self.separated(self.operand, ")"))

    def _address(self) -> Address:
        base: Name | Immediate
        offset = 0
        if self.token.kind == "name":
            name, _, component = self.advance().text.partition(".")
            base = Name(name, component)
            if self.token.text in ("+", "-"):
                offset = self._offset()
        else:
            base = Immediate(self.integer("an address"))
        coordinates: tuple[Operand, ...] = ()
        if self.accept(","):
            coordinates = self.separated(self.operand, "]")
        else:
            self.expect("]")
        return Address(base, offset, coordinates)

    def _offset(self) -> int:
        if self.token.text == "+":
            self.at += 1
        return self.integer("an offset")

    # ---- constants

    def constant(self) -> Immediate:
        """A number or a constant expression."""
        token = self.tokens[self.at]
        following = self.tokens[self.at + 1] if token.kind != "end" else token
        if token.kind == "number" and following.text in ",;]})":
            self.at += 1
            return literal(token)
        return evaluate(self)


def literal(token: Token) -> Immediate:
    """A number as written: integers exactly, floats as their bits."""
    text = token.text
    if text[:2] in ("0f", "0F"):
        return Immediate(int(text[2:], 16), "f32")
    if text[:2] in ("0d", "0D"):
        return Immediate(int(text[2:], 16), "f64")
    unsigned = text.endswith("U")
    digits = text.rstrip("U")
    if digits[:2] in ("0x", "0X", "0b", "0B"):
        return Immediate(int(digits, 0), "int", unsigned)
    if digits.isdigit():
        octal = len(digits) > 1 and digits[0] == "0" and not set(digits) & set("89")
        return Immediate(int(digits, 8 if octal else 10), "int", unsigned)
    return Immediate(struct.unpack("<Q", struct.pack("<d", float(digits)))[0], "f64")
