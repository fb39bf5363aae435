"""The reference kernels of nn, which are written in the array API standard, on arrays of the device: the same
values as on NumPy.  So a layer that has no kernel of its own runs on the device, too."""

from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from cuda.nn.array import DeviceArray
from cuda.nn.device import EmulatedDevice
from nn.backends import reference
from nn.backends.array_api import all_finite, erf, scatter_add, sigmoid
from tests.device.test_array import sample

X, Y, W = sample((6, 8)), sample((6, 8), seed=1), sample((8,), seed=2)
Q, K, V = sample((1, 4, 5, 8)), sample((1, 2, 7, 8), seed=1), sample((1, 2, 7, 8), seed=2)
TARGETS = np.array([1, 0, -100, 7, 3, 3])
CASES: dict[str, tuple[Callable[..., Any], tuple[Any, ...], dict[str, Any]]] = {
    "silu": (reference.silu, (X,), {}),
    "silu_backward": (reference.silu_backward, (Y, X), {}),
    "gelu": (reference.gelu, (X,), {}),
    "gelu_tanh": (reference.gelu_tanh, (X,), {}),
    "gelu_tanh_backward": (reference.gelu_tanh_backward, (Y, X), {}),
    "swiglu": (reference.swiglu, (X, Y), {}),
    "swiglu_backward": (reference.swiglu_backward, (Y, X, Y), {}),
    "softmax": (reference.softmax, (X,), {}),
    "softmax_backward": (reference.softmax_backward, (Y, X), {}),
    "log_softmax": (reference.log_softmax, (X,), {}),
    "rms_norm": (reference.rms_norm, (X, W, 1e-6), {}),
    "rms_norm_backward": (reference.rms_norm_backward, (Y, X, W, abs(X[:, :1])), {}),
    "layer_norm": (reference.layer_norm, (X, W, W, 1e-6), {}),
    "layer_norm_backward": (reference.layer_norm_backward, (Y, X, W, X[:, :1], abs(X[:, :1])), {}),
    "cross_entropy": (reference.cross_entropy, (X, TARGETS),
                      {"label_smoothing": 0.1, "z_loss": 1e-3, "softcap": 5.0}),
    "cross_entropy_backward": (reference.cross_entropy_backward, (X[:, 0], X, TARGETS, Y[:, 0]),
                               {"label_smoothing": 0.1}),
    "linear_cross_entropy": (reference.linear_cross_entropy, (X, Y, np.array([1, 0, 5, -100, 3, 3])), {}),
    "router_topk": (reference.router_topk, (X, 3), {}),
    "router_topk_backward": (reference.router_topk_backward,
                             (X[:, :2], abs(Y[:, :2]), np.array([[0, 3]] * 6), abs(Y)), {}),
    "attention": (reference.attention, (Q, K, V), {"scale": 0.3}),
    "attention_window": (reference.attention, (Q, K, V), {"scale": 0.3, "window": 3}),
    "attention_mask": (reference.attention, (Q, K, V),
                       {"scale": 0.3, "causal": False, "mask": sample((5, 7), np.bool_)}),
    "attention_backward": (reference.attention_backward, (Q, Q, K, V, Q, abs(Q[..., 0])), {"scale": 0.3}),
    "sigmoid": (sigmoid, (X,), {}),
    "erf": (erf, (X,), {}),
    "scatter_add": (scatter_add, (X, np.array([0, 2, 2, 1, 0, 3]), 5), {}),
}


def moved(device: EmulatedDevice, value: Any) -> Any:
    return device.asarray(value) if isinstance(value, np.ndarray) else value


def back(value: Any) -> Any:
    return value.numpy() if isinstance(value, DeviceArray) else value


@pytest.mark.parametrize("name", CASES)
def test_reference_kernels_run_on_the_device(device: EmulatedDevice, name: str) -> None:
    function, given, options = CASES[name]
    expected = function(*(np.copy(x) if isinstance(x, np.ndarray) else x for x in given), **options)
    before = device.counts()
    arrays = [moved(device, x) for x in given]
    found = function(*arrays, **{key: moved(device, value) for key, value in options.items()})
    assert (device.counts() - before).downloads == 0
    pairs = zip(found, expected, strict=True) if isinstance(expected, tuple) else [(found, expected)]
    for one, other in pairs:
        assert one.dtype == np.asarray(other).dtype
        np.testing.assert_allclose(back(one), other, rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16])
@pytest.mark.parametrize("name", ["silu", "swiglu", "softmax", "rms_norm", "attention"])
def test_reference_kernels_in_half_precision(device: EmulatedDevice, name: str, dtype: Any) -> None:
    function, given, options = CASES[name]
    given = tuple(x.astype(dtype) if isinstance(x, np.ndarray) else x for x in given)
    expected = function(*given, **options)
    found = function(*(moved(device, x) for x in given), **options)
    pairs = zip(found, expected, strict=True) if isinstance(expected, tuple) else [(found, expected)]
    for one, other in pairs:
        assert one.dtype == other.dtype
        values = one.numpy().astype(np.float32)
        np.testing.assert_allclose(values, other.astype(np.float32), rtol=1e-2, atol=1e-2)


def test_finiteness_is_one_download(device: EmulatedDevice) -> None:
    before = device.counts()
    assert all_finite(device.asarray(X))
    assert not all_finite(device.asarray(np.full(3, np.nan)))
    assert (device.counts() - before).downloads == 2
