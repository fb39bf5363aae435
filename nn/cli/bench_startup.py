"""Measure how long a fresh process takes to import the library, and to the first token of a small model that
lies on disk: whole processes, as the user sees them, Python's own start among it.

Examples:
  cuda-nn bench startup
  cuda-nn bench startup --samples 20 --json
"""

from dataclasses import dataclass

from nn.cli.bench_rows import HowOptions, show
from nn.cli.parser import Parser


@dataclass(frozen=True)
class Options(HowOptions):
    # What to measure
    preset: str = "small"              # a ready-made model: tiny or small


def run(argv: list[str]) -> int:
    """Status 0; 2 if an option is at fault."""
    (options,) = Parser("bench startup", __doc__, Options).parse(argv)
    from nn.bench.startup import rows

    return show(rows(options.run(), options.preset), options)
