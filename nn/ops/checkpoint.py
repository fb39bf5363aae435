"""Gradient checkpointing (Chen et al. 2016): keep a function's inputs, run it again in backward.

The second run must compute the same: functions draw random numbers from a counter, not from a stream."""

from collections.abc import Callable
from typing import Any

import numpy as np

from nn.tensor import Array, Op, Tensor, enable_grad, no_grad, run_backward


class _Join(Op):
    """Several results as one operation, so that one backward starts from all of them."""

    integers = True

    def forward(self, *results: Array) -> Any:
        return results

    def backward(self, *gradients: Array) -> Any:
        return gradients


class Checkpoint(Op):
    """y = f(x), nothing kept but x:  backward runs f again, recorded, and chains through it"""

    integers = True

    def forward(self, *inputs: Array, function: Callable[..., Any]) -> Any:
        self.function, self.inputs = function, inputs
        with no_grad():
            results = function(*(Tensor(x) for x in inputs))
        return tuple(r.data for r in results) if isinstance(results, tuple) else results.data

    def backward(self, *gradients: Array) -> Any:
        leaves = [Tensor(x, requires_grad=need) for x, need in zip(self.inputs, self.needs, strict=True)]
        with enable_grad():
            results = self.function(*leaves)
            joined = _Join.apply(*(results if isinstance(results, tuple) else (results,)))
        if joined[0].op:                # else nothing in the function requires a gradient
            run_backward(joined[0].op, {slot: g for slot, g in enumerate(gradients) if g is not None})
        return tuple(leaf.grad for leaf in leaves)


def checkpoint(function: Callable[..., Any], *inputs: Tensor) -> Any:
    """function(*inputs), a tensor or a tuple of tensors, recomputed in backward instead of remembered.

    Parameters that the function closes over get their gradients too."""
    anchor = Tensor(np.zeros((), np.float32), requires_grad=True)     # records for closed-over parameters too
    return Checkpoint.apply(*inputs, anchor, function=lambda *xs: function(*xs[:-1]))
