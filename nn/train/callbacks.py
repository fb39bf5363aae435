"""What a run tells the outside while it trains: subclass `Callback`, override what you need, pass it to the
trainer.

    class Stop(Callback):
        def on_eval(self, step, bits_per_byte): ..."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from nn.train.trainer import Trainer, TrainResult


class Callback:
    """Order within a step: on_eval (if one is due), on_step, on_checkpoint (if one is due)."""

    def on_start(self, trainer: "Trainer") -> None:
        """Before the first step of this process; `trainer.step` were done before."""

    def on_eval(self, step: int, bits_per_byte: float) -> None:
        """Held-out text was measured."""

    def on_step(self, record: dict[str, Any]) -> None:
        """A step is done and its line is in metrics.jsonl; `record` is that line."""

    def on_checkpoint(self, step: int, path: Path) -> None:
        """A checkpoint is safely on the disk."""

    def on_stop(self, result: "TrainResult | None") -> None:
        """The run has ended, or was stopped; None if by an error."""
