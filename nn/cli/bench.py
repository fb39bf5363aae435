"""Measure training and generation on this machine, beside what it could do at best. More has verbs of its
own: bench cpu (single operations), train, decode and startup, beside other libraries; bench kernels (CUDA).
Each has --help.

Examples:
  cuda-nn bench
  cuda-nn bench kernels
  cuda-nn bench --config runs/book/config.yaml --batch-size 16 --repeat 10
"""

import importlib
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from nn.cli.aliases import ALIASES
from nn.cli.parser import Parser
from nn.cli.sources import Changes, model_config, model_preset, of_model
from nn.cli.terminal import facts, table
from nn.config import update
from nn.flops import breakdown
from nn.models import from_config
from nn.models.decoder import Decoder
from nn.names import check_name
from nn.optim import clip_scale, create_optimizer, grad_norm
from nn.tensor import no_grad
from nn.threads import computing_threads, described
from nn.train.gradients import accumulate


@dataclass(frozen=True)
class Options:
    # What to measure
    preset: str = "tiny"             # a ready-made model: tiny, small, gpt-tiny, ...
    config: Path | None = None       # instead, a YAML file with a model's or a run's configuration
    batch_size: int = 8              # sequences per training step
    seq_len: int = 256               # tokens per sequence
    repeat: int = 5                  # times that each thing is measured; the median counts
    threads: int = 0                 # to compute with; 0 = NN_THREADS, else all usable cores


VERBS = ("cpu", "train", "decode", "startup", "kernels")      # bench_VERB.py


def run(argv: list[str]) -> int:
    if argv and argv[0] in VERBS:
        status: int = importlib.import_module(f"nn.cli.bench_{argv[0]}").run(argv[1:])
        return status
    if argv and not argv[0].startswith("-"):
        check_name("bench", argv[0], VERBS)
    options, changes = Parser("bench", __doc__, Options, aliases=ALIASES["bench"],
                              changes=Changes).parse(argv)
    config = (update(model_config(options.config), of_model(changes)) if options.config
              else model_preset(options.preset, changes))
    config = config.replace(max_seq_len=max(config.max_seq_len, options.seq_len + options.repeat + 1))
    model, work = from_config(config), sum(breakdown(config, options.seq_len).values())
    active = model.num_parameters(active=True)
    facts([("model", f"{model.num_parameters():,} parameters, {active:,} active, float32"),
           ("work", f"{work / 1e6:.3f} MFLOP per token forward, three times that in training"),
           ("threads", described(options.threads))])
    peak = _matrix_product(options)
    rows = [("", "ms", "tokens/s", "GFLOP/s", "of the matrix product"),
            ("matrix product 1024³, float32", f"{2e3 * 1024**3 / peak:.1f}", "", f"{peak / 1e9:.1f}", "")]
    with computing_threads(options.threads):
        measured = _measured(model, options)
    for name, tokens, factor, seconds in measured:
        speed = tokens * work * factor / seconds
        rows.append((name, f"{seconds * 1e3:.1f}", f"{tokens / seconds:,.0f}", f"{speed / 1e9:.1f}",
                     f"{speed / peak:.1%}"))
    table(rows)
    return 0


def _measured(model: Decoder, options: Options) -> list[tuple[str, int, int, float]]:
    """(what, tokens, work in units of a forward pass, median seconds) of training, prefill and decoding."""
    batch, length = options.batch_size, options.seq_len
    ids = np.random.default_rng(0).integers(model.config.vocab_size, size=(batch, length + 1))
    optimizer = create_optimizer("adamw", model.named_parameters(), lr=1e-3)
    cache = model.init_state(1)

    def train() -> None:
        accumulate(model, [(ids[:, :-1], ids[:, 1:])], seed=0, step=1)
        optimizer.step(grad_scale=clip_scale(grad_norm(model.parameters()), 1.0))
        model.zero_grad()

    def prefill() -> None:
        nonlocal cache
        cache = model.init_state(1)
        model(ids[:1, :-1], cache=cache, last_only=True)

    def decode() -> None:
        model(ids[:1, -1:], cache=cache, last_only=True)

    rows = [(f"training step {batch} × {length}", batch * length, 3, _median(train, options.repeat))]
    model.eval()
    with no_grad():
        rows.append((f"prefill 1 × {length}", length, 1, _median(prefill, options.repeat)))
        rows.append((f"decoding after {length} tokens", 1, 1, _median(decode, options.repeat)))
    return rows


def _matrix_product(options: Options) -> float:
    """FLOP/s of a large product, all the threads being the BLAS': the ceiling for everything here."""
    with computing_threads(options.threads) as threads:
        count = threads
    a = np.random.default_rng(0).standard_normal((1024, 1024), dtype=np.float32)
    with computing_threads(count):
        return 2 * 1024**3 / _median(lambda: a @ a, options.repeat)


def _median(action: Callable[[], object], repeat: int) -> float:
    """Seconds, after one call that warms up."""
    action()
    times = []
    for _ in range(repeat):
        start = time.perf_counter()
        action()
        times.append(time.perf_counter() - start)
    return statistics.median(times)
