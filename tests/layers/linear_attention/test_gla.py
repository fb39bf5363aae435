"""The GLA layer against its formula, token by token; its decays."""

import numpy as np
import pytest

from nn.errors import InputError
from nn.layers.attention.linear.gla import GLA, GLASettings
from tests.blocks.harness import close, shaken
from tests.layers.linear_attention.formulas import conv_silu, output, rms, sigmoid, silu, weights_of


@pytest.mark.parametrize(("conv", "clamp"), [(0, None), (3, -0.4)])
@pytest.mark.parametrize("mode", ["chunk", "recurrent"])
def test_layer(conv: int, clamp: float | None, mode: str) -> None:
    s = GLASettings(hidden_size=8, num_heads=2, gate_low_rank=3, gate_normalizer=2.0, clamp_min=clamp,
                    conv_size=conv, chunk_size=4)
    layer, x = shaken(GLA(s, dtype="float64"), 0), np.random.default_rng(1).standard_normal((11, 8))
    weight = weights_of(layer)
    qkv = np.concatenate([x @ weight[f"{n}_proj.weight"].T for n in "qkv"], 1)              # widths 4, 4, 8
    qkv = conv_silu(qkv, weight["conv1d.weight"]) if conv else qkv
    gk = x @ weight["gk_proj.0.weight"].T @ weight["gk_proj.1.weight"].T + weight["gk_proj.1.bias"]
    decay = sigmoid(gk) ** 0.5
    decay = decay if clamp is None else np.maximum(decay, np.exp(clamp))
    assert clamp is None or 0.05 < np.mean(decay == np.exp(clamp)) < 0.95
    gate, heads = x @ weight["g_proj.weight"].T, []
    for h in range(2):
        q, k, a = (z[:, 2 * h : 2 * h + 2] for z in (qkv[:, :4], qkv[:, 4:8], decay))
        v, state, o = qkv[:, 8 + 4 * h : 12 + 4 * h], np.zeros((2, 4)), np.zeros((11, 4))
        for t in range(11):
            state = a[t][:, None] * state + np.outer(k[t], v[t])
            o[t] = state.T @ q[t] / np.sqrt(2.0)
        heads.append(rms(o, weight["norm.weight"], 1e-5) * silu(gate[:, 4 * h : 4 * h + 4]))
    close(output(layer, x[None], mode)[0], np.concatenate(heads, 1) @ weight["o_proj.weight"].T, 1e-11)


def test_parameters_of_the_published_layer() -> None:
    """Width D: q and k of D²/2, v, gate and out of D², the low-rank gate 24 D + D/2, a norm of Dv = D/4"""
    d = 1024
    assert sum(GLASettings(hidden_size=d).parameters().values()) == 4 * d * d + 24 * d + d // 2 + d // 4


def test_what_it_refuses() -> None:
    with pytest.raises(InputError, match="clamp_min 0.5 not: decays must not grow"):
        GLASettings(clamp_min=0.5)
    with pytest.raises(InputError, match="gate_normalizer -1.0 is positive"):
        GLASettings(gate_normalizer=-1.0)
