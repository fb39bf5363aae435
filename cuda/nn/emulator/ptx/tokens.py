"""PTX text to tokens, each with its line and column.

    >>> [token.text for token in tokenize("add.s32 %r1, %r2, -1; // sum")][:4]
    ['add.s32', '%r1', ',', '%r2']

A name takes its dotted tail along (`ld.global.v4.f32`, `%tid.x`); a directive is a token of its own (`.reg`,
`.b32`). The last token is always of kind "end"."""

import re
from bisect import bisect_right
from typing import NamedTuple

from cuda.nn.emulator.errors import EmulatorError


class PtxError(EmulatorError):
    """The text is not the PTX that this translator reads; names the line and what was expected there."""


class Token(NamedTuple):
    kind: str  # name, directive, number, string, mark, end
    text: str
    line: int  # from 1
    column: int  # from 1


_PATTERN = re.compile(
    r"""(?P<blank>[ \t\r\n\f\v]+|//[^\n]*|/\*.*?\*/)
      | (?P<unclosed>/\*)
      | (?P<name>(?:[A-Za-z][\w$]*|[%$_][\w$]+|_)(?:(?:\.|::)[\w$]+)*)
      | (?P<number>0[fF][0-9a-fA-F]{8}(?!\w) | 0[dD][0-9a-fA-F]{16}(?!\w) | 0[xX][0-9a-fA-F]+U? | 0[bB][01]+U?
                   | \d+\.\d*(?:[eE][+-]?\d+)? | \d+[eE][+-]?\d+ | \d+U?)
      | (?P<directive>\.[A-Za-z_$][\w$]*(?:::[\w$]+)*)
      | (?P<string>"(?:[^"\\\n]|\\.)*")
      | (?P<mark><<|>>|<=|>=|==|!=|&&|\|\||[{}()\[\],;:@!|+\-*/%<>=~&^?])
    """,
    re.VERBOSE | re.DOTALL,
)


def tokenize(text: str) -> list[Token]:
    """All tokens of a PTX text.  Raises PtxError at a character that starts none."""
    starts = _line_starts(text)
    tokens: list[Token] = []
    at = 0
    line, line_begin, next_line = 1, 0, starts[1]
    for match in _PATTERN.finditer(text):
        begin = match.start()
        kind = match.lastgroup
        if begin != at or kind == "unclosed":
            break
        at = match.end()
        if kind == "blank":
            continue
        if begin >= next_line:
            line = bisect_right(starts, begin)
            line_begin, next_line = starts[line - 1], starts[line]
        tokens.append(Token(kind or "", match.group(), line, begin - line_begin + 1))
    line = max(1, bisect_right(starts, min(at, len(text) - 1)))
    column = at - starts[line - 1] + 1
    if at != len(text):
        raise PtxError(f"PTX line {line}, column {column}: {_strange(text, at)}")
    tokens.append(Token("end", "end of the text", line, column))
    return tokens


def _line_starts(text: str) -> list[int]:
    starts = [0]
    starts.extend(match.end() for match in re.finditer("\n", text))
    starts.append(len(text) + 1)
    return starts


def _strange(text: str, at: int) -> str:
    if text.startswith("/*", at):
        return "a comment is opened with /* and never closed"
    if text[at] == '"':
        return "a string is opened and not closed on its line"
    return f"unexpected character {text[at]!r}"
