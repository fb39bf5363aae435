"""Tensor and tape: what backward accumulates, frees, refuses and finds."""

import gc
import re
import threading
import weakref
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from nn import ops
from nn.errors import NonFiniteError
from nn.layers import FeedForward, Linear
from nn.tape import state
from nn.tensor import Op, Tensor, enable_grad, find_nonfinite, no_grad

BF16 = np.dtype(ml_dtypes.bfloat16)


def leaf(values: Any, dtype: Any = np.float64) -> Tensor:
    return Tensor(np.array(values, dtype=dtype), requires_grad=True)


class TestArray:
    def test_from_lists_arrays_and_tensors(self) -> None:
        array = np.arange(6.0).reshape(2, 3)
        for source in (array.tolist(), array, Tensor(array)):
            x = Tensor(source)
            assert (x.shape, x.dtype, x.ndim, x.size, len(x)) == ((2, 3), np.float64, 2, 6, 2)
            np.testing.assert_array_equal(x.numpy(), array)
        assert Tensor(array).data is array
        assert Tensor(array).numpy() is array
        np.testing.assert_array_equal(np.asarray(Tensor(array)), array)
        assert np.asarray(Tensor(array), dtype=np.float32).dtype == np.float32

    def test_of_no_axes_and_of_no_elements(self) -> None:
        assert (Tensor(3.0).shape, Tensor(3.0).size, Tensor(np.float32(2)).dtype) == ((), 1, np.float32)
        assert (Tensor(np.zeros((2, 0))).size, Tensor([]).shape) == (0, (0,))

    @pytest.mark.parametrize("value", [2.5, [2.5], [[2.5]]])
    def test_item(self, value: Any) -> None:
        assert Tensor(value).item() == 2.5

    def test_item_of_several(self) -> None:
        with pytest.raises(ValueError,
                           match=r"item: needs a tensor of one element, this one has shape \[2, 1\]"):
            Tensor([[1.0], [2.0]]).item()

    def test_repr_names_shape_type_and_operation(self) -> None:
        assert repr(leaf([1.0, 2.0])) == "Tensor(shape=[2], dtype=float64)"
        assert repr(leaf([1.0]).exp()) == "Tensor(shape=[1], dtype=float64, op=Exp)"

    def test_iterates_over_the_first_axis(self) -> None:
        assert [row.data.tolist() for row in Tensor([[1.0, 2.0], [3.0, 4.0]])] == [[1.0, 2.0], [3.0, 4.0]]

    def test_integers_have_no_gradient(self) -> None:
        with pytest.raises(TypeError,
                           match="requires_grad: int64 has no gradient; make it a floating-point array"):
            Tensor([1, 2], requires_grad=True)

    def test_detach_shares_the_array_and_forgets_the_history(self) -> None:
        y = leaf([1.0]).exp()
        assert y.detach().data is y.data
        assert not y.detach().requires_grad


class TestOperators:
    def test_every_operator_both_ways(self) -> None:
        a, b = np.array([[1.0, -2.0], [0.5, 3.0]]), np.array([[2.0, 0.25], [-1.5, 4.0]])
        for x, y in ((Tensor(a), Tensor(b)), (Tensor(a), b), (a, Tensor(b))):
            for found, right in ((x + y, a + b), (x - y, a - b), (x * y, a * b), (x / y, a / b),
                                 (x @ y, a @ b)):
                assert isinstance(found, Tensor)
                np.testing.assert_array_equal(found.data, right)
        x = Tensor(a)
        for found, right in ((2 - x, 2 - a), (2 / x, 2 / a), (2 + x, 2 + a), (2 * x, 2 * a), (-x, -a),
                             (x**2, a**2), (abs(x), abs(a)), (x[1, ::-1], a[1, ::-1]),
                             (x.sum(axis=0), a.sum(axis=0)), (x.mean(), a.mean()),
                             (x.max(axis=1), a.max(axis=1)), (x.reshape(4), a.reshape(4)),
                             (x.permute(1, 0), a.T), (x.cast(np.float32), a.astype(np.float32)),
                             (x.exp(), np.exp(a)), (x.tanh(), np.tanh(a)), (abs(x).log(), np.log(abs(a))),
                             (abs(x).sqrt(), np.sqrt(abs(a)))):
            np.testing.assert_array_equal(found.data, right)
        np.testing.assert_allclose(x.sigmoid().data, 1 / (1 + np.exp(-a)), rtol=1e-15)
        np.testing.assert_allclose(x.silu().data, a / (1 + np.exp(-a)), rtol=1e-15)
        np.testing.assert_allclose(x.softmax().data.sum(axis=-1), [1.0, 1.0], rtol=1e-15)

    def test_numpy_scalars_on_the_left(self) -> None:
        y = np.float64(2.0) * leaf([1.5])
        assert isinstance(y, Tensor)
        assert y.requires_grad


class TestBackward:
    def test_of_one_element_starts_with_one(self) -> None:
        x = leaf([[3.0]])
        (x * x).backward()
        np.testing.assert_array_equal(x.grad, [[6.0]])

    def test_of_several_elements_needs_a_gradient(self) -> None:
        with pytest.raises(ValueError,
                           match=r"backward: shape \[2\] is not one element; pass gradient= of that shape"):
            (leaf([1.0, 2.0]) * 2.0).backward()

    def test_with_a_gradient(self) -> None:
        x, seed = leaf([1.0, 2.0]), np.array([10.0, 100.0])
        (x * x).backward(seed)
        np.testing.assert_array_equal(x.grad, [20.0, 400.0])
        np.testing.assert_array_equal(seed, [10.0, 100.0])

    def test_with_a_gradient_of_another_shape(self) -> None:
        with pytest.raises(ValueError, match=r"backward: gradient has shape \[3\], the tensor \[2\]"):
            (leaf([1.0, 2.0]) * 2.0).backward(np.ones(3))

    @pytest.mark.parametrize("make", [lambda: Tensor([1.0]),
                                      lambda: Tensor([1.0]) * 2.0,
                                      lambda: leaf([1.0]).detach()])
    def test_where_nothing_requires_one(self, make: Any) -> None:
        with pytest.raises(RuntimeError, match="backward: nothing here requires a gradient"):
            make().backward()

    def test_of_a_leaf(self) -> None:
        x = leaf([1.0, 2.0])
        x.backward(np.array([3.0, 4.0]))
        np.testing.assert_array_equal(x.grad, [3.0, 4.0])

    def test_adds_to_what_is_there(self) -> None:
        x = leaf([1.0])
        for expected in (2.0, 4.0, 6.0):
            (x * 2.0).backward()
            assert x.grad.tolist() == [expected]

    def test_shared_parameter(self) -> None:
        w, x = leaf(np.eye(2) * 0.5), leaf([[1.0, -1.0]])
        ops.sum(ops.linear(ops.linear(x, w), w)).backward()
        np.testing.assert_allclose(w.grad, [[1.0, -1.0], [1.0, -1.0]])          # 2 · (Wᵀ1) x̂ᵀ with W = ½I

    def test_diamond(self) -> None:
        x = leaf([2.0])
        a = x * x
        (a * a + a + x).backward()                                               # x⁴ + x² + x
        assert x.grad.tolist() == [4 * 8.0 + 4.0 + 1.0]

    def test_the_same_tensor_many_times(self) -> None:
        x = leaf([1.0])
        y = x
        for _ in range(50):
            y = y + x
        y.backward()
        assert x.grad.tolist() == [51.0]

    def test_a_chain_longer_than_the_stack_of_python(self) -> None:
        x = leaf([1.0])
        y = x
        for _ in range(5000):
            y = y * 1.0
        y.backward()
        assert x.grad.tolist() == [1.0]

    def test_a_leaf_owns_its_gradient(self) -> None:
        """Not the array that came in, nor one shared with another leaf."""
        a, b, seed = leaf([1.0, 2.0]), leaf([3.0, 4.0]), np.ones(2)
        (a + b).backward(seed)
        a.grad += 5.0
        assert seed.tolist() == [1.0, 1.0]
        assert b.grad.tolist() == [1.0, 1.0]

    def test_gradients_are_contiguous_and_writable_where_they_come_from_views(self) -> None:
        x = leaf(np.ones((3, 4)))
        x.sum().backward()
        x.grad *= 2.0
        assert x.grad.tolist() == [[2.0] * 4] * 3

    @pytest.mark.parametrize(("dtype", "kept"), [(np.float64, np.float64), (np.float32, np.float32),
                                                 (BF16, np.float32),
                                                 (np.float16, np.float32)])
    def test_type_of_a_leafs_gradient(self, dtype: Any, kept: Any) -> None:
        x = leaf([1.0, 2.0], dtype)
        (x * x).sum().backward()
        (x * x).sum().backward()
        assert x.grad.dtype == kept
        assert x.grad.tolist() == [4.0, 8.0]

    def test_small_gradients_add_up_for_half_parameters(self) -> None:
        x = leaf([1.0], BF16)
        for _ in range(1000):
            (x * 1.0).backward(np.ones(1, BF16))
        assert x.grad.tolist() == [1000.0]                                       # bfloat16 stops at 256

    def test_gradients_between_operations_have_the_type_of_the_tensor(self) -> None:
        seen = []

        class Spy(Op):
            def forward(self, x: np.ndarray) -> np.ndarray:
                return x

            def backward(self, dy: np.ndarray) -> np.ndarray:
                seen.append(dy.dtype)
                return dy

        for dtype in (BF16, np.dtype(np.float16), np.dtype(np.float32)):
            x = leaf(np.ones((4, 3)), dtype)
            (Spy.apply(x) * 0.3 + leaf(np.ones(3))).sum().backward()
            assert seen.pop() == dtype

    def test_results_that_nobody_uses(self) -> None:
        class Two(Op):
            def forward(self, x: np.ndarray) -> Any:
                return x * 2.0, x * 3.0

            def backward(self, *dys: np.ndarray | None) -> np.ndarray:
                assert [dy is None for dy in dys] == [True, False]
                return 3.0 * dys[1]

        x = leaf([1.0])
        Two.apply(x)[1].backward()
        assert x.grad.tolist() == [3.0]


class TestFreedBuffers:
    def test_saved_arrays_die_during_backward(self) -> None:
        """By the time the first operation's backward runs, everything that later ones saved is gone."""
        alive: dict[str, list[bool]] = {}

        class First(Op):
            def forward(self, x: np.ndarray) -> np.ndarray:
                return x + 0.0

            def backward(self, dy: np.ndarray) -> np.ndarray:
                alive["in backward"] = [reference() is not None for reference in references]
                return dy

        def build() -> tuple[Tensor, list[weakref.ref]]:
            a = First.apply(x)
            b = ops.exp(a)
            c = ops.tanh(b)
            d = ops.linear(c, w)
            saved = [a.data, b.data, c.data]
            return ops.sum(d * d), [weakref.ref(array) for array in [*saved[1:], d.data]]

        x, w = leaf(np.ones((3, 4))), leaf(np.ones((2, 4)))
        loss, references = build()
        gc.disable()                                     # reference counts alone must free them
        try:
            assert all(reference() is not None for reference in references)
            loss.backward()
        finally:
            gc.enable()
        assert alive["in backward"] == [False, False, False]

    def test_no_reference_cycle_keeps_a_forgotten_graph(self) -> None:
        x = leaf(np.ones(3))
        y = ops.exp(x)
        reference = weakref.ref(y.data)
        gc.disable()
        try:
            del y
            assert reference() is None
        finally:
            gc.enable()

    def test_a_second_backward_is_refused(self) -> None:
        x = leaf([1.0])
        y = x * x
        y.backward()
        message = ("backward: what Mul saved is already freed, because backward ran through it once; "
                   "run the forward pass again")
        with pytest.raises(RuntimeError, match=message):
            y.backward()
        assert x.grad.tolist() == [2.0]

    def test_also_where_only_a_part_was_used(self) -> None:
        x = leaf([1.0])
        shared = ops.exp(x)
        (shared * 2.0).backward()
        before = x.grad.copy()
        with pytest.raises(RuntimeError, match="what Exp saved is already freed"):
            (shared * 3.0).backward()
        np.testing.assert_array_equal(x.grad, before)


class TestRecording:
    def test_no_grad(self) -> None:
        x = leaf([1.0])
        with no_grad():
            y = x * 2.0
            with enable_grad():
                z = x * 3.0
            assert not (x * 4.0).requires_grad
        assert (y.requires_grad, y.op, z.requires_grad) == (False, None, True)
        assert (x * 2.0).requires_grad

    def test_is_restored_after_an_exception(self) -> None:
        with pytest.raises(KeyError), no_grad():
            raise KeyError
        assert state.recording

    def test_belongs_to_the_thread(self) -> None:
        seen = []
        with no_grad():
            thread = threading.Thread(target=lambda: seen.append((leaf([1.0]) * 2.0).requires_grad))
            thread.start()
            thread.join()
        assert seen == [True]

    def test_constants_are_not_recorded(self) -> None:
        assert (Tensor([1.0]) * 2.0).op is None

    def test_an_operation_without_forward_or_backward_says_so(self) -> None:
        class Nothing(Op):
            pass

        class OneWay(Op):
            def forward(self, x: np.ndarray) -> np.ndarray:
                return x

        with pytest.raises(TypeError, match="Nothing defines no forward"):
            Nothing.apply(leaf([1.0]))
        with pytest.raises(TypeError,
                           match="OneWay defines no backward: its result cannot be differentiated"):
            OneWay.apply(leaf([1.0])).backward()


class TestFindNonfinite:
    def test_is_off_by_default(self) -> None:
        with np.errstate(all="ignore"):
            assert not np.isfinite(ops.log(leaf([0.0])).data).any()

    def test_names_operation_and_shapes_in_forward(self) -> None:
        with np.errstate(all="ignore"), find_nonfinite(), pytest.raises(
                NonFiniteError, match=r"^Div: first non-finite result \(input shapes \[\[2\], \[2, 1\]\]\)$"):
            leaf([1.0, 2.0]) / leaf([[1.0], [0.0]])

    def test_names_the_layer(self) -> None:
        layer = FeedForward(3, 4, "silu", dtype="float64")
        layer.down_proj.weight.data[1, 2] = np.inf
        message = "Linear in FeedForward.down_proj: first non-finite result (input shapes [[2, 4], [3, 4]])"
        expected = pytest.raises(NonFiniteError, match=f"^{re.escape(message)}$")
        with np.errstate(all="ignore"), find_nonfinite(), expected:
            layer(Tensor(np.ones((2, 3))))

    def test_names_operation_and_layer_in_backward(self) -> None:
        class Root(Linear):
            def forward(self, x: Tensor) -> Tensor:
                return ops.sqrt(ops.linear(x, self.weight))

        layer = Root(2, 3, std=0.0, dtype="float64")    # √0: finite, with an infinite slope
        with np.errstate(all="ignore"), find_nonfinite():
            loss = ops.sum(layer(Tensor(np.ones((1, 2)))))
            message = "Sqrt in Root: first non-finite gradient (input shapes [[1, 3]])"
            with pytest.raises(NonFiniteError, match=f"^{re.escape(message)}$"):
                loss.backward()

    def test_half_precision_overflow(self) -> None:
        with np.errstate(all="ignore"), find_nonfinite(), pytest.raises(NonFiniteError, match="^Mul: "):
            leaf([300.0], np.float16) * 300.0

    def test_checking_stops_with_the_block(self) -> None:
        with pytest.raises(NonFiniteError), find_nonfinite(), np.errstate(all="ignore"):
            ops.log(leaf([0.0]))
        assert state.path is None
        with find_nonfinite():
            ops.take(leaf([1.0, 2.0]), np.array([1]))
            layer = Linear(2, 2)
            with pytest.raises(ValueError, match="linear"):
                layer(Tensor(np.ones(3)))
            assert state.path == []
        assert state.path is None
