"""Command lines with positional arguments, for the verbs about kernels; the other verbs use nn/cli/parser.py."""

import argparse
import sys
from typing import NoReturn

from cuda.nn.emulator.errors import EmulatorError
from nn.errors import InputError
from nn.names import nearest


class Words(argparse.ArgumentParser):
    """`about` is a verb's docstring.  What is wrong becomes an InputError that names the nearest option."""

    def __init__(self, verb: str, about: str | None, usage: str) -> None:
        super().__init__(prog=f"cuda-nn {verb}", usage=f"cuda-nn {verb} {usage}", description=(about or "").strip(), allow_abbrev=False,
                         formatter_class=argparse.RawDescriptionHelpFormatter)

    def error(self, message: str) -> NoReturn:
        unknown = message.removeprefix("unrecognized arguments: ").split()[0]
        if unknown != message.split()[0]:
            known = [name.lstrip("-") for action in self._actions for name in action.option_strings]
            guess = nearest(unknown.lstrip("-"), known) if unknown.startswith("-") else None
            hint = f"Did you mean --{guess}?" if guess else f"{self.prog} --help lists what there is"
            raise InputError(f"{unknown}: unknown option. {hint}")
        raise InputError(message.removeprefix("argument "))


def refused(error: EmulatorError) -> int:
    """Status 2 for input at fault; another program's lines (nvcc's, ptxas's) follow as it wrote them."""
    if not error.details:
        raise InputError(str(error))
    print(error.details, file=sys.stderr)
    print(f"cuda-nn: error: {error.message}", file=sys.stderr)
    return 2
