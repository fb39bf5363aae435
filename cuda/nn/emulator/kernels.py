"""What a PTX text says of its kernels without translating it: names and the sizes of their parameters."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from cuda.nn.emulator.names import demangle, plain_name

ENTRY = re.compile(r"^[^\S\n]*(?:\.(?:visible|weak)\s+)?\.entry\s+([\w$]+)\s*(?:\(([^)]*)\))?", re.MULTILINE)
PARAMETER = re.compile(
    r"\.param\b(?P<attributes>.*?)\.(?P<type>pred|[busf]\d+|bf16x?2?|f16x2)\s+[\w$]+\s*(?:\[(?P<count>\d+)\])?\s*$",
    re.DOTALL,
)
COMMENT = re.compile(r"//[^\n]*|/\*.*?\*/", re.DOTALL)


@dataclass(frozen=True)
class Kernel:
    """A kernel of a module."""

    mangled: str
    parameter_sizes: tuple[int, ...]  # bytes
    source: Path | None = None  # the .cu file, for its parameters' names

    @cached_property
    def name(self) -> str:
        """As in the source: scan<128>."""
        return plain_name(self.mangled)

    @cached_property
    def symbol(self) -> bytes:
        """The mangled name, as C wants it."""
        return self.mangled.encode()

    @property
    def signature(self) -> str:
        """With the parameters' types."""
        return demangle(self.mangled)

    def parameter_name(self, index: int) -> str:
        """As in the source, if that is easily found; else empty."""
        return self._parameter_names[index] if index < len(self._parameter_names) else ""

    @cached_property
    def _parameter_names(self) -> tuple[str, ...]:
        if self.source is None or not self.source.is_file():
            return ()
        bare = re.escape(self.name.partition("<")[0].rpartition(":")[2])
        text = COMMENT.sub("", self.source.read_text(encoding="utf-8", errors="replace"))
        found = re.search(rf"__global__[^;{{}}]*?\b{bare}\s*\(([^()]*)\)", text)
        listed = re.sub(r"<[^<>]*>|\[[^]]*\]|=[^,]*", "", found[1]).split(",") if found else []
        names = tuple((re.findall(r"\w+", one) or [""])[-1] for one in listed)
        return names if len(names) == len(self.parameter_sizes) else ()


def read_kernels(ptx: str, source: Path | None = None) -> Mapping[str, Kernel]:
    """The kernels of a PTX text by mangled name, in its order."""
    text = COMMENT.sub("", ptx)
    kernels = {}
    for name, parameters in ENTRY.findall(text):
        sizes = tuple(map(_size, filter(str.strip, parameters.split(","))))
        kernels[name] = Kernel(name, sizes, source)
    return kernels


def _size(parameter: str) -> int:
    """Bytes of `.param .align 4 .b8 name[12]`."""
    found = PARAMETER.search(parameter)
    if not found:
        return 0
    bits = int(re.sub(r"\D", "", found["type"].replace("x2", "")) or 8) * (
        2 if found["type"].endswith("x2") else 1
    )
    return bits // 8 * int(found["count"] or 1)
