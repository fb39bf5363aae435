"""Write text with a trained model, as it comes.

Examples:
  cuda-nn generate --prompt "def "                                    # the newest run
  cuda-nn generate --run runs/book --prompt "It was" --temperature 0  # always the likeliest token
  cuda-nn generate --checkpoint runs/book/checkpoints/step_000200 --pack q8_0 --max-tokens 50 --seed 7
"""

import sys
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

from nn.backends import native
from nn.cli.aliases import ALIASES
from nn.cli.parser import Parser
from nn.cli.sources import Changes, open_model, untrained
from nn.cli.terminal import stream
from nn.errors import InputError
from nn.generate import SamplingConfig, stream_text
from nn.generate.recorded import refusals
from nn.threads import computing_threads, described


@dataclass(frozen=True)
class Options:
    # What to continue
    checkpoint: Path | None = None     # run, checkpoint or Hugging Face folder (default: the newest run)
    model: str | None = None           # instead, a ready-made model (gpt-small, ...) that has learned nothing
    prompt: str = ""                   # text to continue; empty: start as a document does
    truncate_prompt: bool = False      # keep only the end of a prompt longer than the model's context
    pack: str | None = None            # pack the weights as f32, bf16, q8_0 or q4_0: faster on the CPU
    threads: int = 0                   # to compute with; 0 = NN_THREADS, else all usable cores


def run(argv: list[str]) -> int:
    parser = Parser("generate", __doc__, Options, SamplingConfig, aliases=ALIASES["generate"],
                    changes=Changes)
    options, sampling, changes = parser.parse(argv)
    if options.checkpoint and options.model:
        raise InputError(f"--model: {options.model}; --checkpoint already names a model, a trained one")
    if changes and not options.model:
        raise InputError("--model.…: a trained model is as it is; changes are for --model NAME")
    model, tokenizer = (untrained(options.model, changes) if options.model
                        else open_model(options.checkpoint)[:2])
    if options.pack:
        model = model.pack(options.pack)
    pieces = stream_text(model, tokenizer, options.prompt, sampling, truncate_prompt=options.truncate_prompt)
    before, earlier = native.fallbacks(), len(refusals())
    with computing_threads(options.threads) as threads:
        stream(chain([options.prompt], pieces))
    if getattr(model, "device", None) is None and sys.stderr.isatty():
        print(f"({described(threads)})", file=sys.stderr)
    if fallen := native.fallen_back(before):
        print(f"(the reference ran instead of a native kernel: {fallen})", file=sys.stderr)
    for why in dict.fromkeys(refusals()[earlier:]):
        print(f"(decoding went on kernel by kernel, its step cannot be recorded: {why})", file=sys.stderr)
    return 0
