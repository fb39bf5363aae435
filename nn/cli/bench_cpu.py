"""Measure single operations on the processor, forward and forward + backward: each beside what the machine
could do at best, measured in the same run, and beside PyTorch where it is installed: as it comes, compiled,
and both with memory that is kept and huge pages (+tuned).

Examples:
  cuda-nn bench cpu
  cuda-nn bench cpu --op softmax,rms_norm --peers none
  cuda-nn bench cpu --dtype bf16 --json
"""

from dataclasses import dataclass

from nn.cli.bench_rows import HowOptions, show
from nn.cli.parser import Parser
from nn.errors import InputError


@dataclass(frozen=True)
class Options(HowOptions):
    # What to measure
    op: str = ""                       # operations by their beginnings: softmax,attention; none: all
    dtype: str = "f32"                 # f32 or bf16 (AdamW in f32 alone)
    small: bool = False                # tiny sizes, to try the command


def run(argv: list[str]) -> int:
    """Status 0; 2 if an option is at fault."""
    (options,) = Parser("bench cpu", __doc__, Options).parse(argv)
    from nn.bench.operations import NAMES
    from nn.bench.suites import operations

    words = options.op.split(",")
    names = [name for name in NAMES if name.startswith(tuple(words))]
    for word in words:
        if not any(name.startswith(word) for name in NAMES):
            raise InputError(f"op: {word!r} is not the beginning of any; there are {', '.join(NAMES)}")
    return show(operations(names, options.run(), options.small, options.dtype), options)
