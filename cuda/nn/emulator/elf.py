"""As much of an ELF file as tells how a program was built: its sections, and the libraries it asks for.

found = elf.read(Path("./program"))        # None where it is no 64-bit little-endian ELF file
found.needed                               # ("libcudart.so.13", "libstdc++.so.6", ...)
".nv_fatbin" in found.sections"""

import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

HEADER = struct.Struct(
    "<16sHHIQQQIHHHHHH"
)  # ..., section headers at [6], their size [11], count [12], names in section [13]
SECTION = struct.Struct("<IIQQQQIIQQ")  # name, type, flags, address, offset, size, link, ...
DYNAMIC, DT_NEEDED = 6, 1


@dataclass(frozen=True)
class Elf:
    """What was read."""

    sections: Mapping[str, int]  # name -> bytes
    needed: tuple[str, ...]  # DT_NEEDED

    @property
    def has_cuda(self) -> bool:
        """Whether nvcc put kernels into it."""
        return self.sections.get(".nv_fatbin", 0) > 0

    @property
    def cuda_runtime(self) -> str | None:
        """The shared CUDA runtime it asks for; None where that is linked statically, or there is none."""
        return next((name for name in self.needed if name.startswith("libcudart.so")), None)


def read(path: Path) -> Elf | None:
    """Read a file.  None where it is something else, or damaged."""
    try:
        with path.open("rb") as file:
            if file.read(6) != b"\x7fELF\x02\x01":
                return None
        data = path.read_bytes()
        sections = list(_sections(data))
        return Elf({name: fields[5] for name, fields in sections}, tuple(_needed(data, sections)))
    except (OSError, struct.error, IndexError, UnicodeDecodeError):
        return None


Section = tuple[str, tuple[int, ...]]


def _sections(data: bytes) -> Iterator[Section]:
    header = HEADER.unpack_from(data)
    at, size, count, names = header[6], header[11], header[12], header[13]
    headers = [SECTION.unpack_from(data, at + i * size) for i in range(count)]
    if headers:
        strings = headers[names][4]
        yield from ((_string(data, strings + fields[0]), fields) for fields in headers)


def _needed(data: bytes, sections: list[Section]) -> Iterator[str]:
    for _, fields in sections:
        if fields[1] == DYNAMIC:
            strings = sections[fields[6]][1][4]
            for at in range(fields[4], fields[4] + fields[5], 16):
                tag, value = struct.unpack_from("<QQ", data, at)
                if tag == DT_NEEDED:
                    yield _string(data, strings + value)


def _string(data: bytes, at: int) -> str:
    return data[at : data.index(b"\0", at)].decode()
