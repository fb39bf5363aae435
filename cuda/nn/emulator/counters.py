"""What decides a kernel's speed, counted while it ran: per kernel, and per line of its source.

    counts = module.counters["transpose"]
    counts.sectors / counts.ideal_sectors            # 1.0: every 32-byte sector fetched is used in full
    counts.by_line[14].bank_wavefronts               # line 14 of the kernel's file
    counts.mix["tensor"], counts.flops["f32"]

A request is one execution of a memory instruction by a warp.  Sums over all launches counted."""

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from cuda.nn.emulator.errors import EmulatorError
from cuda.nn.emulator.names import plain_name, resolve

TOTAL = "total"


@dataclass
class Counts:
    """Of a kernel, or of one line of it."""

    requests: int = 0  # global memory
    sectors: int = 0  # 32-byte pieces of global memory that the requests touch
    ideal_sectors: int = 0  # what their distinct bytes would fill
    shared_requests: int = 0
    bank_wavefronts: int = 0  # passes through shared memory's 32 banks
    ideal_wavefronts: int = 0  # without bank conflicts
    bytes_read: int = 0  # global memory, by all threads
    bytes_written: int = 0
    distinct_bytes_read: int = 0  # each byte once per launch
    distinct_bytes_written: int = 0
    atomics: int = 0  # by threads
    instructions: int = 0  # by threads
    barriers: int = 0  # by blocks
    collectives: int = 0  # by warps: shuffles, votes, matrix instructions, ...
    flops: dict[str, int] = field(default_factory=dict)  # by type: f32, tensor_bf16, ...
    mix: dict[str, int] = field(
        default_factory=dict
    )  # instructions by class: integer, load.global, tensor, ...

    @property
    def total_flops(self) -> int:
        """Of all types."""
        return sum(self.flops.values())

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)

    def add(self, other: Mapping[str, Any]) -> None:
        """Add counts as the runtime library tells them."""
        for one in fields(self):
            if one.type is int:
                setattr(self, one.name, getattr(self, one.name) + other.get(one.name, 0))
        for mine, more in ((self.flops, other.get("flops", {})), (self.mix, other.get("mix", {}))):
            for kind, count in more.items():
                if kind != TOTAL:
                    mine[kind] = mine.get(kind, 0) + count


@dataclass
class KernelCounters(Counts):
    """Of a kernel, over all its launches counted."""

    launches: int = 0
    blocks: int = 0
    threads: int = 0
    places: dict[tuple[str, int], Counts] = field(default_factory=dict)  # by (file, line), headers' lines too
    file: str = ""  # where by_line's lines are

    @property
    def by_line(self) -> dict[int, Counts]:
        """By line of the kernel's own file; `places` has the lines of headers, too."""
        return {line: counts for (file, line), counts in sorted(self.places.items()) if file == self.file}

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        lines = [
            {"file": file, "line": line, **counts.as_dict()}
            for (file, line), counts in sorted(self.places.items())
        ]
        return {name: value for name, value in asdict(self).items() if name != "places"} | {"by_line": lines}


class ModuleCounters(Mapping[str, KernelCounters]):
    """Counters by kernel: plain or mangled name.  Kernels that were never launched have none."""

    def __init__(self, by_mangled: Mapping[str, KernelCounters]) -> None:
        self._by_mangled = by_mangled

    def __getitem__(self, name: str) -> KernelCounters:
        try:
            return self._by_mangled[resolve(name, self._by_mangled)]
        except EmulatorError as error:
            ran = ", ".join(map(plain_name, self._by_mangled)) or "none"
            raise KeyError(f"{error} (kernels launched since the last clear(): {ran})") from None

    def __iter__(self) -> Iterator[str]:
        return iter(self._by_mangled)

    def __len__(self) -> int:
        return len(self._by_mangled)

    def __repr__(self) -> str:
        return f"ModuleCounters({', '.join(map(plain_name, self._by_mangled))})"


def merge_counters(
    into: dict[str, KernelCounters], found: Mapping[str, Mapping[str, Any]], source: Path | None = None
) -> None:
    """Add what the runtime library counted; `source` is the file that the kernels are in."""
    for mangled, one in found.items():
        counts = into.setdefault(mangled, KernelCounters())
        counts.add(one)
        for line in one.get("by_line", ()):
            counts.places.setdefault((line["file"], line["line"]), Counts()).add(line)
        counts.file = _own_file([file for file, _ in counts.places], source)


def read_counters(
    found: Mapping[str, Mapping[str, Any]], source: Path | None = None
) -> dict[str, KernelCounters]:
    """What the runtime library counted, by mangled name."""
    counters: dict[str, KernelCounters] = {}
    merge_counters(counters, found, source)
    return counters


def _own_file(files: list[str], source: Path | None) -> str:
    """The file that was compiled, if lines of it ran, else a .cu file, else the first one."""
    if source is not None and (own := [file for file in files if Path(file).name == source.name]):
        return own[0]
    return next((file for file in files if file.endswith(".cu")), files[0] if files else "")
