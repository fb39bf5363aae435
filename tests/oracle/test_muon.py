"""Muon against torch.optim.Muon, whose bfloat16 iteration runs in float64 here."""

from unittest.mock import patch

import numpy as np
import pytest
import torch

from nn.layers.module import Parameter
from nn.optim import Muon
from tests.oracle.compare import error

THEIRS = {"moonlight": "match_rms_adamw", "original": "original"}


@pytest.mark.parametrize("scale", THEIRS)
@pytest.mark.parametrize("nesterov", [True, False])
@pytest.mark.parametrize("shape", [(7, 5), (5, 7), (6, 6)], ids=str)
def test_muon_for_30_steps(shape: tuple[int, int], nesterov: bool, scale: str) -> None:
    """Their momentum is (1 − μ) times ours, which the update, being of one length, does not show.  (A clone,
    as they divide what bfloat16() gives in place.)"""
    rng = np.random.default_rng(0)
    ours = Parameter(shape, dtype="float64")
    ours.data = rng.normal(size=shape)
    theirs = torch.tensor(ours.data).requires_grad_()
    optimizer = Muon({"w": ours}, lr=0.02, weight_decay=0.1, nesterov=nesterov, scale=scale)
    reference = torch.optim.Muon([theirs], lr=0.02, weight_decay=0.1, nesterov=nesterov,
                                 adjust_lr_fn=THEIRS[scale])
    with patch.object(torch.Tensor, "bfloat16", torch.Tensor.clone):
        for step in range(30):
            ours.grad = 10.0 * rng.normal(size=shape)
            theirs.grad = torch.tensor(ours.grad)
            rate = 0.02 / (1 + step % 3)
            reference.param_groups[0]["lr"] = rate
            optimizer.step(lr=rate)
            reference.step()
    assert error(ours.data, theirs.detach()) < 1e-6
