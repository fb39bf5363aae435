"""Rows to experts and back: dispatch, combine, and their gradients."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from cuda.nn.device import EmulatedDevice
from nn.backends.device import moe
from tests.device.moe_cases import DTYPES, drawn, judge, planned, wide

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
    assert back.tobytes() == (x.numpy() * DTYPES["bfloat16"].type(4)).tobytes()


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
