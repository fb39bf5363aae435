"""Many variants of one program in one module, so that nvcc and the host compiler run once: each variant lies
in a namespace of its own, under a file name of its own, so that a report's line is that variant's."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from cuda.nn import emulator
from tests.emulator.corpus import Launch, Program

INCLUDE = re.compile(r"^#include .*$", re.MULTILINE)


@dataclass(frozen=True)
class Variants:
    """One program's variants, compiled: variant 0 is the program as it is."""

    module: emulator.Module
    sources: Sequence[str]

    def launch(self, number: int, **how: Any) -> Launch:
        """What launches the kernels of one variant; `how` is schedule and seed."""
        return partial(self._launch, number, **how)

    def _launch(self, number: int, kernel: str, **arguments: Any) -> None:
        self.module.launch(f"v{number}::{kernel}", **arguments)

    def lines(self, number: int, text: str) -> set[int]:
        """The lines of a variant's source that hold one of the texts `a|b`."""
        wanted = text.split("|")
        rows = enumerate(self.sources[number].splitlines(), 1)
        return {row for row, line in rows if any(word in line for word in wanted)}


def compile_variants(program: Program, sources: Sequence[str], folder: Path, mode: str = "check") -> Variants:
    """Compile the sources together, in a folder where the combined file may be written."""
    parts = [*dict.fromkeys(INCLUDE.findall("\n".join(sources)))]
    for number, source in enumerate(sources):
        variant = folder / f"{program.file.removesuffix('.cu')}.v{number}.cu"
        variant.write_text(source, encoding="utf-8")
        parts += [f"namespace v{number} {{", f'#line 1 "{variant}"', INCLUDE.sub("", source), "}"]
    path = folder / program.file
    path.write_text("\n".join(parts), encoding="utf-8")
    return Variants(emulator.compile(path, arch=program.arch, mode=mode), sources)
