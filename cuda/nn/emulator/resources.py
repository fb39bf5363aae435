"""What ptxas gives a kernel: registers, spills, shared memory; and the occupancy that follows.

module.resources("gemm", block=256)      # registers 40, spills 0, shared_bytes 2048, occupancy 0.75 (limit:
registers)"""

import dataclasses
import re
import subprocess
from dataclasses import dataclass
from pathlib import Path

from cuda.nn.emulator import cache, toolchain
from cuda.nn.emulator.errors import EmulatorError
from cuda.nn.emulator.profiles import Profile, occupancy

DEFAULT_THREADS = 256
REFUSED = re.compile(r"line (\d+); error\s*: (.*)")
LOC = re.compile(r"\s*\.loc\s+(\d+)\s+(\d+)")
FILE = re.compile(r'^\s*\.file\s+(\d+)\s+"([^"]*)"', re.MULTILINE)
COMPILING = re.compile(r"Compiling entry function '([^']+)'")
STACK = re.compile(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads")
USED = re.compile(r"Used (\d+) registers")
SHARED = re.compile(r"(\d+) bytes smem")
BARRIERS = re.compile(r"used (\d+) barriers")
THREADS = re.compile(r"\.entry\s+([\w$]+)\s*(?:\([^)]*\))?\s*((?:\.\w+\s+[\d,\s]+)*)\{", re.DOTALL)


@dataclass(frozen=True)
class Resources:
    """A kernel's resources; bytes are per thread (stack, spills) or per block (shared)."""

    registers: int  # per thread
    spills: int  # bytes stored and loaded because the registers did not suffice
    stack_bytes: int
    shared_bytes: int  # static
    barriers: int
    threads: int = DEFAULT_THREADS  # of a block, for what follows
    dynamic_shared_bytes: int = 0
    blocks_per_multiprocessor: int = 0
    occupancy: float = 0.0  # share of a multiprocessor's threads that such blocks fill
    limit: str = ""  # what keeps it from being more

    def with_launch(self, profile: Profile, threads: int | None, dynamic_shared_bytes: int) -> "Resources":
        """With the occupancy of blocks of so many threads on a profile."""
        threads = threads or self.threads
        found = occupancy(profile, threads, self.registers, self.shared_bytes + dynamic_shared_bytes)
        return dataclasses.replace(
            self,
            threads=threads,
            dynamic_shared_bytes=dynamic_shared_bytes,
            limit=found.limit,
            blocks_per_multiprocessor=found.blocks,
            occupancy=found.share,
        )


def read_resources(ptx: str, arch: str) -> dict[str, Resources]:
    """Of every kernel of a PTX text, by mangled name.  EmulatorError with ptxas's lines where it refuses the
    PTX."""
    return parse(assemble(ptx, arch)[1], ptx)


def assemble(ptx: str, arch: str) -> tuple[Path, str]:
    """The machine code (a .cubin file, cached) and what ptxas -v said.  EmulatorError with its lines where it
    refuses."""
    ptxas = toolchain.ptxas()

    def make(made: Path) -> None:
        source = made / "kernels.ptx"
        source.write_text(ptx, encoding="utf-8")
        command = [str(ptxas), "-v", "-lineinfo", f"-arch={arch}", source.name, "-o", "kernels.cubin"]
        done = subprocess.run(command, cwd=made, capture_output=True, text=True, check=False)
        if done.returncode:
            raise EmulatorError(_refusal(ptx, arch, said := done.stderr or done.stdout), said)
        (made / "ptxas.txt").write_text(done.stderr + done.stdout, encoding="utf-8")

    folder = cache.entry("cubin", cache.digest([ptx, arch, str(ptxas), toolchain.version(ptxas)]), make)
    return folder / "kernels.cubin", (folder / "ptxas.txt").read_text(encoding="utf-8")


def _refusal(ptx: str, arch: str, said: str) -> str:
    """The message where ptxas refuses a PTX text: with the .cu line of its first complaint, if known."""
    message = f"ptxas refuses it for {arch}"
    if not (complaint := REFUSED.search(said)):
        return message
    above = ptx.splitlines()[: int(complaint[1])]
    if not (places := [found for line in above if (found := LOC.match(line))]):
        return message
    files = dict(FILE.findall(ptx))
    file, line = places[-1].groups()
    return f"{files.get(file, '')}:{line}: {message}: {complaint[2]}"


def parse(said: str, ptx: str = "") -> dict[str, Resources]:
    """Read what `ptxas -v` said; the PTX tells how many threads a block has at most."""
    most = {name: _threads(directives) for name, directives in THREADS.findall(ptx)}
    found: dict[str, Resources] = {}
    parts = COMPILING.split(said)
    for name, text in zip(parts[1::2], parts[2::2], strict=True):
        found_stack = STACK.search(text)
        stack, stores, loads = map(int, found_stack.groups()) if found_stack else (0, 0, 0)
        found[name] = Resources(
            registers=_number(USED, text),
            spills=stores + loads,
            stack_bytes=stack,
            shared_bytes=_number(SHARED, text),
            barriers=_number(BARRIERS, text),
            threads=most.get(name) or DEFAULT_THREADS,
        )
    return found


def _number(pattern: re.Pattern[str], text: str) -> int:
    found = pattern.search(text)
    return int(found[1]) if found else 0


def _threads(directives: str) -> int:
    """Of .maxntid or .reqntid; 0 where there is neither."""
    total = 0
    if found := re.search(r"\.(?:max|req)ntid\s+([\d,\s]+)", directives):
        total = 1
        for number in found[1].split(","):
            total *= int(number)
    return total
