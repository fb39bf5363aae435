"""Static figures from machine code: instruction mix, and issue cycles of loops.  Needs cuobjdump and
nvdisasm.

    found = module.sass("gemm")          # None without cuobjdump
    found.loops[0].issue_cycles          # what one warp needs at least to issue one pass of that loop

The control codes that say how long an instruction stalls the next are undocumented; their layout is known
from public work on reading machine code, and gives plausible figures (FFMA: 2 cycles on sm_80, 1 on sm_90).
A heuristic: take it as a hint, not a measurement."""

import re
import subprocess
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from cuda.nn.emulator import toolchain
from cuda.nn.emulator.errors import EmulatorError

FUNCTION = re.compile(r"Function : (\S+)")
FIRST_WORD = re.compile(r"\s+/\*([0-9a-f]{4,})\*/\s+(.*?);\s+/\* 0x([0-9a-f]{16}) \*/")
SECOND_WORD = re.compile(r"\s+/\* 0x([0-9a-f]{16}) \*/")
GUARD = re.compile(r"^@!?U?P[0-9T]+\s+")
BRANCH = re.compile(r"\bBRA[\w.]*\s+(?:!?U?P[0-9T]+,\s*)*(?:0x([0-9a-f]+))")
SHORTEST_LOOP = 4  # instructions; shorter ones wait for a barrier or spin at the end


@dataclass(frozen=True)
class Instruction:
    """One machine instruction."""

    address: int
    text: str
    stall: int  # cycles before the next one of this warp can be issued
    waits: bool  # waits for a load or another slow result

    @property
    def opcode(self) -> str:
        """With its modifiers: LDG.E.128."""
        return GUARD.sub("", self.text).split()[0]


@dataclass(frozen=True)
class Loop:
    """From the target of a backward branch to the branch."""

    begin: int
    end: int
    instructions: int
    issue_cycles: int  # sum of the stalls: one warp's lower bound for one pass
    waits: int  # instructions that wait for slow results
    mix: Mapping[str, int]  # by opcode, most frequent first


@dataclass(frozen=True)
class Sass:
    """A kernel's machine code."""

    instructions: tuple[Instruction, ...]
    loops: tuple[Loop, ...]

    @property
    def mix(self) -> dict[str, int]:
        """Instructions by opcode without modifiers, most frequent first."""
        return dict(Counter(one.opcode.partition(".")[0] for one in self.instructions).most_common())


@lru_cache(maxsize=8)
def read_sass(cubin: Path) -> dict[str, Sass] | None:
    """The kernels of a .cubin file by mangled name; None without cuobjdump.  EmulatorError where it refuses
    the file."""
    tool = toolchain.cuobjdump()
    if tool is None:
        return None
    done = subprocess.run([tool, "-sass", cubin], capture_output=True, text=True, check=False)
    if done.returncode:
        raise EmulatorError(f"cuobjdump refuses {cubin}", done.stderr or done.stdout)
    return parse(done.stdout)


def parse(text: str) -> dict[str, Sass]:
    """What `cuobjdump -sass` prints."""
    parts = FUNCTION.split(text)
    return {
        name: _sass(tuple(_instructions(body))) for name, body in zip(parts[1::2], parts[2::2], strict=True)
    }


def _instructions(body: str) -> Iterator[Instruction]:
    """An instruction takes two lines: text with the first 64 bits, then the other 64, whose upper part is the
    control code."""
    first: re.Match[str] | None = None
    for line in body.splitlines():
        if found := FIRST_WORD.match(line):
            first = found
        elif first and (second := SECOND_WORD.match(line)):
            control = (
                int(second[1], 16) >> 41
            )  # bits 0-3 stall, 4 yield, 5-10 barriers set, 11-16 wait mask, 17-20 reuse
            yield Instruction(int(first[1], 16), first[2].strip(), control & 15, bool(control >> 11 & 63))
            first = None


def _sass(instructions: tuple[Instruction, ...]) -> Sass:
    return Sass(instructions, tuple(_loops(instructions)))


def _loops(instructions: tuple[Instruction, ...]) -> Iterator[Loop]:
    addresses = [one.address for one in instructions]
    for at, last in enumerate(instructions):
        target = BRANCH.search(last.text)
        begin = int(target[1], 16) if target else last.address
        body = instructions[bisect_left(addresses, begin) : at + 1]
        if begin < last.address and len(body) >= SHORTEST_LOOP:
            mix = dict(Counter(one.opcode for one in body).most_common())
            yield Loop(
                begin,
                last.address,
                len(body),
                sum(one.stall for one in body),
                sum(one.waits for one in body),
                mix,
            )
