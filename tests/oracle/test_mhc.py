"""mHC against DeepSeek-V4's modules in Transformers: maps, a layer's step, the closing head; gradients."""

from typing import Any

import numpy as np
import pytest
import torch
from transformers.models.deepseek_v4.configuration_deepseek_v4 import DeepseekV4Config
from transformers.models.deepseek_v4.modeling_deepseek_v4 import (
    DeepseekV4HyperConnection,
    DeepseekV4HyperHead,
)

from nn.layers.residual.connection import Branch
from nn.layers.residual.manifold import ManifoldConnection, ManifoldSettings
from nn.layers.residual.streams import StreamEnds
from nn.tensor import Tensor
from tests.oracle.compare import error

LIMIT = 2e-6      # their maps are formed in float32, whatever the inputs are


def settings(**options: Any) -> ManifoldSettings:
    return ManifoldSettings(hidden_size=6, n_streams=3, branches=(False,), transposed=True, pre_eps=1e-6,
                            **options)


def their_config(s: ManifoldSettings) -> DeepseekV4Config:
    return DeepseekV4Config(hidden_size=s.hidden_size, hc_mult=s.n_streams, hc_eps=s.sinkhorn_eps,
                            hc_sinkhorn_iters=s.sinkhorn_iters, rms_norm_eps=s.map_eps)


def filled(module: torch.nn.Module, seed: int) -> torch.nn.Module:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    return module


@pytest.mark.parametrize("iterations", [1, 5, 20])
def test_a_branch_reads_and_writes_as_theirs(iterations: int) -> None:
    s = settings(sinkhorn_iters=iterations)
    theirs, ours = filled(DeepseekV4HyperConnection(their_config(s)), 0), ManifoldConnection(s)
    ours.load_state_dict({f"maps.0.{name}": p.detach().numpy() for name, p in theirs.named_parameters()})
    x, weight = np.random.default_rng(0).standard_normal((2, 2, 4, 3, 6)).astype(np.float32)
    their_x, our_x = torch.tensor(x, requires_grad=True), Tensor(x, requires_grad=True)
    post, comb, collapsed = theirs(their_x)
    expected = post[..., None] * torch.tanh(collapsed)[..., None, :] + comb.transpose(-1, -2) @ their_x
    found = ours(our_x, [Branch(lambda u: u.tanh(), False)])
    assert error(found.numpy(), expected.detach().numpy()) < LIMIT
    (expected * torch.tensor(weight)).sum().backward()
    (found * weight).sum().backward()
    assert error(our_x.grad, their_x.grad.numpy()) < 5 * LIMIT
    for name, parameter in theirs.named_parameters():
        assert error(ours.named_parameters()[f"maps.0.{name}"].grad, parameter.grad.numpy()) < 5 * LIMIT, name


def test_the_streams_are_closed_as_theirs() -> None:
    s = settings(collapse="gated")
    theirs, ours = filled(DeepseekV4HyperHead(their_config(s)), 1), StreamEnds(s)
    ours.load_state_dict({name.removeprefix("hc_"): p.detach().numpy()
                          for name, p in theirs.named_parameters()})
    x = np.random.default_rng(1).standard_normal((2, 4, 3, 6)).astype(np.float32)
    their_x, our_x = torch.tensor(x, requires_grad=True), Tensor(x, requires_grad=True)
    expected, found = theirs(their_x), ours.close(our_x)
    assert error(found.numpy(), expected.detach().numpy()) < LIMIT
    expected.square().sum().backward()
    (found * found).sum().backward()
    assert error(our_x.grad, their_x.grad.numpy()) < 5 * LIMIT
    for name, parameter in theirs.named_parameters():
        ours_too = ours.named_parameters()[name.removeprefix("hc_")].grad
        assert error(ours_too, parameter.grad.numpy()) < 5 * LIMIT, name
