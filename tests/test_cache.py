"""The key/value cache by itself; with a model see models/test_decoding.py."""

from typing import Any

import numpy as np
import pytest

from nn.cache import KVCache, LayerCache
from nn.errors import InputError
from nn.layers.attention.kv_cache import KVCache as HeldCache


def entries(first: int, count: int, batch: int = 2, groups: int = 1) -> tuple[np.ndarray, np.ndarray]:
    """Keys and values that tell their place: entry n of row b is 100 b + n."""
    number = 100.0 * np.arange(batch)[:, None, None, None] + np.arange(first, first + count)[:, None]
    keys = np.broadcast_to(number, (batch, groups, count, 4)).copy()
    return keys, -keys[..., :3]


def held(layer: LayerCache, row: int = 0) -> list[float]:
    assert layer.k.shape[2] == layer.v.shape[2] == layer.length
    np.testing.assert_array_equal(layer.v[..., 0], -layer.k[..., 0])
    return layer.k[row, 0, :, 0].tolist()


def filled(*counts: int) -> LayerCache:
    layer = LayerCache()
    for count in counts:
        layer.append(*entries(layer.offset, count))
    return layer


def test_empty() -> None:
    layer = LayerCache()
    assert (layer.length, layer.offset, layer.k, layer.v) == (0, 0, None, None)
    cache = KVCache(num_layers=3)
    assert (cache.length, cache.offset, cache.nbytes, len(cache.layers)) == (0, 0, 0, 3)


@pytest.mark.parametrize("counts", [(1,), (4, 1, 1, 3), (16, 1), (17,), (3, 40, 1), (0, 2), (100, 100, 100)])
def test_appends_in_pieces(counts: tuple[int, ...]) -> None:
    layer = LayerCache()
    for count in counts:
        k, v = layer.append(*entries(layer.offset, count))
        assert k.shape == (2, 1, layer.length, 4)
        assert v.shape == (2, 1, layer.length, 3)
    assert layer.length == layer.offset == sum(counts)
    assert held(layer) == [float(n) for n in range(sum(counts))]
    assert held(layer, row=1) == [100.0 + n for n in range(sum(counts))]


def test_appending_many_single_tokens_copies_rarely() -> None:
    layer, moves, storage = LayerCache(), 0, None
    for n in range(1000):
        layer.append(*entries(n, 1))
        moves += layer._k is not storage
        storage = layer._k
    assert moves <= 8                                        # 16, 32, 64, ... 1024


def test_trim_drops_the_oldest_and_positions_go_on() -> None:
    layer = filled(10)
    layer.trim(4)
    assert (held(layer), layer.offset) == ([6.0, 7.0, 8.0, 9.0], 10)
    layer.append(*entries(10, 2))
    assert (held(layer), layer.offset) == ([6.0, 7.0, 8.0, 9.0, 10.0, 11.0], 12)
    layer.trim(100)
    assert layer.length == 6
    layer.trim(0)
    assert (layer.length, layer.offset, held(layer)) == (0, 12, [])


def test_trim_where_old_and_new_place_overlap() -> None:
    layer = filled(10)
    layer.trim(9)
    assert held(layer) == [float(n) for n in range(1, 10)]


@pytest.mark.parametrize(("k", "v"), [((2, 1, 1, 1), (2, 1, 1, 3)), ((2, 1, 1, 4), (2, 1, 1, 1)),
                                      ((2, 1, 2, 4), (2, 1, 1, 3))])
def test_heads_of_another_model_are_refused(k: tuple[int, ...], v: tuple[int, ...]) -> None:
    """Also those of one channel, which NumPy would spread over all"""
    layer = filled(3)
    assert (layer.k.shape, layer.v.shape) == ((2, 1, 3, 4), (2, 1, 3, 3))
    with pytest.raises(InputError, match="cache: holds heads of . channels"):
        layer.append(np.ones(k), np.ones(v))
    assert (layer.length, layer.offset) == (3, 3)


def test_crop_takes_back_the_newest() -> None:
    layer = filled(10)
    layer.crop(7)
    assert (held(layer), layer.offset) == ([float(n) for n in range(7)], 7)
    layer.append(*entries(50, 1))
    assert held(layer)[-1] == 50.0
    layer.crop(100)
    assert layer.length == 8


def test_crop_after_trim() -> None:
    layer = filled(10)
    layer.trim(5)
    layer.crop(3)
    assert (held(layer), layer.offset) == ([5.0, 6.0, 7.0], 8)


def test_crop_into_padding() -> None:
    """Padding is what was seen first: of two tokens no more than two are padding."""
    layer = filled(6)
    layer.padding = np.array([3, 0])
    layer.crop(4)
    assert layer.padding.tolist() == [3, 0]
    layer.crop(2)
    assert (layer.padding.tolist(), layer.offset) == ([2, 0], 2)


@pytest.mark.parametrize("rows", [[1, 0], [1, 1], [0, 1, 0]])
def test_reorder(rows: list[int]) -> None:
    layer = filled(3)
    layer.padding = np.array([2, 0])
    layer.reorder(np.array(rows))
    assert [held(layer, row)[0] for row in range(len(rows))] == [100.0 * row for row in rows]
    assert layer.padding.tolist() == [[2, 0][row] for row in rows]


def test_results_do_not_change_when_more_is_appended() -> None:
    layer = filled(16)
    before = layer.k
    copy = before.copy()
    layer.append(*entries(16, 1))
    np.testing.assert_array_equal(before, copy)


@pytest.mark.parametrize(("other", "message"), [
    (entries(0, 1, batch=3),
     r"cache: holds \[B,G\] = \[2, 1\] in float64, given \[3, 1\] in float64; use one cache per batch"),
    (entries(0, 1, groups=2), r"holds \[B,G\] = \[2, 1\] in float64, given \[2, 2\] in float64"),
    (tuple(x.astype(np.float32) for x in entries(0, 1)), "in float64, given .* in float32")])
def test_another_batch_or_type_is_refused(other: Any, message: str) -> None:
    layer = filled(2)
    with pytest.raises(InputError, match=message):
        layer.append(*other)
    assert held(layer) == [0.0, 1.0]


def test_the_cache_of_a_model() -> None:
    cache = KVCache(num_layers=2)
    for layer in cache.layers:
        layer.append(*entries(0, 8))
    assert cache.nbytes == 2 * 2 * 8 * (4 + 3) * 8           # layers, rows, entries, widths, bytes
    cache.trim(6)
    cache.crop(5)
    cache.reorder(np.array([1, 0]))
    assert all(held(layer) == [102.0, 103.0, 104.0, 105.0, 106.0] for layer in cache.layers)
    assert (cache.length, cache.offset) == (5, 7)
    cache.reset()
    assert (cache.length, cache.offset, cache.nbytes) == (0, 0, 0)


@pytest.mark.parametrize("wrong", [0, -1])
def test_needs_layers(wrong: int) -> None:
    with pytest.raises(InputError, match=f"num_layers: {wrong} is not a positive number of layers"):
        KVCache(wrong)


@pytest.mark.parametrize("name", ["k", "v", "offset", "padding"])
def test_a_saved_value_that_is_missing_is_named(name: str) -> None:
    cache = LayerCache()
    cache.append(np.zeros((1, 2, 3, 4)), np.zeros((1, 2, 3, 4)))
    saved = cache.state_dict()
    del saved[name]
    with pytest.raises(InputError, match=f"LayerCache is given no {name}"):
        LayerCache().load_state_dict(saved)


@pytest.mark.parametrize("change", [
    lambda cache: cache.trim(2), lambda cache: cache.crop(2), lambda cache: cache.trim(0),
    lambda cache: cache.reorder(np.array([0, 0]))], ids=["trim", "crop", "to nothing", "reorder"])
def test_a_cache_that_holds_what_was_given_never_writes_into_it(change: Any) -> None:
    keys, values = np.arange(48.0).reshape(2, 1, 6, 4), -np.arange(48.0).reshape(2, 1, 6, 4)
    before, new = keys.copy(), np.full((2, 1, 1, 4), 7.0)
    cache, plain = HeldCache.holding(keys, values, offset=9), HeldCache()
    plain.append(keys, values)
    plain.offset = 9
    for _ in range(2):                                       # what it has of its own it may write into
        for each in (cache, plain):
            change(each)
            each.append(new, -new)
        assert np.array_equal(keys, before)
        assert np.array_equal(values, -before)
        assert (cache.length, cache.offset) == (plain.length, plain.offset)
        assert np.array_equal(cache.k, plain.k)
        assert np.array_equal(cache.v, plain.v)
        assert (cache.copy().k == plain.k).all()
