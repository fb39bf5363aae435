"""Seams for what a model should do besides: hooks see and change its values, constraints add to its loss.

    class Report(Hook):
        def on_logits(self, logits):
            return logits * 0.5
    model.hooks.append(Report())"""

from collections.abc import Iterable
from typing import Any, Protocol

from nn.tensor import Tensor


class Hook:
    """Changes nothing; a subclass overrides what it wants to see or change.  Gradients go through what the
    methods compute.  With on_logits the loss is formed from all logits at once, which takes their memory."""

    def on_hidden(self, hidden: Tensor) -> Tensor:
        """[B,T,D], normalised, on its way to the head"""
        return hidden

    def on_logits(self, logits: Tensor) -> Tensor:
        """[B,T,V], or [B·T,V] in a loss"""
        return logits

    def on_loss(self, terms: dict[str, Tensor]) -> dict[str, Tensor]:
        """{"loss": cross-entropy, and each auxiliary loss, weighted}; their sum is what is minimised."""
        return terms


class Constraint(Protocol):
    """What adds to the loss (nn/train/constraints.py)."""

    def terms(self, model: Any, batch: tuple[Any, Any], outputs: dict[str, Tensor],
              step: int) -> dict[str, Tensor]:
        """{"constraint/<name>": weighted scalar} of a batch (inputs [B,T], targets [B,T]) and of outputs:
        "hidden" [B,T,D], "loss" []."""


def overriding(hooks: Iterable[Hook], method: str) -> list[Hook]:
    """Those that have a method of their own."""
    return [hook for hook in hooks if getattr(type(hook), method, None) is not getattr(Hook, method)]
