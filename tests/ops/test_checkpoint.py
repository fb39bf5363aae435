"""Gradient checkpointing: the same bits, less memory."""

import gc
import weakref
from typing import Any

import numpy as np
import pytest

from nn import ops
from nn.layers import FeedForward
from nn.tensor import Tensor, no_grad


def leaf(*shape: int, dtype: Any = np.float64, seed: int = 0) -> Tensor:
    return Tensor(np.random.default_rng(seed).standard_normal(shape).astype(dtype), requires_grad=True)


def run(layer: FeedForward, x: Tensor, wrap: bool) -> dict[str, np.ndarray]:
    layer.zero_grad()
    x.grad = None
    y = ops.checkpoint(layer, x) if wrap else layer(x)
    ops.sum(y * y).backward()
    found = {name: p.grad for name, p in layer.named_parameters().items()} | {"y": y.data}
    return found | ({"x": x.grad} if x.requires_grad else {})


@pytest.mark.parametrize("dtype", ["float64", "float32", "bfloat16"])
@pytest.mark.parametrize("input_learns", [True, False])
def test_gradients_have_the_same_bits(dtype: str, input_learns: bool) -> None:
    """Of the input and of parameters that the function only closes over,
    also where the input is a constant."""
    layer = FeedForward(4, 8, std=0.5, dtype=dtype)
    x = Tensor(np.random.default_rng(0).standard_normal((2, 3, 4)).astype(layer.up_proj.weight.dtype),
               requires_grad=input_learns)
    plain, recomputed = run(layer, x, wrap=False), run(layer, x, wrap=True)
    assert plain.keys() == recomputed.keys()
    for name in plain:
        np.testing.assert_array_equal(plain[name], recomputed[name], err_msg=name)


def test_runs_twice_and_records_only_the_second_time() -> None:
    recorded = []

    def function(x: Tensor) -> Tensor:
        y = ops.exp(x)
        recorded.append(y.op is not None)
        return y

    y = ops.checkpoint(function, leaf(3))
    assert recorded == [False]
    ops.sum(y).backward()
    assert recorded == [False, True]


def test_keeps_nothing_in_between() -> None:
    inner: list[weakref.ref] = []

    def function(x: Tensor) -> Tensor:
        h = ops.exp(x)
        inner.append(weakref.ref(h.data))
        return ops.tanh(h)

    gc.disable()
    try:
        y = ops.checkpoint(function, leaf(5))
        assert inner[0]() is None
        ops.sum(y).backward()
        assert inner[1]() is None
    finally:
        gc.enable()


@pytest.mark.parametrize("used", [(0,), (1,), (2,), (0, 2), (0, 1, 2)])
def test_several_results_and_any_of_them_used(used: tuple[int, ...]) -> None:
    def function(a: Tensor, b: Tensor) -> tuple[Tensor, ...]:
        return a @ b, ops.exp(a), b * 2.0

    def gradients(wrap: bool) -> list[Any]:
        a, b = leaf(2, 3, seed=1), leaf(3, 2, seed=2)
        results = ops.checkpoint(function, a, b) if wrap else function(a, b)
        loss = None
        for i in used:
            term = ops.sum(results[i] * (i + 1.0))
            loss = term if loss is None else loss + term
        loss.backward()
        return [a.grad, b.grad]

    for plain, recomputed in zip(gradients(False), gradients(True), strict=True):
        if plain is None:
            assert recomputed is None or not recomputed.any()
        else:
            np.testing.assert_array_equal(plain, recomputed)


def test_a_result_that_depends_on_nothing() -> None:
    x = leaf(3)
    y = ops.checkpoint(lambda t: Tensor(np.ones(3)), x)
    ops.sum(y * x).backward()
    np.testing.assert_array_equal(x.grad, np.ones(3))


def test_one_constant_result_among_others() -> None:
    x = leaf(3)
    y, z = ops.checkpoint(lambda t: (Tensor(np.full(3, 2.0)), t * 3.0), x)
    ops.sum(y * z).backward()
    np.testing.assert_array_equal(x.grad, np.full(3, 6.0))


def test_under_no_grad_and_integer_inputs() -> None:
    table, ids = leaf(4, 2), np.array([1, 1, 3])
    with no_grad():
        assert ops.checkpoint(ops.exp, table).op is None
    y = ops.checkpoint(lambda i: ops.take(table, i.data), Tensor(ids))
    ops.sum(y).backward()
    np.testing.assert_array_equal(table.grad[:, 0], [0.0, 2.0, 0.0, 1.0])


def test_a_second_backward_is_refused() -> None:
    y = ops.sum(ops.checkpoint(ops.exp, leaf(3)))
    y.backward()
    with pytest.raises(RuntimeError, match="already freed"):
        y.backward()


def test_an_input_used_outside_too() -> None:
    def loss(x: Tensor, wrap: bool) -> Tensor:
        h = ops.exp(x)
        return ops.sum((ops.checkpoint(ops.tanh, h) if wrap else ops.tanh(h)) * h)

    a, b = leaf(3), leaf(3)
    loss(a, False).backward()
    loss(b, True).backward()
    np.testing.assert_array_equal(a.grad, b.grad)
