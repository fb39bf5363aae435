"""Progress of a run: a live bar in a terminal, one `key=value` line per interval anywhere else.

    Trainer(run, model, corpus, callbacks=[progress(log_every=10)])"""

import sys
import time
from typing import TYPE_CHECKING, Any, TextIO

from nn.train.callbacks import Callback

if TYPE_CHECKING:
    from nn.train.trainer import Trainer, TrainResult

BLOCKS = "▁▂▃▄▅▆▇█"
REDRAW = 0.1        # seconds between two drawings of the bar


def progress(log_every: int, stream: TextIO | None = None) -> Callback:
    """The reporter that suits the stream (standard output by default)."""
    stream = sys.stdout if stream is None else stream
    return Bar(stream) if stream.isatty() else Lines(stream, log_every)


class Pace:
    """Seconds per step, averaged over about the last twenty, and what is left of the run."""

    def __init__(self) -> None:
        self.seconds: float | None = None
        self._last: float | None = None

    def tick(self) -> None:
        now = time.perf_counter()
        if self._last is not None:
            took = now - self._last
            self.seconds = took if self.seconds is None else 0.95 * self.seconds + 0.05 * took
        self._last = now

    def left(self, steps: int) -> float:
        return steps * (self.seconds or 0.0)


class Lines(Callback):
    """`step=20 loss=3.1416 ...`, flushed; no value contains a space: `dict(p.split("=") for p in
    line.split())` reads a line.  Steps with an evaluation and the last step are always printed."""

    def __init__(self, stream: TextIO, log_every: int) -> None:
        self.stream, self.log_every, self.pace, self.steps = stream, log_every, Pace(), 0

    def on_start(self, trainer: "Trainer") -> None:
        self.steps = trainer.config.steps
        if trainer.step:
            self._print(f"resumed_after_step={trainer.step}")

    def on_step(self, record: dict[str, Any]) -> None:
        self.pace.tick()
        step = record["step"]
        if step % self.log_every == 0 or step == self.steps or "held_out_bits_per_byte" in record:
            fields = dict(_summary(record), eta=f"{self.pace.left(self.steps - step):.0f}s")
            self._print(" ".join(f"{name}={value}" for name, value in fields.items()))

    def _print(self, line: str) -> None:
        print(line, file=self.stream, flush=True)


class Bar(Callback):
    """The live bar, redrawn between steps (no thread of its own competes with the training)."""

    def __init__(self, stream: TextIO) -> None:
        self.stream, self.pace, self.steps = stream, Pace(), 0
        self.held_out: float | None = None
        self._live: Any = None
        self._drawn = 0.0

    def on_start(self, trainer: "Trainer") -> None:
        from rich.console import Console
        from rich.live import Live
        self.steps = trainer.config.steps
        self.held_out = trainer.evaluation["bits_per_byte"] if trainer.evaluation else None
        self._live = Live(console=Console(file=self.stream, highlight=False), auto_refresh=False)
        self._live.start()

    def on_eval(self, step: int, bits_per_byte: float) -> None:
        self.held_out = bits_per_byte

    def on_step(self, record: dict[str, Any]) -> None:
        self.pace.tick()
        now = time.perf_counter()
        if now - self._drawn >= REDRAW or record["step"] == self.steps:
            self._drawn = now
            self._live.update(self._table(record), refresh=True)

    def on_stop(self, result: "TrainResult | None") -> None:
        if self._live is not None:
            self._live.stop()

    def _table(self, record: dict[str, Any]) -> Any:
        """Two lines: how far, and how well."""
        from rich.console import Group
        from rich.progress_bar import ProgressBar
        from rich.table import Table
        step = record["step"]
        top = Table.grid(padding=(0, 1))
        top.add_row(f"[bold]step {step}/{self.steps}[/]", ProgressBar(self.steps, step, width=30),
                    f"{step / self.steps:4.0%}", f"eta {clock(self.pace.left(self.steps - step))}",
                    f"{record['tokens_per_second']:,.0f} tokens/s")
        held_out = "-" if self.held_out is None else f"[bold]{self.held_out:.3f}[/]"
        bottom = (f"loss {record['loss']:.3f}  bits/byte {record['bits_per_byte']:.3f} (held out {held_out})"
                  f"  lr {record['lr']:.1e}  |g| {record['grad_norm']:.2f}{_experts(record)}")
        return Group(top, bottom)


def load_bars(load: list[float]) -> str:
    """One character per expert; a full block is twice the even share or more."""
    even = 1.0 / max(1, len(load))
    return "".join(BLOCKS[min(len(BLOCKS) - 1, int(share / (2.0 * even) * len(BLOCKS)))] for share in load)


def clock(seconds: float) -> str:
    """75 → "1:15", 4000 → "1:06:40"."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def _experts(record: dict[str, Any]) -> str:
    return f"  experts {load_bars(record['moe/load'])}" if "moe/load" in record else ""


def _summary(record: dict[str, Any]) -> dict[str, str]:
    """The fields of a printed line, formatted."""
    fields = {"step": f"{record['step']}", "loss": f"{record['loss']:.4f}",
              "bits_per_byte": f"{record['bits_per_byte']:.4f}"}
    if "held_out_bits_per_byte" in record:
        fields["held_out_bits_per_byte"] = f"{record['held_out_bits_per_byte']:.4f}"
    fields |= {"lr": f"{record['lr']:.3g}", "grad_norm": f"{record['grad_norm']:.3f}",
               "tokens": f"{record['tokens']}", "tokens_per_second": f"{record['tokens_per_second']:.0f}"}
    if "moe/load_min" in record:
        fields |= {"load_min": f"{record['moe/load_min']:.3f}", "load_max": f"{record['moe/load_max']:.3f}"}
    for name in ("usage_evenness", "max_violation", "dead_experts", "overflow"):
        if f"moe/{name}" in record:
            fields[name] = f"{record[f'moe/{name}']:.3f}"
    return fields
