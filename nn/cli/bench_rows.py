"""What the verbs bench cpu, train, decode and startup have in common: how it is measured, and how shown."""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from nn.backends import native
from nn.cli.terminal import facts, table
from nn.errors import InputError
from nn.threads import computing_threads


@dataclass(frozen=True)
class HowOptions:
    # How to measure
    threads: int = 0                   # of every library; 0 = NN_THREADS, else all usable cores
    samples: int = 5                   # that count, of each row; the median is quoted
    seconds: float = 0.4               # of one sample, at least
    peers: str = "all"                 # other libraries: all that are installed, none, or names: torch,...
    json: bool = False                 # one JSON object per row instead of a table

    def __post_init__(self) -> None:
        if self.threads < 0 or self.samples < 1 or self.seconds < 0:
            raise InputError(f"threads: {self.threads}, samples: {self.samples}, seconds: {self.seconds}; "
                             "give threads of 0 or more, 1 sample or more, and 0 seconds or more")

    def count(self) -> int:
        """Of threads."""
        with computing_threads(self.threads) as threads:
            return threads

    def run(self) -> Any:
        """The same for nn.bench."""
        from nn.bench.runs import Policy
        from nn.bench.suites import Run

        return Run(self.count(), Policy(self.samples, 2 * self.samples, self.seconds),
                   tuple(self.peers.split(",")), **({"ceiling_bytes": 1 << 20} if self.seconds == 0 else {}))


def show(rows: Iterable[dict[str, Any]], options: HowOptions) -> int:
    """One JSON object per row as soon as it is there, or a table of all; status 1 if our own failed."""
    from nn.bench.report import LEGEND, OURS, machine, table_rows

    found = []
    for row in rows:
        found.append(row)
        if options.json:
            print(json.dumps(row), flush=True)
    if not options.json:
        facts([("machine", machine()), ("native kernels", native.summary()),
               ("threads", str(options.count())),
               ("samples", f"{options.samples}, in turns; the median, and fastest to slowest"), ("", "")])
        table(table_rows(found))
        if any(row["percent_of_ceiling"] is not None for row in found):
            print(LEGEND)
        for row in found:
            if fallen := row.get("fallbacks"):
                print(f"{row['name']}: the reference ran instead of a native kernel: {fallen}")
            if "recorded" in row:
                print(f"{row['name']}: the step was " + ("recorded" if row["recorded"] else
                                                         f"not recorded: {row['not_recorded']}"))
    return int(any("error" in row and row["library"] == OURS for row in found))
