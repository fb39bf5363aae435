"""Sinkhorn scaling: golden values, closed forms, what it promises of rows and columns, and two other ways to
its gradient."""

import numpy as np
import pytest

from nn.ops.sinkhorn import sinkhorn
from nn.tensor import Tensor
from tests.blocks.harness import close
from tests.gradients import check

VARIANTS = ("A", "B", "C")
LOGITS = np.array([[0.0, 1.0, 2.0], [1.0, 0.0, -1.0], [0.5, 0.5, 0.0]])
CONVERGED = np.array([[0.07310586, 0.26685693, 0.66003721], [0.60263663, 0.29770959, 0.09965379],
                      [0.32425751, 0.43543349, 0.240309]])


def of(logits: np.ndarray, iterations: int = 20, eps: float = 1e-6, variant: str = "A") -> np.ndarray:
    return np.asarray(sinkhorn(Tensor(logits), iterations, eps, variant).data)


def by_loops(logits: np.ndarray, iterations: int, eps: float, variant: str) -> np.ndarray:
    """One matrix, entry by entry as the variants are written"""
    m = np.exp(logits - logits.max())
    if variant == "A":
        m = m / m.sum(axis=1, keepdims=True) + eps
        m = m / (m.sum(axis=0, keepdims=True) + eps)
        for _ in range(iterations - 1):
            m = m / (m.sum(axis=1, keepdims=True) + eps)
            m = m / (m.sum(axis=0, keepdims=True) + eps)
        return m
    for _ in range(iterations):
        first, second = (0, 1) if variant == "B" else (1, 0)
        m = m / m.sum(axis=first, keepdims=True)
        m = m / m.sum(axis=second, keepdims=True)
    return m


def test_golden_values() -> None:
    np.testing.assert_allclose(of(np.array([[0.0, 1.0], [2.0, 0.0]]), 200, 0.0)[0, 0], 0.18242552, atol=5e-9)
    for variant in VARIANTS:
        np.testing.assert_allclose(of(LOGITS, 200, 0.0, variant), CONVERGED, atol=5e-9)
    np.testing.assert_allclose(of(LOGITS), [[0.07310646, 0.26685694, 0.66003559],
                                            [0.60263524, 0.29770935, 0.09965441],
                                            [0.32425729, 0.43543271, 0.240309]], atol=5e-9)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("iterations", [1, 2, 5])
def test_many_matrices_are_scaled_each_by_itself(variant: str, iterations: int) -> None:
    logits = 2.0 * np.random.default_rng(0).standard_normal((2, 3, 4, 4))
    found = of(logits, iterations, 1e-3, variant)
    for place in np.ndindex(2, 3):
        close(found[place], by_loops(logits[place], iterations, 1e-3, variant), 1e-13)
    assert of(logits[:0], iterations, 1e-3, variant).shape == (0, 3, 4, 4)


def test_two_by_two_in_closed_form() -> None:
    logits = np.random.default_rng(1).standard_normal((50, 2, 2))
    a = 1.0 / (1.0 + np.exp(-(logits[:, 0, 0] + logits[:, 1, 1] - logits[:, 0, 1] - logits[:, 1, 0]) / 2.0))
    expected = np.stack([np.stack([a, 1.0 - a], -1), np.stack([1.0 - a, a], -1)], -2)
    for variant in VARIANTS:
        close(of(logits, 200, 0.0, variant), expected, 1e-12)


def test_one_by_one_is_one() -> None:
    for variant in VARIANTS:
        close(of(np.full((3, 1, 1), 7.0), 20, 0.0, variant), np.ones((3, 1, 1)), 1e-15)


@pytest.mark.parametrize("variant", VARIANTS)
def test_rows_and_columns_add_up_to_one(variant: str) -> None:
    m = of(np.random.default_rng(2).standard_normal((40, 4, 4)), 20, 1e-6, variant)
    for axis in (-1, -2):
        np.testing.assert_allclose(m.sum(axis=axis), 1.0, atol=5e-5)
    np.testing.assert_allclose(np.linalg.norm(m, 2, axis=(-2, -1)), 1.0, atol=5e-5)       # spectral norm


@pytest.mark.parametrize("variant", VARIANTS)
def test_large_logits_neither_overflow_nor_give_nan(variant: str) -> None:
    logits = Tensor(1000.0 * np.eye(3)[None], requires_grad=True)
    m = sinkhorn(logits, 20, 1e-6, variant)
    np.testing.assert_allclose(m.data[0], np.eye(3), atol=1e-5)
    (m * m).sum().backward()
    assert np.isfinite(logits.grad).all()


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize(("iterations", "eps"), [(1, 1e-6), (3, 0.1), (20, 1e-6)])
def test_gradient_of_the_steps(variant: str, iterations: int, eps: float) -> None:
    logits = np.random.default_rng(3).standard_normal((2, 3, 3))
    check(lambda x: sinkhorn(x, iterations, eps, variant), logits)


@pytest.mark.parametrize("variant", VARIANTS)
def test_gradient_is_the_implicit_one_at_convergence(variant: str) -> None:
    """dL = M ⊙ (dM − u 1ᵀ − 1 vᵀ),  [[diag(M 1), M], [Mᵀ, diag(Mᵀ 1)]] [u; v] = [W 1; Wᵀ 1],  W = M ⊙ dM"""
    draw = np.random.default_rng(4)
    logits, dm = Tensor(draw.standard_normal((4, 4)), requires_grad=True), draw.standard_normal((4, 4))
    m = sinkhorn(logits, 300, 0.0, variant)
    (m * dm).sum().backward()
    w, p = m.data * dm, m.data
    system = np.block([[np.diag(p.sum(1)), p], [p.T, np.diag(p.sum(0))]])
    uv = np.linalg.lstsq(system, np.concatenate([w.sum(1), w.sum(0)]), rcond=None)[0]
    close(logits.grad, p * (dm - uv[:4, None] - uv[None, 4:]), 1e-10)


def test_bad_arguments_are_named() -> None:
    with pytest.raises(ValueError, match=r"square matrices are needed: logits \[2, 3\]"):
        sinkhorn(Tensor(np.zeros((2, 3))))
    with pytest.raises(ValueError, match="0 iterations"):
        sinkhorn(Tensor(np.zeros((2, 2))), 0)
    with pytest.raises(ValueError, match="'D' is not known"):
        sinkhorn(Tensor(np.zeros((2, 2))), variant="D")


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_row_that_would_underflow(variant: str) -> None:
    """e^−300 is 0 in float32, and 0 / 0 no number."""
    logits = Tensor(np.array([[0.0, -300.0], [-300.0, -310.0]], np.float32), requires_grad=True)
    y = sinkhorn(logits, 20, 1e-6, variant)
    (y * Tensor(np.array([[1.0, 2.0], [3.0, 5.0]], np.float32))).sum().backward()
    last = 1 if variant == "B" else 0                                  # the axis of the last division
    np.testing.assert_allclose(y.data.sum(axis=last), 1.0, atol=1e-5)
    assert np.isfinite(logits.grad).all()
