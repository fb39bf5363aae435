"""Packing padded batches; gates from low-rank maps; the convolution as a function; the mode."""

from typing import Any

import numpy as np
import pytest

from nn import ops
from nn.errors import InputError
from nn.layers import Linear
from nn.layers.conv import ShortConv, depthwise_conv1d_causal
from nn.layers.gating import low_rank_project, normalize_gate_logits
from nn.layers.mode import KernelMode, select_mode
from nn.layers.padding import compute_unpadded_indices, pad, unpad
from nn.tensor import Tensor
from tests.blocks.harness import close
from tests.gradients import check

random = np.random.default_rng


# ---- padding ----


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("rest", [(), (3,), (2, 1)])
def test_round_trip_of_random_masks(seed: int, rest: tuple[int, ...]) -> None:
    """Tokens come back to their places, zeros elsewhere; tensors and arrays alike"""
    draw = random(seed)
    batch, length = int(draw.integers(1, 5)), int(draw.integers(1, 8))
    mask, x = draw.random((batch, length)) < 0.6, draw.standard_normal((batch, length, *rest))
    indices, ends = compute_unpadded_indices(mask)
    expected = [x[b, t] for b in range(batch) for t in range(length) if mask[b, t]]
    assert ends.tolist() == [int(mask[:b].sum()) for b in range(batch + 1)]
    for packed in (unpad(x, indices), unpad(Tensor(x), indices).data):
        assert packed.shape == (len(expected), *rest)
        assert np.array_equal(packed, np.array(expected).reshape(packed.shape))
        kept = np.where(mask.reshape(batch, length, *[1] * len(rest)), x, 0.0)
        assert np.array_equal(pad(packed, indices, batch, length), kept)
        assert np.array_equal(pad(Tensor(packed), indices, batch, length).data, kept)


def test_padding_of_ids_and_all_or_nothing() -> None:
    ids, all_of_it = np.arange(6).reshape(2, 3), np.ones((2, 3), bool)
    indices, ends = compute_unpadded_indices(all_of_it)
    assert (unpad(ids, indices).tolist(), ends.tolist()) == ([0, 1, 2, 3, 4, 5], [0, 3, 6])
    indices, ends = compute_unpadded_indices(~all_of_it)
    assert ends.tolist() == [0, 0, 0]
    assert np.array_equal(pad(unpad(ids, indices), indices, 2, 3), np.zeros((2, 3)))


def test_gradients_find_their_places() -> None:
    mask = np.array([[False, True, True], [True, False, True]])
    indices, _ = compute_unpadded_indices(mask)
    check(lambda x: unpad(x, indices), random(0).standard_normal((2, 3, 2)))
    check(lambda x: pad(x, indices, 2, 3), random(1).standard_normal((4, 2)))


def test_padding_refuses_what_does_not_fit() -> None:
    with pytest.raises(InputError, match=r"mask: shape \[3\]; expected \[batch, length\]"):
        compute_unpadded_indices(np.ones(3))
    with pytest.raises(InputError, match=r"unpad: shape \[3\]"):
        unpad(np.ones(3), np.arange(3))
    with pytest.raises(InputError, match="pad: 2 tokens, 3 indices into 2 x 2 places"):
        pad(np.ones((2, 4)), np.arange(3), 2, 2)
    for indices, named in (([0, 1, 2], "0 ... 2 are not all among the 2"), ([-1, 0], "-1 ... 0 are not"),
                           ([1, 1], "a place comes twice"), ([True, False], r"bool \[2\]; expected")):
        with pytest.raises(InputError, match=f"indices: {named}"):
            pad(np.ones((len(indices), 4)), np.array(indices), 1, 2)
        with pytest.raises(InputError, match=f"indices: {named}"):
            unpad(np.ones((1, 2, 4)), np.array(indices))


# ---- gates ----


def test_low_rank_projection() -> None:
    draw = random(0).standard_normal
    x, down, up = draw((2, 3, 5)), draw((2, 5)), draw((4, 2))
    z = x @ down.T @ up.T
    found = low_rank_project(Tensor(x), [Tensor(down), Tensor(up)])
    close(found.data, z / (1.0 + np.exp(-z)), 1e-13)
    close(low_rank_project(Tensor(x), [Tensor(down), Tensor(up)], activation=None).data, z, 1e-13)
    layer = Linear(5, 4, dtype="float64").initialize(0)
    found = low_rank_project(Tensor(x), layer, activation=ops.tanh)
    close(found.data, np.tanh(x @ layer.weight.data.T), 1e-13)
    check(lambda *t: low_rank_project(t[0], t[1:]), x, down, up)


def test_gate_logits() -> None:
    """log σ, divided and kept within bounds; stable where σ underflows"""
    z = np.array([-1000.0, -3.0, 0.0, 2.0, 50.0])
    exact = -np.logaddexp(0.0, -z)
    close(normalize_gate_logits(Tensor(z)).data, exact, 1e-14)
    close(normalize_gate_logits(Tensor(z), normalizer=16.0).data, exact / 16.0, 1e-14)
    clipped = normalize_gate_logits(Tensor(z), normalizer=2.0, clip_range=(-1.0, -0.1)).data
    close(clipped, np.clip(exact / 2.0, -1.0, -0.1), 1e-14)
    check(lambda t: normalize_gate_logits(t, normalizer=3.0, clip_range=(-0.5, -0.01)),
          np.array([-3.0, 0.0, 9.0]))
    with pytest.raises(ValueError, match="normalizer: 0 is not positive"):
        normalize_gate_logits(Tensor(z), normalizer=0)
    for clip in ((0.0, -1.0), (-1.0, 0.5)):
        with pytest.raises(InputError, match="clip_range"):
            normalize_gate_logits(Tensor(z), clip_range=clip)


# ---- convolution and mode ----


def test_causal_convolution_behind_a_cache() -> None:
    """[100, 210, 321, 432], the golden value of the specification's appendix A.7, whole and in parts"""
    x, w = np.array([1.0, 2.0, 3.0, 4.0]).reshape(1, 4, 1), Tensor(np.array([[1.0, 10.0, 100.0]]))
    for cuts in ([], [1], [1, 2, 3], [3]):
        cache: Any = None
        parts = []
        for start, end in zip([0, *cuts], [*cuts, 4], strict=True):
            y, cache = depthwise_conv1d_causal(Tensor(x[:, start:end]), w, Tensor(np.zeros(1)), cache)
            parts += y.data[0, :, 0].tolist()
        assert parts == [100.0, 210.0, 321.0, 432.0]
        assert cache[0, :, 0].tolist() == [3.0, 4.0]


def test_padding_is_left_out_of_the_cache() -> None:
    """Wherever it stands: what is kept is what would be kept without it; too few tokens keep older ones."""
    draw = random(0)
    x, before, w = draw.standard_normal((5, 6, 2)), draw.standard_normal((5, 3, 2)), Tensor(np.ones((2, 4)))
    mask = np.array([[0, 0, 1, 1, 1, 1], [1, 1, 1, 0, 0, 0], [1, 0, 1, 0, 1, 1], [0, 0, 0, 0, 1, 0],
                     [0, 0, 0, 0, 0, 0]]) > 0
    _, kept = depthwise_conv1d_causal(Tensor(x), w, None, before, mask)
    for row in range(5):
        assert np.array_equal(kept[row], np.concatenate([before[row], x[row, mask[row]]])[-3:])


@pytest.mark.parametrize("shape", [(2, 4, 3), (2, 2, 3), (1, 3, 3), (2, 3, 1)])
def test_a_cache_of_another_shape_is_refused(shape: tuple[int, ...]) -> None:
    """[B,K,C], which has a column for the present, would give a token too many"""
    x, w = Tensor(np.ones((2, 5, 3))), Tensor(np.ones((3, 4)))
    with pytest.raises(InputError, match=r"cache: shape .* expected \[B,\(K-1\) dilation,C\] = \[2, 3, 3\]"):
        depthwise_conv1d_causal(x, w, None, np.zeros(shape))
    with pytest.raises(InputError, match=r"bias: shape \[5, 3\]; expected \[C\] = \[3\]"):
        depthwise_conv1d_causal(x, w, Tensor(np.ones((5, 3))))
    for size, dilation in ((0, 1), (-1, 1), (4, 0)):
        with pytest.raises(InputError, match="both are 1 or more"):
            ShortConv(3, size, dilation=dilation)


def test_convolution_of_an_impulse_and_by_the_identity() -> None:
    x, w = np.zeros((1, 6, 2)), random(0).standard_normal((2, 3))
    x[0, 1] = 1.0
    y, _ = depthwise_conv1d_causal(Tensor(x), Tensor(w))
    assert np.array_equal(y.data[0, 1:4], w.T[::-1])
    assert not y.data[0, [0, 4, 5]].any()
    x = random(1).standard_normal((2, 5, 2))
    y, _ = depthwise_conv1d_causal(Tensor(x), Tensor(np.array([[0.0, 0.0, 1.0]] * 2)))
    assert np.array_equal(y.data, x)
    y, cache = depthwise_conv1d_causal(Tensor(x), Tensor(np.array([[3.0], [5.0]])), Tensor(np.ones(2)))
    assert np.array_equal(y.data, x * np.array([3.0, 5.0]) + 1.0)                 # one tap multiplies
    assert cache.shape == (2, 0, 2)


def test_modes_on_both_sides_of_the_threshold() -> None:
    assert select_mode(64) == KernelMode.RECURRENT == "recurrent"
    assert select_mode(65) == KernelMode.CHUNK == "chunk"
    assert (select_mode(9, threshold=8), select_mode(8, threshold=8)) == ("chunk", "recurrent")
    assert (select_mode(1, mode="chunk"), select_mode(999, mode="recurrent")) == ("chunk", "recurrent")
    with pytest.raises(InputError, match="mode: 'chunks' is not known; did you mean 'chunk'"):
        select_mode(1, mode="chunks")
