"""States of blocks: picked by row, copied, saved and loaded, whatever their fields hold."""

from dataclasses import dataclass, field

import numpy as np
import pytest

from nn.cache import LayerCache
from nn.errors import InputError
from nn.state import Array, State


@dataclass
class Inner(State):
    s: Array
    offset: int = 0


@dataclass
class Outer(State):
    inner: Inner
    parts: list[Inner | None]
    tail: Array = None
    scale: float = 1.0
    nothing: State | None = None
    names: list[str] = field(default_factory=list)


def state(rows: int = 3) -> Outer:
    def array(start: int) -> np.ndarray:
        return np.arange(start, start + 2 * rows, dtype=np.float64).reshape(rows, 2)

    return Outer(Inner(array(0), 4), [Inner(array(10)), None, Inner(array(20), 7)], array(30), 0.5)


def test_rows_are_picked_everywhere() -> None:
    found, whole = state(), state()
    found.reorder(np.array([2, 2, 0, 1]))
    assert np.array_equal(found.inner.s, whole.inner.s[[2, 2, 0, 1]])
    assert np.array_equal(found.parts[2].s, whole.parts[2].s[[2, 2, 0, 1]])
    assert np.array_equal(found.tail, whole.tail[[2, 2, 0, 1]])
    assert (found.inner.offset, found.parts[2].offset, found.scale) == (4, 7, 0.5)


def test_a_copy_shares_nothing() -> None:
    first = state()
    second = first.copy()
    second.inner.s += 1.0
    second.parts[0].s[...] = 0.0
    second.parts.append(None)
    second.tail[0] = -1.0
    second.inner.offset = 9
    expected = state().state_dict()
    assert first.state_dict().keys() == expected.keys()
    assert all(np.array_equal(values, expected[name]) for name, values in first.state_dict().items())


def test_what_is_saved_is_loaded() -> None:
    saved = state().state_dict()
    assert set(saved) == {"inner.s", "inner.offset", "parts.0.s", "parts.0.offset", "parts.2.s",
                          "parts.2.offset", "tail", "scale"}
    fresh = Outer(Inner(np.zeros((3, 2))), [Inner(np.zeros((3, 2))), None, Inner(np.zeros((3, 2)))])
    fresh.load_state_dict(saved)
    assert all(np.array_equal(values, saved[name]) for name, values in fresh.state_dict().items())
    assert (type(fresh.inner.offset), type(fresh.scale)) == (int, float)
    saved["tail"][...] = 0.0
    assert np.array_equal(fresh.tail, state().tail)


def test_what_has_no_place_is_refused() -> None:
    with pytest.raises(InputError, match="Inner has no place for v"):
        Inner(np.zeros((1, 1))).load_state_dict({"v": np.zeros(1), "s": np.zeros((1, 1))})


def test_bytes() -> None:
    assert state().nbytes == 4 * 6 * 8


def test_a_cache_is_a_state() -> None:
    random = np.random.default_rng(0)
    cache, k, v = LayerCache(), random.standard_normal((2, 1, 5, 4)), random.standard_normal((2, 1, 5, 3))
    cache.append(k, v)
    cache.padding = np.array([2, 0])
    cache.trim(4)
    twin, loaded = cache.copy(), LayerCache()
    loaded.load_state_dict(cache.state_dict())
    cache.append(k, v)
    for other in (twin, loaded):
        assert (other.length, other.offset, list(other.padding)) == (4, 5, [2, 0])
        assert np.array_equal(other.k, k[:, :, 1:])
        assert np.array_equal(other.v, v[:, :, 1:])
        other.append(k, v)
        assert np.array_equal(other.k, cache.k)
    empty = LayerCache()
    empty.load_state_dict(LayerCache().state_dict())
    assert empty.k is None


def test_a_value_that_is_missing_is_named() -> None:
    """A file cut short must not leave half a state as it was before the first token."""
    saved = state().state_dict()
    for name, named in (("inner.s", "Inner is given no s"), ("parts.2.offset", "Inner is given no offset"),
                        ("tail", "Outer is given no tail")):
        with pytest.raises(InputError, match=named):
            state().load_state_dict({key: values for key, values in saved.items() if key != name})
