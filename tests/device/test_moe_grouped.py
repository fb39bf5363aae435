"""All experts' linear maps in one launch, forward and backward, with SwiGLU in it."""

from ctypes import byref, c_int32
from itertools import pairwise
from typing import Any

import numpy as np
import pytest

from cuda.nn.device import EmulatedDevice
from nn.backends.device import moe
from tests.device.moe_cases import DTYPES, drawn, offsets_of, wide

HALF = ("float16", "bfloat16")


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
        unit = {np.dtype(np.float16): 2.0**-11, DTYPES["bfloat16"]: 2.0**-8}.get(found.dtype, 0.0)
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
