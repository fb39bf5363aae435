"""AdamW of a model on a device: the norm of all gradients, then all parameters, in a few launches.

The arithmetic is that of adamw.py.  What changes from step to step (learning rate, step number, clip factor)
lies in device memory, so that a recorded step can be replayed; a step whose gradient is not finite changes
nothing and is not counted.

    optimizer = DeviceAdamW(model.named_parameters(), lr=1e-3)         # parameters are on a device
    loss.backward();  optimizer.step();  optimizer.zero_grad();  optimizer.norm.numpy()"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from nn.dtypes import is_half
from nn.errors import InputError
from nn.optim.adamw import ParamGroup, check_groups, check_settings, settings_of

Array = Any


class DeviceAdamW:
    """Moments and masters are made at the first step, for the parameters that have a gradient then, and these
    have to have one in every later step.  Gradients stay where backward left them: no step copies them.

    A step may be recorded; then recorded() has to be called after it, before the first replay."""

    def __init__(self, named_parameters: Mapping[str, Any], *, lr: float,
                 betas: tuple[float, float] = (0.9, 0.95), eps: float = 1e-8, weight_decay: float = 0.1,
                 max_norm: float | None = 1.0, groups: Sequence[ParamGroup] = ()) -> None:
        check_settings(lr, betas, eps, weight_decay)
        check_groups(groups, named_parameters)
        self._parameters = dict(named_parameters)
        self._settings = {name: settings_of(name, p, weight_decay, groups)
                          for name, p in named_parameters.items()}
        self.device = next(iter(self._parameters.values())).device
        if self.device is None:
            raise InputError("named_parameters: they are on the host; model.to(device) first, or use AdamW")
        self.betas, self.eps, self.max_norm = betas, eps, max_norm
        self.norm: Array = None                # float32 [1]: of the last step's gradients, before clipping
        self._lr = self.device.asarray(np.array([lr], np.float64))
        self._step, self._skipped = (self.device.zeros((1,), np.int64) for _ in range(2))
        self._host_lr, self.steps = lr, 0      # what the device holds
        self._state: dict[str, dict[str, Array]] = {}      # by parameter: m, v, and master for half precision
        self._plan: Any = None
        self._recorded: list[Any] = []         # plans of recorded steps, which live as long as those may
        self._pending: Any = None              # that of a step whose recording has not ended
        self._spare: Array = None              # memory for the table of the next one
        self._measured: Any = None             # between measure() and update(): plan, clip factor, skip
        for parameter in self._parameters.values():
            parameter.borrows_grad = True

    @property
    def lr(self) -> float:
        return self._host_lr

    @lr.setter
    def lr(self, value: float) -> None:
        if value != self._host_lr:
            self._host_lr = value
            self._lr.upload(np.array([value], np.float64))

    def step(self) -> None:
        """Queue one update of every parameter; nothing is read back."""
        self.measure()
        self.update()

    def measure(self, loss: Array = None) -> None:
        """Queue the norm of the gradients, and all that an update may still fail for want of.  With a `loss`,
        one number, that is not finite the norm is NaN, and nothing is changed."""
        from nn.backends.device import global_norm
        if self._plan is None:
            self._begin([name for name, p in self._parameters.items() if p.grad is not None])
        missing = [name for name in self._state if self._parameters[name].grad is None]
        if missing:
            raise RuntimeError(f"step: {missing[0]} has no gradient, and had one in the first step; on a "
                               "device the same parameters take part in every step")
        grads = [self._parameters[name].grad.contiguous() for name in self._state]
        if self.device.capturing:
            if self._pending is not None:
                raise RuntimeError("step: recorded() has to be called between recordings")
            plan = self._pending = self._plan.moved(grads, self._spare)
        else:
            plan = self._plan.moved(grads)
        one = None if loss is None else (loss * 0.0 + 1.0).reshape(1)
        self.norm, scale, skip = global_norm(plan, self.max_norm or 0.0, scale=one, skipped=self._skipped)
        self._measured = plan, scale, skip

    def update(self) -> None:
        """Queue what changes: the step number, then, in one launch, the parameters."""
        from nn.backends.device import adamw_step, increment
        plan, scale, skip = self._measured
        increment(self._step, skip=skip)
        adamw_step(plan, self._lr, self._step, betas=self.betas, eps=self.eps, scale=scale, skip=skip)
        self._measured = None

    def recorded(self) -> None:
        """Let the step that was recorded know where its gradients lie."""
        if self._pending is None:
            raise RuntimeError("recorded: no step was")
        self._pending.upload()
        self._recorded.append(self._pending)
        self._pending = None
        self._spare = self.device.empty(self._plan.tensors.shape, np.uint8)

    def taken(self) -> None:
        """The host has seen that the last step's norm was finite: the device has counted it, too."""
        self.steps += 1

    def failed(self) -> None:
        """A step came to an end before its last launch: it does not count, and its gradients are gone."""
        if self._pending is not None:          # the norm lies in that recording's memory
            self.norm = None
        self._measured = self._pending = None
        self.zero_grad()
        self._step.upload(np.array([self.steps], np.int64))

    def zero_grad(self) -> None:
        """Forget every gradient."""
        for parameter in self._parameters.values():
            parameter.grad = None

    def _begin(self, names: Sequence[str]) -> None:
        """Moments and masters for these parameters, and the table of them on the device."""
        from nn.backends.device import adamw_plan
        for name in names:
            data = self._parameters[name].data
            self._state[name] = {key: self.device.zeros(data.shape, np.float32) for key in self.moments(name)}
            if is_half(data.dtype):
                self._state[name]["master"] = self.device.namespace.astype(data, np.dtype(np.float32))
        parameters, states = [self._parameters[name] for name in names], [self._state[name] for name in names]
        self._plan = adamw_plan(
            [p.data for p in parameters], [state["m"] for state in states],      # of gradients, the sizes
            [state["m"] for state in states], [state["v" if "v" in state else "m"] for state in states],
            masters=[state.get("master") for state in states],
            lr_scale=[self._settings[name][0] for name in names],
            weight_decay=[self._settings[name][1] for name in names])
        self._spare = self.device.empty(self._plan.tensors.shape, np.uint8)

    def moments(self, name: str) -> tuple[str, ...]:
        """What is kept of a parameter."""
        return ("m", "v")

    def state_dict(self) -> dict[str, np.ndarray]:
        """As AdamW's, copied to the host."""
        state = {"steps": np.asarray(self.steps, np.int64)}
        for name, arrays in self._state.items():
            state |= {f"{name}.{key}": array.numpy() for key, array in arrays.items()}
            state[f"{name}.steps"] = np.asarray(self.steps, np.int64)
        return state

    def load_state_dict(self, state: Mapping[str, np.ndarray]) -> None:
        """Take over a saved state: of this class, or of AdamW if all its parameters took part in every
        step."""
        names = [name for name in self._parameters if f"{name}.m" in state]
        steps = int(state["steps"])
        for name in names:
            if int(state[f"{name}.steps"]) != steps:
                raise InputError(f"optimizer state: {name} took part in {int(state[f'{name}.steps'])} of "
                                 f"{steps} steps; continue this run on the CPU")
        if names != list(self._state):         # else the arrays stay, and with them what was recorded
            self._state, self._plan = {}, None
            if names:
                self._begin(names)
        for name in names:
            for key, array in self._state[name].items():
                saved = state[f"{name}.{key}"]
                if tuple(saved.shape) != tuple(array.shape):
                    raise InputError(f"optimizer state: {name}.{key} has shape {list(saved.shape)}, "
                                     f"not {list(array.shape)}")
                array.upload(np.ascontiguousarray(saved, np.float32))
        self._step.upload(np.array([steps], np.int64))
        self.steps = steps
