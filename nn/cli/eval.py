"""Measure how well a trained model predicts text, beside what gzip and xz need for the same text.

Examples:
  cuda-nn eval                                             # the newest run on its held-out text
  cuda-nn eval --run runs/book --data other.txt            # on other text, all of it
  cuda-nn eval --ckpt runs/book/checkpoints/step_000200 --overlap 128
"""

import math
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from nn.cli.aliases import ALIASES
from nn.cli.parser import Parser
from nn.cli.sources import KINDS, Changes, of_model, open_model, run_settings
from nn.cli.terminal import facts, table
from nn.config import update, variant
from nn.data import TokenShard, read_documents, split, write_tokens
from nn.errors import InputError
from nn.eval import compressed_bits_per_byte, negative_log_likelihood
from nn.threads import computing_threads, described
from nn.train import corpus


@dataclass(frozen=True)
class Options:
    # What to measure
    checkpoint: Path | None = None           # run, checkpoint or Hugging Face folder (default: the newest)
    config: Path | None = None               # YAML file of a model that the checkpoint must agree with
    data: str | None = None                  # file, folder, JSONL, stdlib (default: the run's held-out text)
    held_out_fraction: float | None = None   # of --data, only what training with this share would hold out
    # How
    seq_len: int | None = None               # tokens per window (default: the model's context)
    overlap: int = 1                         # tokens of the window before to see; more is slower and better
    batch_size: int = 16                     # windows at a time
    threads: int = 0                         # to compute with; 0 = NN_THREADS, else all usable cores

    def __post_init__(self) -> None:
        for name in ("seq_len", "overlap", "batch_size"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise InputError(f"--{name.replace('_', '-')}: {value}; give 1 or more")


class Text(NamedTuple):
    """What is measured."""

    name: str
    tokens: np.ndarray
    num_bytes: int
    marks: dict[str, float]      # bits per byte of gzip and xz


def run(argv: list[str]) -> int:
    parser = Parser("eval", __doc__, Options, aliases=ALIASES["eval"], changes=Changes)
    options, changes = parser.parse(argv)
    model, tokenizer, folder = open_model(options.checkpoint)
    if options.config:
        _check_same(of_model(run_settings(options.config)), of_model(changes), model.config, options.config)
    elif changes:
        raise InputError("--model.…: a trained model is as it is; changes are for a file given by --config")
    context = model.config.max_seq_len
    if options.seq_len and options.seq_len > context:
        raise InputError(f"--seq-len: {options.seq_len} is longer than the model's context of {context}")
    text = _text(options.data, options.held_out_fraction, tokenizer) if options.data else _held_out(folder)
    seq_len = options.seq_len or min(context, max(1, len(text.tokens)))
    size = f"{text.num_bytes:,} bytes, {len(text.tokens):,} tokens, read {seq_len} at a time"
    facts([("model", f"{folder}: {model.num_parameters():,} parameters"), ("text", f"{text.name}: {size}"),
           ("threads", described(options.threads))])
    with computing_threads(options.threads):
        nats = negative_log_likelihood(model, text.tokens, seq_len=seq_len, batch_size=options.batch_size,
                                       prefix_id=tokenizer.eos_id, overlap=options.overlap)
    _report(nats, text)
    return 0


def _report(nats: float, text: Text) -> None:
    perplexity, bits = math.exp(nats / len(text.tokens)), nats / math.log(2.0) / text.num_bytes
    marks = [(f"{name} -9", f"{mark:.4f}", "") for name, mark in text.marks.items()]
    table([("", "bits per byte", "perplexity"), ("model", f"{bits:.4f}", f"{perplexity:.2f}"), *marks])
    others = " ".join(f"{name}={mark:.4f}" for name, mark in text.marks.items())
    print(f"final: bits_per_byte={bits:.4f} perplexity={perplexity:.4f} {others} tokens={len(text.tokens)}")


def _held_out(folder: Path) -> Text:
    """The text that the model's run set aside."""
    run_folder = folder if (folder / "tokens").is_dir() else folder.parent.parent
    if not (run_folder / "tokens" / "info.json").is_file():
        raise InputError(f"data: {folder} is not part of a run and holds no text; give some with --data")
    held = corpus.load(run_folder)
    marks = {name: held.info[name] for name in ("gzip", "xz")}
    return Text(f"held-out text of {run_folder}", held.held_out.tokens, held.info["held_out"]["bytes"], marks)


def _text(data: str, held_out_fraction: float | None, tokenizer: Any) -> Text:
    """Any other text, tokenized the way training does."""
    documents = read_documents(data)
    if held_out_fraction is not None:
        documents = split(documents, held_out_fraction)[1]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "tokens.bin"
        write_tokens(path, documents, tokenizer)
        tokens = np.array(TokenShard(path).tokens)      # a copy: the file goes
    whole = "".join(document.text for document in documents).encode()
    return Text(f"{data} ({len(documents):,} documents)", tokens, len(whole), compressed_bits_per_byte(whole))


def _check_same(file: dict[str, Any], changes: dict[str, Any], model: Any, path: Path) -> None:
    """Of the model, what the file with the changes says; what it leaves open was the run's to decide."""
    if (kind := variant(KINDS, [*file, *changes], model)) is not type(model):
        raise InputError(f"config: {path} describes a {kind.__name__}, but the checkpoint is of another kind")
    asked = update(model, {**file, **changes})
    for name in dict.fromkeys(key.partition(".")[0] for key in [*file, *changes]):
        wanted, found = getattr(asked, name), getattr(model, name)
        if wanted != found and name != "vocab_size":         # which follows the tokenizer
            raise InputError(f"config: {path}: {name} is {wanted}, but {found} in the checkpoint")
