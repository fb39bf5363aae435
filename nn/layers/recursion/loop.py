"""The loop of a recursion engine: who is still in it, what each step's result counts, what it reports."""

from collections.abc import Callable
from typing import Any

from nn import ops
from nn.backends.array_api import beside, namespace, on_device
from nn.cache import StepCache
from nn.layers.auxiliary import collecting, emit_figure, emit_loss
from nn.layers.masks import newest
from nn.layers.precision import widened
from nn.layers.recursion.exits import ExitRouter
from nn.layers.recursion.halting import Act, Ponder, ponder_kl
from nn.tensor import Array, Tensor


class Loop:
    """The steps of one forward pass of an engine (engine.RecursionEngine); e: its input behind the prelude;
    stops: whether it may end when no token is left."""

    def __init__(self, engine: Any, e: Tensor, steps: int, mask: Array | None, stops: bool) -> None:
        self.engine, self.e, self.steps, self.stops = engine, e, steps, stops
        self.settings, self.cache, self.at = engine.settings, StepCache(), 0
        keep = newest(mask, e.shape[1])
        xp = namespace(e.data)
        self.keep = None if keep is None else xp.astype(beside(keep, e.data), "bool")
        zeros = self.settings.start == "zeros" and steps
        self.readings = [Tensor(xp.zeros_like(e.data)) if zeros else e]
        self.weights: list[Tensor] = []
        self.halting: Act | Ponder | None = {
            "none": lambda: None, "act": lambda: Act(self.settings.act_eps), "ponder": Ponder,
        }[self.settings.halting]()
        self.frozen = xp.zeros(e.shape[:2], dtype="bool") if self.keep is None else ~self.keep
        self.updates: Array = xp.zeros(e.shape[:2], dtype=e.dtype)       # steps that each token has taken
        self.done = steps == 0
        if self.settings.inject_input and steps:           # here, as the first step may not be recorded
            self.cache.once("injected", lambda: engine.inject_e(e))

    @property
    def recorded(self) -> bool:
        """Whether gradients go through the next step."""
        newest_steps = self.settings.bptt_steps or self.steps
        return self.at >= self.steps - newest_steps

    def advance(self, core: Callable[[Tensor, int], Tensor]) -> None:
        """One step, unless every token has left"""
        h, s = self.readings[-1], self.at
        if self._routed:
            self.frozen = self.frozen | self.engine.exit_router(h, s, self.cache)
            if self._nobody(~self.frozen):
                return
        weight = self._weight(h)
        before = self._injected(h)
        new = self.engine.rule(before, core(self.engine.embedded(before, s), s))
        if self._routed:
            new = ops.where(self.frozen[..., None], h, new)
        self.readings.append(new)
        if collecting():
            self.updates = self.updates + namespace(h.data).astype(~self.frozen, h.dtype)
        if weight is not None:
            self.weights.append(weight)
        self.at += 1
        self.done = self.at == self.steps
        if isinstance(self.halting, Act) and not self.done:
            self._nobody(self.halting.running)

    @property
    def _routed(self) -> bool:
        """Whether tokens may leave one by one; an engine's router may be any function of that contract."""
        return self.settings.exit != "never" or not isinstance(self.engine.exit_router, ExitRouter)

    def _nobody(self, active: Array) -> bool:
        """Whether no token is left, and the loop may end by that"""
        active = active if self.keep is None else active & self.keep
        self.done = self.stops and not on_device(active) and not bool(namespace(active).any(active))
        return self.done

    def _weight(self, h: Tensor) -> Tensor | None:
        """ω of this step's result, from the state before it"""
        last = self.at == self.steps - 1
        if self.halting is None:
            return None
        wide = widened(h)
        p = None if last else ops.sigmoid(self.engine.halt(wide)).reshape(*h.shape[:2])
        return self.halting.step(p, wide)

    def _injected(self, h: Tensor) -> Tensor:
        if not self.settings.inject_input:
            return h
        return self.engine.inject_h(h) + self.cache["injected"]

    def report(self) -> None:
        """Figures, and the loss of halting"""
        if not collecting() or not self.steps:
            return
        emit_figure("recurrence/mean_steps", self._mean(self.updates).data)
        if self._routed:
            frozen = namespace(self.frozen).astype(self.frozen, self.e.dtype)
            emit_figure("recurrence/exit_frac", self._mean(frozen).data)
        if isinstance(self.halting, Act):
            emit_figure("recurrence/act_steps", self._mean(self.halting.steps).data)
            emit_loss("recurrence/ponder", self._mean(self.halting.cost()) * self.settings.halt_coef)
        if isinstance(self.halting, Ponder):
            kl = ponder_kl(self.halting.all(), self.settings.ponder_prior)
            emit_loss("recurrence/ponder", self._mean(kl) * self.settings.halt_coef)

    def _mean(self, values: Any) -> Tensor:
        """Over the tokens"""
        values = values if isinstance(values, Tensor) else Tensor(values)
        if self.keep is None:
            return values.mean()
        return ops.where(self.keep, values, 0.0).sum() * (1.0 / max(1, int(self.keep.sum())))
