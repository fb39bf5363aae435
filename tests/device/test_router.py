"""The router's kernels: order and ties, every path by experts and k, extremes, errors."""


import numpy as np
import pytest

from cuda.nn.device import EmulatedDevice
from cuda.nn.errors import DeviceArgumentError
from cuda.nn.graph import Graph
from nn import random
from nn.backends.device import router
from tests.conformance import naive
from tests.conformance.cases import cases
from tests.conformance.compare import check, in_layout, to_numpy
from tests.device.accuracy import DTYPES, PLACES, accurate, counted, draw

FAST, GENERAL = "router_topk", "router_topk_general"
# tokens, experts, k and the kernel: around 8, 16 and 32 lanes, 2, 8 and 32 logits per lane
PATHS = ((1, 1, 1, FAST), (5, 8, 2, FAST), (19, 9, 9, FAST), (9, 16, 3, FAST), (9, 17, 17, FAST),
         (7, 64, 8, FAST),
         (5, 65, 40, FAST), (5, 256, 8, FAST), (4, 257, 33, FAST), (2, 1024, 64, FAST), (2, 1025, 4, GENERAL),
         (2, 100, 65, GENERAL), (1, 3000, 70, GENERAL))


@pytest.mark.parametrize("kernel", ["router_topk", "router_topk_backward", "jitter"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_conformance(device: EmulatedDevice, kernel: str, dtype: str) -> None:
    for case in cases(kernel, dtype):
        check(getattr(router, kernel), case, device.asarray, to_numpy)
        if case.name in ("13x5x2", "5x7-2"):
            check(getattr(router, kernel), in_layout(case, "every-other"), device.asarray, to_numpy)


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("renormalize", [True, False])
@pytest.mark.parametrize(("tokens", "experts", "k", "path"), PATHS)
def test_every_path(device: EmulatedDevice, tokens: int, experts: int, k: int, path: str, renormalize: bool,
                    place: str) -> None:
    logits = np.round(draw("float32", tokens, experts, scale=2.0), 1)                     # with ties
    given = PLACES[place](device, logits)
    found: list = []
    assert path in counted(device,
                           lambda: found.extend(router.router_topk(given, k, renormalize=renormalize)))
    accurate("router_topk", "float32", found, logits, k=k, renormalize=renormalize)
    dweights = draw("float32", tokens, k, seed=1)
    weights, chosen, probs = (result.numpy() for result in found)
    dlogits = router.router_topk_backward(PLACES[place](device, dweights), *found, renormalize=renormalize)
    right = np.zeros((tokens, experts))
    np.put_along_axis(right, chosen, weights.astype(np.float64) * dweights, axis=1)
    mean = right.sum(1, keepdims=True)
    over = np.zeros_like(right)
    np.put_along_axis(over, chosen, weights.astype(np.float64), axis=1)
    right -= mean * (over if renormalize else probs)
    np.testing.assert_allclose(dlogits.numpy(), right, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize(("experts", "k"), [(8, 2), (60, 4), (200, 8), (600, 5), (1100, 3)])
def test_half_precision(device: EmulatedDevice, experts: int, k: int, dtype: str) -> None:
    logits = draw(dtype, 6, experts, scale=2.0)
    found = list(router.router_topk(device.asarray(logits), k))
    exact = naive.router_topk(logits.astype(np.float64), k)
    np.testing.assert_array_equal(found[1].numpy(), exact[1])
    np.testing.assert_allclose(found[0].numpy(), exact[0], rtol=3e-6)
    np.testing.assert_allclose(found[2].numpy(), exact[2], rtol=1e-5)


@pytest.mark.parametrize("experts", [4, 40, 300, 1100])
def test_extremes(device: EmulatedDevice, experts: int) -> None:
    logits = np.zeros((6, experts), np.float32)
    logits[0] = -np.inf
    logits[1, 1], logits[1, 3] = np.nan, 1.0
    logits[2, ::2] = -0.0
    logits[3, :], logits[3, 2] = -np.inf, 5.0
    logits[4, :], logits[4, 3] = np.nan, -np.inf
    logits[5] = -1e4 * np.arange(experts)
    weights, chosen, probs = (result.numpy() for result in router.router_topk(device.asarray(logits), 2))
    assert chosen.tolist() == [[0, 1], [3, 0], [0, 1], [2, 0], [3, 0], [0, 1]]
    assert not weights[0].any()
    assert not probs[0].any()
    assert np.isnan(weights[[1, 4]]).all()
    assert np.isnan(probs[[1, 4]]).all()
    assert weights[[2, 3, 5]].tolist() == [[0.5, 0.5], [1.0, 0.0], [1.0, 0.0]]


def test_options(device: EmulatedDevice) -> None:
    """Experts in int32, no probabilities"""
    logits = draw("float32", 5, 12)
    weights, experts = device.empty((5, 3), np.float32), device.empty((5, 3), np.int32)
    given = device.asarray(logits)
    device.call("router_topk_forward", weights, experts, None, given, 5, 12, 3, 1, experts.code, 0)
    right = router.router_topk(given, 3)
    assert weights.numpy().tobytes() == right[0].numpy().tobytes()
    np.testing.assert_array_equal(experts.numpy(), right[1].numpy())
    dweights = device.asarray(draw("float32", 5, 3))
    first = router.router_topk_backward(dweights, weights, right[1], right[2]).numpy()
    assert first.tobytes() == router.router_topk_backward(dweights, weights, experts,
                                                          right[2]).numpy().tobytes()


def test_bytes(device: EmulatedDevice) -> None:
    logits = device.asarray(draw("float32", 16, 128))
    counts = counted(device, lambda: router.router_topk(logits, 4))["router_topk"]
    assert (counts.bytes_read, counts.bytes_written) == (16 * 128 * 4, 16 * 128 * 4 + 16 * 4 * (4 + 8))


@pytest.mark.parametrize("arch", ["sm_75", "sm_90"])
def test_other_architectures(device: EmulatedDevice, arch: str) -> None:
    for dtype in DTYPES:
        logits = draw(dtype, 5, 40)
        np.testing.assert_array_equal(router.router_topk(device.asarray(logits), 6)[1].numpy(),
                                      naive.router_topk(logits.astype(np.float64), 6)[1])


def test_errors(device: EmulatedDevice) -> None:
    x, i = device.empty((4, 8), np.float32), device.empty((4, 8), np.int64)
    for arguments, words in (
            (("forward", None, i, x, x, 4, 8, 2, 1, 3, 0), "weights: a null"),
            (("forward", x, None, x, x, 4, 8, 2, 1, 3, 0), "experts: a null"),
            (("forward", x, i, x, None, 4, 8, 2, 1, 3, 0), "logits: a null"),
            (("forward", x, i, x.pointer + 2, x, 4, 8, 2, 1, 3, 0), "probs: .* is not aligned"),
            (("forward", x, i, x, x, -4, 8, 2, 1, 3, 0), "tokens: -4 is not"),
            (("forward", x, i, x, x, 4, 0, 2, 1, 3, 0), "num_experts: 0 is not"),
            (("forward", x, i, x, x, 4, 8, 9, 1, 3, 0), "k: 9 is not in 1 ... num_experts = 8"),
            (("forward", x, i, x, x, 4, 8, 0, 1, 3, 0), "k: 0 is not"),
            (("forward", x, i, x, x, 4, 8, 2, 7, 3, 0), "renormalize: 7"),
            (("forward", x, i, x, x, 4, 8, 2, 1, 0, 0), "experts_dtype: float32"),
            (("forward", x, i, x, x, 4, 8, 2, 1, 3, 3), "dtype: int64"),
            (("backward", None, x, x, i, x, 4, 8, 2, 1, 3), "dlogits: a null"),
            (("backward", x, None, x, i, x, 4, 8, 2, 1, 3), "dweights: a null"),
            (("backward", x, x, x, i, None, 4, 8, 2, 0, 3), "probs: a null")):
        with pytest.raises(DeviceArgumentError, match=words):
            device.call(f"router_topk_{arguments[0]}", *arguments[1:])
    device.call("router_topk_forward", None, None, None, None, 0, 8, 2, 1, 3, 0)
    device.call("router_topk_backward", None, None, None, None, None, 0, 8, 2, 1, 3)


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("count", [1, 3, 4, 5, 1023, 1025])
def test_jitter_is_the_hosts_bit_for_bit(device: EmulatedDevice, count: int, place: str) -> None:
    x, at = draw("float32", 1, count), random.counter(5, "router_jitter", 3, 2**32 - 1, 1)
    found = router.jitter(PLACES[place](device, x), at, epsilon=0.3)
    factors = 0.7 + 0.6 * random.uniform(random.derive(5, "router_jitter"), 3, 2**32 - 1, 1, shape=(1, count))
    np.testing.assert_array_equal(found.numpy(), x * factors.astype(np.float32))


def test_jitter_reads_its_counter_at_every_launch(device: EmulatedDevice) -> None:
    at, x = device.zeros((4,), np.int64), device.asarray(np.ones((2, 9), np.float32))
    with Graph.capture(device) as graph:
        y = router.jitter(x, at, epsilon=0.5)
    drawn = []
    for step in (1, 2, 1):
        at.upload(random.counter(0, "router_jitter", step))
        graph.replay()
        drawn.append(y.numpy().tobytes())
    assert drawn[0] == drawn[2] != drawn[1]


def test_jitter_refuses(device: EmulatedDevice) -> None:
    x, at = device.asarray(np.ones((2, 3), np.float32)), device.zeros((4,), np.int64)
    for epsilon in (-0.1, 1.1, float("nan")):
        with pytest.raises(DeviceArgumentError, match="epsilon: .* is not in"):
            router.jitter(x, at, epsilon=epsilon)
    with pytest.raises(DeviceArgumentError, match=r"counter: int64\[3\]; expected int64\[4\]"):
        router.jitter(x, at[:3], epsilon=0.1)
    with pytest.raises(DeviceArgumentError, match="count: -1"):
        device.call("router_jitter_forward", x, x, at, -1, 0.1, x.code)
    with pytest.raises(DeviceArgumentError, match="counter: a null pointer"):
        device.call("router_jitter_forward", x, x, None, x.size, 0.1, x.code)
    with pytest.raises(DeviceArgumentError, match="dtype: int64"):
        device.call("router_jitter_forward", x, x, at, x.size, 0.1, at.code)
