"""Far away: elements whose offset does not fit into 32 bits, and positions of a context of 262,144.

The memory between far rows is never touched, so the emulated device holds it as addresses only."""

from collections.abc import Callable, Iterator

import numpy as np
import pytest

from cuda.nn import products
from cuda.nn.array import DeviceArray
from cuda.nn.device import EmulatedDevice
from cuda.nn.memory import Pool
from nn.backends.device import optimizer, rotary, sampling
from nn.backends.device.attention import attention_forward, cache_append, decode_attention
from nn.generate import SamplingConfig
from tests.device.accuracy import draw
from tests.device.calls import make
from tests.device.calls.made import upload
from tests.device.conftest import opened

FAR = (1 << 31) + 64             # elements from one row to the next: past 2^31, and aligned
ROOM = 1 << 16                   # elements that all rows of a call take together
CONTEXT = 262_144
Place = Callable[[np.ndarray], DeviceArray]
Result = tuple[DeviceArray, ...]


@pytest.fixture
def fast(arch: str) -> Iterator[EmulatedDevice]:
    """Checks keep notes on every byte of an allocation; here nothing is checked, and no memory is kept."""
    device = opened(arch, "fast")
    device.configure()
    with device.using_pool(Pool(device.library, exact=True)):
        yield device


class Far:
    """Arrays of a call side by side in one memory; the first axis of each, of 2, takes a step of FAR."""

    def __init__(self, device: EmulatedDevice) -> None:
        self.device, self.at = device, 0
        self.memory: DeviceArray | None = None

    def __call__(self, values: np.ndarray) -> DeviceArray:
        if self.memory is None:
            self.memory = self.device.empty((FAR + ROOM,), values.dtype)
        size = values[0].size
        rows = [DeviceArray(self.device, self.memory.block, values.dtype, values.shape[1:], None, at)
                for at in (self.at, self.at + FAR)]
        for row, value in zip(rows, values, strict=True):
            upload(row, value)
        array = DeviceArray(self.device, self.memory.block, values.dtype, values.shape,
                            (FAR, *rows[0].strides), self.at)
        self.at += -(-size // 64) * 64
        return array


def product(device: EmulatedDevice, place: Place) -> Result:
    out = place(np.zeros((2, 24), np.float32))
    a, b = place(draw("float32", 2, 16)), device.asarray(draw("float32", 24, 16))
    products.gemm(a, b, trans_b=True, out=out)
    return out,


def tensor_product(device: EmulatedDevice, place: Place) -> Result:
    a, b = place(draw("bfloat16", 2, 16, 16)), device.asarray(draw("bfloat16", 2, 16, 24))
    return products.gemm(a, b, path="mma"),


def rotation(device: EmulatedDevice, place: Place) -> Result:
    x, angles = place(draw("bfloat16", 2, 2, 3, 16)), draw("float32", 3, 8)
    turned = rotary.rope_qk(x, None, np.cos(angles), np.sin(angles), in_place=True)[0]
    assert turned is not None
    return turned,


def attended(dtype: str) -> Callable[..., Result]:
    def run(device: EmulatedDevice, place: Place) -> Result:
        q, k, v = (place(draw(dtype, 2, 2, 20, 16, seed=i)) for i in range(3))
        return attention_forward(q, k, v, scale=0.25)

    return run


def decoded(device: EmulatedDevice, place: Place) -> Result:
    """Appended to a far cache, and read from there"""
    k, v = (place(draw("float32", 2, 2, 20, 16, seed=i)) for i in range(2))
    new = device.asarray(draw("float32", 2, 2, 1, 16, seed=3))
    cache_append(k, v, new, new, np.array([3, 19], np.int32))
    return decode_attention(new, k, v, np.array([4, 20], np.int32), scale=0.25)


def drawn(device: EmulatedDevice, place: Place) -> Result:
    step, key = device.asarray(np.array([3])), sampling.sampling_key(device, 5)
    return sampling.sample(place(draw("float32", 2, 50)), None, None, SamplingConfig(), key, step),


def generic(device: EmulatedDevice, place: Place) -> Result:
    x = place(draw("float32", 2, 40))
    x[1, 3:5] = 2.0
    return x + 1, x.sum(axis=0), x[:, 5:8].copy(), x[1]


CALLS = {"product": product, "tensor product": tensor_product, "rotation": rotation,
         "attention": attended("float32"), "tensor attention": attended("bfloat16"), "decoding": decoded,
         "sampling": drawn, "arrays": generic}


@pytest.mark.parametrize("name", CALLS)
def test_rows_beyond_32_bits(fast: EmulatedDevice, name: str) -> None:
    for one, other in zip(CALLS[name](fast, Far(fast)), CALLS[name](fast, fast.asarray), strict=True):
        assert np.isfinite(other.numpy().astype(np.float64)).all()
        np.testing.assert_array_equal(one.numpy(), other.numpy())


def test_permuted_copies_beyond_32_bits(fast: EmulatedDevice) -> None:
    """Rows 2^28 bytes apart to columns, by tiles, and back; and matrices that lie far from each other"""
    values, step = draw("float32", 2, 20, 10).view(np.uint8), (1 << 28) + 64           # [2,20,40]
    memory = fast.empty((20 * step,), np.uint8)
    rows = DeviceArray(fast, memory.block, np.uint8, (20, 40), (step, 1), 0)
    rows.T[...] = fast.asarray(np.ascontiguousarray(values[0].T))
    for i in (0, 8, 17, 19):
        np.testing.assert_array_equal(rows[i].numpy(), values[0, i])
    np.testing.assert_array_equal(rows.T.copy().numpy(), values[0].T)
    matrices = DeviceArray(fast, memory.block, np.uint8, values.shape, (FAR, 40, 1), 0)
    matrices.permute((0, 2, 1))[...] = fast.asarray(np.ascontiguousarray(values.swapaxes(1, 2)))
    np.testing.assert_array_equal(matrices.permute((0, 2, 1)).copy().numpy(), values.swapaxes(1, 2))
    np.testing.assert_array_equal(matrices[1].numpy(), values[1])


@pytest.mark.parametrize("arch", ["sm_90a"])
def test_tensor_copies_beyond_32_bits(fast: EmulatedDevice) -> None:
    """Rows of A and C, and matrices of a batch"""
    b = fast.asarray(draw("bfloat16", 24, 64))
    results = []
    for place in (Far(fast), fast.asarray):
        out, many = place(np.zeros((2, 24), b.dtype)), place(draw("bfloat16", 2, 16, 64))
        products.gemm(place(draw("bfloat16", 2, 64)), b, trans_b=True, out=out, path="wgmma")
        results.append([out.numpy(), products.gemm(many, b, trans_b=True, path="wgmma").numpy()])
    for one, other in zip(*results, strict=True):
        assert (other != 0).any()
        np.testing.assert_array_equal(one, other)


def test_an_embedding_table_beyond_32_bits(fast: EmulatedDevice) -> None:
    """Row 2^25 of 64 numbers; only rows that are named are written, and read."""
    rows, index = (1 << 25) + 3, np.array([(1 << 25) + 1, 0])
    table, values = fast.empty((rows, 64), np.float32), draw("float32", 2, 64)
    for place, value in zip(index, values, strict=True):
        upload(table[int(place)], value)
    np.testing.assert_array_equal(optimizer.embedding(table, index).numpy(), values)


@pytest.mark.parametrize(("dtype", "window"), [("bfloat16", 0), ("float32", 1000)])
def test_decoding_at_the_end_of_a_long_paged_cache(fast: EmulatedDevice, dtype: str, window: int) -> None:
    """262,144 positions on pages that a table repeats; beside float64 over the positions themselves."""
    page, pages, width = 4096, 5, 16
    table = np.random.default_rng(1).integers(0, pages, (1, CONTEXT // page)).astype(np.int32)
    q, k, v = (draw(dtype, *shape, seed=i) for i, shape in
               enumerate([(1, 8, 1, width), (pages, 1, page, width), (pages, 1, page, width)]))
    lengths = np.array([CONTEXT - 3], np.int32)
    here = [fast.asarray(x) for x in (q, k, v)]
    o, lse = decode_attention(here[0], here[1], here[2], lengths, scale=0.25, window=window,
                              block_table=table)
    keys, values = (x[table[0], 0].reshape(CONTEXT, width)[: lengths[0]].astype(np.float64) for x in (k, v))
    start = lengths[0] - window if window else 0
    scores = 0.25 * q[0, :, 0].astype(np.float64) @ keys[start:].T
    weights = np.exp(scores - scores.max(axis=1, keepdims=True))
    expected = weights @ values[start:] / weights.sum(axis=1, keepdims=True)
    np.testing.assert_allclose(lse.numpy()[0, :, 0], np.log(np.exp(scores).sum(axis=1)), rtol=1e-5)
    np.testing.assert_allclose(o.numpy()[0, :, 0].astype(np.float64), expected,
                               atol=2e-3 if dtype == "bfloat16" else 1e-6)


def test_rope_at_the_end_of_a_long_context(fast: EmulatedDevice) -> None:
    """Rotated through tables and a position in device memory: float32's error, not the angle's."""
    half, start = 32, CONTEXT - 4
    inverse = 500_000.0 ** (-np.arange(half) / half)
    cos, sin = rotary.rope_table(fast, inverse, CONTEXT)
    x = draw("float32", 1, 2, 4, 2 * half)
    y = rotary.rope_at(fast.asarray(x), cos, sin, np.array([start], np.int32)).numpy()
    angles = np.arange(start, CONTEXT)[:, None] * inverse
    a, b, c, s = x[..., :half], x[..., half:], np.cos(angles), np.sin(angles)
    np.testing.assert_allclose(y, np.concatenate([a * c - b * s, a * s + b * c], axis=-1), atol=1e-6)


def test_a_loss_over_far_logits(fast: EmulatedDevice) -> None:
    call = make(fast, "cross_entropy_backward", rows=2, vocabulary=40)
    expected, struct = call.run()[0], call.arguments[0]
    logits = next(values for _, values in call.arrays.inputs if values.shape == (2, 40))
    place = Far(fast)
    source, target = place(logits), place(np.zeros_like(logits))
    struct.logits, struct.dlogits = source.pointer, target.pointer
    struct.stride = struct.gradient_stride = FAR
    call.launch()
    np.testing.assert_array_equal(target.numpy(), expected)
