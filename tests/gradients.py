"""Gradients against finite differences, in float64.

    check(ops.silu, x)                                      # every input
    check(layer, x, parameters=layer.parameters())          # and every parameter

The loss is Σ result ⊙ C with fixed random C for every result.  Four evaluations per entry, f(±h) and f(±2h),
leave an error of order h⁴; large tensors are tried in some entries and along one random direction, which
meets all the others."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np

from nn.tensor import Op, Tensor, no_grad

STEP = 1e-3
Function = Callable[..., Any]


class Weighted(Op):
    """y = Σ_i result_i ⊙ C_i:  dresult_i = dy C_i"""

    def forward(self, *results: np.ndarray, constants: list[np.ndarray]) -> np.ndarray:
        self.constants = constants
        return np.asarray(sum(np.sum(r * c) for r, c in zip(results, constants, strict=True)))

    def backward(self, dy: np.ndarray) -> tuple[np.ndarray, ...]:
        return tuple(dy * c for c in self.constants)


def as_tuple(results: Any) -> tuple[Tensor, ...]:
    return tuple(results) if isinstance(results, tuple | list) else (results,)


def weighted(results: Any, seed: int = 0) -> Tensor:
    """The scalar whose gradients are checked"""
    random = np.random.default_rng(seed)
    results = as_tuple(results)
    constants = [random.standard_normal(r.shape) for r in results]
    return Weighted.apply(*results, constants=constants)


def leaf(array: Any) -> Tensor:
    return Tensor(np.array(array, dtype=np.float64), requires_grad=True)


def gradients(function: Function, inputs: Sequence[Tensor],
              parameters: Sequence[Tensor] = ()) -> list[np.ndarray]:
    """The analytic gradients of `weighted(function(*inputs))`"""
    leaves = [*inputs, *parameters]
    for tensor in leaves:
        tensor.grad = None
    loss = weighted(function(*inputs))
    loss.backward()
    for tensor in leaves:
        assert tensor.grad is not None, f"no gradient reached a tensor of shape {tensor.shape}"
        assert tensor.grad.shape == tensor.shape
        assert tensor.grad.dtype == np.float64
    return [tensor.grad for tensor in leaves]


def check(function: Function, *inputs: Any, parameters: Sequence[Tensor] = (),
          entries: int = 20, tolerance: float = 1e-6, seed: int = 0) -> None:
    """AssertionError where a gradient and the difference quotient differ
    by more than tolerance × the largest entry.

    inputs: float64 arrays; parameters: tensors that the function closes over."""
    leaves = [leaf(x) for x in inputs]
    analytic = gradients(function, leaves, parameters)

    def loss() -> float:
        with no_grad():
            return weighted(function(*leaves)).item()

    random = np.random.default_rng(seed)
    for place, (tensor, gradient) in enumerate(zip([*leaves, *parameters], analytic, strict=True)):
        compare(f"input {place}" if place < len(leaves) else f"parameter {place - len(leaves)}", loss,
                tensor.data, gradient,
                random, entries, tolerance)


def compare(what: str, loss: Callable[[], float], x: np.ndarray, gradient: np.ndarray,
            random: np.random.Generator, entries: int, tolerance: float) -> None:
    assert np.all(np.isfinite(gradient)), f"{what}: the gradient is not finite"
    picked = random.permutation(x.size)[:entries]
    numeric = np.array([quotient(loss, x, unit(x, i)) for i in picked])
    claimed = gradient.reshape(-1)[picked]
    scale = max(1e-4, float(np.max(np.abs(gradient), initial=0.0)))
    error = np.abs(numeric - claimed)
    if error.size:
        worst = int(np.argmax(error))
        assert error[worst] <= tolerance * scale, (
            f"{what}{list(x.shape)}, entry {picked[worst]}: gradient {claimed[worst]:.9g}, "
            f"differences {numeric[worst]:.9g}")
    if x.size > entries:
        direction = random.standard_normal(x.shape) / np.sqrt(x.size)
        slope, right = float(np.sum(gradient * direction)), quotient(loss, x, direction)
        assert abs(slope - right) <= tolerance * scale, (
            f"{what}{list(x.shape)} along a direction: gradient {slope:.9g}, differences {right:.9g}")


def unit(x: np.ndarray, i: int) -> np.ndarray:
    direction = np.zeros(x.size)
    direction[i] = 1.0
    return direction.reshape(x.shape)


def quotient(loss: Callable[[], float], x: np.ndarray, direction: np.ndarray) -> float:
    """The derivative of loss() by x along the direction, x changed in place and restored"""
    before = x.copy()

    def at(step: float) -> float:
        x[...] = before + step * direction
        return loss()

    slope = (8.0 * (at(STEP) - at(-STEP)) - (at(2.0 * STEP) - at(-2.0 * STEP))) / (12.0 * STEP)
    x[...] = before
    return slope


@contextmanager
def about(name: str) -> Iterator[None]:
    """What goes wrong inside the block is said of `name`: for tests that go through many cases."""
    try:
        yield
    except Exception as error:
        raise AssertionError(f"{name}: {type(error).__name__}: {error}") from error
