"""Where each instruction came from: the table of sites, and how a .loc becomes the line of the user's
source."""

import os
import posixpath
import re
from dataclasses import dataclass, field
from pathlib import PurePosixPath

from cuda.nn.emulator.ptx.syntax import Location

# Headers of CUDA itself and of the host compiler: an instruction inlined from them is reported at the user's
# line that called it.
_FOREIGN = re.compile(
    r"^/usr/(local/cuda|include/|lib)|/nvidia/[^/]+/include/|/targets/[^/]+/include/|/cccl/"
)


@dataclass
class Site:
    """One PTX instruction, as in descriptor.h."""

    file: int
    line: int
    ptx_line: int
    basic_block: int
    opcode: str
    flop_kind: str = "none"
    flops: int = 0


@dataclass
class SourceLines:
    """Resolves .loc directives of one module."""

    ptx_files: dict[int, str]
    files: list[str] = field(default_factory=lambda: [""])
    _index: dict[str, int] = field(default_factory=dict)
    _foreign: dict[int, bool] = field(default_factory=dict)
    _callers: dict[tuple[int, int, int], Location] = field(default_factory=dict)

    def begin_function(self) -> None:
        self._callers.clear()

    def enter(self, location: Location) -> tuple[int, int]:
        """(index into files, line) of the instructions after a .loc: the innermost position in the user's own
        files.

        Line 0 is the compiler's word for "of no line in particular": the caller keeps the line before."""
        self._callers[(location.file, location.line, location.column)] = location
        chosen = location
        for _ in range(64):  # chains of inlined calls end; a malformed one must, too
            if not self._is_foreign(chosen.file) or chosen.inlined_at is None:
                break
            caller = chosen.inlined_at
            chosen = self._callers.get(caller) or Location(*caller)
        if self._is_foreign(chosen.file):
            chosen = location
        return self._file(chosen.file), chosen.line

    def _is_foreign(self, number: int) -> bool:
        known = self._foreign.get(number)
        if known is None:
            known = self._foreign[number] = is_foreign(self.ptx_files.get(number, ""))
        return known

    def _file(self, number: int) -> int:
        name = self.ptx_files.get(number, "")
        if not name:
            return 0
        if name not in self._index:
            self._index[name] = len(self.files)
            self.files.append(name)
        return self._index[name]


def is_foreign(name: str) -> bool:
    """Whether a file of a .file directive is CUDA's or the host compiler's, wherever the toolkit lies: nvcc
    writes paths such as .../cu13/bin/..//include/cuda_runtime.h."""
    path = PurePosixPath(posixpath.normpath(name))
    return bool(_FOREIGN.search(str(path))) or any(
        os.path.isfile(folder / "cuda_runtime_api.h") for folder in path.parents if folder.is_absolute()
    )
