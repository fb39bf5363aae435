"""Count a model's parameters, floating-point operations and state, without building it; compare two models.

Examples:
  cuda-nn flops --preset moe-6.9b --seq-len 4096
  cuda-nn flops --config runs/book/config.yaml --decode
  cuda-nn flops --preset qwen3-0.6b --compare mamba-small --seq-len 2048
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from nn.cli.aliases import ALIASES
from nn.cli.parser import Parser
from nn.cli.sources import Changes, model_config, model_preset, model_presets, of_model
from nn.cli.terminal import facts, table
from nn.config import update
from nn.errors import InputError
from nn.flops import breakdown, decoding, parameters, state_bytes, training


@dataclass(frozen=True)
class Options:
    # Which model
    preset: str | None = None      # a ready-made model: tiny, moe-6.9b, qwen3-0.6b, gpt-small, ...
    config: Path | None = None     # YAML file with a model's configuration, by itself or as part of a run's
    compare: str | None = None     # a second model: a preset or such a file
    # Counted for
    seq_len: int | None = None     # tokens in the sequence (default: the model's context)
    decode: bool = False           # count one more token, behind seq_len - 1 that a state holds
    dtype: Literal["float32", "bfloat16", "float16"] = "bfloat16"    # of weights and caches


def run(argv: list[str]) -> int:
    parser = Parser("flops", __doc__, Options, aliases=ALIASES["flops"], changes=Changes)
    options, changes = parser.parse(argv)
    if (options.preset is None) == (options.config is None):
        raise InputError("give either --preset (" + ", ".join(model_presets()) + ") or --config FILE")
    config = (update(model_config(options.config), of_model(changes)) if options.config
              else model_preset(options.preset or "", changes))
    other = _other(options.compare) if options.compare else None
    seq_len = options.seq_len
    if seq_len is None:
        seq_len = min(each.max_seq_len for each in (config, other) if each)
    if seq_len < 1:
        raise InputError(f"seq_len: {seq_len} must be 1 or more")
    if other:
        first = options.preset or str(options.config)
        _compare([(first, config), (str(options.compare), other)], seq_len, options.dtype)
    else:
        _report(config, seq_len, options)
    return 0


def _other(given: str) -> Any:
    """A preset, or what a file says"""
    return model_config(Path(given)) if Path(given).is_file() else model_preset(given, {})


def _report(config: Any, seq_len: int, options: Options) -> None:
    stored, active = parameters(config), parameters(config, active=True)
    rows = [(name, f"{count:,}", f"{active[name]:,}") for name, count in stored.items() if count]
    sums = ("total", f"{sum(stored.values()):,}", f"{sum(active.values()):,}")
    table([("parameters", "stored", "active per token"), *rows, sums])
    print()
    work = decoding(config, seq_len - 1) if options.decode else breakdown(config, seq_len)
    title = f"decoding, {seq_len - 1:,} tokens held" if options.decode else f"forward, {seq_len:,} tokens"
    total = sum(work.values())
    rows = [(name, f"{flops / 1e6:,.3f}", f"{flops / total:.1%}") for name, flops in work.items() if flops]
    head = (title, "MFLOP per token", "share")
    table([head, *rows, ("total", f"{total / 1e6:,.3f}", "100.0%")])
    print()
    spent = sum(training(config, seq_len).values())
    facts([*_state(config, seq_len, options.dtype),
           ("training", f"{spent / 1e6:,.3f} MFLOP per token: backward costs twice as much as forward")])


def _state(config: Any, seq_len: int, dtype: str) -> list[tuple[str, str]]:
    """What is kept of the tokens read; nothing of an encoder"""
    if not getattr(config, "causal", True):
        return []
    held, more = _held(config, seq_len, dtype)
    return [("state", f"{held:,} bytes behind {seq_len:,} tokens in {dtype}, {more:,} with each further one")]


def _held(config: Any, seq_len: int, dtype: str) -> tuple[int, int]:
    held = state_bytes(config, seq_len, dtype)
    return held, state_bytes(config, seq_len + 1, dtype) - held


def _compare(models: list[tuple[str, Any]], seq_len: int, dtype: str) -> None:
    """One line per figure: both models', and the second's over the first's"""
    columns = [_figures(config, seq_len, dtype) for _, config in models]
    rows = [("", *(name for name, _ in models), "ratio")]
    for name, first in columns[0].items():
        second = columns[1][name]
        ratio = f"{second / first:.3f}" if first else "-"
        rows.append((name, _shown(first), _shown(second), ratio))
    table(rows)


def _figures(config: Any, seq_len: int, dtype: str) -> dict[str, float]:
    held, more = _held(config, seq_len, dtype) if getattr(config, "causal", True) else (0, 0)
    return {"parameters": sum(parameters(config).values()),
            "active per token": sum(parameters(config, active=True).values()),
            f"MFLOP per token, {seq_len:,} tokens": sum(breakdown(config, seq_len).values()) / 1e6,
            f"MFLOP to decode behind {seq_len:,}": sum(decoding(config, seq_len).values()) / 1e6,
            "MFLOP per token in training": sum(training(config, seq_len).values()) / 1e6,
            f"state bytes behind {seq_len:,}": held, "state bytes per further token": more}


def _shown(value: float) -> str:
    return f"{value:,}" if isinstance(value, int) else f"{value:,.3f}"
