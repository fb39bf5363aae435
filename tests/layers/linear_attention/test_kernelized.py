"""Kernelised linear attention against its parallel form, O = tril(φ(Q) φ(K)ᵀ) V."""

import numpy as np
import pytest

from nn import ops
from nn.errors import InputError
from nn.layers.attention.linear.kernelized import FEATURE_MAPS, LinearAttention, LinearAttentionSettings
from nn.tensor import Tensor
from tests.blocks.harness import close, shaken
from tests.layers.linear_attention.formulas import Weights, output, rms, weights_of


def features(name: str, x: np.ndarray, weight: Weights, which: str) -> np.ndarray:
    if name == "hadamard":
        return (x @ weight[f"{which}_map.0.weight"].T) * (x @ weight[f"{which}_map.1.weight"].T)
    if name == "softmax":
        e = np.exp(x)
        return e / e.sum(-1, keepdims=True)
    return {"identity": x, "relu": np.maximum(x, 0.0), "elu1": np.where(x > 0.0, x + 1.0, np.exp(x))}[name]


@pytest.mark.parametrize("name", FEATURE_MAPS)
@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("mode", ["chunk", "recurrent"])
def test_parallel_form(name: str, normalize: bool, mode: str) -> None:
    s = LinearAttentionSettings(hidden_size=8, num_heads=2, expand_v=1.5, chunk_size=4, feature_map=name,
                                normalize=normalize)
    layer = shaken(LinearAttention(s, dtype="float64"), 0)
    x = np.random.default_rng(1).standard_normal((1, 11, 8))
    weight, heads = weights_of(layer), []
    for h in range(2):
        q, k = (x[0] @ weight[f"{n}_proj.weight"][4 * h : 4 * h + 4].T for n in "qk")
        v = x[0] @ weight["v_proj.weight"][6 * h : 6 * h + 6].T
        scores = np.tril(features(name, q, weight, "q") @ features(name, k, weight, "k").T) / 2.0     # √Dk
        if normalize:
            heads.append(scores @ v / (scores.sum(1, keepdims=True) + 1e-10))
        else:
            heads.append(rms(scores @ v, weight["norm.weight"], 1e-5))
    y = np.concatenate(heads, 1) @ weight["o_proj.weight"].T
    close(output(layer, x, mode)[0], y, 1e-9)


def test_normalised_weights_sum_to_one() -> None:
    """Values that are all alike come out as they are: the mean of what is alike"""
    s = LinearAttentionSettings(hidden_size=8, num_heads=2, normalize=True)
    layer = shaken(LinearAttention(s, dtype="float64"), 0)
    layer.v_proj.weight.data[:, 1:] = 0.0
    x = np.random.default_rng(1).standard_normal((1, 9, 8))
    x[:, :, 0] = 1.0
    expected = layer.o_proj.weight.data @ layer.v_proj.weight.data[:, 0]
    for mode in ("chunk", "recurrent"):
        close(output(layer, x, mode)[0], np.broadcast_to(expected, (9, 8)), 1e-8)


@pytest.mark.parametrize("mode", ["chunk", "recurrent"])
@pytest.mark.parametrize("normalize", [False, True])
def test_sums_beyond_half_precision(normalize: bool, mode: str) -> None:
    """300 equal tokens whose features are 32: 300 · 32² is above the largest float16.  Weights of padding sum
    to 0, and are divided by an ε that float16 does not hold."""
    s = LinearAttentionSettings(hidden_size=8, num_heads=2, normalize=normalize, feature_map="relu")
    layer = LinearAttention(s, dtype="float16")
    for name in ("q_proj", "k_proj", "v_proj", "o_proj"):
        getattr(layer, name).weight.data = np.eye(8, dtype=np.float16)
    mask = np.arange(300)[None, :] >= 3
    y, _ = layer(Tensor(np.full((1, 300, 8), 32.0, np.float16)), mask=mask, mode=mode)
    close(y.data[:, 3:], np.full((1, 297, 8), 32.0 if normalize else 1.0), 2e-3)
    assert np.isfinite(y.data).all()


def test_the_state_is_one_column_wider_when_normalised() -> None:
    for normalize in (False, True):
        s = LinearAttentionSettings(hidden_size=8, num_heads=2, expand_v=2.0, normalize=normalize)
        assert LinearAttention(s).init_state(3).s.shape == (3, 2, 4, 8 + normalize)


def test_slope_of_the_feature_map() -> None:
    """1 for x > 0, eˣ otherwise, at 0 too; large inputs do not overflow"""
    values = np.array([-800.0, -2.0, -0.0, 0.0, 1e-9, 3.0, 800.0])
    x = Tensor(values, requires_grad=True)
    y = ops.elu_plus_one(x)
    y.sum().backward()
    below = np.exp(np.minimum(values, 0.0))
    assert np.array_equal(x.grad, below)
    close(y.data, np.where(values > 0.0, values + 1.0, below), 1e-15)


def test_parameters_of_a_layer() -> None:
    assert sum(LinearAttentionSettings(hidden_size=512, num_heads=8).parameters().values()) == 4 * 512**2 + 64
    hadamard = LinearAttentionSettings(hidden_size=512, num_heads=8, feature_map="hadamard", normalize=True)
    assert sum(hadamard.parameters().values()) == 4 * 512**2 + 4 * 64**2


def test_what_it_refuses() -> None:
    with pytest.raises(InputError, match="'relo' is not known; did you mean 'relu'"):
        LinearAttentionSettings(feature_map="relo")
    with pytest.raises(InputError, match="expand_k: 0.3 x hidden_size = 19.2 is not a multiple of"):
        LinearAttentionSettings(hidden_size=64, expand_k=0.3)
    with pytest.raises(InputError, match="expand_v: 0.25 x hidden_size = 2.5 is not a multiple of"):
        LinearAttentionSettings(hidden_size=10, num_heads=2, expand_v=0.25)
