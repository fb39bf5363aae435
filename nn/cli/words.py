"""Command lines with positional words, for the verbs about kernels; the other verbs' options are settings
(parser.py).

The help has the same form: usage, what the verb does, its options, examples."""

import argparse
import sys
import textwrap
from typing import NoReturn

from cuda.nn.emulator.errors import EmulatorError
from nn.cli.parser import COLUMN, _width
from nn.errors import InputError
from nn.names import nearest


class Words(argparse.ArgumentParser):
    """`about` is a verb's docstring: what it does, then "Examples:".  What is wrong is an InputError."""

    def __init__(self, verb: str, about: str | None, usage: str) -> None:
        super().__init__(prog=f"cuda-nn {verb}", allow_abbrev=False, add_help=False)
        self.about, self.words = (about or "").strip(), usage
        self.add_argument("-h", "--help", action="help", help="show this")

    def error(self, message: str) -> NoReturn:
        unknown = message.removeprefix("unrecognized arguments: ")
        if unknown == message:
            raise InputError(message.removeprefix("argument "))
        word = unknown.split()[0]
        known = [name.lstrip("-") for action in self._actions for name in action.option_strings]
        guess = nearest(word.lstrip("-"), known) if word.startswith("-") else None
        raise InputError(
            f"{word}: unexpected. "
            + (f"Did you mean --{guess}?" if guess else f"{self.prog} --help lists what there is")
        )

    def format_help(self) -> str:
        about, _, examples = self.about.partition("Examples:")
        paragraphs = [textwrap.fill(part, _width()) for part in about.strip().split("\n\n")]
        options = "\n".join(_line(action) for action in self._actions)
        usage = f"usage: {self.prog} {self.words}"
        return (
            "\n\n".join([usage, *paragraphs, f"Options:\n{options}", f"Examples:{examples.rstrip()}"]) + "\n"
        )


def refused(error: EmulatorError) -> int:
    """Status 2 for input at fault; another program's lines (nvcc's, ptxas's) come first, as it wrote them."""
    if not error.details:
        raise InputError(str(error))
    print(error.details, file=sys.stderr)
    print(f"cuda-nn: error: {error.message}", file=sys.stderr)
    return 2


def _line(action: argparse.Action) -> str:
    """An option in the help."""
    value = action.metavar or ("|".join(action.choices) if action.choices else "")
    name = f"  {', '.join(action.option_strings)} {value}".rstrip() if action.option_strings else f"  {value}"
    gap = "\n" + " " * COLUMN if len(name) > COLUMN - 2 else " " * (COLUMN - len(name))
    text = textwrap.wrap(action.help or "", max(_width() - COLUMN, 30), break_on_hyphens=False)
    return name + gap + ("\n" + " " * COLUMN).join(text)
