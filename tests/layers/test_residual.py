"""The residual stream handed on as h + delta: the same numbers as with the sum formed at once."""

import numpy as np
import pytest

from nn import MoETransformer
from nn.layers import LayerNorm, RMSNorm
from nn.layers.residual import Residual
from nn.models.presets import TINY
from nn.tensor import Tensor, find_nonfinite


def leaves(*shape: int, dtype: str = "float32") -> tuple[Tensor, Tensor]:
    random = np.random.default_rng(0)
    h, delta = (random.standard_normal(shape).astype(dtype) for _ in range(2))
    return Tensor(h, requires_grad=True), Tensor(3.0 * delta, requires_grad=True)


@pytest.mark.parametrize("layer", [RMSNorm, LayerNorm])
@pytest.mark.parametrize("with_delta", [True, False])
def test_a_norm_of_a_residual_gives_the_sum_beside_it(layer: type, with_delta: bool) -> None:
    gradients = []
    for fused in (True, False):
        norm, (h, delta) = layer(6), leaves(2, 3, 6)
        norm.weight.data = np.linspace(0.5, 2.0, 6, dtype=np.float32)
        stream = Residual(h, delta) if with_delta else Residual(h)
        y, total = norm(stream) if fused else (norm(x := stream.total()), x)
        np.testing.assert_array_equal(total.numpy(), h.numpy() + (delta.numpy() if with_delta else 0.0))
        (y * 0.3 + total * 0.7).sum().backward()
        gradients.append([y.numpy(), h.grad, norm.weight.grad, delta.grad])
    for found, right in zip(*gradients, strict=True):
        np.testing.assert_array_equal(found, right)
    assert (gradients[0][3] is not None) == with_delta


@pytest.mark.parametrize("norm", ["rmsnorm", "layernorm"])
def test_a_block_hands_on_what_it_was_handed(norm: str) -> None:
    block = MoETransformer(TINY.replace(norm=norm)).layers[0]
    h, delta = leaves(2, 5, 64)
    whole, _ = block(h + delta)
    parts, _ = block(Residual(h, delta))
    assert isinstance(whole, Tensor)
    assert isinstance(parts, Residual)
    np.testing.assert_array_equal(parts.total().numpy(), whole.numpy())


def test_the_place_of_a_fault_is_named() -> None:
    model = MoETransformer.tiny()
    model.layers[1].input_layernorm.weight.data[3] = np.nan
    with find_nonfinite(), pytest.raises(
            ArithmeticError, match=r"ResidualRMSNorm in layers\.1\.input_layernorm: first"):
        model.loss(np.zeros((1, 4), int), np.zeros((1, 4), int))
