"""StaticKVCache: a cache whose length is read from memory gives what the growing one gives."""

import numpy as np
import pytest

from nn import MoETransformer
from nn.cache import KVCache, StaticKVCache
from nn.errors import InputError
from nn.models.presets import TINY


def decoded(model: MoETransformer, cache: KVCache | StaticKVCache, ids: np.ndarray,
            cuts: list[int]) -> list[np.ndarray]:
    parts = np.split(ids, cuts, axis=1)
    return [model(part, cache=cache).data for part in parts]


@pytest.mark.parametrize("changes",
                         [{}, {"sliding_window": 5}, {"rope_interleaved": True}, {"qk_norm": True}])
def test_equals_the_growing_cache(changes: dict) -> None:
    model = MoETransformer(TINY.replace(**changes), dtype="float64").eval()
    ids = np.random.default_rng(0).integers(1000, size=(2, 12))
    static = StaticKVCache(2, 2, 16, like=model.embed_tokens.weight.data)
    expected = decoded(model, KVCache(2), ids, [5, 8, 9])
    for found, right in zip(decoded(model, static, ids, [5, 8, 9]), expected, strict=True):
        np.testing.assert_allclose(found, right, rtol=1e-10, atol=1e-12)
    assert static.length == 12
    assert static.lengths.tolist() == [12, 12]


def test_positions_go_on_after_trim() -> None:
    model = MoETransformer(TINY, dtype="float64").eval()
    ids = np.random.default_rng(1).integers(1000, size=(1, 12))
    like = model.embed_tokens.weight.data
    growing, static = KVCache(2), StaticKVCache(2, 1, 10, like=like, last_position=32)
    for cache in (growing, static):
        model(ids[:, :10], cache=cache)
        cache.trim(keep=5)
    np.testing.assert_allclose(model(ids[:, 10:], cache=static).data, model(ids[:, 10:], cache=growing).data,
                               rtol=1e-10, atol=1e-12)
    assert static.positions.tolist() == [12]
    assert static.lengths.tolist() == [7]


def test_refusals() -> None:
    model = MoETransformer.tiny().eval()
    like = model.embed_tokens.weight.data
    with pytest.raises(InputError, match="capacity: 0"):
        StaticKVCache(2, 1, 0, like=like)
    with pytest.raises(InputError, match="mask: a cache of fixed size"):
        model([[1, 2]], cache=StaticKVCache(2, 1, 8, like=like), mask=[[1, 1]])
    cache = StaticKVCache(2, 1, 4, like=like)
    model([[1, 2]], cache=cache)
    with pytest.raises(InputError, match=r"2 cached \+ 3 new tokens exceed the cache's capacity of 4"):
        model([[1, 2, 3]], cache=cache)
    assert model([[1, 2]], cache=cache).shape == (1, 2, 1000)
