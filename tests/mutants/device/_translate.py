"""The emulator's command for a fat binary (cuda/nn/emulator/build.py), for some of its kernels alone.

    python -m tests.mutants.device._translate OBJECT NAMES PTX --fatbin FILE --arch sm_80 --mode check

OBJECT is the one with a bug, or the healthy one in whose place PTX is taken, if there is such a file.  NAMES:
a file with a mangled name a line, the kernels of it that are wanted: translation would be most of what a
mutant costs, and a check launches few of those that are compiled together.  Other objects are healthy: they
were translated before, as a whole."""

import re
import sys
from pathlib import Path

from cuda.nn.emulator import fatbin
from cuda.nn.emulator.build import translated_module

ENTRY = re.compile(r"^\.(?:visible|weak) \.entry (\w+)\(", re.MULTILINE)


def keep(ptx: str, names: set[str]) -> str:
    """The text without the other kernels."""
    kept, at = [], 0
    for found in ENTRY.finditer(ptx):
        if found[1] not in names:
            kept.append(ptx[at : found.start()])
            at = end_of_body(ptx, found.end())
    return "".join([*kept, ptx[at:]])


def end_of_body(ptx: str, at: int) -> int:
    """Behind the brace that closes the first one from `at` on."""
    depth = 0
    for brace in re.compile(r"[{}]").finditer(ptx, at):
        depth += 1 if brace[0] == "{" else -1
        if depth == 0:
            return brace.end()
    raise ValueError("a kernel without an end")


if __name__ == "__main__":
    (mutant, names, ptx), words = map(Path, sys.argv[1:4]), sys.argv[4:]
    given = dict(zip(words[::2], words[1::2], strict=True))
    image = Path(given["--fatbin"]).read_bytes()
    text = fatbin.choose(fatbin.entries(image), given["--arch"])
    if image in mutant.read_bytes():
        text = keep(ptx.read_text() if ptx.is_file() else text, set(names.read_text().split()))
    print(translated_module(text, given["--mode"], partial=True))
