"""Write text with a trained model, as it comes.

Examples:
  cuda-nn generate --prompt "def "                                    # the newest run
  cuda-nn generate --run runs/book --prompt "It was" --temperature 0  # always the likeliest token
  cuda-nn generate --checkpoint runs/book/checkpoints/step_000200 --max-tokens 50 --seed 7
"""

from dataclasses import dataclass
from itertools import chain
from pathlib import Path

from nn.cli.parser import Parser
from nn.cli.sources import open_model
from nn.cli.terminal import stream
from nn.generate import SamplingConfig, stream_text

ALIASES = {"run": "checkpoint", "ckpt": "checkpoint"}


@dataclass(frozen=True)
class Options:
    # What to continue
    checkpoint: Path | None = None     # run, checkpoint or Hugging Face folder (default: the newest run)
    prompt: str = ""                   # text to continue; empty: start as a document does
    truncate_prompt: bool = False      # keep only the end of a prompt longer than the model's context


def run(argv: list[str]) -> int:
    options, sampling = Parser("generate", __doc__, Options, SamplingConfig, aliases=ALIASES).parse(argv)
    model, tokenizer, _ = open_model(options.checkpoint)
    pieces = stream_text(model, tokenizer, options.prompt, sampling, truncate_prompt=options.truncate_prompt)
    stream(chain([options.prompt], pieces))
    return 0
