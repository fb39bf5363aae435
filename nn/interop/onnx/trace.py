"""What a forward pass executes: the operations of the tape in their order, with the arrays that they took and
gave."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from nn.errors import InputError
from nn.tape import no_grad, state
from nn.tensor import Array


@dataclass(frozen=True)
class Step:
    """One operation."""

    name: str                       # of its class
    inputs: list[Any]               # arrays, numbers, None
    results: tuple[Array, ...]
    options: dict[str, Any]

    def arrays(self) -> list[tuple[str, np.ndarray]]:
        """(what it is, array) of every array taken"""
        named = [*((f"input {i}", each) for i, each in enumerate(self.inputs)), *self.options.items()]
        return [(name, each) for name, each in named if isinstance(each, np.ndarray)]


@dataclass
class Trace:
    """Steps from ids to logits.  It holds every array, so that no id() is given twice."""

    ids: np.ndarray
    parameters: dict[int, tuple[str, np.ndarray]]              # {id of the array: (name, array)}
    steps: list[Step] = field(default_factory=list)
    logits: Any = None

    def add(self, op: Any, inputs: list[Any], results: tuple[Array, ...], options: dict[str, Any]) -> None:
        """As nn.ops.count.Count has it: called for every operation"""
        self.steps.append(Step(op.name, inputs, results, options))

    def check_against(self, other: "Trace") -> None:
        """InputError where an array that no operation made is another one for other ids."""
        for step, twin in zip(self.steps, other.steps, strict=True):
            for (what, array), (_, there) in zip(step.arrays(), twin.arrays(), strict=True):
                made = self.makes(array)
                if made != other.makes(there) or not (made or np.array_equal(array, there)):
                    raise InputError(f"{step.name}: {what} follows from the ids, but not by an operation; "
                                     "this model cannot be exported")

    def makes(self, array: np.ndarray) -> bool:
        """Whether the array is the ids, or what an operation gave"""
        return array is self.ids or id(array) in self._made

    @property
    def _made(self) -> set[int]:
        if not hasattr(self, "_known"):
            self._known = {id(result) for step in self.steps for result in step.results}
        return self._known


def trace(model: Any, ids: np.ndarray) -> Trace:
    """Of one evaluating forward pass on ids[B,T]."""
    found = Trace(ids, {id(p.data): (name, p.data) for name, p in model.named_parameters().items()})
    training, before = model.training, state.count
    model.eval()
    state.count = found
    try:
        with no_grad():
            found.logits = model.logits(model.hidden(ids)).data
    finally:
        state.count = before
        model.train(training)
    return found
