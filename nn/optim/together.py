"""AdamW of many parameters, and the norm of all gradients, in one call of native kernels: a list of their
calls, checked once, which run as one loop over the threads (csrc/native/core/clipped_step.h).

    step = together(optimizer, [(slot, slot.param.grad) for slot in slots])
    step.prepare(lr)
    norm = step.run(max_norm=1.0)            # the update is made where the norm is finite

The bits are those of a call per parameter.  What changes from step to step (rates, step numbers, the clip
factor) the kernels read from memory, so that the list serves as long as the arrays stay: those of a recorded
step do."""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from nn.backends import forced, native

if TYPE_CHECKING:
    from nn.optim.adamw import AdamW, Slot

Array = Any
Pairs = Sequence[tuple["Slot | None", Array]]        # gradients, and whose they are


class NotTakenError(Exception):
    """Native kernels do not take an array as it is."""


class Together:
    """The step of slots and their gradients, which have moments.

    slots: those it moves.  others: those it leaves to the optimizer, and their gradients.  A gradient without
    a slot counts for the norm only.
    scale: float64 [], the factor of all gradients."""

    def __init__(self, optimizer: "AdamW", gradients: Pairs) -> None:
        own = [(slot, gradient) for slot, gradient in gradients if slot is not None]
        self._optimizer = optimizer
        self._held = [(slot, slot.param.data, slot.m, slot.v, slot.master, slot.weight_decay)
                      for slot, _ in own]
        self._settings = tuple(optimizer.betas), optimizer.eps
        moved = [(slot, gradient) for slot, gradient in own if optimizer.moves_together(slot)]
        self.slots = [slot for slot, _ in moved]
        self.others = [(slot, gradient) for slot, gradient in own if not optimizer.moves_together(slot)]
        self.scale = np.ones(())
        self._rates, self._counts = np.empty(len(moved)), np.empty(len(moved))
        self._step = native.extension().ClippedStep(self.scale)
        for _, gradient in gradients:
            _taken(self._step.measure_also(gradient))
        for i, (slot, gradient) in enumerate(moved):
            self._add(slot, gradient, self._rates[i, ...], self._counts[i, ...])

    def _add(self, slot: "Slot", gradient: Array, rate: Array, count: Array) -> None:
        data, (beta1, beta2) = slot.param.data, self._optimizer.betas
        wide = data if slot.master is None else slot.master
        _taken(self._step.update_also(
            wide, gradient, slot.m, slot.v, lr=rate, beta1=beta1, beta2=beta2, eps=self._optimizer.eps,
            weight_decay=slot.weight_decay, step=count, grad_scale=self.scale,
            stored=None if wide is data else data))

    def serves(self, optimizer: "AdamW") -> bool:
        """Whether parameters and state are still the arrays that the list was made of, and settings the same;
        that the gradients are is the caller's care."""
        return (optimizer is self._optimizer and self._settings == (tuple(optimizer.betas), optimizer.eps)
                and all(slot.param.data is data and slot.m is m and slot.v is v and slot.master is master
                        and slot.weight_decay == decay for slot, data, m, v, master, decay in self._held))

    def prepare(self, lr: float) -> None:
        """The rates and numbers of the next step."""
        for i, slot in enumerate(self.slots):
            self._rates[i], self._counts[i] = self._optimizer.rate(slot, lr), slot.steps + 1

    def run(self, max_norm: float | None, loss: Array = None, behind: Any = None) -> float:
        """The norm of all gradients, and the update where it is finite; `scale` is the clip factor then.

        loss: float32 [], NaN is the norm where that is not finite.  behind: a Recording that is replayed
        first; RuntimeError, and nothing is changed, if a kernel of it does not take what it finds."""
        norm: float = self._step.run(math.inf if max_norm is None else max_norm, loss, behind)
        return norm


def together(optimizer: "AdamW", gradients: Pairs) -> Together | None:
    """The step of all these at once; None if a slot has no moments yet.  NotTakenError says why it cannot be:
    an array that native kernels do not take, or an optimizer whose step is another."""
    if forced() not in (None, "native") or native.missing():
        raise NotTakenError("native kernels are not in use")
    if not optimizer.steps_together():
        raise NotTakenError(f"{type(optimizer).__name__} has a step of its own")
    if any(slot is not None and slot.m is None for slot, _ in gradients):
        return None
    return Together(optimizer, gradients)


def _taken(why: str) -> None:
    if why:
        raise NotTakenError(why)
