"""Transformers' Mixtral: loaded from a folder, in float64 throughout if asked, its gradients by checkpoint
names."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from transformers import MixtralForCausalLM

from tests.oracle.compare import Arrays, their_names


def load(folder: Path, dtype: str) -> Any:
    # "eager": the default implementation of the experts knows no float64
    return MixtralForCausalLM.from_pretrained(folder, dtype=getattr(torch, dtype), experts_implementation="eager")


@contextmanager
def float64_throughout() -> Iterator[None]:
    """Transformers asks for float32 by name in a few places, whatever the model's type: RMSNorm, the router's
    softmax, rotary angles, the loss.  In here those names mean float64; nothing of its code is replaced."""
    with (patch.object(torch, "float32", torch.float64), patch.object(torch, "float", torch.float64),
          patch.object(torch.Tensor, "float", torch.Tensor.double)):
        yield


def cross_entropy(model: Any, ids: Any, targets: Any, **options: Any) -> Any:
    """Its output for targets that are shifted already, as ours are; .loss is their mean over the labelled
    ones."""
    labels = torch.tensor(targets)
    return model(torch.tensor(ids), labels=labels, shift_labels=labels, **options)


def gradients(model: Any) -> Arrays:
    """By the names of a checkpoint; in memory the experts are stacked as ours are."""
    ours = {}
    for name, parameter in model.named_parameters():
        ours[name.removeprefix("model.").replace("mlp.gate.weight", "mlp.router.weight")] = parameter.grad.numpy()
    return their_names(ours)
