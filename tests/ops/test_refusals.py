"""What operations refuse, by name: shapes that would broadcast into a wrong answer, integers where results
are fractions, gradients of the wrong shape."""

from typing import Any

import numpy as np
import pytest

from nn import Tensor, ops
from nn.backends import BACKENDS, Backend, kernels
from nn.errors import InputError
from nn.tensor import Op

R = np.random.default_rng(0)


def draw(*shape: int) -> Tensor:
    return Tensor(R.standard_normal(shape), requires_grad=True)


@pytest.mark.parametrize(("call", "message"), [
    (lambda: ops.swiglu_packed(draw(2, 5)), r"swiglu_packed: x \[2, 5\] is not \[R,2F\]"),
    (lambda: ops.swiglu(draw(2, 4), draw(1, 4)), r"swiglu: gate \[2, 4\] and up \[1, 4\] differ"),
    (lambda: ops.linear(draw(2, 4), draw(3, 4), draw(1)), r"linear: bias \[out\] = \[1\]"),
    (lambda: ops.linear(draw(2, 4), draw(4)), r"linear: x is .* weight \[out, in\] = \[4\]"),
    (lambda: ops.rms_norm(draw(2, 4), draw(1)), r"rms_norm: weight \[D\] = \[1\]"),
    (lambda: ops.layer_norm(draw(2, 4), draw(4), draw(1)), r"layer_norm: bias \[D\] = \[1\]"),
    (lambda: ops.take_along_axis(draw(1, 4), np.zeros((3, 2), int)), r"take_along_axis: index \[3, 2\]"),
    (lambda: ops.scatter_add(draw(3, 4), np.array([0, 1]), 5), r"scatter_add: index \[2\]"),
    (lambda: ops.cross_entropy(draw(2, 3, 4), np.zeros(6, int)), r"logits are \[R,V\], not \[2, 3, 4\]"),
    (lambda: ops.cross_entropy(draw(3, 4), np.zeros(1, int)), r"targets: shape \[1\], expected .* \[3\]"),
    (lambda: ops.cross_entropy(draw(3, 4), np.zeros((3, 1), int)), r"targets: shape \[3, 1\]"),
    (lambda: ops.linear_cross_entropy(draw(3, 4), draw(5, 4), np.zeros(5, int)), r"targets: shape \[5\]"),
    (lambda: ops.permute(draw(2, 3), 0, 3), r"permute: \[0, 3\]"),
    (lambda: ops.permute(draw(2, 3), 0, 0), r"permute: \[0, 0\]"),
    (lambda: ops.stack([draw(2, 3)], axis=7), "stack: axis 7"),
])
def test_a_shape_that_would_broadcast_is_refused(call: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize("call", [
    lambda x: x.softmax(), lambda x: x.mean(), lambda x: x**0.5, lambda x: x.sigmoid(), lambda x: x.silu(),
    lambda x: x @ x, lambda x: x.exp(),
])
def test_integers_are_refused_where_results_are_fractions(call: Any) -> None:
    with pytest.raises(TypeError, match="int64 input; cast it to a floating-point type first"):
        call(Tensor(np.array([[1, 2], [3, 4]])))


def test_integers_are_added_in_the_widest_type() -> None:
    assert Tensor(np.ones(300, np.int8)).sum().item() == 300
    assert Tensor(np.array([True, True])).sum().item() == 2


@pytest.mark.parametrize("index", [[0.5], np.array([True, False]), "a"])
def test_an_index_of_other_things_is_refused(index: Any) -> None:
    with pytest.raises(InputError, match="index: .* values; expected integers"):
        ops.take(draw(3, 4), index)


def test_lists_and_tensors_serve_as_indices_and_targets() -> None:
    x = draw(3, 4)
    np.testing.assert_array_equal(ops.take(x, [2, 0]).data, x.data[[2, 0]])
    np.testing.assert_array_equal(ops.take(x, Tensor(np.array([1]))).data, x.data[[1]])
    assert ops.cross_entropy(x, [0, 1, 2]).shape == (3,)
    assert x[np.int64(1)].shape == (4,)
    with pytest.raises(TypeError, match="integers, slices"):
        x[True]


def test_an_additive_mask_is_refused() -> None:
    q = draw(1, 2, 3, 4)
    with pytest.raises(TypeError, match="attention: the mask holds float64; give booleans"):
        ops.attention(q, q, q, mask=np.zeros((1, 1, 3, 3)))


def test_a_gradient_of_another_shape_is_refused() -> None:
    class Careless(Op):
        def forward(self, x: Any) -> Any:
            return x * 2.0

        def backward(self, dy: Any) -> Any:
            return dy.sum()

    with pytest.raises(RuntimeError,
                       match=r"Careless: backward gave input 0 .* shape \[\], the input has \[2, 3\]"):
        Careless.apply(draw(2, 3)).sum().backward()


def test_mixed_types_meet_in_the_wider_one() -> None:
    a, b = Tensor(np.ones((2, 2), np.float32)), Tensor(np.ones((2, 2), np.float64))
    assert (a @ b).dtype == (b @ a).dtype == (a + b).dtype == np.float64


def test_kinks() -> None:
    x = Tensor([-1.0, 0.0, 2.0], requires_grad=True)
    ops.relu(x).sum().backward()
    assert x.grad.tolist() == [0.0, 0.0, 1.0]


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_sigmoid_keeps_its_precision_in_both_tails(dtype: Any) -> None:
    x = np.array([-80.0, -20.0, -15.0, 15.0, 80.0])
    right = np.exp(-np.logaddexp(0.0, -x))
    np.testing.assert_allclose(ops.sigmoid(Tensor(x.astype(dtype))).data, right, rtol=1e-6)
    np.testing.assert_allclose(ops.silu(Tensor(x.astype(dtype))).data, x * right, rtol=1e-6)


def test_numpy_does_not_take_a_tensor_silently() -> None:
    x = draw(2)
    with pytest.raises(TypeError):
        np.exp(x)
    assert isinstance(np.ones(2) * x, Tensor)
    assert float(x.sum()) == x.sum().item()
    assert not Tensor([0.0])


@pytest.mark.parametrize("order", [(np.float32, np.float64), (np.float64, np.float32)])
def test_a_backend_for_some_element_types_gets_only_those(monkeypatch: Any, order: Any) -> None:
    """Dispatch is by kind of array and by element type, whichever came first."""
    import nn.backends
    import nn.backends.reference as reference

    served: list[Any] = []

    class Picky:
        @staticmethod
        def silu(x: Any) -> Any:
            served.append(x.dtype)
            return reference.silu(x)

    picky = Backend("picky", "unused", lambda array: array.dtype == np.float32, lambda: None)
    monkeypatch.setattr(Backend, "kernel", lambda self, name: getattr(
        Picky if self.name == "picky" else reference, name, None))
    monkeypatch.setattr(nn.backends, "BACKENDS", (picky, *BACKENDS))
    monkeypatch.setattr(kernels.silu, "bound", {})
    for dtype in order:
        kernels.silu(np.zeros(2, dtype))
    assert served == [np.float32]
