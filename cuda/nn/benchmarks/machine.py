"""What the compiler made of the kernels that a call launched: registers, stack, shared memory, loops.

From machine code where cuobjdump and nvdisasm are installed, else from what ptxas says.  Shared memory that
a launch asks for at run time is in neither: the occupancy of a kernel that uses any is an upper bound."""

from collections.abc import Collection
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path

from cuda.nn import machine_code
from cuda.nn.emulator import fatbin, resources
from cuda.nn.emulator.errors import EmulatorError
from cuda.nn.emulator.profiles import occupancy, profile_of

LOCAL = ("LDL", "STL")


@dataclass(frozen=True)
class Figures:
    """One kernel as compiled; None: not known without a disassembler."""

    registers: int                   # per thread
    spill_bytes: int                 # stack per thread, which is where spilled registers are
    local_instructions: int | None   # loads and stores of local memory
    shared_bytes: int                # per block, static
    loop_issue_cycles: int | None    # one warp's lower bound for a pass of its longest loop


def figures(library: Path, arch: str, names: Collection[str]) -> dict[str, Figures]:
    """By mangled name; a kernel that is not in the library for that architecture is left out."""
    found: dict[str, Figures] = {}
    stamp = library.stat().st_mtime
    for index, images in enumerate(_units(library, stamp)):
        if any(name.encode() in images[0].image() for name in names):
            unit = _unit(library, stamp, index, arch)
            found |= {name: one for name, one in unit.items() if name in names}
    return found


def with_launch(figures: Figures, arch: str, threads: int) -> dict[str, object]:
    """The figures, and how much of a multiprocessor blocks of so many threads fill (at most)."""
    filled = occupancy(profile_of(arch), threads, figures.registers, figures.shared_bytes)
    return asdict(figures) | {"occupancy_at_most": filled.share, "occupancy_limit": filled.limit}


@lru_cache(4)
def _units(library: Path, _: float) -> list[list[fatbin.Entry]]:
    """Each translation unit's images, of a library as it was at that time."""
    return machine_code.containers(library)


@lru_cache(256)
def _unit(library: Path, stamp: float, index: int, arch: str) -> dict[str, Figures]:
    images = _units(library, stamp)[index]
    try:
        kernels = machine_code.kernels(images, arch) or machine_code.kernels(images, f"{arch}a")
        return {kernel.mangled: _from_code(kernel) for kernel in kernels}
    except EmulatorError:
        return _from_ptxas(images, arch)


def _from_code(kernel: machine_code.Kernel) -> Figures:
    local = sum(n for opcode, n in kernel.opcodes.items() if opcode.partition(".")[0] in LOCAL)
    return Figures(kernel.registers, kernel.stack_bytes, local, kernel.shared_bytes,
                   max((loop.issue_cycles for loop in kernel.loops), default=0))


def _from_ptxas(images: list[fatbin.Entry], arch: str) -> dict[str, Figures]:
    try:
        said = resources.read_resources(fatbin.choose(images, arch), arch)
    except EmulatorError:
        return {}
    return {name: Figures(r.registers, r.stack_bytes, None, r.shared_bytes, None) for name, r in said.items()}
