"""Constraints: what a run adds to its loss besides cross-entropy and what the layers emit.

    loss = cross-entropy + auxiliary losses + Σ weight · constraint

    TrainConfig(constraints={"activation": {"weight": 0.01}})      # constraints: {activation: {weight: 0.01}}

A program may enter its own: CONSTRAINTS["mine"] = Mine, a class whose instances compute; its arguments are
the configuration's, without the weight.

    class Mine:
        def compute(self, model, batch, outputs, step):
            return {"constraint/mine": outputs["hidden"].mean()}"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from nn.errors import InputError
from nn.names import by_name
from nn.tensor import Tensor


class Term(Protocol):
    """One constraint, not yet weighted."""

    def compute(self, model: Any, batch: tuple[Any, Any], outputs: Mapping[str, Tensor],
                step: int) -> dict[str, Tensor]:
        """{"constraint/<name>": scalar} of a batch (inputs, targets: integers [B,T]) and outputs "hidden"
        [B,T,D], as the head reads it, and "loss" [], the cross-entropy.  step: the optimizer's, from 1; in a
        step recorded on a device that of the recording."""


class Activation:
    """mean h²: keeps what the head reads small (AR; Merity, McCann & Socher 2017)"""

    def compute(self, model: Any, batch: tuple[Any, Any], outputs: Mapping[str, Tensor],
                step: int) -> dict[str, Tensor]:
        hidden = outputs["hidden"]
        return {"constraint/activation": (hidden * hidden).mean()}


class Smoothness:
    """mean (h_t − h_t−1)²: keeps neighbours alike (TAR; Merity, McCann & Socher 2017)"""

    def compute(self, model: Any, batch: tuple[Any, Any], outputs: Mapping[str, Tensor],
                step: int) -> dict[str, Tensor]:
        hidden = outputs["hidden"]
        change = hidden[:, 1:] - hidden[:, :-1]
        value = (change * change).mean() if hidden.shape[1] > 1 else hidden.sum() * 0.0
        return {"constraint/smoothness": value}


CONSTRAINTS: dict[str, Callable[..., Term]] = {"activation": Activation, "smoothness": Smoothness}


@dataclass(frozen=True)
class Weighted:
    """A constraint and what it counts."""

    term: Term
    weight: float

    def terms(self, model: Any, batch: tuple[Any, Any], outputs: dict[str, Tensor],
              step: int) -> dict[str, Tensor]:
        """As nn.models.hooks.Constraint"""
        computed = self.term.compute(model, batch, outputs, step)
        return {name: value * self.weight for name, value in computed.items()}


def create_constraints(settings: Mapping[str, Mapping[str, Any]]) -> list[Weighted]:
    """Those of {name: {"weight": w, and what it takes besides}}; none for a weight of 0.  InputError for an
    unknown name, a weight that is missing, or arguments that it does not take."""
    found = []
    for name, given in settings.items():
        make, options = by_name("constraints", name, CONSTRAINTS), dict(given or {})
        weight = options.pop("weight", None)
        if isinstance(weight, bool) or not isinstance(weight, int | float):
            raise InputError(f"constraints.{name}.weight: {weight!r} is not a number; what does it count?")
        try:
            term = make(**options)
        except TypeError as error:
            raise InputError(f"constraints.{name}: {error}") from None
        if weight:
            found.append(Weighted(term, float(weight)))
    return found
