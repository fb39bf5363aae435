"""The feed-forward in the other way to write it: one projection to twice the width, cut in two."""

import numpy as np
import pytest

from nn.errors import InputError
from nn.layers.feed_forward import FeedForward
from nn.tensor import Tensor


def test_gate_and_up_in_one() -> None:
    """Linear(d, 4d · 2) → chunk → SiLU(gate) · value → Linear(4d, d)"""
    random = np.random.default_rng(0)
    packed, down, x = (random.standard_normal(shape) for shape in ((8 * 3, 3), (3, 4 * 3), (2, 5, 3)))
    ffn = FeedForward(3, 4 * 3, dtype="float64")
    ffn.load_gate_up(packed)
    ffn.down_proj.weight.load(down)
    gate, value = np.split(x @ packed.T, 2, axis=-1)
    expected = (gate / (1.0 + np.exp(-gate)) * value) @ down.T
    np.testing.assert_allclose(ffn(Tensor(x)).data, expected, rtol=1e-12, atol=1e-13)
    packed[:] = 0.0                                                   # its own numbers, not a view of these
    np.testing.assert_allclose(ffn(Tensor(x)).data, expected, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize(("kind", "shape"), [("swiglu", (12, 3)), ("swiglu", (24, 4)), ("gelu", (24, 3))])
def test_what_does_not_fit_is_refused(kind: str, shape: tuple[int, int]) -> None:
    with pytest.raises(InputError, match=rf"weight: shape \[{shape[0]}, {shape[1]}\] for {kind}; expected"):
        FeedForward(3, 12, kind).load_gate_up(np.zeros(shape))
