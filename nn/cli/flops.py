"""Count a model's parameters and floating-point operations, without building it.

Examples:
  cuda-nn flops --preset moe-6.9b --seq-len 4096
  cuda-nn flops --config runs/book/config.yaml
"""

from dataclasses import dataclass
from pathlib import Path

from nn.cli.parser import Parser
from nn.cli.sources import model_config
from nn.cli.terminal import facts, table
from nn.errors import InputError
from nn.flops import breakdown, parameters
from nn.models import PRESETS, MoETransformerConfig, preset


@dataclass(frozen=True)
class Options:
    # Which model
    preset: str | None = None      # a ready-made model: tiny or moe-6.9b
    config: Path | None = None     # YAML file with a model's configuration, by itself or as part of a run's
    seq_len: int | None = None     # tokens in the sequence (default: the model's context)


def run(argv: list[str]) -> int:
    (options,) = Parser("flops", __doc__, Options).parse(argv)
    if (options.preset is None) == (options.config is None):
        raise InputError("give either --preset (" + ", ".join(PRESETS) + ") or --config FILE")
    config = model_config(options.config) if options.config else preset(options.preset)
    seq_len = config.max_seq_len if options.seq_len is None else options.seq_len
    if seq_len < 1:
        raise InputError(f"seq_len: {seq_len} must be 1 or more")
    _report(config, seq_len)
    return 0


def _report(config: MoETransformerConfig, seq_len: int) -> None:
    stored, active, work = parameters(config), parameters(config, active=True), breakdown(config, seq_len)
    rows = [(name, f"{count:,}", f"{active[name]:,}") for name, count in stored.items() if count]
    sums = ("total", f"{sum(stored.values()):,}", f"{sum(active.values()):,}")
    table([("parameters", "stored", "active per token"), *rows, sums])
    print()
    total = sum(work.values())
    rows = [(name, f"{flops / 1e6:,.3f}", f"{flops / total:.1%}") for name, flops in work.items() if flops]
    head = (f"forward, {seq_len:,} tokens", "MFLOP per token", "share")
    table([head, *rows, ("total", f"{total / 1e6:,.3f}", "100.0%")])
    print()
    facts([("training", f"{3 * total / 1e6:,.3f} MFLOP per token: backward costs twice as much as forward")])
