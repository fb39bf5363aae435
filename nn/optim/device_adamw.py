"""AdamW of a model on a device: the norm of all gradients, then all parameters, in a few launches.

The arithmetic is that of adamw.py.  What changes from step to step - learning rate, step number, clip factor -
lies in device memory, so that a recorded step can be replayed; a step whose gradient is not finite changes
nothing and is counted.

    optimizer = DeviceAdamW(model.named_parameters(), lr=1e-3)         # parameters are on a device
    loss.backward();  optimizer.step();  optimizer.zero_grad();  optimizer.norm.numpy()"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from nn.dtypes import is_half
from nn.errors import InputError
from nn.optim.adamw import AdamW, ParamGroup


class DeviceAdamW:
    """Gradients get fixed places at once (`Parameter.grad_buffer`), moments and masters at the first step: they
    are held for the parameters that have a gradient then, and these have to have one in every later step."""

    def __init__(self, named_parameters: Mapping[str, Any], *, lr: float,
                 betas: tuple[float, float] = (0.9, 0.95), eps: float = 1e-8, weight_decay: float = 0.1,
                 max_norm: float | None = 1.0, groups: Sequence[ParamGroup] = ()) -> None:
        self._host = AdamW(named_parameters, lr=lr, betas=betas, eps=eps, weight_decay=weight_decay, groups=groups)
        self._parameters = dict(named_parameters)
        self.device = next(iter(self._parameters.values())).device
        if self.device is None:
            raise InputError("named_parameters: they are on the host; model.to(device) first, or use AdamW")
        self.max_norm = max_norm
        for parameter in self._parameters.values():
            parameter.grad_buffer = self.device.zeros(parameter.shape, np.float32)
