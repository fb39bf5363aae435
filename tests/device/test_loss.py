"""Cross-entropy, linear + cross-entropy, means of losses."""

from ctypes import byref, sizeof
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from cuda.nn.device import EmulatedDevice
from cuda.nn.errors import DeviceArgumentError, DeviceError
from cuda.nn.prototypes.loss import LinearCrossEntropy
from nn import ops
from nn.backends import reference
from nn.backends.device import loss as device_loss
from nn.tensor import Tensor
from tests.conformance.cases import cases
from tests.conformance.compare import TERMS, check, compare, to_numpy

DTYPES = {"float32": np.float32, "float16": np.float16, "bfloat16": ml_dtypes.bfloat16}
OPTIONS: dict[str, Any] = {"label_smoothing": 0.1, "z_loss": 0.01, "softcap": 8.0}
RANDOM = np.random.default_rng(3)


def into(device: EmulatedDevice) -> Any:
    return lambda array: device.asarray(array) if isinstance(array, np.ndarray) else array


def draw(dtype: str, *shape: int, scale: float = 3.0) -> np.ndarray:
    return (RANDOM.standard_normal(shape) * scale).astype(DTYPES[dtype])


def draw_targets(rows: int, vocabulary: int, dtype: Any = np.int64) -> np.ndarray:
    targets = RANDOM.integers(0, vocabulary, rows).astype(dtype)
    targets[::5] = -100
    return targets


def judge(device: EmulatedDevice, logits: np.ndarray, targets: np.ndarray, dtype: str,
          **options: Any) -> None:
    """Forward, backward, and backward in place, against float64."""
    wide, dloss = logits.astype(np.float64), RANDOM.uniform(0.5, 2, len(logits)).astype(np.float32)
    expect = reference.cross_entropy(wide, targets, **options)
    plain = reference.cross_entropy(logits, targets, **options)
    given = device.asarray(logits)
    loss, lse = device_loss.cross_entropy(given, targets, **options)
    for what, found, right, rough in zip(("loss", "lse"), (loss, lse), expect, plain, strict=True):
        compare(what, found.numpy(), right, rough, "float32", scale=float(np.abs(expect[1]).max(initial=0)))
    right = reference.cross_entropy_backward(dloss.astype(np.float64), wide, targets, expect[1], **options)
    rough = reference.cross_entropy_backward(dloss, logits, targets, plain[1], **options)
    dlogits = device_loss.cross_entropy_backward(dloss, given, targets, lse, **options)
    compare("dlogits", dlogits.numpy(), right, rough, dtype)
    in_place = device_loss.cross_entropy_backward_in_place(dloss, given, targets, lse, **options)
    assert in_place is given
    assert np.array_equal(in_place.numpy(), dlogits.numpy())


@pytest.mark.parametrize("kernel", ["cross_entropy", "cross_entropy_backward", "linear_cross_entropy"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_cases_of_every_backend(device: EmulatedDevice, kernel: str, dtype: str,
                                monkeypatch: pytest.MonkeyPatch) -> None:
    # dweight is a sum of products with dlogits, which are rounded to dtype
    monkeypatch.setitem(TERMS, "linear_cross_entropy", 4.0)
    for case in cases(kernel, dtype):
        check(getattr(device_loss, kernel), case, into(device), to_numpy)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("vocabulary", [1, 2, 7, 33, 1024, 1031, 8200])
def test_vocabularies(device: EmulatedDevice, dtype: str, vocabulary: int) -> None:
    """A warp per row, a small and a large block; rows that begin off 16 bytes."""
    for options in ({}, OPTIONS):
        targets = draw_targets(6, vocabulary, np.int32 if options else np.int64)
        judge(device, draw(dtype, 6, vocabulary), targets, dtype, **options)


@pytest.mark.parametrize("arch", ["sm_75", "sm_90"])
def test_other_architectures(device: EmulatedDevice) -> None:
    judge(device, draw("float16", 3, 50), draw_targets(3, 50), "float16", **OPTIONS)


def test_extremes(device: EmulatedDevice) -> None:
    logits = np.array([[3e38, 0, 3e38, -3e38], [-np.inf, 2, -np.inf, 1], [88, -88, 0, 1e-30],
                       [np.nan, 0, 0, 0], [0, np.inf, 0, 0], [-np.inf] * 4, [5, 5, 5, 5]], np.float32)
    loss, lse = (x.numpy() for x in device_loss.cross_entropy(device.asarray(logits),
                                                              np.array([0, 1, 2, 3, 0, 1, 2])))
    np.testing.assert_allclose(loss[[0, 1, 2, 6]], [np.log(2), np.log1p(np.exp(-1.0)), 88, np.log(4)],
                               rtol=1e-6)
    assert np.isnan(loss[3:6]).all()
    assert lse[5] == -np.inf


@pytest.mark.parametrize("dtype", [np.int32, np.int64])
def test_targets_outside_are_nan_and_read_nothing(device: EmulatedDevice, dtype: Any) -> None:
    logits, bad = draw("float32", 5, 8), np.array([8, -1, 2, np.iinfo(dtype).max, np.iinfo(dtype).min], dtype)
    loss, lse = device_loss.cross_entropy(device.asarray(logits), bad)
    assert np.isnan(loss.numpy()).tolist() == [True, True, False, True, True]
    dlogits = device_loss.cross_entropy_backward(np.ones(5, np.float32), device.asarray(logits), bad,
                                                 lse).numpy()
    assert np.isnan(dlogits).all(1).tolist() == [True, True, False, True, True]
    assert np.isfinite(dlogits[2]).all()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_chunks_of_linear_cross_entropy(device: EmulatedDevice, dtype: str) -> None:
    """Whatever the chunks, the same sums to rounding; dloss and an accumulated dweight."""
    x, weight, targets = draw(dtype, 300, 16, scale=1.0), draw(dtype, 50, 16, scale=0.5), draw_targets(300,
                                                                                                       50)
    dloss, before = RANDOM.uniform(0.1, 1, 300).astype(np.float32), draw("float32", 50, 16)
    wide = [a.astype(np.float64) for a in (x, weight)]
    logits = wide[0] @ wide[1].T
    loss, lse = reference.cross_entropy(logits, targets)
    dlogits = reference.cross_entropy_backward(dloss.astype(np.float64), logits, targets, lse)
    budgets = {1: 3, 1 << 30: 1}
    for budget, chunks in budgets.items():
        rows = device.library.nn_linear_cross_entropy_chunk(300, 50, 0, budget)
        assert -(-300 // rows) == chunks
        held = device.asarray(before)
        found = device_loss.linear_cross_entropy_scaled(device.asarray(x), weight, targets, dloss,
                                                        budget=budget,
                                                        dweight=held)
        assert found[2] is held
        assert found[1] is not None
        limit = 1e-5 if dtype == "float32" else 2e-2
        np.testing.assert_allclose(found[0].numpy(), loss, atol=1e-5)
        np.testing.assert_allclose(found[1].numpy().astype(np.float64), dlogits @ wide[1], atol=limit)
        np.testing.assert_allclose(held.numpy(), before + dlogits.T @ wide[0], atol=10 * limit)
        fresh = device_loss.linear_cross_entropy_scaled(device.asarray(x), weight, targets, dloss,
                                                        budget=budget)
        assert fresh[2] is not None
        np.testing.assert_allclose(fresh[2].numpy(), dlogits.T @ wide[0], atol=10 * limit)


def test_workspace_of_linear_cross_entropy(device: EmulatedDevice) -> None:
    size = device.library.nn_linear_cross_entropy_workspace_size

    def call(**changes: int) -> LinearCrossEntropy:
        sizes = {"rows": 300, "width": 16, "vocabulary": 50, "chunk": 128, "target_dtype": 3, "dx": 512,
                 "dweight": 512}
        return LinearCrossEntropy(size=sizeof(LinearCrossEntropy), **sizes | changes)

    least = size(byref(call()))
    assert least >= 128 * 56 * 4
    for larger in ({"rows": 400}, {"vocabulary": 70}, {"chunk": 256}, {"dtype": 2}):
        assert size(byref(call(**larger))) >= least
    assert size(byref(call(chunk=0))) == -1
    arrays = [device.empty(n, np.float32) for n in (300, 300 * 16, 50 * 16, 300 * 16, 50 * 16)]
    pointers = dict(zip(("loss", "dx", "dweight", "x", "weight"), (a.pointer for a in arrays), strict=True))
    small = call(targets=device.zeros(300, np.int64).pointer, **pointers)
    with pytest.raises(DeviceError, match="workspace_bytes: 100, but"):
        device.call("linear_cross_entropy_forward", byref(small), device.workspace(100), 100)


def test_a_small_share_of_the_loss_does_not_underflow_in_float16(device: EmulatedDevice) -> None:
    """A loss divided by 2^20 tokens: softmax times 2^-20 is below float16's least number, so the operation
    rounds the gradient of the sum, and scales what it summed in float32."""
    rng, scale = np.random.default_rng(0), 2.0**-20
    x, weight = rng.standard_normal((20, 16)).astype(np.float16), rng.standard_normal((33, 16))
    weight, targets = weight.astype(np.float16), rng.integers(0, 33, 20)
    gradients = {}
    for kind in (np.float16, np.float64):
        place = device.asarray if kind == np.float16 else np.asarray
        w = Tensor(place(weight.astype(kind)), requires_grad=True)
        ops.linear_cross_entropy(Tensor(place(x.astype(kind))), w, targets, scale=scale).backward()
        gradients[kind] = to_numpy(w.grad).astype(np.float64)
    found, right = gradients[np.float16] / scale, gradients[np.float64] / scale
    assert np.max(np.abs(found - right)) < 2.0**-9 * np.max(np.abs(right))


def test_means(device: EmulatedDevice) -> None:
    for rows in (0, 1, 33, 3000):
        loss, targets = np.abs(draw("float32", rows)), draw_targets(rows, 9)
        loss[targets == -100] = 0
        counted = int((targets != -100).sum())
        mean, count = device_loss.mean_loss(device.asarray(loss), targets)
        assert count.numpy().tolist() == [counted]
        np.testing.assert_allclose(mean.numpy(), loss.sum(dtype=np.float64) / max(1, counted), rtol=1e-7)
        dloss = device_loss.mean_loss_backward(device.asarray(np.array([0.5], np.float32)),
                                               device.asarray(targets),
                                               count).numpy()
        expect = np.where(targets == -100, 0, 0.5 / max(1, counted)).astype(np.float32)
        assert np.array_equal(dloss, expect)
        given = device_loss.mean_loss(device.asarray(loss), targets, tokens=device.asarray(np.array([10])))[0]
        np.testing.assert_allclose(given.numpy(), loss.sum(dtype=np.float64) / 10, rtol=1e-7)


def test_the_mean_of_equal_losses_is_that_loss(device: EmulatedDevice) -> None:
    loss, targets = np.full(50_000, 0.1, np.float32), np.zeros(50_000, np.int64)
    assert device_loss.mean_loss(device.asarray(loss), targets)[0].numpy()[0] == np.float32(0.1)


def test_the_mean_over_no_token_is_0(device: EmulatedDevice) -> None:
    nothing, targets = device.asarray(np.zeros(3, np.float32)), device.asarray(np.full(3, -100))
    mean, count = device_loss.mean_loss(nothing, targets)
    dloss = device_loss.mean_loss_backward(device.asarray(np.ones(1, np.float32)), targets, count)
    assert mean.numpy()[0] == 0
    assert not dloss.numpy().any()


def test_wrong_arguments(device: EmulatedDevice) -> None:
    logits, targets = device.asarray(draw("float32", 3, 4)), np.zeros(3, np.int64)
    with pytest.raises(DeviceArgumentError, match="targets"):
        device_loss.cross_entropy(logits, targets[:2])
    with pytest.raises(DeviceArgumentError, match="target_dtype: float32"):
        device_loss.cross_entropy(logits, targets.astype(np.float32))
    for name, value in (("label_smoothing", 1.0), ("z_loss", -1.0), ("softcap", -1.0), ("softcap", np.nan)):
        wrong: dict[str, Any] = {name: value}
        with pytest.raises(DeviceArgumentError, match=name):
            device_loss.cross_entropy(logits, targets, **wrong)
    with pytest.raises(DeviceArgumentError, match="vocabulary: 0"):
        device_loss.cross_entropy(device.asarray(np.zeros((2, 0), np.float32)), targets[:2])
    with pytest.raises(DeviceArgumentError, match="dtype: int64"):
        device_loss.cross_entropy(device.asarray(np.zeros((3, 4), np.int64)), targets)
    with pytest.raises(DeviceArgumentError, match="dloss or lse"):
        device_loss.cross_entropy_backward(np.ones(2, np.float32), logits, targets, np.zeros(3, np.float32))
    with pytest.raises(DeviceArgumentError, match="weight"):
        device_loss.linear_cross_entropy(logits, np.zeros((5, 3), np.float32), targets)
