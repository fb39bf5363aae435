"""Measure generation on the processor, batch 1: new tokens behind a prompt, and a long prompt read at once.
Beside reading the weights at the machine's bandwidth, measured in turns with them, and beside llama.cpp and
PyTorch where they are installed. Weights are random.

Examples:
  cuda-nn bench decode --model smol-135m --dtype bf16 --prompt 32 --new 128
  cuda-nn bench decode --model moe-768x12 --dtype q8_0 --prefill 0 --json
"""

from dataclasses import dataclass

from nn.cli.bench_rows import HowOptions, show
from nn.cli.parser import Parser
from nn.errors import InputError


@dataclass(frozen=True)
class Options(HowOptions):
    # What to measure
    model: str = "smol-135m"           # smol-135m, moe-768x12, tiny, or moe-6.9b, whose weights are mapped
                                       # from files in the temp directory or NN_BENCH_CACHE (14 GB, 7 GB)
    dtype: str = "f32"                 # of the weights: f32, bf16, q8_0 or q4_0
    prompt: int = 32                   # tokens before the new ones
    new: int = 128                     # new tokens; 0 leaves decoding out
    prefill: int = 512                 # tokens of the long prompt; 0 leaves prefill out

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.prompt < 1 or self.new < 0 or self.prefill < 0 or not self.new + self.prefill:
            raise InputError(f"prompt: {self.prompt}, new: {self.new}, prefill: {self.prefill}; give a "
                             "prompt of 1 or more tokens, and new or prefill of 1 or more")


def run(argv: list[str]) -> int:
    """Status 0; 1 if our own row failed; 2 if an option is at fault."""
    (options,) = Parser("bench decode", __doc__, Options).parse(argv)
    from nn.bench.suites import decode

    return show(decode(options.model, options.dtype, options.prompt, options.new, options.prefill,
                       options.run()), options)
