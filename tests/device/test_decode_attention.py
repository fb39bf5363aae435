"""Decode attention against contiguous and paged caches, and the caches' append."""

from ctypes import byref
from typing import Any

import numpy as np
import pytest

from cuda.nn.array import DeviceArray
from cuda.nn.device import EmulatedDevice
from cuda.nn.errors import DeviceArgumentError
from cuda.nn.graph import Graph
from cuda.nn.prototypes.attention import DECODE_SPLIT, Cache, Decode
from nn.backends.device.attention import attention_forward, cache_append, decode_attention
from tests.device.accuracy import at_odd_element
from tests.device.attention_cases import Triple, accurate, draw, heads_inside, up, visible

ALL = ("float32", "float16", "bfloat16")


def inputs(dtype: str, batch: int = 1, heads: int = 2, groups: int = 1, queries: int = 1, capacity: int = 40,
           width: int = 16, value_width: int | None = None) -> Triple:
    sizes = [(batch, heads, queries, width), (batch, groups, capacity, width),
             (batch, groups, capacity, value_width or width)]
    q, k, v = (draw(dtype, *shape, seed=i) for i, shape in enumerate(sizes))
    return q, k, v


def decode(device: EmulatedDevice, q: Any, k: Any, v: Any, lengths: Any,
           **options: Any) -> tuple[np.ndarray, np.ndarray]:
    o, lse = decode_attention(*up(device, (q, k, v)), lengths, **options)
    return o.numpy(), lse.numpy()


def check(device: EmulatedDevice, dtype: str, arrays: Triple, lengths: list[int], *,
          causal: bool = True, window: int = 0, softcap: float = 0.0) -> None:
    """Row by row; what lies beyond a row's length is NaN and must not matter."""
    q, k, v = arrays
    scale, queries = q.shape[-1] ** -0.5, q.shape[2]
    for b, s in enumerate(lengths):
        k[b, :, s:], v[b, :, s:] = np.nan, np.nan
    o, lse = decode(device, q, k, v, np.array(lengths, np.int32), scale=scale, causal=causal, window=window,
                    softcap=softcap)
    for b, s in enumerate(lengths):
        accurate(dtype, o[b : b + 1], lse[b : b + 1], q[b : b + 1], k[b : b + 1, :, :s], v[b : b + 1, :, :s],
                 visible(queries, s, causal, window), scale=scale, softcap=softcap)


@pytest.mark.parametrize("dtype", ALL)
@pytest.mark.parametrize("width", [16, 32, 40, 64, 80, 96, 128, 192, 256])
def test_widths(device: EmulatedDevice, dtype: str, width: int) -> None:
    for heads in (1, 12):  # float arithmetic, tensor cores where the type has them
        check(device, dtype, inputs(dtype, heads=heads, capacity=70, width=width), [67])
        check(device, dtype, inputs(dtype, heads=heads, capacity=300, width=width,
                                    value_width=max(8, width // 16 * 8)), [299])


@pytest.mark.parametrize("dtype", ALL)
@pytest.mark.parametrize(("queries", "heads", "groups"), [(1, 1, 1), (1, 4, 4), (1, 8, 2), (1, 16, 1),
                                                          (3, 6, 2),
                                                          (5, 4, 2), (16, 1, 1), (16, 10, 1), (2, 36, 1)])
def test_rows(device: EmulatedDevice, dtype: str, queries: int, heads: int, groups: int) -> None:
    lengths = [40, queries, 0, 17, queries - 1, 1]
    check(device, dtype, inputs(dtype, batch=6, heads=heads, groups=groups, queries=queries, capacity=40),
          lengths)


@pytest.mark.parametrize("dtype", ALL)
@pytest.mark.parametrize("length", [1, 255, 256, 257, 511, 512, 513, 600])
def test_splits(device: EmulatedDevice, dtype: str, length: int) -> None:
    for heads in (2, 8):
        check(device, dtype, inputs(dtype, heads=heads, queries=1, capacity=600), [length])


OPTIONS: list[dict[str, Any]] = [{"window": 1}, {"window": 7}, {"window": 300}, {"window": 5000},
                                 {"softcap": 0.5},
                                 {"softcap": 20.0, "window": 30}, {"causal": False},
                                 {"causal": False, "window": 9}]


@pytest.mark.parametrize("dtype", ALL)
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_options(device: EmulatedDevice, dtype: str, options: dict[str, Any]) -> None:
    for heads in (1, 4):
        check(device, dtype, inputs(dtype, batch=3, heads=heads, queries=3, capacity=600), [600, 290, 5],
              **options)


@pytest.mark.parametrize("dtype", ALL)
def test_without_lengths_and_in_views(device: EmulatedDevice, dtype: str) -> None:
    for heads in (2, 8):
        q, k, v = inputs(dtype, batch=2, heads=heads, queries=2, capacity=30)
        views = heads_inside(device, q), heads_inside(device, k), heads_inside(device, v)
        o, lse = decode_attention(*views, None, scale=0.25)
        accurate(dtype, o.permute((0, 2, 1, 3)).numpy().transpose(0, 2, 1, 3), lse.numpy(), q, k, v,
                 visible(2, 30), scale=0.25)
        odd = at_odd_element(device, q), at_odd_element(device, k), at_odd_element(device, v)
        o, lse = decode_attention(*odd, None, scale=0.25)
        accurate(dtype, o.numpy(), lse.numpy(), q, k, v, visible(2, 30), scale=0.25)
    check(device, dtype, inputs(dtype, heads=3, capacity=30, width=7, value_width=5), [21])


def test_capacity_zero(device: EmulatedDevice) -> None:
    o, lse = decode(device, *inputs("float32", capacity=0), None, scale=1.0)
    assert (o == 0).all()
    assert np.isneginf(lse).all()
    assert decode(device, *inputs("float32", batch=0), None, scale=1.0)[0].size == 0


@pytest.mark.parametrize("dtype", ALL)
def test_equals_the_last_rows_of_the_full_pass(device: EmulatedDevice, dtype: str) -> None:
    q, k, v = inputs(dtype, batch=2, heads=4, groups=2, queries=300, capacity=300)
    full, full_lse = attention_forward(*up(device, (q, k, v)), scale=0.25)
    o, lse = decode(device, q[:, :, -3:].copy(), k, v, None, scale=0.25)
    unit = {"float32": 1e-6, "float16": 2e-3, "bfloat16": 1.6e-2}[dtype]
    assert np.abs(o.astype(np.float32) - full.numpy()[:, :, -3:].astype(np.float32)).max() <= unit
    assert np.abs(lse - full_lse.numpy()[:, :, -3:]).max() <= 2e-6


@pytest.mark.parametrize("dtype", ALL)
def test_pools_of_more_than_32_bits(device: EmulatedDevice, dtype: str) -> None:
    """Of which only the last pages exist: they lie where 64 bits say."""
    order, far = np.array([[1, 0, 2]], np.int32), 2**25
    for heads in (2, 8):
        q, k, v = inputs(dtype, heads=heads, capacity=48)
        k_new, v_new = draw(dtype, 1, 1, 1, 16, seed=7), draw(dtype, 1, 1, 1, 16, seed=8)
        there = [device.asarray(paged(x, 16, order, 3)) for x in (k, v)]
        pools = [x.view((far + 3, 1, 16, 16), (256, 256, 16, 1), -256 * far) for x in there]
        at = device.asarray(order + np.int32(far))
        cache_append(*pools, *map(device.asarray, (k_new, v_new)), np.array([20], np.int32), block_table=at)
        k[:, :, 20], v[:, :, 20] = k_new[:, :, 0], v_new[:, :, 0]
        o, lse = decode_attention(device.asarray(q), *pools, None, scale=0.25, block_table=at)
        accurate(dtype, o.numpy(), lse.numpy(), q, k, v, visible(1, 48), scale=0.25)


@pytest.mark.parametrize("dtype", ALL)
@pytest.mark.parametrize("heads", [1, 8])
def test_bits_do_not_depend_on_the_batch(device: EmulatedDevice, dtype: str, heads: int) -> None:
    q, k, v = inputs(dtype, batch=4, heads=heads, queries=2, capacity=600)
    lengths = np.array([600, 3, 257, 512], np.int32)
    together = decode(device, q, k, v, lengths, scale=0.25)
    for b in range(4):
        one = slice(b, b + 1)
        alone = decode(device, q[one], k[one], v[one], lengths[one], scale=0.25)
        assert np.array_equal(alone[0][0], together[0][b])
        assert np.array_equal(alone[1][0], together[1][b])
        more_k, more_v = (np.concatenate([x[one], np.full_like(x[one], np.nan)], axis=2) for x in (k, v))
        other = decode(device, q[one], more_k, more_v, lengths[one], scale=0.25)
        assert np.array_equal(other[0], alone[0])
        assert np.array_equal(other[1], alone[1])


def paged(x: np.ndarray, page: int, order: np.ndarray, pages: int) -> np.ndarray:
    """[B,G,capacity,D] -> pool [pages,G,page,D] with page i of row b at order[b, i]"""
    batch, groups, capacity, width = x.shape
    pool = np.full((pages, groups, page, width), np.nan, x.dtype)
    for b in range(batch):
        for i in range(capacity // page):
            pool[order[b, i]] = x[b, :, i * page : (i + 1) * page]
    return pool


@pytest.mark.parametrize("dtype", ALL)
@pytest.mark.parametrize("page", [16, 64, 512])
def test_paged_equals_contiguous(device: EmulatedDevice, dtype: str, page: int) -> None:
    for heads in (2, 8):
        capacity = max(1, 576 // page) * page
        q, k, v = inputs(dtype, batch=2, heads=heads, queries=2, capacity=capacity)
        lengths, each = np.array([capacity, 300], np.int32), capacity // page
        places = np.random.default_rng(3).permutation(2 * each + 3)[: 2 * each]
        order = places.astype(np.int32).reshape(2, each)
        k_pool, v_pool = (paged(x, page, order, 2 * each + 3) for x in (k, v))
        right = decode(device, q, k, v, lengths, scale=0.25, window=400)
        found = decode(device, q, k_pool, v_pool, lengths, scale=0.25, window=400, block_table=order)
        assert np.array_equal(right[0], found[0])
        assert np.array_equal(right[1], found[1])


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_graph_follows_the_lengths(device: EmulatedDevice, dtype: str) -> None:
    """Append and attend, captured once, replayed while the lengths in device memory grow."""
    q, k, v = inputs(dtype, batch=2, heads=8, capacity=300)
    k_new, v_new = draw(dtype, 2, 1, 1, 16, seed=7), draw(dtype, 2, 1, 1, 16, seed=8)
    held = [device.asarray(x) for x in (q, k, v, k_new, v_new)]
    positions, lengths = (device.asarray(np.zeros(2, np.int32)) for _ in range(2))

    def step() -> tuple[DeviceArray, DeviceArray]:
        cache_append(held[1], held[2], held[3], held[4], positions)
        return decode_attention(held[0], held[1], held[2], lengths, scale=0.25)

    step()
    upload(device, held[1], k)
    upload(device, held[2], v)
    with Graph.capture(device) as graph:
        o, lse = step()
    for at in ([0, 5], [20, 255], [256, 299]):
        upload(device, positions, np.array(at, np.int32))
        upload(device, lengths, np.array(at, np.int32) + 1)
        graph.replay()
        for b, s in enumerate(at):
            k[b, :, s], v[b, :, s] = k_new[b, :, 0], v_new[b, :, 0]
            one = slice(b, b + 1)
            accurate(dtype, o.numpy()[one], lse.numpy()[one], q[one], k[one, :, : s + 1], v[one, :, : s + 1],
                     visible(1, s + 1), scale=0.25)


def upload(device: EmulatedDevice, to: DeviceArray, values: np.ndarray) -> None:
    device.call("memory_upload", to, np.ascontiguousarray(values).ctypes.data, values.nbytes)
    device.synchronize()


@pytest.mark.parametrize("dtype", ALL)
def test_nan_in_nan_out(device: EmulatedDevice, dtype: str) -> None:
    for heads in (1, 8):
        for which in range(3):
            arrays = inputs(dtype, heads=heads, capacity=300)
            arrays[which][0, 0, -1, 3] = np.nan
            o, _ = decode(device, *arrays, None, scale=0.25)
            assert np.isnan(o[0, 0, 0, 3].astype(np.float32))
            assert which == 0 or np.isnan(o.astype(np.float32)).any(-1).all()


@pytest.mark.parametrize(("dtype", "heads"), [("float32", 1), ("float16", 1), ("bfloat16", 8)])
def test_counts(device: EmulatedDevice, dtype: str, heads: int) -> None:
    """The cache is read once, no sector in vain, and no bank conflicts on the way."""
    q, k, v = (device.asarray(x) for x in inputs(dtype, heads=heads, capacity=512, width=128))
    device.configure(count=1)
    decode_attention(q, k, v, None, scale=0.1)
    (counts,) = (c for name, c in device.counters().items() if "attention_decode_merge" not in name)
    assert counts.blocks == 512 // DECODE_SPLIT
    assert counts.bytes_read <= 1.02 * (k.nbytes + v.nbytes) + counts.blocks * (4 + 2 * q.nbytes)
    assert counts.sectors <= 1.01 * counts.ideal_sectors
    if heads == 8:
        assert not [p for p, c in counts.places.items() if c.bank_wavefronts > c.ideal_wavefronts]
        assert counts.flops["tensor_bf16"] >= 4 * 512 * 128 * heads


@pytest.mark.parametrize("dtype", ALL)
@pytest.mark.parametrize("page", [0, 16])
def test_append(device: EmulatedDevice, dtype: str, page: int) -> None:
    for width, value_width in ((16, 8), (5, 3)):
        positions = np.array([0, 17, 31, -2, 40], np.int32)                 # of capacity 32, three at a time
        new = [draw(dtype, 5, 2, 3, w, seed=w) for w in (width, value_width)]
        right = [np.zeros((5, 2, 32, w), new[0].dtype) for w in (width, value_width)]
        for b, p in enumerate(positions):
            for t in range(3):
                if 0 <= p + t < 32:
                    for x, y in zip(right, new, strict=True):
                        x[b, :, p + t] = y[b, :, t]
        k_new, v_new = (heads_inside(device, x) for x in new)
        if page:
            order = np.random.default_rng(1).permutation(12)[:10].reshape(5, 2).astype(np.int32)
            order[1, 1], right[0][1, :, 16:], right[1][1, :, 16:] = 99, 0, 0  # a page that does not exist
            pools = [device.asarray(np.zeros((12, 2, 16, w), new[0].dtype)) for w in (width, value_width)]
            cache_append(pools[0], pools[1], k_new, v_new, positions, block_table=order)
            for pool, x in zip(pools, right, strict=True):
                known = order != 99
                assert np.array_equal(pool.numpy()[order[known]],
                                      x.reshape(5, 2, 2, 16, -1).swapaxes(1, 2)[known])
        else:
            caches = [device.asarray(np.zeros_like(x)) for x in right]
            cache_append(caches[0], caches[1], k_new, v_new, positions)
            assert all(np.array_equal(c.numpy(), x) for c, x in zip(caches, right, strict=True))


BAD: list[tuple[str, str, dict[str, Any]]] = [
    ("queries", "decode", {"queries": 17}), ("heads", "decode", {"heads": 3}),
    ("window", "decode", {"window": -1}),
    ("scale", "decode", {"scale": float("inf")}), ("softcap", "decode", {"softcap": -1.0}),
    ("q", "decode", {"q": None}),
    ("size", "decode", {"size": 1}), ("capacity", "cache", {"capacity": -1}),
    ("groups", "cache", {"groups": 0}),
    ("page", "cache", {"page": 24, "block_table": 4096}), ("block_table", "cache", {"page": 16}),
    ("capacity", "cache", {"page": 16, "block_table": 4096, "max_pages": 1}),
    ("width", "cache", {"width": 500}),
    ("dtype", "cache", {"dtype": 3}), ("k or v", "cache", {"k": None})]


@pytest.mark.parametrize(("name", "which", "change"), BAD, ids=str)
def test_bad_arguments(device: EmulatedDevice, name: str, which: str, change: dict[str, Any]) -> None:
    q, k, v = (device.asarray(x) for x in inputs("float32", groups=2))
    dense, cached = (16, 16, 16), (1280, 640, 16)
    given = {"decode": Decode(o=q.pointer, q=q.pointer, heads=2, queries=1, o_strides=dense, q_strides=dense,
                              scale=1.0),
             "cache": Cache(k=k.pointer, v=v.pointer, batch=1, groups=2, capacity=40, width=16,
                            value_width=16,
                            k_strides=cached, v_strides=cached)}
    for field, value in change.items():
        setattr(given[which], field, value)
    with pytest.raises(DeviceArgumentError, match=name):
        device.call("attention_decode", byref(given["decode"]), byref(given["cache"]), None, 0)


def test_workspace(device: EmulatedDevice) -> None:
    size = device.library.nn_attention_decode_workspace_size
    assert size(1, 8, 1, 256, 64) == 0 < size(1, 8, 1, 257, 64) <= size(2, 8, 1, 257, 64)
    assert size(2, 8, 1, 257, 64) <= size(2, 8, 1, 262144, 64)
    q, k, v = (device.asarray(x) for x in inputs("float32", capacity=300))
    call = Decode(o=q.pointer, q=q.pointer, heads=2, queries=1, q_strides=(32, 16, 16),
                  o_strides=(32, 16, 16))
    cache = Cache(k=k.pointer, v=v.pointer, batch=1, groups=1, capacity=300, width=16, value_width=16,
                  k_strides=(4800, 4800, 16), v_strides=(4800, 4800, 16))
    with pytest.raises(DeviceArgumentError, match="workspace_bytes: 16"):
        device.call("attention_decode", byref(call), byref(cache), device.workspace(16), 16)
