"""What is measured: one action, what it does, and which ceiling counts."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from nn.bench.timing import Sample

READ = "read"             # the ceiling of tasks that memory bounds


@dataclass(frozen=True)
class Task:
    """`run` does it once; if it times itself it returns the seconds that count, or the sample.  A task has
    flops or bytes."""

    run: Callable[[], float | Sample | None]
    tokens: float = 0.0                # that one repetition handles; 0: it is given in seconds
    flops: float = 0.0                 # of one repetition: the ceiling is that many multiply-adds
    bytes: float = 0.0                 # moved by one repetition: the ceiling is reading that many
    dtype: str = "float32"             # of the factors, which decides the ceiling of multiply-adds
    facts: Mapping[str, Any] = field(default_factory=dict)     # for the row: parameters, versions, ...

    @property
    def ceiling(self) -> str:
        """Which counts: multiply-adds of a type, "read", or "" for none."""
        return self.dtype if self.flops else READ if self.bytes else ""

    @property
    def work(self) -> float:
        """Of one repetition, in that ceiling's unit."""
        return self.flops or self.bytes


# What a module that a worker loads defines as `tasks(**options)`: made when first measured.
Tasks = dict[str, Callable[[], Task]]
