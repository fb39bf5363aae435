"""What is counted of each operation, by hand."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from nn import ops
from nn.layers.formulas import ceil_to, visible_pairs
from nn.ops.count import count_flops
from nn.tensor import Tensor, no_grad
from tests.ops.table import OPS, rows_of


def t(*shape: int) -> Tensor:
    return Tensor(np.random.default_rng(0).standard_normal(shape), requires_grad=True)


COUNTED: dict[str, tuple[Callable[[], Any], int]] = {
    "matmul": (lambda: t(3, 4) @ t(4, 5), 2 * 3 * 4 * 5),
    "matmul, batched": (lambda: t(2, 1, 3, 4) @ t(6, 4, 5), 2 * 2 * 6 * 3 * 4 * 5),
    "linear": (lambda: ops.linear(t(2, 3, 4), t(5, 4), t(5)), 2 * 6 * 4 * 5),
    "attention": (lambda: ops.attention(t(2, 4, 5, 3), t(2, 2, 7, 3), t(2, 2, 7, 6)),
                  2 * 2 * 4 * (3 + 4 + 5 + 6 + 7) * 9),
    "attention, window": (lambda: ops.attention(t(1, 1, 4, 3), t(1, 1, 4, 3), t(1, 1, 4, 3), window=2),
                          2 * (1 + 2 + 2 + 2) * 6),
    "attention, both ways": (lambda: ops.attention(t(1, 1, 3, 2), t(1, 1, 5, 2), t(1, 1, 5, 2), causal=False),
                             2 * 15 * 4),
    "convolution": (lambda: ops.causal_conv(t(2, 3 + 5, 6), t(6, 4)), 2 * 2 * 5 * 6 * 4),
    "grouped product": (lambda: ops.grouped_linear(t(7, 3), t(2, 4, 3), np.array([0, 4, 6])), 2 * 6 * 3 * 4),
    "logits and loss": (lambda: ops.linear_cross_entropy(t(3, 4), t(5, 4), np.arange(3)), 2 * 3 * 4 * 5),
    "selective scan": (lambda: ops.selective_scan(t(2, 5, 3), t(2, 5, 3), t(3, 4), t(2, 5, 4), t(2, 5, 4),
                                                  t(3), t(2, 3, 4)), 9 * 2 * 5 * 3 * 4),
    "elementwise": (lambda: ops.silu(t(3, 4)) * t(3, 4) + 1.0, 0),
    "norm and softmax": (lambda: ops.softmax(ops.rms_norm(t(3, 4), t(4))), 0)}


@pytest.mark.parametrize("name", COUNTED)
def test_products(name: str) -> None:
    function, expected = COUNTED[name]
    with count_flops() as count:
        function()
    assert count.flops == sum(count.by_operation.values()) == expected


# what multiplies without calling np.matmul: elementwise, or by the operator @
NO_MATMUL = {"causal_conv", "selective_scan"}


@pytest.mark.parametrize("op", OPS)
def test_no_operation_that_multiplies_matrices_is_forgotten(op: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What NumPy multiplies in the forward, each operation counts; what does not multiply, it does not."""
    sizes: list[int] = []
    real = np.matmul

    def matmul(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        sizes.append(a.size * b.shape[-1])
        return real(a, b)

    monkeypatch.setattr(np, "matmul", matmul)
    with count_flops() as count, no_grad():
        for row in rows_of(op):
            row.function(*map(Tensor, row.inputs))
    assert (count.flops > 0) == (sum(sizes) > 0 or op in NO_MATMUL)


def test_elements_of_the_rest_but_views() -> None:
    with count_flops() as count:
        y = ops.exp(t(3, 4)).reshape(12)[:5]
        y.sum()
    assert (count.flops, count.elements) == (0, 12 + 1)


def test_an_inner_count_counts_for_itself_and_backward_not_at_all() -> None:
    x, w = t(2, 3), t(4, 3)
    with count_flops() as outer:
        ops.linear(x, w)
        with count_flops() as inner, no_grad():
            ops.linear(x, w)
        ops.linear(x, w).sum().backward()
    ops.linear(x, w)
    assert (outer.flops, inner.flops) == (2 * 48, 48)


@pytest.mark.parametrize("window", range(8))
def test_visible_pairs(window: int) -> None:
    for queries in range(6):
        for keys in range(8):
            places = [(p, j) for p in range(keys - queries, keys) for j in range(keys)]
            near = [abs(p - j) < window or not window for p, j in places]
            causal = [j <= p and seen for (p, j), seen in zip(places, near, strict=True)]
            assert visible_pairs(queries, keys, window) == sum(causal)
            assert visible_pairs(queries, keys, window, causal=False) == sum(near)


def test_ceil_to() -> None:
    assert [ceil_to(n, 4) for n in (0, 1, 4, 5)] == [0, 4, 4, 8]
