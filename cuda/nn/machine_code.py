"""What the kernels of a built library are in machine code: registers, stack, instructions, loops.

    for kernel in read(build.emulated_library(), "sm_80"):
        print(kernel.name, kernel.registers, kernel.opcodes.get("HMMA.16816.F32"))

Machine code that the library carries is read; of one with PTX only, that is assembled.  Both are kept in the
cache by content.  Needs cuobjdump and nvdisasm (pip install 'cuda-nn[sass]')."""

import json
import re
import subprocess
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from os import cpu_count
from pathlib import Path

from cuda.nn.emulator import cache, fatbin, resources, sass, toolchain
from cuda.nn.emulator.errors import EmulatorError
from cuda.nn.emulator.names import demangle, plain_name

FORMAT = "1"        # of what is kept
TARGET = fatbin.TARGET
USAGE = re.compile(r"Function (\S+):\s+REG:(\d+) STACK:(\d+) SHARED:(\d+) LOCAL:(\d+)")


@dataclass(frozen=True)
class Loop:
    """From the target of a backward branch to the branch."""

    instructions: int
    issue_cycles: int               # one warp's lower bound for one pass
    opcodes: dict[str, int]         # with modifiers, e.g. LDG.E.128


@dataclass(frozen=True)
class Kernel:
    """One kernel for one architecture."""

    mangled: str
    arch: str
    registers: int                  # per thread
    stack_bytes: int                # per thread; spilled registers are in it
    local_bytes: int
    shared_bytes: int               # per block, static
    opcodes: dict[str, int]         # instructions of each kind, with modifiers
    loops: tuple[Loop, ...]

    @property
    def name(self) -> str:
        """nn::scan<float, 128>"""
        return plain_name(self.mangled)

    @property
    def signature(self) -> str:
        return demangle(self.mangled)


def read(library: Path, arch: str) -> list[Kernel]:
    """All kernels that a device of that architecture would run.  EmulatorError without the tools, or where
    the library has none for it."""
    with ThreadPoolExecutor(cpu_count()) as pool:
        found = list(pool.map(lambda images: kernels(images, arch), containers(library)))
    return sorted((kernel for unit in found for kernel in unit), key=lambda kernel: kernel.name)


def containers(library: Path) -> list[list[fatbin.Entry]]:
    """What nvcc put in for each translation unit: its images for all architectures."""
    data = _section(library)
    found, at = [], 0
    while at + fatbin.CONTAINER.size <= len(data):
        magic, _, header, size = fatbin.CONTAINER.unpack_from(data, at)
        if magic != fatbin.MAGIC:
            at += 8                 # a section pads its containers
            continue
        found.append(fatbin.entries(data[at : at + header + size]))
        at += header + size
    return found


def _section(library: Path) -> bytes:
    command = ["objcopy", "-O", "binary", "--only-section=.nv_fatbin", str(library), "/dev/stdout"]
    done = subprocess.run(command, capture_output=True, check=False)
    if done.returncode or not done.stdout:
        raise EmulatorError(f"{library}: no kernels in it", done.stderr.decode(errors="replace"))
    return done.stdout


def kernels(images: list[fatbin.Entry], arch: str) -> list[Kernel]:
    """Those of one translation unit."""
    if _is_for_another(images, arch):
        return []
    cubin = _cubin(images, arch)
    tools = [tool for tool in (toolchain.cuobjdump(), toolchain.find("nvdisasm")) if tool]
    if len(tools) < 2:
        raise EmulatorError("machine code is read with cuobjdump and nvdisasm: pip install 'cuda-nn[sass]'")
    key = cache.digest([FORMAT, arch, cubin.read_bytes(), toolchain.version(tools[1])])

    def make(made: Path) -> None:
        found = [asdict(kernel) for kernel in _disassembled(cubin, arch, tools[0])]
        (made / "kernels.json").write_text(json.dumps(found))

    kept = json.loads((cache.entry("machine-code", key, make) / "kernels.json").read_text())
    return [Kernel(**one | {"loops": tuple(Loop(**loop) for loop in one["loops"])}) for one in kept]


def _is_for_another(images: list[fatbin.Entry], arch: str) -> bool:
    """Whether it was compiled for one architecture alone, such as sm_90a, and not for this one."""
    targets = [found for one in images if one.kind == fatbin.PTX and (found := TARGET.search(one.text()))]
    return bool(targets) and all(found[2] and f"sm_{found[1]}" != arch for found in targets)


def _cubin(images: list[fatbin.Entry], arch: str) -> Path:
    """A file with the machine code of a translation unit."""
    number = int(re.sub(r"\D", "", arch))
    code = next((one.image() for one in images if one.kind == fatbin.ELF and one.arch == number), None)
    if code is None:
        ptx = fatbin.choose(images, arch)
        target = TARGET.search(ptx)
        suffix = target[2] if target else ""
        return resources.assemble(ptx, arch + suffix)[0]
    image = code

    def make(made: Path) -> None:
        (made / "kernels.cubin").write_bytes(image)

    return cache.entry("cubin", cache.digest([image]), make) / "kernels.cubin"


def _disassembled(cubin: Path, arch: str, cuobjdump: Path) -> Iterator[Kernel]:
    done = subprocess.run([cuobjdump, "-res-usage", cubin], capture_output=True, text=True, check=False)
    if done.returncode:
        raise EmulatorError(f"cuobjdump refuses {cubin}", done.stderr or done.stdout)
    code = sass.read_sass(cubin) or {}
    for mangled, *numbers in USAGE.findall(done.stdout):
        if mangled not in code:
            continue                # a device function that was not inlined is in its kernels' figures
        registers, stack, shared, local = map(int, numbers)
        found = code[mangled]
        opcodes = dict(Counter(one.opcode for one in found.instructions).most_common())
        loops = tuple(Loop(one.instructions, one.issue_cycles, dict(one.mix)) for one in found.loops)
        yield Kernel(mangled, arch, registers, stack, local, shared, opcodes, loops)
