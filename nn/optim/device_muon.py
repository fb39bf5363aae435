"""Muon of a model on a device: the arithmetic of muon.py, in array operations and products; all that is not a
matrix moves in one launch, as in device_adamw.py.

    optimizer = DeviceMuon(model.named_parameters(), lr=3e-4)          # parameters are on a device"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from nn.optim.adamw import ParamGroup
from nn.optim.device_adamw import Array, DeviceAdamW
from nn.optim.muon import MuonRule, checked_scale


class DeviceMuon(DeviceAdamW):
    """Settings are Muon's and DeviceAdamW's.  A matrix keeps one moment instead of two."""

    def __init__(self, named_parameters: Mapping[str, Any], *, lr: float,
                 betas: tuple[float, float] = (0.9, 0.95), eps: float = 1e-8, weight_decay: float = 0.1,
                 max_norm: float | None = 1.0, momentum: float = 0.95, nesterov: bool = True,
                 ns_steps: int = 5, scale: str = "moonlight", coefficients: str = "quintic",
                 adamw_lr_scale: float = 1.0, adamw: Sequence[str] = (),
                 fused: Mapping[str, int] | None = None, groups: Sequence[ParamGroup] = ()) -> None:
        self.rule = MuonRule(momentum, nesterov, ns_steps, scale, coefficients, tuple(adamw), fused)
        self._parts = {name: self.rule.parts(name, p) for name, p in named_parameters.items()
                       if self.rule.is_matrix(name, p)}
        last = sorted(named_parameters, key=lambda name: name in self._parts)       # AdamW's come first
        super().__init__({name: named_parameters[name] for name in last}, lr=lr, betas=betas, eps=eps,
                         weight_decay=weight_decay, max_norm=max_norm, groups=groups)
        factor = checked_scale(adamw_lr_scale)
        self._settings = {name: (rate if name in self._parts else rate * factor, decay)
                          for name, (rate, decay) in self._settings.items()}
        self._moves: list[tuple[Array, Array]] = []       # between measure() and update(): where, what

    @property
    def matrices(self) -> list[str]:
        """Names of the parameters that are Muon's."""
        return list(self._parts)

    def moments(self, name: str) -> tuple[str, ...]:
        return ("m",) if name in self._parts else ("m", "v")

    def measure(self, loss: Array = None) -> None:
        """And queue where the matrices move: it takes memory, which an update may fail for want of."""
        super().measure(loss)
        _, scale, skip = self._measured
        lr = self._lr.astype(np.float32)
        self._moves = [move for name in self._state if name in self._parts
                       for move in self._moved(name, lr, scale, skip)]

    def _moved(self, name: str, lr: Array, scale: Array, skip: Array) -> list[tuple[Array, Array]]:
        parameter, state, (rate, decay) = self._parameters[name], self._state[name], self._settings[name]
        xp = self.device.namespace
        gradient = parameter.grad.astype(np.float32) * scale
        moment = self.rule.momentum * state["m"] + gradient
        direction = self.rule.direction(gradient, moment, self._parts[name])
        weight = state.get("master", parameter.data)
        moved = weight * (1.0 - lr * (rate * decay)) - lr * rate * direction
        found = [(state["m"], xp.where(skip, state["m"], moment)), (weight, xp.where(skip, weight, moved))]
        if weight is not parameter.data:
            found.append((parameter.data, xp.astype(found[1][1], parameter.dtype)))
        return found

    def update(self) -> None:
        """Queue what changes: the step number, the parameters that are AdamW's, the matrices."""
        from nn.backends.device import adamw_step, increment
        plan, scale, skip = self._measured
        increment(self._step, skip=skip)
        if pieces := self._pieces():
            others = replace(plan, chunk_count=pieces)
            adamw_step(others, self._lr, self._step, betas=self.betas, eps=self.eps, scale=scale, skip=skip)
        for place, values in self._moves:
            place[...] = values
        self._measured, self._moves = None, []

    def _pieces(self) -> int:
        """Of the plan, those of AdamW's parameters, which are the first."""
        size = self.device.library.nn_chunk_elements()
        return sum(-(-self._parameters[name].size // size) for name in self._state if name not in self._parts)

    def failed(self) -> None:
        super().failed()
        self._moves = []
