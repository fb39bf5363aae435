"""Write a differentiable operation: a forward, a backward derived by hand, and the proof that they fit.

    y = x r,  r = (Σ x² + ε)^−½  over the last axis (L2 normalisation)
    ∂r/∂x_j = −r³ x_j,  so  dx_j = Σ_i dy_i ∂(x_i r)/∂x_j = r dy_j − r³ x_j Σ_i dy_i x_i
    with y = x r:  dx = r (dy − y Σ dy ⊙ y)

The proof is a finite difference in float64.        Try: python examples/write_an_operation.py"""

import numpy as np

from nn import Tensor, ops
from nn.tensor import Op

Array = np.ndarray


class L2Normalize(Op):
    """y = x (Σ x² + ε)^−½:  dx = r (dy − y Σ dy ⊙ y)"""

    def forward(self, x: Array, *, eps: float) -> Array:
        self.r = 1.0 / np.sqrt(np.sum(x * x, axis=-1, keepdims=True) + eps)      # one number per row is kept,
        self.y = x * self.r                                                      # and the result
        return self.y

    def backward(self, dy: Array) -> Array:
        return self.r * (dy - self.y * np.sum(dy * self.y, axis=-1, keepdims=True))


def l2_normalize(x: Tensor, eps: float = 1e-6) -> Tensor:
    """[...,D] -> [...,D], rows of length 1"""
    return L2Normalize.apply(x, eps=eps)


def relative_error(x: Array, weights: Array, direction: Array, step: float = 1e-6) -> float:
    """Backward against a finite difference: the slope of Σ weights ⊙ l2_normalize(x) along a direction."""

    def f(z: Tensor) -> Tensor:
        return (l2_normalize(z) * weights).sum()

    leaf = Tensor(x, requires_grad=True)
    f(leaf).backward()
    derived = float(np.vdot(np.asarray(leaf.grad), direction))
    up, down = f(Tensor(x + step * direction)).item(), f(Tensor(x - step * direction)).item()
    measured = (up - down) / (2.0 * step)
    return abs(derived - measured) / max(abs(derived), abs(measured))


def main() -> float:
    """Check the gradient, then chain the operation with others; the largest error found."""
    draw = np.random.default_rng(0).standard_normal
    worst = max(relative_error(draw(s), draw(s), draw(s)) for s in [(5,), (3, 7), (2, 1, 4)])
    print(f"largest relative error against finite differences: {worst:.1e}")
    assert worst < 1e-7

    embedding = Tensor(draw((6, 8)), requires_grad=True)                  # [V,D]
    rows = l2_normalize(ops.take(embedding, np.array([1, 2, 2])))         # [3,D], on the tape like any other
    ops.linear_cross_entropy(rows, embedding, np.array([2, 3, 4])).backward()  # the head is the embedding
    print(f"gradient of the embedding, used twice: {np.asarray(embedding.grad).shape}")
    return worst


if __name__ == "__main__":
    main()
