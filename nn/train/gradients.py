"""The gradient of one optimizer step, from one or several micro-batches, and the search for what made it
infinite.

The sum of all token losses is divided by the scored tokens of all micro-batches together, not averaged per
micro-batch: k micro-batches give the gradient of one batch k times as large, however many tokens each of them
scores.

    metrics = accumulate(model, [(inputs, targets)], seed=0, step=1)      # gradients are in the parameters"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from nn.backends import kernels
from nn.dtypes import is_half
from nn.errors import NonFiniteError

Batch = tuple[np.ndarray, np.ndarray]      # inputs [B,T], targets [B,T]; target -100 is not scored


@np.errstate(all="ignore")
def broken_weights(model: Any) -> list[str]:
    """Names of the parameters that hold a NaN, an infinity, or numbers near it (their squares overflow)."""
    return [name for name, parameter in model.named_parameters().items()
            if not kernels.sum_of_squares(parameter.data) <= _largest(parameter.dtype)]


def _largest(dtype: Any) -> float:
    """Of the type that sums over this one are formed in"""
    return float(np.finfo(np.float32 if is_half(dtype) else dtype).max)


def scored_tokens(batches: Sequence[Batch]) -> int:
    """Targets that count, over all micro-batches; 1 if there are none, so that it can divide a zero loss."""
    return max(1, sum(int(np.count_nonzero(targets != -100)) for _, targets in batches))


@np.errstate(all="ignore")                # what NumPy warns of makes the loss or the gradient norm not finite
def accumulate(model: Any, batches: Sequence[Batch], *, seed: int, step: int) -> dict[str, Any]:
    """Forward and backward over every micro-batch.  Returns "loss" (nats per scored token) and the mean of
    the model's other metrics.  If a loss, or an auxiliary one, is not finite, "loss" is NaN and no further
    micro-batch is run."""
    valid = scored_tokens(batches)
    collected: list[dict[str, Any]] = []
    for micro in range(len(batches)):
        total, metrics = forward(model, batches, micro, valid, seed=seed, step=step)
        collected.append(metrics)
        if not math.isfinite(total.item()):
            return metrics | {"loss": math.nan}
        total.backward()
    mean = {name: sum(m[name] for m in collected) / len(collected) for name in collected[0]}
    return mean | {"loss": math.fsum(m["loss"] for m in collected)}


def forward(model: Any, batches: Sequence[Batch], micro: int, valid: int, *, seed: int,
            step: int) -> tuple[Any, dict[str, Any]]:
    """The loss of one micro-batch, scaled so that all of them add up to the step's."""
    inputs, targets = batches[micro]
    model.set_noise(seed, step, micro)
    return model.loss(inputs, targets, valid_tokens=valid, aux_scale=1.0 / len(batches))


@np.errstate(all="ignore")
def explain_nonfinite(model: Any, batches: Sequence[Batch], *, seed: int, step: int) -> str:
    """Run the step's micro-batches again, every operation checked: which one gave the first NaN or
    infinity."""
    from nn.tensor import find_nonfinite
    model.zero_grad()
    try:
        with find_nonfinite():
            for micro in range(len(batches)):
                where = f"micro-batch {micro + 1} of {len(batches)}, "
                forward(model, batches, micro, scored_tokens(batches), seed=seed, step=step)[0].backward()
    except NonFiniteError as error:
        return where + str(error)
    finally:
        model.zero_grad()
    return "every single operation was finite, their sum over parameters and micro-batches was not"
