"""AdamW (Loshchilov & Hutter, arXiv 1711.05101) with parameter groups and float32 master weights.

    θ ← θ(1 − lr·wd) − lr · m̂ / (√v̂ + ε),   m̂, v̂ the bias-corrected means of g and g²

The step is in place, one kernel call per parameter; behind a recorded training step it is one call for all of
them, to the same bits (together.py).  A parameter without a gradient is left alone, its moments and its own
1-based step number included.  Parameters stored in bfloat16 or float16 have a float32
master copy: the step is done there and rounded once, so that updates below the storage type's resolution
still add up.

    optimizer = AdamW(model.named_parameters(), lr=1e-3)
    loss.backward();  optimizer.step();  optimizer.zero_grad()"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from fnmatch import fnmatchcase
from typing import Any

import numpy as np

from nn.backends import kernels
from nn.dtypes import is_half, widen
from nn.errors import InputError
from nn.optim.clip import clip_scale, grad_norm
from nn.optim.together import Together, together

Array = Any


@dataclass(frozen=True)
class ParamGroup:
    """Settings for the parameters whose dotted name matches a pattern; the first group that matches wins."""

    match: str                           # shell pattern, e.g. "embed*"
    lr_scale: float = 1.0                # multiplies the learning rate
    weight_decay: float | None = None    # None: the optimizer's own rule


class Slot:
    """One parameter, its settings, and its state (allocated at its first step)."""

    moments: tuple[str, ...] = ("m", "v")

    def __init__(self, param: Any, lr_scale: float, weight_decay: float) -> None:
        self.param, self.lr_scale, self.weight_decay = param, lr_scale, weight_decay
        self.steps = 0
        self.m: Array = None
        self.v: Array = None
        self.master: Array = None

    def allocate(self, master_weights: bool) -> None:
        data = self.param.data
        wide = np.float32 if is_half(data.dtype) else data.dtype
        for key in self.moments:
            setattr(self, key, np.zeros(data.shape, wide))
        if master_weights and is_half(data.dtype):
            self.master = data.astype(wide)

    def arrays(self) -> dict[str, Array]:
        named = {"m": self.m, "v": self.v, "master": self.master}
        return {key: array for key, array in named.items() if array is not None}


class AdamW:
    """`weight_decay` applies where `Parameter.decay` is true (matrices; not norms and biases) unless a group
    says otherwise.  `master_weights=False` saves memory and loses every update below the storage type's
    resolution."""

    def __init__(self, named_parameters: Mapping[str, Any], *, lr: float,
                 betas: tuple[float, float] = (0.9, 0.95), eps: float = 1e-8, weight_decay: float = 0.1,
                 master_weights: bool = True, groups: Sequence[ParamGroup] = ()) -> None:
        check_settings(lr, betas, eps, weight_decay)
        check_groups(groups, named_parameters)
        self.lr, self.betas, self.eps, self.master_weights = lr, betas, eps, master_weights
        self.steps = 0                   # optimizer steps taken
        self._slots = {name: self._slot(name, p)(p, *settings_of(name, p, weight_decay, groups))
                       for name, p in named_parameters.items()}

    def _slot(self, name: str, param: Any) -> type[Slot]:
        """What is kept of a parameter."""
        return Slot

    def step(self, lr: float | None = None, grad_scale: float = 1.0) -> None:
        """One update of every parameter that has a gradient.  Gradients are read as `grad · grad_scale` (see
        `clip_scale`), which saves a pass over memory; they are neither changed nor freed."""
        slots = [slot for slot in self._slots.values() if slot.param.grad is not None]
        self._finish(slots, [], self.lr if lr is None else lr, grad_scale)

    def clipped_step(self, max_norm: float | None, lr: float | None = None,
                     parameters: Iterable[Any] | None = None) -> float:
        """As `step`, of gradients scaled down to the global norm `max_norm` where they have a larger one (see
        clip.py; None: as they are).  Returns the norm from before; unless that is finite nothing changes.

        parameters: whose gradients the norm is taken over; None: the optimizer's own."""
        own = (slot.param for slot in self._slots.values())
        norm = grad_norm(own if parameters is None else parameters)
        if math.isfinite(norm):
            self.step(lr, clip_scale(norm, max_norm))
        return norm

    def together(self, gradients: Iterable[tuple[Any, Array]]) -> Together | None:
        """The step of these parameters with these gradients as one call, for `take`; parameters that are not
        the optimizer's count for the norm.  Worth it where gradients keep their places.  None before a
        parameter's first step, which makes its moments; NotTakenError if native kernels cannot."""
        slots = {id(slot.param): slot for slot in self._slots.values()}
        return together(self, [(slots.get(id(param)), gradient) for param, gradient in gradients])

    def take(self, step: Together, max_norm: float | None, lr: float | None = None, *,
             run: Callable[[], float] | None = None) -> float:
        """clipped_step() by what together() gave, which has to serve it still.

        run: what calls step.run(max_norm), and something before it."""
        lr = self.lr if lr is None else lr
        step.prepare(lr)
        norm = run() if run else step.run(max_norm)
        if math.isfinite(norm):
            for slot, gradient in step.others:           # of a recorded step
                slot.param.grad = gradient
            self._finish([slot for slot, _ in step.others], step.slots, lr, float(step.scale))
        return norm

    def _finish(self, slots: Sequence[Slot], done: Sequence[Slot], lr: float, grad_scale: float) -> None:
        """Count, and move what was not moved together."""
        self.steps += 1
        for slot in done:
            slot.steps += 1
        for slot in slots:
            self._update(slot, self.rate(slot, lr), grad_scale)

    def rate(self, slot: Slot, lr: float) -> float:
        """The learning rate of a parameter"""
        return lr * slot.lr_scale

    def moves_together(self, slot: Slot) -> bool:
        """Whether its step is AdamW's own"""
        return type(self)._move is AdamW._move

    def steps_together(self) -> bool:
        """Whether all else of a step is"""
        return all(getattr(type(self), name) is getattr(AdamW, name)
                   for name in ("step", "clipped_step", "_finish", "_update"))

    def _update(self, slot: Slot, lr: float, grad_scale: float) -> None:
        if slot.m is None:
            slot.allocate(self.master_weights)
        slot.steps += 1
        data = slot.param.data
        wide = widen(data) if slot.master is None else slot.master
        self._move(slot, wide, None if wide is data else data, lr, grad_scale)

    def _move(self, slot: Slot, wide: Array, stored: Array | None, lr: float, grad_scale: float) -> None:
        """The step, in place, on the values in the type that sums are formed in, and on what is stored of
        them if that is another type."""
        kernels.adamw(wide, slot.param.grad, slot.m, slot.v, lr=lr, beta1=self.betas[0], beta2=self.betas[1],
                      eps=self.eps, weight_decay=slot.weight_decay, step=slot.steps, grad_scale=grad_scale,
                      stored=stored)

    def zero_grad(self) -> None:
        """Forget every gradient."""
        for slot in self._slots.values():
            slot.param.grad = None

    def state_dict(self) -> dict[str, np.ndarray]:
        """`<parameter>.m`, `.v`, `.master` (half precision only) and `.steps`, and `steps`.  The arrays are
        the live ones, not copies: write them out, or copy them, before the next step."""
        state = {"steps": np.asarray(self.steps, np.int64)}
        for name, slot in self._slots.items():
            if slot.m is not None:
                state |= {f"{name}.{key}": array for key, array in slot.arrays().items()}
                state[f"{name}.steps"] = np.asarray(slot.steps, np.int64)
        return state

    def load_state_dict(self, state: Mapping[str, np.ndarray]) -> None:
        """Copy a saved state.  A missing, unknown or mis-shaped entry is refused before anything changes."""
        expected = {name: slot for name, slot in self._slots.items() if f"{name}.m" in state}
        self._check_state(state, expected)
        self.steps = int(state["steps"])
        for name, slot in self._slots.items():
            slot.steps, slot.m, slot.v, slot.master = 0, None, None, None
            if name in expected:
                slot.allocate(self.master_weights)
                slot.steps = int(state[f"{name}.steps"])
                for key, array in slot.arrays().items():
                    array[...] = state[f"{name}.{key}"]

    def _check_state(self, state: Mapping[str, np.ndarray], expected: Mapping[str, Slot]) -> None:
        shapes: dict[str, tuple[int, ...]] = {"steps": ()}
        for name, slot in expected.items():
            master = self.master_weights and is_half(slot.param.dtype)
            shapes |= {f"{name}.{key}": slot.param.shape for key in (*slot.moments, *["master"] * master)}
            shapes[f"{name}.steps"] = ()
        for key in shapes.keys() ^ state.keys():
            what = "is missing" if key in shapes else "belongs to no parameter of this model"
            raise InputError(f"optimizer state: {key} {what}; it was saved with another model or dtype")
        for key, shape in shapes.items():
            found = tuple(state[key].shape)
            if found != tuple(shape):
                raise InputError(f"optimizer state: {key} has shape {list(found)}, not {list(shape)}")


def settings_of(name: str, param: Any, weight_decay: float,
                groups: Sequence[ParamGroup]) -> tuple[float, float]:
    """(factor of the learning rate, weight decay) of one parameter"""
    decay = weight_decay if param.decay else 0.0
    group = next((group for group in groups if fnmatchcase(name, group.match)), None)
    if group is None:
        return 1.0, decay
    return group.lr_scale, decay if group.weight_decay is None else group.weight_decay


def check_settings(lr: float, betas: tuple[float, float], eps: float, weight_decay: float) -> None:
    for name, value, good in [("lr", lr, lr >= 0), ("betas[0]", betas[0], 0 <= betas[0] < 1),
                              ("betas[1]", betas[1], 0 <= betas[1] < 1), ("eps", eps, eps > 0),
                              ("weight_decay", weight_decay, weight_decay >= 0)]:
        if not good:
            limits = "in [0, 1)" if name.startswith("betas") else "positive" if name == "eps" else "0 or more"
            raise InputError(f"{name}: {value} must be {limits}")


def check_groups(groups: Sequence[ParamGroup], names: Mapping[str, Any]) -> None:
    for group in groups:
        if not any(fnmatchcase(name, group.match) for name in names):
            near = ", ".join(get_close_matches(group.match.replace("*", ""), names, n=3, cutoff=0.0))
            raise InputError(f"groups: {group.match!r} matches no parameter; the nearest names are {near}")
