"""With a cache, a model says what it says without one."""

import re
from typing import Any

import numpy as np
import pytest

from nn import MoETransformer, no_grad
from nn.cache import KVCache
from nn.errors import InputError
from nn.layers import RopeScaling
from tests.models.test_properties import padded
from tests.models.tiny import VARIANTS, ids, model

SCALED = {kind: {"rope_scaling": RopeScaling(kind, 4.0, 8), "max_seq_len": 32}
          for kind in ("linear", "ntk", "dynamic", "yarn")}


def decode(made: MoETransformer, tokens: np.ndarray, pieces: tuple[int, ...], **options: Any) -> np.ndarray:
    cache, found, start = made.init_state(len(tokens)), [], 0
    for count in pieces:
        found.append(made(tokens[:, start : start + count], cache=cache, **options).data)
        start += count
        assert cache.length == cache.offset == start
    return np.concatenate(found, axis=1)


@pytest.mark.parametrize("pieces", [(9,), (4, 1, 1, 3), (1,) * 9, (2, 7), (8, 1)])
@pytest.mark.parametrize("name", [*VARIANTS, *SCALED])
def test_cached_equals_uncached(name: str, pieces: tuple[int, ...]) -> None:
    made, tokens = model(**(VARIANTS | SCALED)[name]), ids(2, 9)
    with no_grad():
        whole = made(tokens).data
    np.testing.assert_allclose(decode(made, tokens, pieces), whole, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-4), ("bfloat16", 0.2)])
def test_in_shorter_types_too(dtype: str, tolerance: float) -> None:
    made, tokens = model(dtype, init_std=0.15), ids(2, 9)
    np.testing.assert_allclose(decode(made, tokens, (4, 1, 1, 3)).astype(float),
                               made(tokens).data.astype(float), atol=tolerance)


def test_a_cache_records_nothing_and_holds_key_value_heads_only() -> None:
    made, cache = model(), KVCache(2)
    assert not made(ids(), cache=cache).requires_grad
    assert cache.layers[0].k.shape == (2, 2, 9, 6)
    assert cache.nbytes == 2 * 2 * (2 * 2 * 9 * 6) * 8


def test_positions_go_on_after_trim() -> None:
    """One layer: what was dropped leaves no trace, and what is kept keeps its place."""
    made, tokens, cache = model(num_layers=1), ids(2, 12), KVCache(1)
    made(tokens[:, :8], cache=cache)
    cache.trim(3)
    found = made(tokens[:, 8:10], cache=cache).data
    assert (cache.length, cache.offset) == (5, 10)
    fresh, whole = KVCache(1), KVCache(1)
    made(tokens[:, 5:8], cache=fresh)    # the same three tokens, at positions 0 to 2
    shifted = made(tokens[:, 8:10], cache=fresh).data
    np.testing.assert_allclose(found, shifted, rtol=1e-11, atol=1e-11)     # scores depend on distances alone
    made(tokens[:, :10], cache=whole)
    np.testing.assert_allclose(cache.layers[0].k, whole.layers[0].k[:, :, 5:], rtol=1e-12, atol=1e-12)
    assert not np.allclose(cache.layers[0].k, fresh.layers[0].k)           # keys stand at absolute positions


def test_trim_equals_a_window_in_a_model_of_one_layer() -> None:
    made, tokens, cache = model(num_layers=1, sliding_window=4), ids(2, 12), KVCache(1)
    found = []
    for t in range(12):
        found.append(made(tokens[:, t : t + 1], cache=cache).data)
        cache.trim(3)
    with no_grad():
        np.testing.assert_allclose(np.concatenate(found, axis=1), made(tokens).data, rtol=1e-12, atol=1e-12)


def test_taking_tokens_back() -> None:
    made, tokens, cache = model(), ids(2, 9), KVCache(2)
    made(tokens[:, :5], cache=cache)
    made((tokens[:, 5:8] + 1) % 31, cache=cache)                   # a wrong guess
    cache.crop(5)
    with no_grad():
        whole = made(tokens).data
    np.testing.assert_allclose(made(tokens[:, 5:], cache=cache).data, whole[:, 5:], rtol=1e-12, atol=1e-12)


def test_reordered_rows() -> None:
    made, tokens, cache = model(), ids(3, 6), KVCache(2)
    made(tokens, cache=cache)
    cache.reorder(np.array([2, 2, 0]))
    next_tokens = ids(3, 1, seed=9)
    with no_grad():
        whole = made(np.concatenate([tokens[[2, 2, 0]], next_tokens], axis=1)).data
    np.testing.assert_allclose(made(next_tokens, cache=cache).data, whole[:, -1:], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("trimmed", [None, 3])
@pytest.mark.parametrize("masked", [True, False])
def test_rows_of_unequal_length_decode_as_if_alone(trimmed: int | None, masked: bool) -> None:
    """Left padding, then more tokens; also where the padding has been trimmed away,
    and then without a mask."""
    made = model()
    rows = [ids(1, n, seed=n)[0] for n in (9, 5, 7)]
    tokens, mask = padded(rows)
    following, cache = ids(3, 4, seed=20), KVCache(2)
    made(tokens, cache=cache, mask=mask)
    if trimmed is not None:
        cache.trim(trimmed)
    elif not masked:
        return                                                     # padding is still there: a mask is needed
    found = []
    for t in (slice(0, 1), slice(1, 4)):
        held = np.concatenate([mask, np.ones((3, t.stop), bool)], axis=1)
        held = held[:, -(cache.length + t.stop - t.start):]
        found.append(made(following[:, t], cache=cache, mask=held if masked else None).data)
    for i, row in enumerate(rows):
        alone = KVCache(2)
        made(row[None], cache=alone)
        if trimmed is not None:
            alone.trim(trimmed)
        right = made(following[i : i + 1], cache=alone).data
        np.testing.assert_allclose(np.concatenate(found, axis=1)[i], right[0], rtol=1e-11, atol=1e-12)


class TestRefusals:
    def test_more_than_the_context(self) -> None:
        made, cache = model(max_seq_len=8), KVCache(2)
        message = ("ids: 0 cached + 9 new tokens exceed the context of 8; "
                   "shorten the input, or trim() the cache")
        with pytest.raises(InputError, match=f"^{re.escape(message)}$"):
            made(ids(1, 9))
        made(ids(1, 8), cache=cache)
        with pytest.raises(InputError, match=r"^ids: 8 cached \+ 1 new tokens exceed the context of 8"):
            made(ids(1, 1), cache=cache)
        assert cache.length == 8
        cache.trim(4)
        assert made(ids(1, 4), cache=cache).shape == (1, 4, 31)
        with pytest.raises(InputError, match="exceed the context of 8"):
            made.loss(ids(1, 9), ids(1, 9))

    def test_a_cache_of_another_model_or_batch(self) -> None:
        made, cache = model(), KVCache(2)
        with pytest.raises(InputError,
                           match=r"^cache: made for 3 layers, the model has 2; use init_state\(\)$"):
            made(ids(), cache=KVCache(3))
        with pytest.raises(InputError, match=r"^cache: int; use init_state\(\)$"):
            made(ids(), cache=3)
        made(ids(2), cache=cache)
        with pytest.raises(InputError, match=r"cache: holds \[B,G\] = \[2, 2\]"):
            made(ids(3), cache=cache)

    @pytest.mark.parametrize("shape", [(2, 8), (9,), (3, 9), (2, 1, 9), (2, 10)])
    def test_mask_of_another_shape(self, shape: tuple[int, ...]) -> None:
        with pytest.raises(InputError,
                           match=r"^mask: shape .*; expected \[batch, cached \+ new tokens\] = \[2, 9\]$"):
            model()(ids(), mask=np.ones(shape, bool))

    def test_mask_of_the_new_tokens_alone(self) -> None:
        made, cache = model(), KVCache(2)
        made(ids(), cache=cache)
        with pytest.raises(InputError, match=r"expected \[batch, cached \+ new tokens\] = \[2, 10\]"):
            made(ids(2, 1), cache=cache, mask=np.ones((2, 1), bool))

    @pytest.mark.parametrize(("wrong", "message"), [
        ([[1, 2], [3, 31]], r"^ids\[1, 1\]: 31 is outside 0 \.\.\. 30$"),
        ([[1, -2]], r"^ids\[0, 1\]: -2 is outside 0 \.\.\. 30$"),
        ([1, 2], r"^ids: shape \[2\] of int64; expected integers \[batch, length\]$"),
        ([[1.0]], r"^ids: shape \[1, 1\] of float64; expected"),
        ([[[1]]], r"^ids: shape \[1, 1, 1\]"), ([[True]], "of bool; expected integers"),
        ([["a"]], "expected integers"),
        ([[1, 2], [3]], "^ids: rows of different lengths; pad them, and pass mask=$"),
        (3, r"^ids: shape \[\] of int64")])
    def test_ids(self, wrong: Any, message: str) -> None:
        with pytest.raises(InputError, match=message):
            model()(wrong)
        with pytest.raises(InputError, match=message):
            model().loss(wrong, wrong)

    @pytest.mark.parametrize(("targets", "message"), [
        (np.zeros((9, 2), int),
         r"^targets: shape \[9, 2\] of int64 does not match the inputs, integers \[2, 9\]$"),
        (np.zeros(18, int), r"^targets: shape \[18\]"),
        (np.zeros((2, 9)), "of float64 does not match the inputs"),
        (np.full((2, 9), 31),
         r"^targets\[0\]: 31 is outside 0 \.\.\. 30; use -100 for positions without a target$"),
        (np.full((2, 9), -1), r"^targets\[0\]: -1 is outside")])
    def test_targets(self, targets: np.ndarray, message: str) -> None:
        with pytest.raises(InputError, match=message):
            model().loss(ids(), targets)

    @pytest.mark.parametrize(("arguments", "message"), [
        (([1, 2, 3], 2), "^token_ids: 3 ids do not make batch 2 x seq_len 1$"),
        (([1, 2, 3, 4], 1, 3), "^token_ids: 4 ids do not make batch 1 x seq_len 3$"),
        (([1, 2], -1), "token_ids: 2 ids do not make batch -1")])
    def test_forward_ids(self, arguments: Any, message: str) -> None:
        with pytest.raises(InputError, match=message):
            model().forward_ids(*arguments)
