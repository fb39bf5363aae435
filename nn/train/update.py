"""One optimizer step: gradients of all micro-batches, their norm, clipping, AdamW.

    update = HostUpdate(model, optimizer, clip=1.0, seed=0)
    metrics, norm = update([(inputs, targets)], step=1, lr=1e-3)"""

import math
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np

from nn.layers.moe import finish_step
from nn.optim import AdamW, create_optimizer
from nn.train.config import TrainConfig
from nn.train.gpu_trainer import GpuTrainer
from nn.train.gradients import Batch, accumulate
from nn.train.recorded import RecordedGradients

quietly = np.errstate(all="ignore")             # what NumPy warns of makes weights not finite


class Update(Protocol):
    """What the training loop needs of a step, on the CPU or on a device."""

    @property
    def optimizer(self) -> Any:
        """With state_dict() and load_state_dict() for the checkpoints"""

    def __call__(self, batches: Sequence[Batch], *, step: int, lr: float) -> tuple[dict[str, Any], float]:
        """(metrics, gradient norm) of the step, "loss" among the former.  Unless both are finite, no
        parameter was changed."""


class HostUpdate:
    """recorded: the step is recorded and replayed where that can be (nn/train/recorded.py)."""

    def __init__(self, model: Any, optimizer: AdamW, *, clip: float | None, seed: int,
                 recorded: bool = False) -> None:
        self.model, self.optimizer, self.clip, self.seed = model, optimizer, clip, seed
        self.recorded = RecordedGradients(model) if recorded else None

    def __call__(self, batches: Sequence[Batch], *, step: int, lr: float) -> tuple[dict[str, Any], float]:
        metrics, norm = self._step(batches, step, lr)
        if math.isfinite(norm):
            self.model.zero_grad()
        finish_step(self.model, taken=math.isfinite(norm))
        return metrics, norm

    def _step(self, batches: Sequence[Batch], step: int, lr: float) -> tuple[dict[str, Any], float]:
        if self.recorded is None:
            metrics, norm = accumulate(self.model, batches, seed=self.seed, step=step), None
        else:
            metrics, norm = self.recorded(batches, seed=self.seed, step=step,
                                          run=quietly(lambda done: done.run(self.optimizer, self.clip, lr)))
        if norm is not None:
            return metrics, norm
        if not math.isfinite(metrics["loss"]):
            return metrics, math.nan
        return metrics, quietly(self.optimizer.clipped_step)(self.clip, lr, self.model.parameters())


def create_update(model: Any, config: TrainConfig) -> Update:
    """The step of a run, where the model is."""
    settings: dict[str, Any] = {"lr": config.lr, "betas": (config.beta1, config.beta2),
                                "weight_decay": config.weight_decay}
    if model.device is not None:
        return GpuTrainer(model, clip=config.clip, seed=config.seed, optimizer=config.optimizer,
                          optimizer_options=config.optimizer_options, **settings)
    settings |= config.optimizer_options
    optimizer = create_optimizer(config.optimizer, model.named_parameters(), **settings)
    return HostUpdate(model, optimizer, clip=config.clip, seed=config.seed, recorded=True)
