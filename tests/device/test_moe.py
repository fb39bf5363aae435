"""Mixture-of-experts kernels: the plan, rows there and back, all experts' linear maps, auxiliary losses."""

import zlib
from collections.abc import Callable
from ctypes import byref, c_int32
from itertools import pairwise
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from cuda.nn.device import DeviceArray, EmulatedDevice
from cuda.nn.errors import DeviceArgumentError, DeviceError
from cuda.nn.graph import Graph
from nn.backends.device import moe
from tests.conformance.compare import compare

DTYPES = {"float32": np.float32, "float16": np.float16, "bfloat16": ml_dtypes.bfloat16}
HALF = ("float16", "bfloat16")
Array = Any


@pytest.fixture
def rng(request: pytest.FixtureRequest) -> np.random.Generator:
    return np.random.default_rng(zlib.crc32(request.node.name.encode()))


def drawn(rng: np.random.Generator, dtype: str, *shape: int) -> np.ndarray:
    return rng.standard_normal(shape, np.float32).astype(DTYPES[dtype])


def wide(x: np.ndarray) -> np.ndarray:
    return np.asarray(x).astype(np.float64)


def judge(what: str, result: DeviceArray, right: np.ndarray, dtype: str) -> None:
    """Against float64; a plain implementation rounds at least once, to its type."""
    found = result.numpy()
    rough = right.astype(np.float32).astype(found.dtype)
    compare(what, found, right, rough, dtype if found.dtype != np.float32 else "float32",
            scale=max(1.0, float(np.abs(right).max(initial=0.0))))


# ---- plan --------------------------------------------------------------------------------------------------


def plain_plan(experts: np.ndarray, num_experts: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """By one list per expert"""
    lists: list[list[int]] = [[] for _ in range(num_experts + 1)]
    for pair, e in enumerate(experts.ravel().tolist()):
        lists[e if 0 <= e < num_experts else num_experts].append(pair)
    order = np.array([pair for one in lists for pair in one], np.int64)
    offsets = np.cumsum([0, *map(len, lists)])[:-1]
    inverse = np.empty_like(order)
    inverse[order] = np.arange(len(order))
    return order, inverse, offsets


PATTERNS: dict[str, Callable[[np.random.Generator, int, int], np.ndarray]] = {
    "any": lambda rng, pairs, e: rng.integers(0, e, pairs),
    "dropped": lambda rng, pairs, e: rng.integers(0, e + 1, pairs),
    "all-dropped": lambda rng, pairs, e: np.full(pairs, e),
    "one-takes-all": lambda rng, pairs, e: np.full(pairs, e // 2),
    "backwards": lambda rng, pairs, e: np.arange(pairs)[::-1] * e // max(pairs, 1),
}
PLANS = [(0, 1, 4, "any"), (1, 1, 1, "any"), (7, 2, 3, "any"), (37, 2, 4, "dropped"), (33, 1, 1, "dropped"),
         (64, 4, 16, "any"), (20, 2, 5, "all-dropped"), (50, 3, 64, "one-takes-all"), (300, 1, 7,
                                                                                       "backwards"),
         (1024, 2, 64, "any"), (1365, 3, 3, "any"), (40, 8, 1024, "any")]
LONG_PLANS = [(4097, 1, 3, "dropped"), (2100, 2, 64, "any"), (4098, 2, 1024, "any"), (6000, 1, 4,
                                                                                      "one-takes-all"),
              (6145, 1, 2, "backwards")]


@pytest.mark.parametrize(("tokens", "choices", "num_experts", "pattern"), PLANS + LONG_PLANS)
@pytest.mark.parametrize("index", ["int64", "int32"])
def test_plan(device: EmulatedDevice, rng: np.random.Generator, tokens: int, choices: int, num_experts: int,
              pattern: str, index: str) -> None:
    experts = PATTERNS[pattern](rng, tokens * choices, num_experts).astype(index).reshape(tokens, choices)
    found = moe.expert_order(device.asarray(experts), num_experts)
    for name, result, right in zip(("order", "inverse", "offsets"), found, plain_plan(experts, num_experts),
                                   strict=True):
        assert result.dtype == np.int64
        np.testing.assert_array_equal(result.numpy(), right, name)


def test_what_is_no_expert_is_dropped(device: EmulatedDevice) -> None:
    experts = np.array([[2, -1], [3, 1], [2**40 + 1, -(2**40)]])
    order, _, offsets = moe.expert_order(device.asarray(experts), 3)
    assert order.numpy().tolist() == [3, 0, 1, 2, 4, 5]
    assert offsets.numpy().tolist() == [0, 0, 1, 2]


@pytest.mark.parametrize(("tokens", "num_experts"), [(600, 5), (4200, 40)])
def test_plan_under_any_schedule(device: EmulatedDevice, same_bits: Any, rng: np.random.Generator,
                                 tokens: int, num_experts: int) -> None:
    experts = device.asarray(rng.integers(0, num_experts + 1, (tokens, 1)))
    same_bits(lambda: [array.numpy() for array in moe.expert_order(experts, num_experts)])


def test_plan_workspace_only_grows(device: EmulatedDevice) -> None:
    size = device.library.nn_moe_plan_workspace_size
    sizes = [size(pairs, 64) for pairs in (0, 4096, 4097, 6144, 6145, 2**20, 2**21, 2**21 + 1, 2**30, 2**31)]
    assert sizes == sorted(sizes)
    assert sizes[1] == 0 < sizes[2]
    assert sizes[-1] < 2**20
    assert size(5000, 64) < size(5000, 65)


# ---- rows there and back -----------------------------------------------------------------------------------


def planned(device: EmulatedDevice, rng: np.random.Generator, tokens: int, choices: int,
            num_experts: int = 5) -> tuple[np.ndarray, DeviceArray, DeviceArray]:
    """(row of each pair [N,K], order, inverse), with dropped pairs among them"""
    order, inverse, _ = moe.expert_order(device.asarray(rng.integers(0, num_experts + 1, (tokens, choices))),
                                         num_experts)
    return inverse.numpy().reshape(tokens, choices), order, inverse


WIDTHS = [1, 3, 8, 33, 64, 264, 1031]          # 1031: more than a thread keeps


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("tokens", "choices"), [(0, 2), (1, 1), (9, 2), (3, 8)])
@pytest.mark.parametrize("width", WIDTHS)
def test_rows_there_and_back(device: EmulatedDevice, rng: np.random.Generator, dtype: str, tokens: int,
                             choices: int, width: int) -> None:
    rows, order, inverse = planned(device, rng, tokens, choices)
    x, ys = drawn(rng, dtype, tokens, width), drawn(rng, dtype, tokens * choices, width)
    weights = rng.random((tokens, choices), np.float32)
    on = device.asarray

    xs = moe.moe_dispatch(on(x), order, choices).numpy()
    for n in range(tokens):
        for k in range(choices):
            assert xs[rows[n, k]].tobytes() == x[n].tobytes()
    dx = moe.moe_dispatch_backward(on(ys), inverse, choices)
    judge("dx", dx, wide(ys)[rows].sum(axis=1), dtype)

    y = moe.moe_combine(on(ys), on(weights), inverse)
    judge("y", y, (wide(ys)[rows] * wide(weights)[:, :, None]).sum(axis=1), dtype)
    dys, dweights = moe.moe_combine_backward(on(x), on(ys), on(weights), order, inverse)
    right = np.zeros((tokens * choices, width))
    right[rows] = wide(x)[:, None, :] * wide(weights)[:, :, None]
    judge("dys", dys, right, dtype)
    products = wide(ys)[rows] * wide(x)[:, None, :]
    assert dweights.dtype == np.float32
    np.testing.assert_allclose(dweights.numpy(), products.sum(axis=2), rtol=0,
                               atol=1e-6 * max(1.0, np.abs(products).sum(axis=2).max(initial=0.0)))


@pytest.mark.parametrize("dtype", DTYPES)
def test_wide_rows(device: EmulatedDevice, rng: np.random.Generator, dtype: str) -> None:
    """In packs, more of them than a thread keeps"""
    width = 1040 * (4 if dtype == "float32" else 8)
    rows, order, inverse = planned(device, rng, 1, 2)
    dy, ys = drawn(rng, dtype, 1, width), drawn(rng, dtype, 2, width)
    weights = rng.random((1, 2), np.float32)
    dys, dweights = moe.moe_combine_backward(device.asarray(dy), device.asarray(ys), device.asarray(weights),
                                             order, inverse)
    judge("dys", dys, (wide(dy) * wide(weights).reshape(2, 1))[np.argsort(rows[0])], dtype)
    np.testing.assert_allclose(dweights.numpy()[0], (wide(ys)[rows[0]] * wide(dy)).sum(axis=1), rtol=0,
                               atol=2e-3)


@pytest.mark.parametrize("dtype", DTYPES)
def test_rows_that_are_not_aligned(device: EmulatedDevice, rng: np.random.Generator, dtype: str) -> None:
    """A width of whole packs at an address that is none of a pack's"""
    tokens, choices, width = 5, 2, 16
    rows, order, inverse = planned(device, rng, tokens, choices)
    ys = drawn(rng, dtype, tokens * choices, width)
    memory = device.empty((ys.size + 1,), ys.dtype)
    item = ys.dtype.itemsize
    device.call("memory_upload", memory.pointer + item, ys.ctypes.data, ys.nbytes)
    y = device.empty((tokens, width), ys.dtype)
    device.call("moe_dispatch_backward", y, memory.pointer + item, inverse, tokens, choices, width,
                memory.code)
    judge("y", y, wide(ys)[rows].sum(axis=1), dtype)
    device.call("moe_dispatch_forward", memory.pointer + item, y, order, tokens, choices, width // choices,
                memory.code)


def test_there_and_back_is_the_identity(device: EmulatedDevice, rng: np.random.Generator) -> None:
    tokens, choices = 40, 4
    _, order, inverse = planned(device, rng, tokens, choices)
    x = device.asarray(drawn(rng, "bfloat16", tokens, 24))
    xs = moe.moe_dispatch(x, order, choices)
    quarter = device.asarray(np.full((tokens, choices), 0.25, np.float32))
    assert moe.moe_combine(xs, quarter, inverse).numpy().tobytes() == x.numpy().tobytes()
    back = moe.moe_dispatch_backward(xs, inverse, choices).numpy()
    assert back.tobytes() == (x.numpy() * DTYPES["bfloat16"](4)).tobytes()


def test_rows_under_any_schedule(device: EmulatedDevice, same_bits: Any, rng: np.random.Generator) -> None:
    _, order, inverse = planned(device, rng, 6, 2)
    x, ys = (device.asarray(drawn(rng, "float16", rows, 264)) for rows in (6, 12))
    weights = device.asarray(rng.random((6, 2), np.float32))
    same_bits(lambda: [array.numpy() for array in (
        moe.moe_dispatch(x, order, 2), moe.moe_dispatch_backward(ys, inverse, 2),
        moe.moe_combine(ys, weights, inverse), *moe.moe_combine_backward(x, ys, weights, order, inverse))])


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_every_byte_is_moved_once(device: EmulatedDevice, rng: np.random.Generator, dtype: str) -> None:
    tokens, choices, width = 24, 2, 512
    _, order, inverse = planned(device, rng, tokens, choices)
    x, ys = (device.asarray(drawn(rng, dtype, rows, width)) for rows in (tokens, tokens * choices))
    weights = device.asarray(rng.random((tokens, choices), np.float32))
    runs: dict[str, tuple[Callable[[], Any], int]] = {       # bytes that must move, in rows of x
        "moe_dispatch": (lambda: moe.moe_dispatch(x, order, choices), 4),
        "moe_combine": (lambda: moe.moe_combine(ys, weights, inverse), 3),
        "moe_combine_backward": (lambda: moe.moe_combine_backward(x, ys, weights, order, inverse), 5),
    }
    device.configure(count=1)
    for kernel, (run, rows) in runs.items():
        device.clear()
        run()
        counts = one(device, kernel)
        assert counts.sectors == counts.ideal_sectors, kernel
        assert counts.distinct_bytes_read + counts.distinct_bytes_written <= 1.05 * rows * x.nbytes, kernel
    device.configure()


def one(device: EmulatedDevice, name: str) -> Any:
    """The counters of the only launched kernel of that name"""
    counters = device.counters()
    found = [counters[kernel] for kernel in counters if name in kernel]
    assert len(found) == 1, list(counters)
    return found[0]


# ---- all experts' linear maps ------------------------------------------------------------------------------


def offsets_of(counts: tuple[int, ...]) -> np.ndarray:
    return np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)


def by_loops(x: np.ndarray, weight: np.ndarray, dy: np.ndarray, offsets: np.ndarray) -> list[np.ndarray]:
    """[y, dx, dweight] in float64, an expert at a time"""
    x, weight, dy = wide(x), wide(weight), wide(dy)
    y, dx, dweight = np.zeros((len(x), weight.shape[1])), np.zeros_like(x), np.zeros_like(weight)
    for e, (a, b) in enumerate(pairwise(offsets)):
        y[a:b], dx[a:b], dweight[e] = x[a:b] @ weight[e].T, dy[a:b] @ weight[e], dy[a:b].T @ x[a:b]
    return [y, dx, dweight]


# rows per expert, inputs, outputs, dropped rows
GROUPS = {
    "one": ((5,), 6, 4, 0), "one-full-tile": ((64,), 16, 8, 0), "one-row-more": ((65,), 16, 24, 0),
    "uneven": ((1, 0, 7, 3), 8, 16, 0), "empty": ((0, 0, 0), 8, 8, 0), "all-dropped": ((0, 0), 8, 24, 9),
    "all-to-one": ((0, 70, 0), 40, 8, 1), "odd-widths": ((3, 2, 66), 33, 17, 2), "width-1": ((3, 2), 1, 1, 0),
    "whole-quads": ((9, 1), 20, 132, 1), "sixteen": ((2, 0, 1, 5) * 4, 24, 40, 3),
    "sixty-four": ((0, 1, 0, 2) * 16, 8, 8, 0), "wide": ((3, 40), 136, 264, 1),
    "long-tiles": ((129, 0, 130), 40, 136, 4), "long-tiles-exact": ((128, 128), 64, 128, 0),
    "no-inputs": ((3, 1), 0, 8, 1), "no-outputs": ((3, 1), 8, 0, 1),
}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("case", GROUPS)
def test_grouped_linear(device: EmulatedDevice, rng: np.random.Generator, dtype: str, case: str) -> None:
    counts, inputs, outputs, dropped = GROUPS[case]
    check_grouped(device, rng, dtype, counts, inputs, outputs, dropped)


@pytest.mark.parametrize("arch", ["sm_75", "sm_90"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("case", ["uneven", "long-tiles"])
def test_grouped_linear_elsewhere(device: EmulatedDevice, rng: np.random.Generator, dtype: str,
                                  case: str) -> None:
    test_grouped_linear(device, rng, dtype, case)
    tensor_cores = dtype == "float16" or (dtype == "bfloat16" and device.arch == "sm_90")
    assert path(device, 40, 136, dtype) == int(tensor_cores)


def check_grouped(device: EmulatedDevice, rng: np.random.Generator, dtype: str, counts: tuple[int, ...],
                  inputs: int, outputs: int, dropped: int) -> None:
    offsets, rows = offsets_of(counts), sum(counts) + dropped
    x, dy = drawn(rng, dtype, rows, inputs), drawn(rng, dtype, rows, outputs)
    weight = drawn(rng, dtype, len(counts), outputs, inputs)
    on = device.asarray
    y = moe.grouped_linear(on(x), on(weight), on(offsets))
    dx, dweight = moe.grouped_linear_backward(on(dy), on(x), on(weight), on(offsets))
    assert dweight.dtype == np.float32
    right = by_loops(x, weight, dy, offsets)
    lengths = (inputs, outputs, max(counts))
    for name, found, expect, length in zip(("y", "dx", "dweight"), (y, dx, dweight), right, lengths,
                                           strict=True):
        assert found.shape == expect.shape
        values = found.numpy().astype(np.float64)
        unit = {np.dtype(np.float16): 2.0**-11, np.dtype(DTYPES["bfloat16"]): 2.0**-8}.get(found.dtype, 0.0)
        slack = 2.0**-24 * (4 + length) * np.abs(expect).max(initial=1.0)      # of sums in float32
        assert (np.abs(values - expect) <= unit * np.abs(expect) + slack).all(), name
        if name != "dweight":
            assert not values[offsets[-1] :].any()                             # the dropped pairs' rows


def path(device: EmulatedDevice, inputs: int, outputs: int, dtype: str) -> int:
    found = c_int32()
    device.library.nn_grouped_linear_path(byref(found), inputs, outputs, ["float32", *HALF].index(dtype))
    return found.value


def test_which_path(device: EmulatedDevice) -> None:
    assert path(device, 64, 8, "bfloat16") == path(device, 8, 8, "float16") == 1
    assert path(device, 64, 64, "float32") == path(device, 12, 64, "bfloat16") == path(device, 64, 4,
                                                                                       "float16") == 0


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_row_stands_alone(device: EmulatedDevice, rng: np.random.Generator, dtype: str) -> None:
    """A row's bits are the same alone in its group, in the middle of it, and in tiles of either height."""
    inputs, outputs, counts = 72, 40, (5, 150, 0, 66)
    offsets, rows = offsets_of(counts), sum(counts)
    x, weight = drawn(rng, dtype, rows, inputs), drawn(rng, dtype, len(counts), outputs, inputs)
    on = device.asarray
    y = moe.grouped_linear(on(x), on(weight), on(offsets)).numpy()  # tall tiles: 55 rows per expert
    dx = moe.grouped_linear_backward(on(np.ascontiguousarray(y)), on(x), on(weight), on(offsets))[0].numpy()
    for first, length, expert in ((0, 5, 0), (17, 3, 1), (5, 150, 1), (154, 1, 1), (155, 66, 3)):
        own, matrix = slice(first, first + length), on(weight[expert : expert + 1])
        few = on(offsets_of((length,)))
        alone = moe.grouped_linear(on(x[own]), matrix, few).numpy()
        assert alone.tobytes() == y[own].tobytes()
        back = moe.grouped_linear_backward(on(y[own]), on(x[own]), matrix, few)[0].numpy()
        assert back.tobytes() == dx[own].tobytes()


@pytest.mark.parametrize("dtype", DTYPES)
def test_gathered_rows_are_dispatched_rows(device: EmulatedDevice, rng: np.random.Generator,
                                           dtype: str) -> None:
    for inputs, outputs in ((24, 40), (9, 5)):
        experts = device.asarray(rng.integers(0, 4, (50, 2)))
        order, _, offsets = moe.expert_order(experts, 3)
        x, dy = device.asarray(drawn(rng, dtype, 50, inputs)), device.asarray(drawn(rng, dtype, 100, outputs))
        weight = device.asarray(drawn(rng, dtype, 3, outputs, inputs))
        xs = moe.moe_dispatch(x, order, 2)
        y = moe.gathered_linear(x, weight, offsets, order, 2)
        assert y.numpy().tobytes() == moe.grouped_linear(xs, weight, offsets).numpy().tobytes()
        ours = moe.gathered_linear_backward(dy, x, weight, offsets, order, 2)
        plain = moe.grouped_linear_backward(dy, xs, weight, offsets)
        assert [a.numpy().tobytes() for a in ours] == [a.numpy().tobytes() for a in plain]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("tokens", "inputs", "width"),
                         [(50, 24, 40), (13, 9, 5), (140, 16, 132), (3, 8, 12)])
def test_swiglu_in_the_same_launch(device: EmulatedDevice, rng: np.random.Generator, dtype: str, tokens: int,
                                   inputs: int, width: int) -> None:
    """Bit for bit the linear map and then the activation"""
    experts = device.asarray(rng.integers(0, 4, (tokens, 2)))
    order, _, offsets = moe.expert_order(experts, 3)
    x = device.asarray(drawn(rng, dtype, tokens, inputs))
    weight = device.asarray(drawn(rng, dtype, 3, 2 * width, inputs))
    y, hidden = moe.gathered_swiglu(x, weight, offsets, order, 2)
    right = moe.gathered_linear(x, weight, offsets, order, 2)
    assert hidden is not None
    assert hidden.numpy().tobytes() == right.numpy().tobytes()
    activated = device.empty(y.shape, y.dtype)
    device.call("swiglu_packed_forward", activated, right, 2 * tokens, width, y.code)
    assert y.numpy().tobytes() == activated.numpy().tobytes()
    alone, nothing = moe.gathered_swiglu(x, weight, offsets, order, 2, keep=False)
    assert nothing is None
    assert alone.numpy().tobytes() == y.numpy().tobytes()


@pytest.mark.parametrize("dtype", DTYPES)
def test_nan_stays_where_it_is(device: EmulatedDevice, rng: np.random.Generator, dtype: str) -> None:
    offsets = offsets_of((40, 3, 30))
    x, dy = drawn(rng, dtype, 76, 16), drawn(rng, dtype, 76, 8)
    weight = drawn(rng, dtype, 3, 8, 16)
    x[41], dy[41], x[75] = np.nan, np.nan, np.nan                # a row of expert 1, and one that is dropped
    on = device.asarray
    y = moe.grouped_linear(on(x), on(weight), on(offsets)).numpy()
    dx, dweight = moe.grouped_linear_backward(on(dy), on(x), on(weight), on(offsets))
    for rows in (y, dx.numpy()):
        assert np.isnan(rows[41].astype(np.float32)).all()
        assert np.isfinite(np.delete(rows, 41, axis=0).astype(np.float32)).all()
    found = np.isnan(dweight.numpy())
    assert found[1].all()
    assert not found[[0, 2]].any()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_linear_maps_under_any_schedule(device: EmulatedDevice, same_bits: Any, rng: np.random.Generator,
                                        dtype: str) -> None:
    x, dy = (device.asarray(drawn(rng, dtype, 39, width)) for width in (40, 24))
    weight, offsets = device.asarray(drawn(rng, dtype, 3, 24, 40)), device.asarray(offsets_of((4, 0, 33)))
    same_bits(lambda: [array.numpy() for array in (
        moe.grouped_linear(x, weight, offsets), *moe.grouped_linear_backward(dy, x, weight, offsets))])


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("counts", [(5, 20), (128, 130)])
def test_no_bank_conflicts(device: EmulatedDevice, rng: np.random.Generator, dtype: str,
                           counts: tuple[int, ...]) -> None:
    x, dy = (device.asarray(drawn(rng, dtype, sum(counts), width)) for width in (128, 128))
    weight = device.asarray(drawn(rng, dtype, len(counts), 128, 128))
    offsets = device.asarray(offsets_of(counts))
    device.configure(count=1)
    device.clear()
    moe.grouped_linear(x, weight, offsets)
    moe.grouped_linear_backward(dy, x, weight, offsets)
    counters = device.counters()
    device.configure()
    assert len(counters) == 3
    for kernel in counters:
        found = counters[kernel]
        assert found.shared_requests
        for place, line in found.places.items():
            if place[0].endswith(("/mma.cuh", "/async_copy.cuh", "/swizzle.cuh", "/grouped_ffma.cu")):
                assert line.bank_wavefronts == line.ideal_wavefronts, (kernel, place)
        assert found.sectors == found.ideal_sectors, kernel
        assert bool(found.flops.get("tensor_f16")) == (dtype == "float16"), found.flops


# ---- auxiliary losses --------------------------------------------------------------------------------------

ROUTERS = [(0, 4, 2), (1, 1, 1), (7, 3, 2), (65, 8, 2), (130, 33, 4), (20, 1000, 3)]


@pytest.mark.parametrize(("tokens", "num_experts", "choices"), ROUTERS)
def test_balance_loss(device: EmulatedDevice, rng: np.random.Generator, tokens: int, num_experts: int,
                      choices: int) -> None:
    logits = rng.standard_normal((tokens, num_experts))
    probs = (np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)).astype(np.float32)
    experts = np.argsort(-probs, axis=1)[:, :choices]
    loss, load = moe.moe_balance_loss(device.asarray(probs), device.asarray(experts.astype(np.int32)), 0.02)
    f = np.bincount(experts.ravel(), minlength=num_experts) / max(1, tokens * choices)
    mean = wide(probs).sum(axis=0) / max(1, tokens)
    np.testing.assert_allclose(load.numpy(), f, rtol=1e-6)
    np.testing.assert_allclose(loss.numpy(), 0.02 * num_experts * (f * mean).sum(), rtol=2e-6)
    dloss = device.asarray(np.array([1.5], np.float32))
    dprobs = moe.moe_balance_loss_backward(dloss, load, tokens, 0.02).numpy()
    right = np.broadcast_to(1.5 * 0.02 * num_experts * f / max(1, tokens), probs.shape)
    np.testing.assert_allclose(dprobs, right, rtol=1e-6)


@pytest.mark.parametrize(("tokens", "num_experts", "choices"), ROUTERS)
def test_z_loss(device: EmulatedDevice, rng: np.random.Generator, tokens: int, num_experts: int,
                choices: int) -> None:
    logits = (3.0 * rng.standard_normal((tokens, num_experts))).astype(np.float32)
    loss, lse = moe.moe_z_loss(device.asarray(logits), 0.001)
    largest = wide(logits).max(axis=1, initial=-np.inf)
    right = largest + np.log(np.exp(wide(logits) - largest[:, None]).sum(axis=1))
    np.testing.assert_allclose(lse.numpy(), right, rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(loss.numpy(), [0.001 / max(1, tokens) * (right**2).sum()], rtol=3e-6)
    dloss = device.asarray(np.array([0.5], np.float32))
    dlogits = moe.moe_z_loss_backward(dloss, device.asarray(logits), lse, 0.001).numpy()
    expect = 0.5 * 2 * 0.001 / max(1, tokens) * right[:, None] * np.exp(wide(logits) - right[:, None])
    np.testing.assert_allclose(dlogits, expect, rtol=1e-5, atol=1e-6 * np.abs(expect).max(initial=0.0))


def test_losses_of_many_chunks_under_any_schedule(device: EmulatedDevice, same_bits: Any,
                                                  rng: np.random.Generator) -> None:
    probs = device.asarray(rng.random((200, 5), np.float32))
    experts = device.asarray(rng.integers(0, 6, (200, 2)))       # a dropped pair is nobody's
    same_bits(lambda: [array.numpy() for array in (
        *moe.moe_balance_loss(probs, experts, 1.0), *moe.moe_z_loss(probs, 1.0))])
    load = moe.moe_balance_loss(probs, experts, 1.0)[1].numpy()
    np.testing.assert_allclose(load, np.bincount(experts.numpy().ravel(), minlength=6)[:5] / 400, rtol=1e-6)


def test_extreme_logits(device: EmulatedDevice) -> None:
    inf = np.inf
    logits = device.asarray(np.array([[1e4, -1e4], [-inf, 3.0], [-inf, -inf]], np.float32))
    lse = moe.moe_z_loss(logits, 1.0)[1].numpy()
    assert lse.tolist() == [1e4, 3.0, -inf]
    nan = moe.moe_z_loss(device.asarray(np.array([[np.nan, 1.0]], np.float32)), 1.0)
    assert np.isnan(nan[0].numpy()).all()


# ---- the host has no part in it ----------------------------------------------------------------------------


def layer(x: DeviceArray, experts: DeviceArray, weights: DeviceArray,
          matrix: DeviceArray) -> list[DeviceArray]:
    """Forward and backward of a layer of one linear map, every kernel of the family"""
    choices = experts.shape[1]
    order, inverse, offsets = moe.expert_order(experts, matrix.shape[0])
    xs = moe.moe_dispatch(x, order, choices)
    ys = moe.grouped_linear(xs, matrix, offsets)
    y = moe.moe_combine(ys, weights, inverse)
    dys, dweights = moe.moe_combine_backward(y, ys, weights, order, inverse)
    dxs, dmatrix = moe.grouped_linear_backward(dys, xs, matrix, offsets)
    return [y, moe.moe_dispatch_backward(dxs, inverse, choices), dweights, dmatrix]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_captured_layer_serves_any_routing(device: EmulatedDevice, rng: np.random.Generator,
                                             dtype: str) -> None:
    tokens, choices, num_experts, inputs, outputs = 30, 2, 4, 16, 8

    def inputs_of(experts: np.ndarray) -> list[np.ndarray]:
        return [drawn(rng, dtype, tokens, inputs), experts, rng.random((tokens, choices), np.float32),
                drawn(rng, dtype, num_experts, outputs, inputs)]

    routings = [inputs_of(rng.integers(0, num_experts + 1, (tokens, choices))),
                inputs_of(np.full((tokens, choices), 2)), inputs_of(np.full((tokens, choices), num_experts)),
                inputs_of(rng.integers(0, 2, (tokens, choices)) * 3)]
    arrays = [device.asarray(array) for array in routings[0]]
    layer(*arrays)  # memory for all of it is in the pool from here on
    before = device.counts()
    with Graph.capture(device) as graph:
        results = layer(*arrays)
    after = device.counts()
    assert (after.downloads, after.uploads) == (before.downloads, before.uploads)
    assert after.synchronizations == before.synchronizations
    assert graph.pool is not None                                # all that was allocated is arrays
    assert after.allocations - before.allocations == graph.pool.statistics().allocations
    for routing in routings:
        for array, values in zip(arrays, routing, strict=True):
            device.call("memory_upload", array, np.ascontiguousarray(values).ctypes.data, values.nbytes)
        graph.replay()
        replayed = [array.numpy().tobytes() for array in results]
        assert replayed == [array.numpy().tobytes() for array in layer(*map(device.asarray, routing))]
    graph.close()


# ---- bad arguments -----------------------------------------------------------------------------------------

P = 4096                                                         # an address that is never followed
BAD: list[tuple[str, list[Any], str]] = [
    ("moe_plan", [P, P, P, P, -1, 4, 3, 0, 0], "pairs: -1"),
    ("moe_plan", [P, P, P, P, 2**31 + 1, 4, 3, 0, 0], "pairs: 2147483649"),
    ("moe_plan", [P, P, P, P, 8, 0, 3, 0, 0], "num_experts: 0"),
    ("moe_plan", [P, P, P, P, 8, 1025, 3, 0, 0], "num_experts: 1025"),
    ("moe_plan", [P, P, P, P, 8, 4, 0, 0, 0], "index_dtype: float32"),
    ("moe_plan", [P, 0, P, P, 8, 4, 3, 0, 0], "inverse"),
    ("moe_plan", [P, P, 0, P, 0, 4, 3, 0, 0], "offsets"),
    ("moe_plan", [P, P, P, P + 4, 8, 4, 3, 0, 0], "experts: 0x1004 is not aligned to int64"),
    ("moe_plan", [P, P, P, P, 5000, 4, 3, P, 59], "workspace_bytes: 59, but 80 are needed"),
    ("moe_plan", [P, P, P, P, 5000, 4, 3, 0, 1000], "workspace: a null pointer"),
    ("moe_dispatch_forward", [P, P, P, -1, 2, 8, 0], "tokens: -1"),
    ("moe_dispatch_forward", [P, P, P, 4, 0, 8, 0], "choices: 0"),
    ("moe_dispatch_forward", [P, P, P, 2**30, 4, 8, 0], "tokens * choices"),
    ("moe_dispatch_forward", [P, P, P, 4, 2, -8, 0], "width: -8"),
    ("moe_dispatch_forward", [P, P, P, 4, 2, 8, 8], "dtype: float64"),
    ("moe_dispatch_forward", [0, P, P, 4, 2, 8, 0], "xs: a null pointer"),
    ("moe_dispatch_forward", [P, P + 2, P, 4, 2, 8, 0], "x: 0x1002 is not aligned to float32"),
    ("moe_dispatch_backward", [P, P, 0, 4, 2, 8, 0], "inverse: a null pointer"),
    ("moe_dispatch_backward", [P, 0, P, 4, 2, 8, 1], "dxs: a null pointer"),
    ("moe_dispatch_backward", [P, P, P, 4, 2, 8, 3], "dtype: int64"),
    ("moe_combine_forward", [P, P, 0, P, 4, 2, 8, 0], "weights: a null pointer"),
    ("moe_combine_forward", [P, P, P, P, 4, 2, 8, 99], "dtype: no type (99)"),
    ("moe_combine_forward", [P + 1, P, P, P, 4, 2, 8, 1], "y: 0x1001 is not aligned to float16"),
    ("moe_combine_backward", [P, 0, P, P, P, P, 4, 2, 8, 0], "dweights: a null pointer"),
    ("moe_combine_backward", [P, P, 0, P, P, P, 4, 2, 8, 0], "dy: a null pointer"),
    ("grouped_linear_forward", [P, P, P, P, 0, 1, -4, 4, 8, 8, 0], "rows: -4"),
    ("grouped_linear_forward", [P, P, P, P, 0, 1, 4, 0, 8, 8, 0], "num_experts: 0"),
    ("grouped_linear_forward", [P, P, P, P, 0, 1, 4, 4, -8, 8, 0], "inputs: -8"),
    ("grouped_linear_forward", [P, P, P, P, 0, 1, 4, 4, 8, 2**31, 0], "outputs: 2147483648"),
    ("grouped_linear_forward", [P, P, P, P, P, 0, 4, 4, 8, 8, 0], "choices: 0"),
    ("grouped_linear_forward", [P, P, P, 0, 0, 1, 4, 4, 8, 8, 0], "offsets: a null pointer"),
    ("grouped_linear_forward", [P, 0, P, P, 0, 1, 4, 4, 8, 8, 0], "x: a null pointer"),
    ("grouped_linear_forward", [P, P, P, P, 0, 1, 4, 4, 8, 8, 4], "dtype: int32"),
    ("grouped_linear_forward", [P, P, P, P, 0, 1, 2**31, 4, 2**20, 2**21, 0], "tiles, more than 2^31"),
    ("grouped_swiglu_forward", [P, P, P, P, P, 0, 1, 4, 4, 8, -1, 0], "width: -1"),
    ("grouped_swiglu_forward", [P, P + 1, P, P, P, 0, 1, 4, 4, 8, 8, 0], "hidden: 0x1001 is not aligned"),
    ("grouped_swiglu_forward", [P, 0, P, 0, P, 0, 1, 4, 4, 8, 8, 0], "weight: a null pointer"),
    ("grouped_linear_backward_input", [P, P, 0, P, 4, 4, 8, 8, 0], "weight: a null pointer"),
    ("grouped_linear_backward_input", [P, P + 2, P, P, 4, 4, 8, 8, 0], "dy: 0x1002 is not aligned"),
    ("grouped_linear_backward_weight", [0, P, P, P, 0, 1, 4, 4, 8, 8, 0], "dweight: a null pointer"),
    ("grouped_linear_backward_weight", [P + 2, P, P, P, 0, 1, 4, 4, 8, 8, 1], "dweight: 0x1002"),
    ("moe_balance_loss_forward", [P, P, P, P, 4, 5, 4, 0.1, 3, P, 64], "choices: 5"),
    ("moe_balance_loss_forward", [P, P, P, P, 4, 2, 4, 0.1, 0, P, 64], "index_dtype: float32"),
    ("moe_balance_loss_forward", [P, P, P, P, 4, 2, 4, 0.1, 3, P, 31], "workspace_bytes: 31, but 32"),
    ("moe_balance_loss_forward", [P, P, P, P, 4, 2, 2000, 0.1, 3, P, 64], "num_experts: 2000"),
    ("moe_balance_loss_backward", [P, 0, P, 4, 4, 0.1], "dloss: a null pointer"),
    ("moe_z_loss_forward", [P, P, P, -4, 4, 0.1, P, 64], "tokens: -4"),
    ("moe_z_loss_forward", [P, P, P, 4, 4, 0.1, P, 3], "workspace_bytes: 3, but 4"),
    ("moe_z_loss_forward", [0, P, P, 4, 4, 0.1, P, 64], "loss: a null pointer"),
    ("moe_z_loss_backward", [P, P, P + 2, P, 4, 4, 0.1], "logits: 0x1002 is not aligned"),
]


@pytest.mark.parametrize(("name", "arguments", "words"), BAD, ids=[f"{b[0]}-{b[2]}" for b in BAD])
def test_bad_arguments(device: EmulatedDevice, name: str, arguments: list[Any], words: str) -> None:
    with pytest.raises(DeviceArgumentError if "tiles" not in words else DeviceError) as raised:
        device.call(name, *arguments)
    assert words in str(raised.value)


def test_shapes_that_do_not_fit(device: EmulatedDevice) -> None:
    array = lambda *shape, dtype="float32": device.empty(shape, DTYPES.get(dtype, dtype))  # noqa: E731
    indices = array(6, dtype=np.int64)
    with pytest.raises(DeviceArgumentError, match=r"weights: float32\[3, 2\]|ys: "):
        moe.moe_combine(array(5, 8), array(3, 2), indices)
    with pytest.raises(DeviceArgumentError, match="weights: bfloat16"):
        moe.moe_combine(array(6, 8), array(3, 2, dtype="bfloat16"), indices)
    with pytest.raises(DeviceArgumentError, match="choices: 4 does not divide 6"):
        moe.moe_dispatch_backward(array(6, 8), indices, 4)
    with pytest.raises(DeviceArgumentError, match="offsets: float32"):
        moe.grouped_linear(array(6, 8), array(2, 4, 8), array(3))
    with pytest.raises(DeviceArgumentError, match="x: float32"):
        moe.grouped_linear(array(6, 7), array(2, 4, 8), array(3, dtype=np.int64))
    with pytest.raises(DeviceArgumentError, match="dy: float32"):
        moe.grouped_linear_backward(array(6, 5), array(6, 8), array(2, 4, 8), array(3, dtype=np.int64))


def test_nothing_to_do_needs_no_arrays(device: EmulatedDevice) -> None:
    device.call("moe_dispatch_forward", 0, 0, 0, 0, 2, 8, 0)
    device.call("moe_combine_forward", 0, 0, 0, 0, 4, 2, 0, 0)
    device.call("grouped_linear_forward", 0, 0, P, P, 0, 1, 0, 4, 8, 8, 0)
    device.call("moe_z_loss_backward", 0, 0, 0, 0, 0, 4, 0.1)
