"""What PyTorch's users call torch.nn.functional, where nn.ops has other defaults.

    from nn.ops import functional as F
    loss = F.cross_entropy(logits.view(-1, V), y.view(-1))"""

from typing import Any

import numpy as np

from nn.backends.array_api import namespace
from nn.names import check_name
from nn.ops.gather import as_integers
from nn.ops.loss import cross_entropy as each
from nn.tensor import Tensor


def cross_entropy(input: Tensor, target: Any, *, ignore_index: int = -100, reduction: str = "mean",
                  label_smoothing: float = 0.0) -> Tensor:
    """The mean over the targets that count (NaN if none does), the sum, or [R] ("none"), of logits input[R,V]
    and integers target[R], in nats."""
    check_name("reduction", reduction, ("mean", "sum", "none"))
    labels = as_integers("target", target)
    losses = each(input, labels, ignore_index=ignore_index, label_smoothing=label_smoothing)
    if reduction == "none":
        return losses
    if reduction == "sum":
        return losses.sum()
    counted = int(namespace(labels).sum(labels != ignore_index))
    return losses.sum() * (1.0 / counted if counted else np.nan)
