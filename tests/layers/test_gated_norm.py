"""RMSNorm with a gate, in both orders and in groups; the length-1 norm."""

import numpy as np
import pytest

from nn import ops
from nn.layers.gated_norm import GatedRMSNorm
from nn.tensor import Tensor
from tests.blocks.harness import close
from tests.gradients import check


def drawn() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    random = np.random.default_rng(0)
    return random.standard_normal((3, 6)), random.standard_normal((3, 6)), random.standard_normal(6)


def silu(x: np.ndarray) -> np.ndarray:
    return x / (1.0 + np.exp(-x))


@pytest.mark.parametrize("before", [True, False])
@pytest.mark.parametrize("groups", [1, 2, 3])
def test_formula(before: bool, groups: int) -> None:
    x, z, weight = drawn()
    norm = GatedRMSNorm(6, 1e-3, norm_before_gate=before, groups=groups, dtype="float64")
    norm.weight.data = weight
    u = x if before else x * silu(z)
    parts = u.reshape(3, groups, -1)
    y = weight * (parts / np.sqrt(np.mean(parts**2, axis=2, keepdims=True) + 1e-3)).reshape(3, 6)
    close(norm(Tensor(x), Tensor(z)).data, y * silu(z) if before else y, 1e-13)
    check(norm, x, z, parameters=norm.parameters())


def test_the_orders_agree_where_the_gate_is_one_positive_number() -> None:
    """Up to what the gate does to the length: y = w ⊙ x̂ SiLU(z) and y = w ⊙ x̂"""
    x, z, _ = drawn()
    after, before = (GatedRMSNorm(6, 1e-14, norm_before_gate=order, dtype="float64")
                     for order in (False, True))

    def difference(gate: np.ndarray) -> float:
        found = after(Tensor(x), Tensor(gate)).data * silu(gate) - before(Tensor(x), Tensor(gate)).data
        return float(np.abs(found).max())

    assert difference(np.abs(z[:, :1]) + np.zeros((3, 6))) < 1e-9
    assert difference(np.abs(z)) > 0.1


def test_groups_divide_the_channels() -> None:
    with pytest.raises(ValueError, match="4 groups do not divide 6 channels"):
        GatedRMSNorm(6, groups=4)


def test_length_one() -> None:
    """x / √(Σ x² + ε); with ε = 0 its gradient is at right angles to x"""
    x, c, _ = drawn()
    close(ops.l2_norm(Tensor(x), 0.5).data, x / np.sqrt(np.sum(x**2, axis=1, keepdims=True) + 0.5), 1e-14)
    leaf = Tensor(x, requires_grad=True)
    ops.l2_norm(leaf, 0.0).backward(c)
    close(np.sum(leaf.grad * x, axis=1), np.zeros(3), 1e-14)
    zero = Tensor(np.zeros((1, 3)), requires_grad=True)
    ops.l2_norm(zero).backward(np.ones((1, 3)))
    assert np.array_equal(ops.l2_norm(zero).data, np.zeros((1, 3)))
    close(zero.grad, np.full((1, 3), 1e3), 1e-12)
