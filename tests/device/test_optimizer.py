"""AdamW over many tensors, the gradients' norm, embeddings and their gradients."""

from typing import Any

import ml_dtypes
import numpy as np
import pytest

from cuda.nn.array import DeviceArray
from cuda.nn.device import EmulatedDevice
from cuda.nn.errors import DeviceArgumentError
from cuda.nn.graph import Graph
from nn.backends import reference
from nn.backends.device import optimizer
from tests.conformance.cases import cases
from tests.conformance.compare import check, to_numpy

DTYPES = {"float32": np.float32, "float16": np.float16, "bfloat16": ml_dtypes.bfloat16}
BETAS, EPS = (0.9, 0.95), 1e-8
RANDOM = np.random.default_rng(11)


def into(device: EmulatedDevice) -> Any:
    return lambda array: device.asarray(array) if isinstance(array, np.ndarray) else array


def draw(dtype: str, *shape: int) -> np.ndarray:
    return RANDOM.standard_normal(shape).astype(DTYPES[dtype])


def one(device: EmulatedDevice, value: float, dtype: Any) -> DeviceArray:
    return device.asarray(np.array([value], dtype))


def put(array: DeviceArray, value: np.ndarray) -> None:
    array.device.call("memory_upload", array, value.ctypes.data, value.nbytes)
    array.device.synchronize()


class Tensors:
    """Parameters with gradients and moments, on the device and as NumPy's."""

    def __init__(self, device: EmulatedDevice, sizes: tuple[int, ...], dtype: str, grad_dtype: str,
                 master: bool) -> None:
        self.device, self.grad_dtype = device, grad_dtype
        self.wide = [draw(dtype,
                          n).astype(np.float32) for n in sizes]       # the exact parameters, kept in float32
        self.params = [device.asarray(p.astype(DTYPES[dtype])) for p in self.wide]
        self.masters = [device.asarray(p) for p in self.wide] if master else None
        self.grads = [device.asarray(draw(grad_dtype, n)) for n in sizes]
        self.m, self.v = ([device.zeros((n,), np.float32) for n in sizes] for _ in range(2))
        self.state = [(np.zeros(n, np.float32), np.zeros(n, np.float32)) for n in sizes]

    def plan(self, **options: Any) -> optimizer.AdamWPlan:
        return optimizer.adamw_plan(self.params, self.grads, self.m, self.v, masters=self.masters, **options)


@pytest.mark.parametrize("kernel", ["adamw", "sum_of_squares", "scatter_add"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_cases_of_every_backend(device: EmulatedDevice, kernel: str, dtype: str) -> None:
    for case in cases(kernel, dtype):
        check(getattr(optimizer, kernel), case, into(device), to_numpy)


@pytest.mark.parametrize(("dtype", "grad_dtype", "master"), [
    ("float32", "float32", False), ("float32", "bfloat16", False), ("bfloat16", "bfloat16", True),
    ("bfloat16", "float32", True), ("float16", "float16", True)])
def test_a_hundred_steps(device: EmulatedDevice, dtype: str, grad_dtype: str, master: bool) -> None:
    """NumPy's bits in float32, at every step, with values read from memory; close to float64 at the end."""
    tensors = Tensors(device, (1, 37, 130), dtype, grad_dtype, master)
    decays, scales = [0.1, 0.0, 0.1], [1.0, 0.5, 2.0]
    plan = tensors.plan(weight_decay=decays, lr_scale=scales)
    lr, step, scale = one(device, 0, np.float64), one(device, 0, np.int64), one(device, 1, np.float32)
    exact = [[p.astype(np.float64), np.zeros(p.size), np.zeros(p.size)] for p in tensors.wide]
    for t in range(1, 101):
        rate, factor = 0.01 / t**0.5, np.float32(0.25 + t % 3)
        put(lr, np.array([rate]))
        put(scale, np.array([factor]))
        optimizer.increment(step)
        for i, held in enumerate(tensors.grads):
            grad = draw(grad_dtype, held.size)
            put(held, grad)
            options = {"lr": rate * scales[i], "beta1": BETAS[0], "beta2": BETAS[1], "eps": EPS,
                       "weight_decay": decays[i], "step": t, "grad_scale": float(factor)}
            reference.adamw(tensors.wide[i], grad, *tensors.state[i], **options)
            reference.adamw(exact[i][0], grad.astype(np.float64), *exact[i][1:], **options)
        optimizer.adamw_step(plan, lr, step, scale=scale, betas=BETAS, eps=EPS)
    assert step.numpy().tolist() == [100]
    for i, wide in enumerate(tensors.wide):
        held = tensors.masters[i] if tensors.masters else tensors.params[i]
        assert np.array_equal(held.numpy(), wide)
        assert np.array_equal(tensors.m[i].numpy(), tensors.state[i][0])
        assert np.array_equal(tensors.v[i].numpy(), tensors.state[i][1])
        assert np.array_equal(tensors.params[i].numpy(), wide.astype(DTYPES[dtype]))
        np.testing.assert_allclose(wide, exact[i][0], rtol=1e-4, atol=1e-6)


def test_half_parameters_without_a_master(device: EmulatedDevice) -> None:
    tensors = Tensors(device, (21,), "bfloat16", "float32", False)
    optimizer.adamw_step(tensors.plan(), one(device, 0.1, np.float64), one(device, 1, np.int64), betas=BETAS,
                         eps=EPS)
    reference.adamw(tensors.wide[0], tensors.grads[0].numpy(), *tensors.state[0], lr=0.1, beta1=0.9,
                    beta2=0.95,
                    eps=EPS, weight_decay=0.0, step=1)
    assert np.array_equal(tensors.params[0].numpy(), tensors.wide[0].astype(ml_dtypes.bfloat16))


def test_pieces_and_places(device: EmulatedDevice) -> None:
    """Exactly a chunk, none, more than one; arrays that begin off 16 bytes."""
    size = device.library.nn_chunk_elements()
    whole = {name: device.asarray(draw("float32", 2 * size + 9)) for name in ("param", "grad", "m")}
    whole["v"] = device.asarray(np.abs(draw("float32", 2 * size + 9)))
    before = {name: array.numpy() for name, array in whole.items()}
    places = [slice(0, size), slice(size, size), slice(size + 1, 2 * size + 8)]
    parts = {name: [array[place] for place in places] for name, array in whole.items()}
    plan = optimizer.adamw_plan(parts["param"], parts["grad"], parts["m"], parts["v"], weight_decay=0.1)
    assert plan.chunk_count == 3
    optimizer.adamw_step(plan, one(device, 0.1, np.float64), one(device, 7, np.int64), betas=BETAS, eps=EPS)
    expect = {name: array.copy() for name, array in before.items()}
    for place in places:
        reference.adamw(*(expect[n][place] for n in ("param", "grad", "m", "v")), lr=0.1, beta1=0.9,
                        beta2=0.95,
                        eps=EPS, weight_decay=0.1, step=7)
    for name, array in whole.items():
        assert np.array_equal(array.numpy(), expect[name]), name
    optimizer.zero_gradients(plan)
    left = whole["grad"].numpy()
    assert not any(left[place].any() for place in places)
    assert left[size] == before["grad"][size]
    assert left[-1] == before["grad"][-1]


@pytest.mark.parametrize("grad_dtype", DTYPES)
def test_global_norm(device: EmulatedDevice, grad_dtype: str) -> None:
    tensors = Tensors(device, (3, 1000, 8200), "float32", grad_dtype, False)
    plan, skipped = tensors.plan(), one(device, 0, np.int64)
    exact = np.sqrt(sum((g.numpy().astype(np.float64) ** 2).sum() for g in tensors.grads))
    for max_norm, given in ((1.0, None), (1e6, None), (0.0, None), (1.0, 0.125)):
        scale = None if given is None else one(device, given, np.float32)
        norm, clipped, skip = optimizer.global_norm(plan, max_norm, scale=scale, skipped=skipped)
        found, factor = exact * (given or 1.0), given or 1.0
        expect = factor * min(1.0, max_norm / (found + 1e-6)) if max_norm else factor
        np.testing.assert_allclose(norm.numpy()[0], found, rtol=1e-7)
        np.testing.assert_allclose(clipped.numpy()[0], expect, rtol=1e-7)
        assert skip.numpy()[0] == skipped.numpy()[0] == 0


@pytest.mark.parametrize("bad", [[np.nan], [np.inf], [3e38, 3e38]])        # the last: beyond float32 together
def test_a_step_without_a_norm_is_skipped(device: EmulatedDevice, bad: list[float]) -> None:
    tensors = Tensors(device, (5, 33), "bfloat16", "float32", True)
    plan, skipped, step = tensors.plan(), one(device, 3, np.int64), one(device, 8, np.int64)
    put(tensors.grads[1], np.array(bad + [1.0] * (33 - len(bad)), np.float32))
    norm, scale, skip = optimizer.global_norm(plan, 1.0, skipped=skipped)
    assert not np.isfinite(norm.numpy()[0])
    optimizer.increment(step, skip=skip)
    held = [x for group in (tensors.params, tensors.masters or [], tensors.m, tensors.v) for x in group]
    before = [x.numpy() for x in held]
    optimizer.adamw_step(plan, one(device, 0.1, np.float64), step, betas=BETAS, eps=EPS, scale=scale,
                         skip=skip)
    assert all(np.array_equal(x.numpy(), b) for x, b in zip(held, before, strict=True))
    assert (skip.numpy()[0], skipped.numpy()[0], step.numpy()[0]) == (1, 4, 8)


def test_a_graph_reads_what_memory_holds_by_then(device: EmulatedDevice) -> None:
    tensors = Tensors(device, (5, 600), "float32", "float32", False)
    plan, lr, step = tensors.plan(weight_decay=0.1), one(device, 0, np.float64), one(device, 0, np.int64)
    with Graph.capture(device) as graph:
        norm, scale, skip = optimizer.global_norm(plan, 1.0)
        optimizer.increment(step, skip=skip)
        optimizer.adamw_step(plan, lr, step, betas=BETAS, eps=EPS, scale=scale, skip=skip)
    for t in (1, 2, 3):
        put(lr, np.array([0.1 / t]))
        grads = [draw("float32", g.size) * np.float32(t) for g in tensors.grads]
        for held, grad in zip(tensors.grads, grads, strict=True):
            put(held, grad)
        graph.replay()
        exact = np.sqrt(sum((g.astype(np.float64) ** 2).sum() for g in grads))
        np.testing.assert_allclose(norm.numpy()[0], exact, rtol=1e-7)
        clip = float(scale.numpy()[0])
        for wide, grad, state in zip(tensors.wide, grads, tensors.state, strict=True):
            reference.adamw(wide, grad, *state, lr=0.1 / t, beta1=BETAS[0], beta2=BETAS[1], eps=EPS,
                            weight_decay=0.1, step=t, grad_scale=clip)
    assert all(np.array_equal(p.numpy(), w) for p, w in zip(tensors.params, tensors.wide, strict=True))


@pytest.mark.parametrize("size", [2, 6])                     # one by one, by fours
def test_squares_beyond_float32(device: EmulatedDevice, size: int) -> None:
    tensors = Tensors(device, (size,), "float32", "float32", False)
    put(tensors.grads[0], np.array([3e30, 4e30, 0, 0, 0, 0], np.float32)[:size])
    norm, _, skip = optimizer.global_norm(tensors.plan(), 1.0)
    np.testing.assert_allclose(norm.numpy()[0], 5e30, rtol=1e-6)
    assert not skip.numpy()[0]


@pytest.mark.parametrize("which", range(5))
def test_one_array_off_16_bytes(device: EmulatedDevice, which: int) -> None:
    """The parameter, its gradient, a moment or the master alone begins where four cannot be moved at once."""
    values = [draw("float32", 9), draw("float32", 9), draw("float32", 9), abs(draw("float32", 9))]
    arrays = [device.asarray(np.pad(x, (1, 0)))[1:] if i == which else device.asarray(x)
              for i, x in enumerate([*values, values[0]])]
    plan = optimizer.adamw_plan(*([x] for x in arrays[:4]), masters=[arrays[4]])
    optimizer.adamw_step(plan, one(device, 0.1, np.float64), one(device, 7, np.int64), betas=BETAS, eps=EPS)
    reference.adamw(*values, lr=0.1, beta1=BETAS[0], beta2=BETAS[1], eps=EPS, weight_decay=0.0, step=7)
    for x, right in zip(arrays, (values[0], values[1], *values[2:], values[0]), strict=True):
        assert np.array_equal(x.numpy(), right)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("index_dtype", [np.int32, np.int64])
def test_scatter_add(device: EmulatedDevice, dtype: str, index_dtype: Any) -> None:
    """Lists of one, some, many and too many tokens for a list; indices outside; odd widths."""
    for count, rows, width in ((1, 1, 1), (61, 7, 12), (50, 400, 5), (1500, 2, 4), (20, 3, 520)):
        index = RANDOM.integers(0, rows, count).astype(index_dtype)
        index[: count // 6] = [rows, -1, np.iinfo(index_dtype).max][count % 3]
        source, start = draw(dtype, count, width), draw("float32", rows, width)
        expect = {False: np.zeros((rows, width), np.float32), True: start.copy()}
        for n, row in enumerate(index):
            for out in expect.values():
                if 0 <= row < rows:
                    out[row] += source[n].astype(np.float32)
        for accumulate, right in expect.items():
            given = device.asarray(start), device.asarray(source), index
            found = optimizer.scatter_add_into(*given, accumulate=accumulate)
            assert np.array_equal(found.numpy(), right), (count, rows, width, accumulate)


def test_scatter_add_of_more_tokens_than_a_list(device: EmulatedDevice) -> None:
    index = np.where(np.arange(2600) % 9 < 7, 3, np.arange(2600) % 5)
    source = draw("float32", 2600, 3)
    expect = np.zeros((6, 3), np.float32)
    np.add.at(expect, index, source)
    assert np.array_equal(optimizer.scatter_add(device.asarray(source), index, 6).numpy(), expect)


@pytest.mark.parametrize("dtype", DTYPES)
def test_embedding(device: EmulatedDevice, dtype: str) -> None:
    for width in (1, 7, 8, 64, 300):
        table, index = draw(dtype, 9, width), np.array([[0, 8, 3, 3], [9, -1, 2**40, 1]])
        found = optimizer.embedding(device.asarray(table), index).numpy()
        inside = (index >= 0) & (index < 9)
        assert np.array_equal(found[inside], table[index[inside]])
        assert np.isnan(found[~inside].astype(np.float32)).all()
        few = optimizer.embedding(device.asarray(table), index[0].astype(np.int32))
        assert np.array_equal(few.numpy(), table[index[0]])


def test_embedding_in_a_table_of_more_than_32_bits(device: EmulatedDevice) -> None:
    """Of which only the last rows exist: they lie where 64 bits say."""
    table, far = draw("bfloat16", 3, 8), 2**31
    seen = device.asarray(table).view((far + 3, 8), (8, 1), -8 * far)
    assert np.array_equal(optimizer.embedding(seen, np.array([far + 2, far])).numpy(), table[[2, 0]])


def test_nothing(device: EmulatedDevice) -> None:
    empty = device.zeros((0,), np.float32)
    plan = optimizer.adamw_plan([empty], [empty], [empty], [empty])
    optimizer.adamw_step(plan, one(device, 1, np.float64), one(device, 1, np.int64), betas=BETAS, eps=EPS)
    optimizer.zero_gradients(plan)
    norm, scale, _ = optimizer.global_norm(plan, 1.0)
    assert (norm.numpy()[0], scale.numpy()[0]) == (0, 1)
    assert optimizer.scatter_add(device.zeros((0, 3), np.float32), np.zeros(0, np.int64),
                                 2).numpy().tolist() == [[0] * 3] * 2
    assert optimizer.embedding(device.zeros((2, 3), np.float32), np.zeros(0, np.int64)).shape == (0, 3)


def test_wrong_arguments(device: EmulatedDevice) -> None:
    x, half = device.zeros((4,), np.float32), device.zeros((4,), np.float16)
    with pytest.raises(DeviceArgumentError, match="m of tensor 0: float16"):
        optimizer.adamw_plan([x], [x], [half], [x])
    with pytest.raises(DeviceArgumentError, match="grad of tensor 0"):
        optimizer.adamw_plan([x], [device.zeros((5,), np.float32)], [x], [x])
    with pytest.raises(DeviceArgumentError, match="none given"):
        optimizer.adamw_plan([], [], [], [])
    plan, lr, step = optimizer.adamw_plan([x], [x], [x], [x]), one(device, 1, np.float64), one(device, 1,
                                                                                               np.int64)
    with pytest.raises(DeviceArgumentError, match="lr"):
        optimizer.adamw_step(plan, one(device, 1, np.float32), step, betas=BETAS, eps=EPS)
    for betas, eps, words in (((1.0, 0.9), EPS, "beta1"), ((0.9, -0.1), EPS, "beta2"), (BETAS, -1.0, "eps")):
        with pytest.raises(DeviceArgumentError, match=words):
            optimizer.adamw_step(plan, lr, step, betas=betas, eps=eps)
    with pytest.raises(DeviceArgumentError, match="max_norm"):
        optimizer.global_norm(plan, float("nan"))
    with pytest.raises(DeviceArgumentError, match="index_dtype"):
        optimizer.embedding(device.zeros((2, 2), np.float32), np.zeros(2, np.float32))
    with pytest.raises(DeviceArgumentError, match="scatter_add"):
        optimizer.scatter_add(device.zeros((2, 2), np.float32), np.zeros(3, np.int64), 4)
    with pytest.raises(DeviceArgumentError, match="workspace"):
        device.call("scatter_add_forward", x, x, step, 1, 1, 4, 0, 0, 3, None, 0)
