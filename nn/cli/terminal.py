"""What the verbs print: aligned facts, and text as a model writes it."""

import sys
from collections.abc import Iterable

# Control characters that a model may write and a terminal would obey; line feed and tab are text.
CONTROLS = {code: "\ufffd" for code in [*range(32), *range(127, 160)] if chr(code) not in "\n\t"}


def facts(rows: Iterable[tuple[str, str]]) -> None:
    """`name  value`, one line each, the values under each other."""
    rows = list(rows)
    width = max(len(name) for name, _ in rows)
    for name, value in rows:
        print(f"{name:<{width}}  {value}".rstrip(), flush=True)


def stream(pieces: Iterable[str]) -> None:
    """Print text as it arrives, then end the line.  A file or a pipe gets it unchanged."""
    for piece in pieces:
        print(piece.translate(CONTROLS) if sys.stdout.isatty() else piece, end="", flush=True)
    print(flush=True)


def table(rows: Iterable[tuple[str, ...]]) -> None:
    """Columns wide enough for their longest entry: the first to the left, the others to the right."""
    rows = list(rows)
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    for row in rows:
        right = (cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))
        print("  ".join([row[0].ljust(widths[0]), *right]).rstrip())
