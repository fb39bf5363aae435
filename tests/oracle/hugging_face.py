"""Transformers' Mixtral: loaded from a folder, computed in float64 throughout, its gradients by name."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from transformers import MixtralForCausalLM

from tests.oracle.compare import Arrays, their_names


def load(folder: Path, dtype: str) -> Any:
    eager = {"experts_implementation": "eager"}      # the default one knows no float64
    return MixtralForCausalLM.from_pretrained(folder, dtype=getattr(torch, dtype), **eager)


@contextmanager
def in_full(dtype: str) -> Iterator[None]:
    """Transformers asks for float32 by name in a few places, whatever the model's type: RMSNorm, the router's
    softmax, rotary angles, the loss.  For "float64", those names mean float64 in here; nothing of its code is
    replaced.  For "float32" it is left alone."""
    if dtype == "float32":
        yield
        return
    with (patch.object(torch, "float32", torch.float64), patch.object(torch, "float", torch.float64),
          patch.object(torch.Tensor, "float", torch.Tensor.double)):
        yield


def cross_entropy(model: Any, ids: Any, targets: Any, **options: Any) -> Any:
    """Its output for targets that are shifted already, as ours are; .loss is the mean over labelled ones."""
    labels = torch.tensor(targets)
    return model(torch.tensor(ids), labels=labels, shift_labels=labels, **options)


def gradients(model: Any) -> Arrays:
    """By the names of a checkpoint; in memory the experts are stacked as ours are."""
    ours = {}
    for name, parameter in model.named_parameters():
        name = name.removeprefix("model.").replace("mlp.gate.weight", "mlp.router.weight")
        ours[name] = parameter.grad.numpy()
    return their_names(ours)
