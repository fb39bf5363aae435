"""What operations compute in the corners, and what they refuse."""

import tracemalloc
from typing import Any

import numpy as np
import pytest

from nn import ops
from nn.errors import InputError
from nn.tensor import Tensor

INF, NAN = np.inf, np.nan


def leaf(values: Any) -> Tensor:
    return Tensor(np.array(values, np.float64), requires_grad=True)


class TestNonFiniteInputs:
    def test_nan_is_not_swallowed(self) -> None:
        for y in (ops.relu(leaf([NAN])), ops.maximum(leaf([NAN]), 1.0), ops.maximum(1.0, leaf([NAN])),
                  ops.max(leaf([NAN, 1.0])), ops.clip(leaf([NAN]), -1.0, 1.0), ops.softmax(leaf([NAN, 1.0])),
                  ops.absolute(leaf([NAN])), ops.rms_norm(leaf([NAN, 1.0]), leaf([1.0, 1.0])),
                  ops.cross_entropy(leaf([[NAN, 1.0]]), np.array([1]))):
            assert np.isnan(y.data).any()

    def test_rows_of_minus_infinity(self) -> None:
        x = leaf([[-INF, -INF], [1.0, 1.0]])
        for operation, first in ((ops.softmax, [0.0, 0.0]), (ops.log_softmax, [-INF, -INF])):
            y = operation(x)
            np.testing.assert_array_equal(y.data[0], first)
        y = ops.logsumexp(x)
        np.testing.assert_allclose(y.data, [-INF, 1.0 + np.log(2.0)])
        y.backward(np.ones(2))
        np.testing.assert_allclose(x.grad, [[0.0, 0.0], [0.5, 0.5]])

    def test_large_values_do_not_overflow(self) -> None:
        x = np.array([[1e300, 1e300, -1e300]])
        np.testing.assert_array_equal(ops.softmax(leaf(x)).data, [[0.5, 0.5, 0.0]])
        np.testing.assert_array_equal(ops.sigmoid(leaf([-1e300, 1e300])).data, [0.0, 1.0])
        np.testing.assert_array_equal(ops.silu(leaf([-1e300, 1e300])).data, [0.0, 1e300])
        assert ops.cross_entropy(leaf([[1000.0, -1000.0]]), np.array([1])).data.tolist() == [2000.0]

    def test_a_query_that_sees_nothing(self) -> None:
        q, k, v = (leaf(np.ones((1, 1, 2, 2))) for _ in range(3))
        o = ops.attention(q, k, v, mask=np.array([[False, False], [True, True]]))
        o.backward(np.ones((1, 1, 2, 2)))
        np.testing.assert_array_equal(o.data[0, 0], [[0.0, 0.0], [1.0, 1.0]])
        assert all(np.isfinite(x.grad).all() for x in (q, k, v))
        np.testing.assert_array_equal(q.grad[0, 0, 0], [0.0, 0.0])


class TestTies:
    def test_maximum_shares(self) -> None:
        a, b = leaf([1.0, 2.0, 3.0]), leaf([1.0, 5.0, 0.0])
        ops.maximum(a, b).backward(np.full(3, 4.0))
        assert (a.grad.tolist(), b.grad.tolist()) == ([2.0, 0.0, 4.0], [2.0, 4.0, 0.0])

    def test_max_shares(self) -> None:
        x = leaf([[1.0, 3.0, 3.0], [2.0, 2.0, 2.0]])
        ops.max(x, axis=1).backward(np.array([6.0, 6.0]))
        assert x.grad.tolist() == [[0.0, 3.0, 3.0], [2.0, 2.0, 2.0]]

    def test_router_takes_the_lowest_index(self) -> None:
        _, experts, _ = ops.router_topk(leaf([[1.0, 2.0, 2.0, 2.0], [0.0, 0.0, 0.0, 0.0]]), 2)
        assert experts.tolist() == [[1, 2], [0, 1]]

    def test_router_compares_logits_not_underflown_probabilities(self) -> None:
        logits = Tensor(np.array([[-900.0, 0.0, -500.0, -400.0]], np.float32))
        weights, experts, _ = ops.router_topk(logits, 3)
        assert experts.tolist() == [[1, 3, 2]]
        assert weights.data.tolist() == [[1.0, 0.0, 0.0]]


class TestRefusals:
    @pytest.mark.parametrize(("call", "message"), [
        (lambda: ops.take(leaf(np.ones((5, 2))), np.array([[0, 1], [7, 2]])),
         r"index\[1, 0\]: 7 is outside 0 \.\.\. 4"),
        (lambda: ops.take(leaf(np.ones((5, 2))), np.array([3, -1]), "ids"),
         r"ids\[1\]: -1 is outside 0 \.\.\. 4"),
        (lambda: ops.scatter_add(leaf(np.ones((2, 2))), np.array([0, 4]), 4),
         r"index\[1\]: 4 is outside 0 \.\.\. 3"),
        (lambda: ops.take_along_axis(leaf(np.ones((2, 2))), np.array([[0], [-1]])),
         r"index\[1, 0\]: -1 is outside 0 \.\.\. 1"),
        (lambda: ops.cross_entropy(leaf(np.ones((3, 4))), np.array([0, 4, 1])),
         r"targets\[1\]: 4 is outside 0 \.\.\. 3; use -100 for positions without a target"),
        (lambda: ops.linear_cross_entropy(leaf(np.ones((2, 3))), leaf(np.ones((4, 3))), np.array([0, -1])),
         r"targets\[1\]: -1 is outside 0 \.\.\. 3; use -100 for positions without a target"),
    ])
    def test_indices_out_of_range_are_named_with_their_place(self, call: Any, message: str) -> None:
        with pytest.raises(InputError, match=f"^{message}$"):
            call()

    @pytest.mark.parametrize(("call", "message"), [
        (lambda: ops.linear(leaf(np.ones((2, 3))), leaf(np.ones((4, 5)))),
         r"linear: x is \[\.\.\., in\] = \[2, 3\], weight \[out, in\] = \[4, 5\]: in differs"),
        (lambda: ops.matmul(leaf(np.ones(3)), leaf(np.ones((3, 2)))),
         r"matmul: two axes or more are needed: a \[3\], b \[3, 2\]"),
        (lambda: ops.split(leaf(np.ones((2, 5))), 2, 2),
         r"split: widths \[2, 2\] do not add up to the last axis of \[2, 5\]"),
        (lambda: ops.attention(*(leaf(np.ones(s)) for s in ((1, 3, 2, 4), (1, 2, 2, 4), (1, 2, 2, 4)))),
         r"attention: H = 3 is not a multiple of G = 2: q \[B,H,T,D\] = \[1, 3, 2, 4\]"),
        (lambda: ops.attention(*(leaf(np.ones(s)) for s in ((1, 2, 2, 4), (1, 2, 2, 3), (1, 2, 2, 4)))),
         r"attention: B, G, S or D disagree: q \[B,H,T,D\] = \[1, 2, 2, 4\], k \[B,G,S,D\] = \[1, 2, 2, 3\]"),
        (lambda: ops.attention(*(leaf(np.ones(s)) for s in ((1, 2, 2, 4), (1, 2, 3, 4), (1, 2, 2, 4)))),
         "attention: B, G, S or D disagree"),
        (lambda: ops.attention(*(leaf(np.ones((2, 4))) for _ in range(3))),
         "attention: four axes each are needed"),
    ])
    def test_shapes(self, call: Any, message: str) -> None:
        with pytest.raises(ValueError, match=message):
            call()

    @pytest.mark.parametrize("index", [np.array([0, 1]), [0, 1], (0, np.array([1])), 1.0])
    def test_index_arrays_go_to_take(self, index: Any) -> None:
        with pytest.raises(TypeError, match=r"use nn\.ops\.take\(x, indices\) for index arrays"):
            leaf(np.ones((2, 2)))[index]


class TestMemory:
    def test_attention_does_not_hold_all_scores(self) -> None:
        q = Tensor(np.ones((1, 1, 1500, 4), np.float32))
        tracemalloc.start()
        ops.attention(q, q, q)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 1500 * 1500 * 4 * 0.6                       # all scores alone are 9 MB

    def test_linear_cross_entropy_does_not_hold_all_logits(self, monkeypatch: pytest.MonkeyPatch) -> None:
        from nn.backends.reference import loss
        monkeypatch.setattr(loss, "LOGITS_AT_ONCE", 50_000)
        x = Tensor(np.ones((2000, 4), np.float32), requires_grad=True)
        w = Tensor(np.ones((500, 4), np.float32), requires_grad=True)
        tracemalloc.start()
        ops.linear_cross_entropy(x, w, np.zeros(2000, np.int64)).backward()
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 2000 * 500 * 4 * 0.5                        # all logits alone are 4 MB
