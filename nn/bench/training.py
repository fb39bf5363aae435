"""This library's training step: forward, backward, AdamW, on random tokens.  A worker's module."""

from typing import Any

import numpy as np

from nn.bench.models import DTYPES, trained
from nn.bench.task import Task, Tasks
from nn.optim import create_optimizer
from nn.train.update import HostUpdate


def tasks(model: str, dtype: str, batch: int, seq: int) -> Tasks:
    """{"train": one step of batch x seq tokens}."""
    return {"train": lambda: step_task(model, dtype, batch, seq)}


def step_task(model: str, dtype: str, batch: int, seq: int) -> Task:
    """One optimizer step; its FLOPs are three times the forward's, by nn.flops."""
    built = trained(model, dtype)
    size = _vocabulary(built)
    ids = np.random.default_rng(0).integers(size, size=(batch, seq + 1))
    optimizer = create_optimizer("adamw", built.named_parameters(), lr=1e-4, weight_decay=0.0)
    update = HostUpdate(built, optimizer, clip=None, seed=0, recorded=True)
    losses: list[float] = []

    def step() -> None:
        metrics, _ = update([(ids[:, :-1], ids[:, 1:])], step=len(losses) + 1, lr=1e-4)
        losses.append(metrics["loss"])

    step()
    step()                                   # recorded
    tokens = batch * seq
    done = update.recorded
    facts: dict[str, Any] = {"parameters": built.num_parameters(), "first_loss": losses[0],
                             "recorded": bool(done and done.recorded),
                             "not_recorded": done.why if done else ""}
    return Task(step, tokens=tokens, flops=tokens * _flops(built, seq), dtype=DTYPES[dtype], facts=facts)


def _vocabulary(model: Any) -> int:
    size: int = getattr(model, "main", model).vocab_size
    return size


def _flops(model: Any, seq: int) -> float:
    """Of a token, forward and backward"""
    count: float = getattr(model, "main", model).flops(seq, training=True)
    return count
