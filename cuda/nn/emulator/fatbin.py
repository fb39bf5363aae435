"""nvcc's fat binaries: which PTX and machine code a program carries, and the PTX that fits a profile.

    entries = fatbin.entries(data)              # data: what __cudaRegisterFatBinary was given, or an ELF
    section .nv_fatbin ptx = fatbin.choose(entries, "sm_80")       # the text; EmulatorError says how to build
    one in

The layout is undocumented; these fields were read off what nvcc 13 writes with every --compress-mode.  A
container is 16 bytes (magic, version, header size, size of what follows) and entries, each with a header of
64 bytes or more."""

import ctypes
import re
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from cuda.nn.emulator.errors import EmulatorError

MAGIC = 0xBA55ED50
CONTAINER = struct.Struct("<IHHQ")  # magic, version, header bytes, bytes that follow
ENTRY = struct.Struct(
    "<HHIQIIHHIIIQQQ"
)  # kind, version, header bytes, bytes, compressed bytes, options at, PTX version
# minor, major, architecture, name at, name bytes, flags, 0, uncompressed bytes
PTX, ELF = 1, 2
LZ4, ZSTD = 0x2000, 0x8000
TARGET = re.compile(r"^\s*\.target\s+sm_(\d+)([af]?)", re.MULTILINE)


class NoPtxError(EmulatorError):
    """There is no PTX in it for the profile."""


@dataclass(frozen=True)
class Entry:
    """One image of a fat binary."""

    kind: int  # PTX or ELF (machine code)
    arch: int  # 80
    payload: bytes  # as stored
    compression: int  # LZ4, ZSTD or 0
    size: int  # of the image, uncompressed; 0 where the payload is not compressed

    def text(self) -> str:
        """The PTX."""
        return self.image().rstrip(b"\0").decode(errors="replace")

    def image(self) -> bytes:
        """What was stored, unpacked."""
        if self.compression == LZ4:
            return unpack_lz4(self.payload, self.size)
        return unpack_zstd(self.payload, self.size) if self.compression == ZSTD else self.payload


def entries(data: bytes) -> list[Entry]:
    """All images of one or several containers.  EmulatorError where the data is none or cut short."""
    found: list[Entry] = []
    at = 0
    while at + CONTAINER.size <= len(data):
        magic, _, header, size = CONTAINER.unpack_from(data, at)
        if magic != MAGIC:
            if not any(data[at : at + 8]):  # a section pads its containers to 8 bytes
                at += 8
                continue
            raise EmulatorError(
                f"fat binary: no container at byte {at}: {data[at : at + 4].hex()} instead of {MAGIC:08x}"
            )
        found += _images(data[at + header : at + header + size], size)
        at += header + size
    if not found:
        raise EmulatorError(f"fat binary: {len(data)} bytes without an image in them")
    return found


def _images(data: bytes, size: int) -> Iterator[Entry]:
    at = 0
    while at < size:
        if at + ENTRY.size > len(data):
            raise EmulatorError(f"fat binary: cut short after {len(data)} of {size} bytes")
        kind, _, header, bytes_, packed, _, _, _, arch, _, _, flags, _, unpacked = ENTRY.unpack_from(data, at)
        begin = at + header
        if header < ENTRY.size or begin + bytes_ > len(data):
            raise EmulatorError(f"fat binary: an image of {bytes_} bytes does not fit into {len(data)}")
        compression = flags & (LZ4 | ZSTD)
        yield Entry(
            kind, arch, data[begin : begin + (packed if compression else bytes_)], compression, unpacked
        )
        at = begin + bytes_


def choose(images: Sequence[Entry], arch: str) -> str:
    """The PTX for the newest architecture that a profile can run.  EmulatorError where there is none, with
    the way out."""
    limit = int(re.sub(r"\D", "", arch))
    texts = [image.text() for image in images if image.kind == PTX and image.arch <= limit]
    fits = [text for text in texts if _runs_on(text, limit)]
    if fits:
        return max(fits, key=_target)
    option = f"-gencode=arch=compute_{limit},code=compute_{limit}"
    newer = sorted({image.arch for image in images if image.kind == PTX and image.arch > limit})
    if newer:
        raise NoPtxError(
            f"the program's PTX is for sm_{newer[0]} and newer, and {arch} was asked for; take --arch "
            f"sm_{newer[0]}, or build it with {option}"
        )
    machine = ", ".join(sorted({f"sm_{image.arch}" for image in images if image.kind == ELF})) or "nothing"
    raise NoPtxError(
        f"the program carries machine code for {machine} but no PTX for {arch}; build it with {option} "
        "(and without -rdc=true, which keeps no PTX)"
    )


def _target(ptx: str) -> tuple[int, str]:
    """(90, "a") of `.target sm_90a`."""
    found = TARGET.search(ptx)
    return (int(found[1]), found[2]) if found else (0, "")


def _runs_on(ptx: str, limit: int) -> bool:
    """PTX runs on newer devices, except that of sm_90a, which runs on that one alone."""
    number, suffix = _target(ptx)
    return number == limit if suffix else number <= limit


# ---- compression -------------------------------------------------------------------------------------------


def unpack_lz4(data: bytes, size: int) -> bytes:
    """A block of LZ4: sequences of literal bytes and copies from what is already out
    (lz4_Block_format.md)."""
    out = bytearray()
    at = 0
    try:
        while at < len(data):
            token = data[at]
            literals, at = _lz4_length(data, at + 1, token >> 4)
            out += data[at : at + literals]
            at += literals
            if at >= len(data):
                break
            distance = data[at] | data[at + 1] << 8
            length, at = _lz4_length(data, at + 2, token & 15)
            _lz4_copy(out, distance, length + 4)
    except IndexError:
        raise EmulatorError("fat binary: LZ4 data ends in the middle") from None
    if len(out) != size:
        raise EmulatorError(f"fat binary: LZ4 data gives {len(out)} bytes, its header says {size}")
    return bytes(out)


def _lz4_length(data: bytes, at: int, length: int) -> tuple[int, int]:
    """A length whose four bits are 15 goes on in further bytes."""
    if length == 15:
        while (more := data[at]) == 255:
            length, at = length + 255, at + 1
        length, at = length + more, at + 1
    return length, at


def _lz4_copy(out: bytearray, distance: int, length: int) -> None:
    """Copy from `distance` bytes back; the copy may overlap its source, and then repeats it."""
    if not 0 < distance <= len(out):
        raise EmulatorError(f"fat binary: LZ4 data reaches {distance} bytes back, {len(out)} are there")
    piece = bytes(out[-distance:])
    out += (piece * (length // distance + 1))[:length]


def unpack_zstd(data: bytes, size: int) -> bytes:
    """Zstandard, which nvcc 13 uses by default: by the package zstandard, or by the system's libzstd."""
    try:
        import zstandard
    except ImportError:
        return _by_library(data, size)
    try:
        return zstandard.ZstdDecompressor().decompress(data, max_output_size=size)
    except zstandard.ZstdError as error:
        raise EmulatorError(f"fat binary: {error}") from None


def _by_library(data: bytes, size: int) -> bytes:
    try:
        library = ctypes.CDLL("libzstd.so.1")
    except OSError:
        raise EmulatorError(
            "the program's PTX is compressed by zstd: pip install 'cuda-nn[emulator]', or build the program "
            "with "
            "nvcc --compress-mode=speed"
        ) from None
    library.ZSTD_decompress.restype = ctypes.c_size_t
    library.ZSTD_decompress.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_char_p, ctypes.c_size_t]
    out = ctypes.create_string_buffer(max(size, 1))
    if library.ZSTD_decompress(out, size, data, len(data)) != size:
        raise EmulatorError("fat binary: its zstd data is damaged")
    return out.raw[:size]
