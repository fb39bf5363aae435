"""The selective scan against its definition token by token, in NumPy float64, and the reference kernel."""

from typing import Any

import numpy as np
import pytest

from nn import ops
from nn.backends.reference.scan import run
from nn.layers.ssm import (
    MambaKernelInputs,
    MambaKernelParams,
    MambaKernelState,
    MambaReferenceKernel,
    selective_scan_ref,
)
from nn.ops import scan
from nn.tensor import Tensor, no_grad
from tests.blocks.harness import close
from tests.gradients import gradients, leaf

SHAPES = [(2, 11, 3, 4), (1, 1, 2, 3), (1, 17, 1, 1), (2, 8, 4, 2), (1, 0, 2, 2)]       # B, T, C, N


def drawn(batch: int, length: int, channels: int, states: int, seed: int = 0) -> list[np.ndarray]:
    """x, Δ, A, B, C, D, h"""
    draw = np.random.default_rng(seed).standard_normal
    return [draw((batch, length, channels)), np.exp(draw((batch, length, channels))),
            -np.exp(draw((channels, states))), draw((batch, length, states)), draw((batch, length, states)),
            draw(channels), draw((batch, channels, states))]


def by_definition(x: np.ndarray, delta: np.ndarray, a: np.ndarray, b: np.ndarray, c: np.ndarray,
                  d: np.ndarray, h: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """h_t = e^{Δ A} h + Δ x Bᵀ, y = h C + D x, one channel and state at a time"""
    h, y = h.copy(), np.zeros_like(x)
    for row, t, i in np.ndindex(*x.shape):
        for n in range(a.shape[1]):
            h[row, i, n] = (np.exp(delta[row, t, i] * a[i, n]) * h[row, i, n]
                            + delta[row, t, i] * b[row, t, n] * x[row, t, i])
        y[row, t, i] = h[row, i] @ c[row, t] + d[i] * x[row, t, i]
    return y, h


def scanned(given: list[np.ndarray], size: int) -> tuple[np.ndarray, np.ndarray]:
    with no_grad():
        y, h = ops.selective_scan(*map(Tensor, given), chunk_size=size)
    return y.data, h.data


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("size", [1, 2, 3, 4, 7, 8, 64])
def test_is_its_definition(shape: tuple[int, int, int, int], size: int) -> None:
    given = drawn(*shape)
    for found, expected in zip(scanned(given, size), by_definition(*given), strict=True):
        close(found, expected, 1e-13)


@pytest.mark.parametrize("backwards", [False, True])
def test_prefixes_of_any_length(backwards: bool) -> None:
    """h_t ← a_t h_{t−1} + h_t for every length up to three powers of two beyond"""
    random = np.random.default_rng(0)
    for length in range(1, 40):
        a, h = random.random((1, length, 2, 1)), random.standard_normal((1, length, 2, 1))
        expected = h.copy()
        for t in range(length - 2, -1, -1) if backwards else range(1, length):
            expected[:, t] += a[:, t] * expected[:, t + 1 if backwards else t - 1]
        run(a, h, backwards)
        close(h, expected, 1e-13)


def test_golden_values() -> None:
    """Appendix A.7 of the specification: A = −1, D = 0.3, two tokens"""
    given = [np.array(v) for v in ([[[1.0], [2.0]]], [[[0.5], [0.1]]], [[-1.0]], [[[1.0], [-1.0]]],
                                   [[[2.0], [0.5]]], [0.3], [[[0.0]]])]
    for size in (1, 2):
        y, h = scanned(given, size)
        np.testing.assert_allclose(y[0, :, 0], [1.3, 0.72620935], rtol=0, atol=5e-9)
        np.testing.assert_allclose(h[0, 0, 0], 0.25241871, rtol=0, atol=5e-9)


def test_without_decay_it_is_a_cumulative_sum() -> None:
    x, one = np.random.default_rng(0).standard_normal((2, 9, 3)), np.ones((2, 9, 1))
    given = [x, np.ones_like(x), np.zeros((3, 1)), one, one, np.zeros(3), np.zeros((2, 3, 1))]
    for size in (1, 4, 64):
        y, h = scanned(given, size)
        close(y, np.cumsum(x, axis=1), 1e-14)
        close(h[..., 0], np.sum(x, axis=1), 1e-14)


@pytest.mark.parametrize("size", [1, 4, 64])
def test_steps_of_zero_freeze_the_state(size: int) -> None:
    given = drawn(2, 9, 3, 4)
    given[1][:] = 0.0
    y, h = scanned(given, size)
    assert np.array_equal(h, given[6])
    close(y, np.einsum("bcn,btn->btc", h, given[4]) + given[5] * given[0], 1e-14)


def test_strong_decay_neither_overflows_nor_leaves_nan() -> None:
    """Cumulative products of a are 0 after two tokens: nothing may be divided by them"""
    given = [leaf(z) for z in drawn(1, 200, 2, 3)]
    given[1].data[:] = 1.0
    given[2].data[:] = -500.0
    y, _ = ops.selective_scan(*given)
    x, b, c, d = (given[i].data for i in (0, 3, 4, 5))
    close(y.data[:, 1:], (x * (np.sum(b * c, axis=2, keepdims=True) + d))[:, 1:], 1e-12)
    y.sum().backward()
    assert all(np.isfinite(z.grad).all() for z in given)


def test_long_sequences_lose_nothing() -> None:
    """4,000 tokens whose state stays: chunks and recurrence agree to a few roundings in float64"""
    given = drawn(1, 4000, 2, 2)
    given[2][:] = -1e-4
    for found, expected in zip(scanned(given, 64), scanned(given, 1), strict=True):
        close(found, expected, 1e-13)


def test_half_precision_is_summed_in_float32() -> None:
    """1,024 equal steps: in bfloat16 the state would stop growing at 256"""
    import ml_dtypes
    x, one = np.ones((1, 1024, 1), ml_dtypes.bfloat16), np.ones((1, 1024, 1), ml_dtypes.bfloat16)
    given = [x, one, np.zeros((1, 1)), one, one, np.zeros(1), np.zeros((1, 1, 1), np.float32)]
    y, h = scanned(given, 64)
    assert y.dtype == ml_dtypes.bfloat16
    assert h.dtype == np.float32
    assert h.item() == float(y[0, -1, 0]) == 1024.0


def test_the_host_takes_fewer_tokens_where_states_are_many(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever its cache holds, the result and the gradients are the same"""
    given = drawn(2, 30, 3, 4)
    expected = gradients(lambda *t: ops.selective_scan(*t, chunk_size=16), [leaf(z) for z in given])
    monkeypatch.setattr(scan, "IN_CACHE", 1)
    monkeypatch.setattr(scan, "FEWEST", 3)
    found = gradients(lambda *t: ops.selective_scan(*t, chunk_size=16), [leaf(z) for z in given])
    for a, b in zip(found, expected, strict=True):
        close(a, b, 1e-12)


def test_refuses_what_does_not_fit() -> None:
    good = drawn(2, 3, 4, 5)
    for i, shape in enumerate([(2, 3, 5), (2, 4, 4), (5, 4), (2, 3, 4), (2, 3, 4), (5,), (2, 5, 4)]):
        bad = [Tensor(np.ones(shape) if i == j else z) for j, z in enumerate(good)]
        with pytest.raises(ValueError, match="selective_scan: x"):
            ops.selective_scan(*bad)
    with pytest.raises(ValueError, match="chunk_size 0 > 0"):
        ops.selective_scan(*map(Tensor, good), chunk_size=0)


# ---- the reference kernel ----


def for_kernel(given: list[Any], gate: Any) -> tuple[MambaKernelParams, MambaKernelInputs, MambaKernelState]:
    x, delta, a_log, b, c, d, h = given
    first = [ops.permute(z if isinstance(z, Tensor) else Tensor(z), 0, 2, 1) for z in (x, delta, gate)]
    return (MambaKernelParams(a_log, d), MambaKernelInputs(first[0], first[1], b, c, first[2]),
            MambaKernelState(h))


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_reference_kernel_is_the_definition(shape: tuple[int, int, int, int]) -> None:
    given = drawn(*shape)
    expected, last = by_definition(*given)
    gate = np.random.default_rng(3).standard_normal(expected.shape)
    given[2] = np.log(-given[2])
    arguments = for_kernel([Tensor(z) for z in given], gate)
    kernel = MambaReferenceKernel()
    for one in (kernel, MambaReferenceKernel(mode="recurrent"), kernel.forward_recurrent,
                lambda *z: kernel.forward_chunk(*z, chunk_size=4)):
        y, state = one(*arguments)
        close(y.data, np.swapaxes(expected * gate, 1, 2), 1e-12)
        close(state.ssm.data, last, 1e-12)


@pytest.mark.parametrize(("dtype", "rtol"), [("float32", 1e-4), ("float64", 1e-11)])
@pytest.mark.parametrize("size", [1, 5, 64])
def test_scan_and_reference_kernel_agree_forward_and_backward(dtype: str, rtol: float, size: int) -> None:
    """Two algorithms and two ways to the gradients: a derivation by hand, and the tape"""
    given = [z.astype(dtype) for z in drawn(2, 13, 3, 4, seed=1)]
    results = []
    for kernel in (None, MambaReferenceKernel().forward_chunk):
        tensors = [Tensor(z, requires_grad=True) for z in given]
        if kernel is None:
            y, h = selective_scan_ref(*tensors, chunk_size=size)
        else:
            a_log = ops.log(ops.neg(tensors[2]))
            gate = np.ones(given[0].shape, dtype)
            y, state = kernel(*for_kernel([*tensors[:2], a_log, *tensors[3:]], gate), chunk_size=size)
            y, h = ops.permute(y, 0, 2, 1), state.ssm
        (ops.sum(y * y) + ops.sum(ops.tanh(h))).backward()
        results.append([y.data, h.data, *(t.grad for t in tensors)])
    for ours, theirs in zip(*results, strict=True):
        close(ours, theirs, rtol)


def test_reference_kernel_with_steps_of_all_sizes() -> None:
    """float32, Δ between e^−7 and e^7: behind a step that forgets all, small ones count as before"""
    given = drawn(1, 64, 2, 3)
    given[1] = given[1] ** 3
    expected, last = by_definition(*given)
    given[2] = np.log(-given[2])
    narrow = [Tensor(z.astype(np.float32)) for z in given]
    y, state = MambaReferenceKernel().forward_chunk(*for_kernel(narrow, np.ones(expected.shape, np.float32)),
                                                    chunk_size=64)
    assert y.dtype == state.ssm.dtype == np.float32
    close(np.swapaxes(y.data, 1, 2), expected, 2e-6)
    close(state.ssm.data, last, 2e-6)


def test_kernel_states_start_at_zero() -> None:
    state = MambaKernelState.zeros(2, 3, 4, "float64")
    assert state.ssm.shape == (2, 3, 4)
    assert state.ssm.dtype == np.float64
    given = drawn(2, 5, 3, 4)
    given[2] = np.log(-given[2])
    params, inputs, _ = for_kernel([Tensor(z) for z in given], np.ones(given[0].shape))
    kernel = MambaReferenceKernel(chunk_size=2)
    assert np.array_equal(kernel(params, inputs, state)[0].data, kernel(params, inputs)[0].data)
    with pytest.raises(ValueError, match="chunk_size: 0 is not positive"):
        kernel.forward_chunk(params, inputs, None, chunk_size=0)
