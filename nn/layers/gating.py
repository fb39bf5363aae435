"""What gates and decays of recurrences are made with."""

from collections.abc import Callable, Sequence

from nn import ops
from nn.errors import InputError
from nn.tensor import Tensor

Map = Callable[[Tensor], Tensor]


def low_rank_project(x: Tensor, kernel: Map | Sequence[Tensor], *,
                     activation: Map | None = ops.silu) -> Tensor:
    """act(W₂ W₁ x), x[...,D] -> [...,E], from the weights [W₁ [R,D], W₂ [E,R]] (any number of them) or from a
    layer that does the same; activation None: as it is."""
    if callable(kernel):
        x = kernel(x)
    else:
        for weight in kernel:
            x = ops.linear(x, weight)
    return activation(x) if activation else x


def normalize_gate_logits(logits: Tensor, *, normalizer: float = 1.0,
                          clip_range: tuple[float, float] | None = None) -> Tensor:
    """log σ(logits) / normalizer, kept within clip_range: logarithms of decays, 0 or less, nearer to 0 the
    larger the normalizer (16 in GLA; Yang et al. 2023)"""
    if normalizer <= 0.0:
        raise InputError(f"normalizer: {normalizer} is not positive")
    if clip_range and not clip_range[0] <= clip_range[1] <= 0.0:
        raise InputError(f"clip_range: {clip_range}; the lower bound first, neither above 0: decays must not "
                         "grow")
    gate = ops.log_sigmoid(logits) / normalizer
    return ops.clip(gate, *clip_range) if clip_range else gate
