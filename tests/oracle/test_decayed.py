"""Linear attention with one decay per head against Transformers' MiniMax, whose lightning attention it is."""

from typing import Any

import numpy as np
import pytest
import torch
from transformers.models.minimax.configuration_minimax import MiniMaxConfig
from transformers.models.minimax.modeling_minimax import MiniMaxLightningAttention

from nn import ops
from nn.layers.attention.linear.decayed import decayed_attention
from nn.tensor import Tensor

HEADS, WIDTH = 4, 6


def error(found: Any, expected: Any) -> float:
    """The largest difference, relative to the largest value"""
    expected = np.asarray(expected)
    return float(np.max(np.abs(np.asarray(found) - expected)) / np.max(np.abs(expected)))


def theirs(layer: int) -> Any:
    config = MiniMaxConfig(hidden_size=16, num_attention_heads=HEADS, head_dim=WIDTH, num_hidden_layers=3,
                           block_size=32, hidden_act="silu")
    torch.manual_seed(layer)
    return MiniMaxLightningAttention(config, layer).double()


def ours(weight: dict[str, Tensor], x: Tensor, slopes: np.ndarray, mode: str,
         size: int) -> tuple[Tensor, Tensor]:
    """Their layer around our core: (y[B,T,D], S)"""
    batch, length, _ = x.shape
    each = ops.silu(ops.linear(x, weight["qkv_proj.weight"])).reshape(batch, length, HEADS, 3 * WIDTH)
    q, k, v = (part.permute(0, 2, 1, 3) for part in ops.split(each, WIDTH, WIDTH, WIDTH))
    g = Tensor(np.broadcast_to(-slopes[:, None], (batch, HEADS, length)).copy())
    o, s = decayed_attention(q, k, v, g, np.zeros((batch, HEADS, WIDTH, WIDTH)), mode=mode, size=size)
    o = ops.rms_norm(o.permute(0, 2, 1, 3).reshape(batch, length, HEADS * WIDTH), weight["norm.weight"], 1e-6)
    o = ops.sigmoid(ops.linear(x, weight["output_gate.weight"])) * o
    return ops.linear(o, weight["out_proj.weight"]), s


@pytest.mark.parametrize(("mode", "size"), [("chunk", 32), ("chunk", 24), ("recurrent", 1)])
@pytest.mark.parametrize("layer", [0, 2])
def test_layer_state_and_gradients(layer: int, mode: str, size: int) -> None:
    there = theirs(layer)
    x, c = np.random.default_rng(layer).standard_normal((2, 2, 75, 16))
    d = np.random.default_rng(9).standard_normal((2, HEADS, WIDTH, WIDTH))
    x_there = torch.tensor(x, requires_grad=True)
    y_there, s_there = there(x_there, None, None)
    (torch.sum(y_there * torch.tensor(c)) + torch.sum(s_there * torch.tensor(d))).backward()

    weight = {name: Tensor(p.detach().numpy().copy(), requires_grad=True)
              for name, p in there.named_parameters()}
    x_here = Tensor(x, requires_grad=True)
    y, s = ours(weight, x_here, there.slope_rate.numpy()[:, 0, 0].astype(np.float64), mode, size)
    (ops.sum(y * c) + ops.sum(s * d)).backward()
    assert error(y.data, y_there.detach()) < 1e-6             # their decays and their norm are float32
    assert error(s.data, s_there.detach()) < 1e-6
    assert error(x_here.grad, x_there.grad) < 1e-6
    for name, parameter in there.named_parameters():
        assert error(weight[name].grad, parameter.grad) < 1e-6, name
