"""Where things lie: static shared variables in the block's window, and how much stack a kernel's threads
need.

A shared variable has one offset in the whole module, as a device function is compiled once for all kernels
that call it. Variables that no kernel uses together may overlap: each is put right above those with which it
shares a kernel."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from cuda.nn.emulator.translate.function import Translated
from cuda.nn.emulator.translate.names import SYSTEM, Variable, natural_alignment, scalar_bytes

# bytes between shared variables, and after globals: what runs over an end does not hit the next unseen
RED_ZONE = 64
_FRAME_OVERHEAD = (
    256  # bytes of a C++ function's frame besides its variables: saved registers, arguments, alignment
)
_RECURSIONS = 32  # how deep a recursive function is expected to go


@dataclass
class SharedLayout:
    """Offsets of all shared variables; for each kernel its own and where its dynamic memory begins."""

    offsets: list[int]
    used: dict[str, list[int]] = field(default_factory=dict)  # kernel -> numbers of its variables, by offset
    declared_bytes: dict[str, int] = field(default_factory=dict)  # what the hardware's limit counts
    dynamic_offset: dict[str, int] = field(default_factory=dict)


def reachable(name: str, functions: Mapping[str, Translated], address_taken: Iterable[str]) -> list[str]:
    """A function and all that it may call; through pointers it may call whatever has had its address
    taken."""
    found: dict[str, None] = {}
    left = [name]
    while left:
        current = left.pop()
        translated = functions.get(current)
        if current in found or translated is None:
            continue
        found[current] = None
        left.extend(translated.usage.calls)
        if translated.usage.calls_indirectly:
            left.extend(address_taken)
    return list(found)


def lay_out_shared(
    shared: Sequence[Variable], reached: Mapping[str, list[str]], functions: Mapping[str, Translated]
) -> SharedLayout:
    """Offsets for the variables that the kernels reach."""
    users: dict[int, list[str]] = {}
    alignments: dict[str, int] = {}
    for kernel, names in reached.items():
        numbers = {number for name in names for number in functions[name].usage.shared}
        alignments[kernel] = max((functions[name].usage.dynamic_alignment for name in names), default=0)
        for number in numbers:
            users.setdefault(number, []).append(kernel)
    layout = SharedLayout([0] * len(shared))
    tops = dict.fromkeys(reached, 0)
    for number, variable in enumerate(shared):
        kernels = users.get(number, [])
        size, alignment = scalar_bytes(variable.declaration), natural_alignment(variable.declaration)
        begin = _aligned(max((tops[kernel] for kernel in kernels), default=0), alignment)
        layout.offsets[number] = begin
        for kernel in kernels:
            tops[kernel] = begin + size + RED_ZONE
            layout.used.setdefault(kernel, []).append(number)
            if variable.owner != SYSTEM:
                counted = layout.declared_bytes.get(kernel, 0)
                layout.declared_bytes[kernel] = _aligned(counted, alignment) + size
    for kernel in reached:
        layout.dynamic_offset[kernel] = _aligned(tops[kernel], max(16, alignments[kernel]))
    return layout


def stack_bytes(kernel: str, functions: Mapping[str, Translated], address_taken: Iterable[str]) -> int:
    """A bound for the stack of one thread: the deepest chain of calls, with room for some recursion."""
    taken = list(address_taken)
    depths: dict[str, int] = {}
    walking: list[str] = []
    recursive: set[str] = set()

    def depth(name: str) -> int:
        if name in walking:
            recursive.update(walking[walking.index(name) :])
            return 0
        translated = functions.get(name)
        if name in depths or translated is None:
            return depths.get(name, 0)
        walking.append(name)
        callees = [*translated.usage.calls, *(taken if translated.usage.calls_indirectly else [])]
        deepest = max((depth(callee) for callee in callees), default=0)
        walking.pop()
        depths[name] = frame_bytes(translated) + deepest
        return depths[name]

    total = depth(kernel)
    return total + _RECURSIONS * sum(frame_bytes(functions[name]) for name in recursive)


def frame_bytes(translated: Translated) -> int:
    """Local memory, buffers of calls, and every register spilled."""
    return (
        translated.frame_bytes + 2 * translated.usage.call_bytes + 8 * translated.registers + _FRAME_OVERHEAD
    )


def _aligned(value: int, alignment: int) -> int:
    return -(-value // alignment) * alignment
