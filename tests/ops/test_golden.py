"""Values worked out by hand or in an independent program, eight decimals.  F(n, c)_k = sin(c + 0.7 k)."""

from typing import Any

import numpy as np
import pytest

from nn import ops
from nn.backends import kernels
from nn.layers.moe.capacity import keep_within_capacity
from nn.ops.merged import KeySet
from nn.tensor import Tensor


def f(n: int, c: float, *shape: int) -> np.ndarray:
    return np.sin(c + 0.7 * np.arange(n)).reshape(shape or (n,))


def leaf(values: Any) -> Tensor:
    return Tensor(np.array(values, np.float64), requires_grad=True)


def near(found: Any, right: Any) -> None:
    np.testing.assert_allclose(np.asarray(found), right, rtol=0, atol=5.1e-9)


def test_rms_norm() -> None:
    x, w = leaf(f(4, 0)), leaf([0.5, 1.0, 1.5, 2.0])
    y = ops.rms_norm(x, w, 1e-6)
    y.backward(f(4, 1))
    near(y.data, [0.0, 0.88255996, 2.02505726, 2.36514469])
    near(x.grad, [0.57639569, 0.65081658, 0.30543528, -0.83439117])
    near(w.grad, [0.0, 0.87520365, 0.91190108, 0.04917214])


def test_layer_norm() -> None:
    x, w, b = leaf(f(4, 0)), leaf([0.5, 1.0, 1.5, 2.0]), leaf(np.zeros(4))
    y = ops.layer_norm(x, w, b, 1e-5)
    y.backward(f(4, 1))
    near(y.data, [-0.81996184, 0.05525491, 1.4297468, 1.26300848])
    near(x.grad, [-0.12998682, 0.94514788, 0.77552294, -1.590684])
    near(b.grad, f(4, 1))


@pytest.mark.parametrize(("interleaved", "right"), [
    (False, [-1.41335252, 1.87911807, -2.82885748, 4.05819114]),
    (True, [-1.27223251, -1.83886499, 2.8786681, 4.08818664])])
def test_rope(interleaved: bool, right: list[float]) -> None:
    angles = 3.0 * np.array([[1.0, 0.01]])                     # position 3, d = 4, base 10000
    y = ops.rope(leaf([[[[1.0, 2.0, 3.0, 4.0]]]]), np.cos(angles), np.sin(angles), interleaved)
    near(y.data[0, 0, 0], right)


def test_attention() -> None:
    q, k, v = leaf(f(4, 0, 1, 1, 2, 2)), leaf(f(6, 1, 1, 1, 3, 2)), leaf(f(6, 2, 1, 1, 3, 2))
    o = ops.attention(q, k, v)
    o.backward(f(4, 3, 1, 1, 2, 2))
    near(o.data[0, 0], [[0.4509804, -0.06273596], [0.41858218, -0.03594477]])
    near(kernels.attention(q.data, k.data, v.data, scale=2**-0.5)[1][0, 0], [0.95171788, 1.66661819])
    near(q.grad[0, 0], [[-0.01388402, -0.07946006], [-0.18693973, -0.47052945]])
    near(k.grad[0, 0], [[-0.38824875, -0.39396733], [0.29521261, 0.31247188], [0.09303614, 0.08149545]])
    near(v.grad[0, 0], [[-0.5062085, -0.89713321], [-0.23965452, -0.49564969], [-0.06461904, -0.06286793]])


def test_attention_with_softcap_and_sink() -> None:
    q, k, v = leaf(f(4, 0, 1, 1, 2, 2)), leaf(f(6, 1, 1, 1, 3, 2)), leaf(f(6, 2, 1, 1, 3, 2))
    sink = leaf([0.5])
    o = ops.dense_attention(q, [KeySet(k, v)], sinks=sink, softcap=2.0)
    o.backward(f(4, 3, 1, 1, 2, 2))
    near(o.data[0, 0], [[0.27380409, -0.0396327], [0.28021431, -0.05503888]])
    near(q.grad[0, 0], [[0.00598363, -0.03639793], [-0.09781525, -0.28148662]])
    near(k.grad[0, 0], [[-0.23043098, -0.22704805], [0.19725462, 0.20988751], [0.05839472, 0.05115113]])
    near(v.grad[0, 0], [[-0.36914072, -0.60522283], [-0.20132936, -0.35671417], [-0.05641387, -0.05488511]])
    near(sink.grad, [0.03083078])


def test_norms_do_not_see_what_they_take_out() -> None:
    """RMSNorm the size of a row, LayerNorm its mean too; gradients have no part along them."""
    x, w, b = f(12, 0, 3, 4), np.array([0.5, 1.0, 1.5, 2.0]), np.array([0.1, -0.2, 0.3, -0.4])
    for norm, changed in ((lambda x: ops.rms_norm(x, leaf(w), 0.0), 7.0 * x),
                          (lambda x: ops.layer_norm(x, leaf(w), leaf(b), 0.0), 7.0 * x + 3.0)):
        here, there = leaf(x), leaf(changed)
        y = norm(here)
        np.testing.assert_allclose(y.data, norm(there).data, rtol=1e-12)
        y.backward(f(12, 1, 3, 4))
        np.testing.assert_allclose((here.grad * x).sum(axis=-1), 0.0, atol=1e-13)
    np.testing.assert_allclose(here.grad.sum(axis=-1), 0.0, atol=1e-13)
    plain = ops.rms_norm(leaf(x), leaf(np.ones(4)), 0.0).data
    np.testing.assert_allclose((plain**2).mean(axis=-1), 1.0, rtol=1e-12)


def test_pointwise() -> None:
    x = leaf([1.0])
    y = ops.silu(x)
    y.backward()
    near(y.data, [0.73105858])
    near(x.grad, [0.92767051])
    near(ops.gelu(x).data, [0.84134475])
    near(ops.gelu(x, approximate=True).data, [0.84119199])


def test_cross_entropy() -> None:
    z = leaf([[1.0, 2.0, 3.0]])
    near(ops.cross_entropy(z, np.array([2])).data, [0.40760596])
    loss = ops.cross_entropy(z, np.array([2]), softcap=5.0, label_smoothing=0.1, z_loss=0.01)
    loss.backward()
    near(loss.data, [0.67788046])
    near(z.grad, [[0.0820892, 0.22462883, -0.20234376]])


def test_routing() -> None:
    z = leaf([[0.1, 0.9, -0.3, 0.5], [1.0, -1.0, 0.2, 0.4]])
    weights, experts, probs = ops.router_topk(z, 2)
    near(probs.data, [[0.18560845, 0.41307921, 0.12441707, 0.27689527],
                      [0.46871868, 0.06343418, 0.21060888, 0.25723827]])
    assert experts.tolist() == [[1, 3], [0, 3]]
    near(weights.data[0], [0.59868766, 0.40131234])
    load = np.array([0.25, 0.25, 0.0, 0.5])
    near(4 * np.sum(load * probs.data.mean(axis=0)), 1.0995538)
    lse = ops.logsumexp(z)
    near(ops.mean(lse * lse).item(), 3.13638177)


@pytest.mark.parametrize(("policy", "kept"), [
    ("probs", [[True, True], [True, False], [True, True]]),
    ("position", [[True, True], [True, True], [False, True]]),
    ("slot", [[True, True], [True, False], [True, True]])])
def test_capacity(policy: str, kept: list[list[bool]]) -> None:
    """Three tokens, two choices, room for two: expert 1 is asked by all three."""
    experts, weights = np.array([[1, 0], [0, 1], [1, 2]]), np.array([[0.6, 0.4], [0.8, 0.2], [0.9, 0.1]])
    assert keep_within_capacity(experts, weights, 3, 1.0, policy, minimum=1).tolist() == kept


def test_adamw() -> None:
    theta, m, v = np.array([1.0]), np.zeros(1), np.zeros(1)
    seen = []
    for step, gradient in enumerate((0.5, -0.25), start=1):
        kernels.adamw(theta, np.array([gradient]), m, v, lr=0.1, beta1=0.9, beta2=0.95, eps=1e-8,
                      weight_decay=0.1, step=step)
        seen.append(float(theta[0]))
    near(seen, [0.890000002, 0.85426306])
