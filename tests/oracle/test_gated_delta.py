"""Gated DeltaNet against Transformers' Qwen3-Next: its two functions, and the layer with its weights."""

from typing import Any

import numpy as np
import pytest
import torch
from transformers.models.qwen3_next import modeling_qwen3_next as theirs
from transformers.models.qwen3_next.configuration_qwen3_next import Qwen3NextConfig

from nn import ops
from nn.layers.attention.linear.delta_core import gated_delta_rule
from nn.layers.attention.linear.gated_delta import GatedDeltaNet, GatedDeltaNetSettings
from nn.layers.gated_norm import GatedRMSNorm
from nn.tensor import Tensor, no_grad

Arrays = dict[str, np.ndarray]
RULES = {"chunk": theirs.torch_chunk_gated_delta_rule, "recurrent": theirs.torch_recurrent_gated_delta_rule}


def error(found: Any, expected: Any) -> float:
    """The largest difference, relative to the largest value"""
    expected = np.asarray(expected)
    return float(np.max(np.abs(np.asarray(found) - expected)) / np.max(np.abs(expected)))


def drawn(length: int) -> tuple[Arrays, Arrays]:
    """(q, k, v, g, beta [B,T,H,...], s [B,H,Dk,Dv]; what the results are weighted with)"""
    rng, lead = np.random.default_rng(length), (2, length, 3)
    inputs = {"q": rng.standard_normal((*lead, 8)), "k": rng.standard_normal((*lead, 8)),
              "v": rng.standard_normal((*lead, 5)), "g": -np.exp(rng.standard_normal(lead)),
              "beta": rng.uniform(size=lead), "s": rng.standard_normal((2, 3, 8, 5))}
    weights = {"o": rng.standard_normal((*lead, 5)), "s": rng.standard_normal((2, 3, 8, 5))}
    return ({name: x.astype(np.float32) for name, x in inputs.items()},
            {name: x.astype(np.float32) for name, x in weights.items()})


@pytest.mark.parametrize("length", [1, 7, 64, 150])
@pytest.mark.parametrize("mode", RULES)
def test_functions_and_their_gradients(mode: str, length: int) -> None:
    inputs, weights = drawn(length)
    there = {name: torch.tensor(x, requires_grad=True) for name, x in inputs.items()}
    o, s = RULES[mode](*(there[name] for name in ("q", "k", "v", "g", "beta")), initial_state=there["s"],
                       output_final_state=True, use_qk_l2norm_in_kernel=True)
    (torch.sum(o * torch.tensor(weights["o"])) + torch.sum(s * torch.tensor(weights["s"]))).backward()

    for ours in ("chunk", "recurrent"):
        here = {name: Tensor(x, requires_grad=True) for name, x in inputs.items()}
        q, k, v, g, beta = (here[name].permute(0, 2, 1, *range(3, here[name].ndim))
                            for name in ("q", "k", "v", "g", "beta"))
        found, last = gated_delta_rule(ops.l2_norm(q) * 8**-0.5, ops.l2_norm(k), v, g, beta, inputs["s"],
                                       mode=ours)
        found = found.permute(0, 2, 1, 3)
        (ops.sum(found * weights["o"]) + ops.sum(last * weights["s"])).backward()
        assert error(found.data, o.detach()) < 1e-5
        assert error(last.data, s.detach()) < 1e-5
        for name in ("q", "k", "v", "g", "beta"):
            assert error(here[name].grad, there[name].grad) < 2e-5, name


def layers(key_heads: int, value_heads: int) -> tuple[Any, GatedDeltaNet]:
    """Theirs and ours with the same random weights"""
    config = Qwen3NextConfig(hidden_size=24, linear_num_key_heads=key_heads, linear_key_head_dim=8,
                             linear_num_value_heads=value_heads, linear_value_head_dim=4,
                             linear_conv_kernel_dim=4, rms_norm_eps=1e-6, hidden_act="silu")
    torch.manual_seed(0)
    there = theirs.Qwen3NextGatedDeltaNet(config, 0).double()
    with torch.no_grad():
        for parameter in there.parameters():
            parameter += 0.2 * torch.randn(parameter.shape, dtype=torch.float64)
    here = GatedDeltaNet(GatedDeltaNetSettings(
        hidden_size=24, num_heads=key_heads, num_v_heads=value_heads, head_dim=8, expand_v=0.5, norm_eps=1e-6,
        dt_init="ones"), dtype="float64")
    assert sum(p.numel() for p in there.parameters()) == here.num_parameters()
    for name, parameter in here.named_parameters().items():
        values = dict(there.named_parameters())[name].detach().numpy()
        parameter.data = values.reshape(parameter.shape).copy()              # conv1d: [C,1,K] -> [C,K]
    return there, here


@pytest.mark.parametrize(("key_heads", "value_heads"), [(2, 4), (3, 3), (1, 4)])
@pytest.mark.parametrize("mode", ["chunk", "recurrent"])
def test_layer_and_its_gradients(key_heads: int, value_heads: int, mode: str) -> None:
    there, here = layers(key_heads, value_heads)
    rng = np.random.default_rng(1)
    x, weight = rng.standard_normal((2, 2, 70, 24))
    x_there = torch.tensor(x, requires_grad=True)
    y_there = there(x_there)
    torch.sum(y_there * torch.tensor(weight)).backward()
    x_here = Tensor(x, requires_grad=True)
    y_here, _ = here(x_here, mode=mode)
    ops.sum(y_here * weight).backward()
    assert error(y_here.data, y_there.detach()) < 1e-5               # theirs computes the rule in float32
    assert error(x_here.grad, x_there.grad) < 5e-5
    for name, parameter in here.named_parameters().items():
        expected = dict(there.named_parameters())[name].grad.numpy().reshape(parameter.shape)
        assert error(parameter.grad, expected) < 1e-4, name


def test_padding_on_the_left_is_theirs() -> None:
    there, here = layers(2, 4)
    x, mask = np.random.default_rng(2).standard_normal((2, 70, 24)), np.ones((2, 70), bool)
    mask[1, :9] = False
    with torch.no_grad(), no_grad():
        y_there = there(torch.tensor(x), attention_mask=torch.tensor(mask).long()).numpy()
        y_here = here(Tensor(x), mask=mask, mode="chunk")[0].data
    assert error(y_here[mask], y_there[mask]) < 1e-5


def test_gated_norm() -> None:
    rng = np.random.default_rng(3)
    x, z, weight = rng.standard_normal((4, 6)), rng.standard_normal((4, 6)), rng.standard_normal(6)
    there = theirs.Qwen3NextRMSNormGated(6, eps=1e-6).double()
    with torch.no_grad():
        there.weight.copy_(torch.tensor(weight))
    here = GatedRMSNorm(6, 1e-6, dtype="float64")
    here.weight.data = weight
    assert error(here(Tensor(x), Tensor(z)).data, there(torch.tensor(x), torch.tensor(z)).detach()) < 1e-6
