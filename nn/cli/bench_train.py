"""Measure a training step (forward, backward, AdamW) on the processor, beside what the machine could do at
best, measured in the same run, and beside PyTorch where it is installed. bf16 has the weights in bfloat16 and
the optimizer's in float32.

Examples:
  cuda-nn bench train --model gpt2-124m --batch 4 --seq 256 --dtype f32
  cuda-nn bench train --model moe-bench --batch 8 --dtype bf16 --peers none --json
"""

from dataclasses import dataclass

from nn.cli.bench_rows import HowOptions, show
from nn.cli.parser import Parser
from nn.errors import InputError


@dataclass(frozen=True)
class Options(HowOptions):
    # What to measure
    model: str = "gpt2-124m"           # gpt2-124m, moe-bench, gpt-tiny or tiny
    batch: int = 4                     # sequences per step
    seq: int = 256                     # tokens per sequence
    dtype: str = "f32"                 # f32 or bf16

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.batch < 1 or self.seq < 1:
            raise InputError(f"batch: {self.batch}, seq: {self.seq}; give 1 or more of each")


def run(argv: list[str]) -> int:
    """Status 0; 1 if our own row failed; 2 if an option is at fault."""
    (options,) = Parser("bench train", __doc__, Options).parse(argv)
    from nn.bench.suites import train

    return show(train(options.model, options.dtype, options.batch, options.seq, options.run()), options)
