"""Key/value cache: what a decoder keeps of past tokens, so that the next one costs O(length), not O(length²).

Keys are kept rotated, for key/value heads only.  `offset` counts every token ever seen and never goes back,
also when old entries are dropped: positions stay absolute.

    cache = KVCache(num_layers=2);  model(ids, cache=cache)
"""

from collections.abc import Callable
from typing import Any

import numpy as np

from nn.backends import kernels
from nn.backends.array_api import beside, namespace, on_device
from nn.errors import InputError
from nn.state import State
from nn.tensor import Array


class LayerCache(State):
    """One layer's keys and values, [B,G,length,Dh] views of storage that doubles when full."""

    def __init__(self) -> None:
        self.length = 0              # entries held
        self.offset = 0              # tokens ever appended
        self.padding: Array | int = 0        # how many of them were padding, [B] if any were
        self._k: Array | None = None
        self._v: Array | None = None

    @property
    def k(self) -> Array:
        return self._k[:, :, : self.length] if self._k is not None else None

    @property
    def v(self) -> Array:
        return self._v[:, :, : self.length] if self._v is not None else None

    def append(self, k: Array, v: Array) -> tuple[Array, Array]:
        """Add k[B,G,T,Dk] and v[B,G,T,Dv]; return everything held, old and new."""
        if self._k is not None and (self._k.shape[:2] != k.shape[:2] or self._k.dtype != k.dtype):
            raise InputError(f"cache: holds [B,G] = {list(self._k.shape[:2])} in {self._k.dtype}, given "
                             f"{list(k.shape[:2])} in {k.dtype}; use one cache per batch, or reset() it")
        for held, new in ((self._k, k), (self._v, v)):
            if held is not None and (held.shape[3] != new.shape[3] or new.shape[2] != k.shape[2]):
                raise InputError(f"cache: holds heads of {held.shape[3]} channels, given {list(new.shape)} "
                                 f"beside keys {list(k.shape)}; a cache serves one model")
        end = self.length + k.shape[2]
        self._k, self._v = _room(self._k, k, self.length, end), _room(self._v, v, self.length, end)
        self._k[:, :, self.length : end], self._v[:, :, self.length : end] = k, v
        self.length, self.offset = end, self.offset + k.shape[2]
        return self.k, self.v

    def trim(self, keep: int) -> None:
        """Drop the oldest entries until `keep` are left; positions go on."""
        _check_count("keep", keep)
        drop = self.length - keep
        if drop > 0 and self._k is not None and self._v is not None:
            for storage in (self._k, self._v):
                storage[:, :, :keep] = storage[:, :, drop : self.length].copy()
            self.length = keep

    def crop(self, length: int) -> None:
        """Take back the newest entries until `length` are left, as if they had never been seen."""
        _check_count("length", length)
        drop = max(0, self.length - length)
        self.length, self.offset = self.length - drop, self.offset - drop
        if not isinstance(self.padding, int):           # padding came first: it goes last
            self.padding = namespace(self.padding).minimum(self.padding, self.offset)

    def reorder(self, rows: Array) -> None:
        """Row b becomes what row rows[b] was (beam search)."""
        if self._k is not None and self._v is not None:
            xp, index = namespace(self._k), beside(rows, self._k)
            self._k, self._v = xp.take(self._k, index, axis=0), xp.take(self._v, index, axis=0)
        if not isinstance(self.padding, int):
            self.padding = namespace(self.padding).take(self.padding, rows, axis=0)

    @property
    def nbytes(self) -> int:
        """Bytes of the entries held."""
        return sum(x.nbytes for x in (self.k, self.v) if x is not None)

    def state_dict(self) -> dict[str, np.ndarray]:
        """The entries held, how many tokens were seen, and how many of them were padding."""
        arrays = {} if self._k is None else {"k": self.k, "v": self.v}
        values = {name: np.array(x.numpy() if on_device(x) else x) for name, x in arrays.items()}
        return values | {"offset": np.array(self.offset), "padding": np.array(self.padding)}

    def load_state_dict(self, values: dict[str, np.ndarray]) -> None:
        """Hold what another cache held: this one is as fresh as init_state() made it.  InputError for a value
        that is missing."""
        wanted = {"offset", "padding"} | ({"k", "v"} if {"k", "v"} & values.keys() else set())
        if missing := sorted(wanted - values.keys()):
            raise InputError(f"state: {type(self).__name__} is given no {', '.join(missing)}")
        if "k" in values:
            self.append(np.array(values["k"]), np.array(values["v"]))
        padding, self.offset = values["padding"], int(values["offset"])
        self.padding = padding.copy() if padding.ndim else int(padding)


def _check_count(name: str, value: int) -> None:
    if value < 0:
        raise InputError(f"{name}: {value} entries cannot be left; give 0 or more")


def _room(storage: Array | None, new: Array, length: int, end: int) -> Array:
    """Storage for `end` entries: the old one, or one twice as large with the old entries copied."""
    if storage is not None and end <= storage.shape[2]:
        return storage
    capacity = max(end, 2 * length, 16)
    larger = namespace(new).zeros((*new.shape[:2], capacity, new.shape[3]), dtype=new.dtype)
    if storage is not None:
        larger[:, :, :length] = storage[:, :, :length]
    return larger


class KVCache:
    """The caches of all layers of a model.

    source: what a model keeps besides of the text that it continues (an encoder's output), or None."""

    def __init__(self, num_layers: int) -> None:
        if num_layers < 1:
            raise InputError(f"num_layers: {num_layers} is not a positive number of layers")
        self.layers = [LayerCache() for _ in range(num_layers)]
        self.source: State | None = None

    @property
    def length(self) -> int:
        """Tokens held."""
        return self.layers[0].length

    @property
    def offset(self) -> int:
        """Tokens ever seen: the position of the next one."""
        return self.layers[0].offset

    @property
    def nbytes(self) -> int:
        """Bytes of the entries held."""
        return sum(layer.nbytes for layer in self.layers)

    def trim(self, keep: int) -> None:
        """Drop the oldest tokens until `keep` are left; positions go on."""
        for layer in self.layers:
            layer.trim(keep)

    def crop(self, length: int) -> None:
        """Take back the newest tokens until `length` are left."""
        for layer in self.layers:
            layer.crop(length)

    def reorder(self, rows: np.ndarray) -> None:
        """Row b of the batch becomes what row rows[b] was."""
        for part in [*self.layers, *([self.source] if self.source else [])]:
            part.reorder(rows)

    def copy(self) -> "KVCache":
        """A cache that goes its own way."""
        twin = KVCache(len(self.layers))
        twin.layers = [layer.copy() for layer in self.layers]
        twin.source = self.source.copy() if self.source else None
        return twin

    def reset(self) -> None:
        """Forget everything; position 0 comes next."""
        self.layers, self.source = [LayerCache() for _ in self.layers], None


class StaticLayerCache:
    """One layer's keys and values, [B,G,capacity,Dh].  How many positions each row holds is read from memory
    beside them, so that the same calls, recorded once, append the next token at every replay."""

    def __init__(self, owner: "StaticKVCache") -> None:
        self._owner = owner
        self.pinned = 0                # first entries that stay when old ones are dropped
        self.k: Array | None = None
        self.v: Array | None = None

    @property
    def lengths(self) -> Array:
        """int32 [B]: entries held"""
        return self._owner.lengths

    @property
    def positions(self) -> Array:
        """int32 [B]: position of the next token"""
        return self._owner.positions

    @property
    def empty(self) -> bool:
        """Whether no token is held."""
        return self._owner.length == 0

    def lengths_with(self, count: int) -> Array:
        """int32 [B]: entries held when `count` more are; on the host it keeps its place, see expect()"""
        return self._owner.lengths + count if on_device(self.lengths) else self._owner.expect(count)

    def angles(self, rotary: Any) -> tuple[Array, Array]:
        """The rotary's tables for every position that may come, where the cache is."""
        return self._owner.angles(rotary)

    def store(self, k: Array, v: Array) -> None:
        """Write k[B,G,T,Dk], v[B,G,T,Dv] behind what is held; `StaticKVCache.advance` makes it count."""
        if self.k is None:
            xp, capacity = namespace(k), self._owner.capacity
            self.k = xp.zeros((*k.shape[:2], capacity, k.shape[3]), dtype=k.dtype)
            self.v = xp.zeros((*v.shape[:2], capacity, v.shape[3]), dtype=v.dtype)
        kernels.cache_append(self.k, self.v, k, v, self.lengths)


class StaticKVCache:
    """The caches of all layers, of fixed capacity; every row holds the same number of tokens.

    `positions` may run ahead of `lengths`, when old entries were dropped; `last_position` says how far."""

    def __init__(self, num_layers: int, batch_size: int, capacity: int, *, like: Array,
                 last_position: int | None = None) -> None:
        if capacity < 1:
            raise InputError(f"capacity: {capacity} is not a positive number of positions")
        xp = namespace(like)
        self.capacity, self._like, self._last = capacity, like, last_position or capacity
        self.lengths = xp.zeros((batch_size,), dtype=xp.int32)
        self.positions = xp.zeros((batch_size,), dtype=xp.int32)
        self.length = self.offset = 0                # what the arrays hold, as far as the host knows
        self._expected = xp.zeros((batch_size,), dtype=xp.int32)
        self._angles: dict[Any, tuple[Array, Array]] = {}
        self.layers = [StaticLayerCache(self) for _ in range(num_layers)]

    def angles(self, rotary: Any) -> tuple[Array, Array]:
        if on_device(self._like):
            return rotary.placed(self._like.device, self._last)
        if rotary not in self._angles:               # they keep their place: a recorded step reads them
            wide = np.float64 if self._like.dtype == np.float64 else np.float32
            self._angles[rotary] = rotary(0, self._last, wide)
        return self._angles[rotary]

    def expect(self, count: int) -> Array:
        """On the host: lengths + count, int32 [B], always in the same place, where a recorded step reads
        it."""
        np.add(self.lengths, count, out=self._expected)
        return self._expected

    def advance(self, count: int) -> None:
        """The tokens that the layers have just stored are held from now on."""
        self.lengths += count
        self.positions += count
        self.note(count)

    def note(self, count: int) -> None:
        """As advance, after a replay, which has changed the arrays already."""
        self.length += count
        self.offset += count

    @property
    def nbytes(self) -> int:
        """Bytes of the storage."""
        return sum(x.nbytes for layer in self.layers for x in (layer.k, layer.v) if x is not None)

    def trim(self, keep: int) -> None:
        """Drop the oldest tokens, but those that a layer has pinned, until `keep` are left; positions go
        on."""
        _check_count("keep", keep)
        drop = self.length - keep
        if drop <= 0:
            return
        for layer in self.layers:
            first = min(layer.pinned, keep)
            for storage in (layer.k, layer.v):
                if storage is not None:
                    storage[:, :, first:keep, :] = storage[:, :, first + drop : self.length, :].copy()
        self.lengths -= drop
        self.length = keep


class StepCache(dict[Any, Any]):
    """What the steps of a recursion have in common: values by name, or by (layer, name), kept from step to
    step and fresh at the start of every forward pass (nn/layers/recursion)."""

    def once(self, key: Any, make: Callable[[], Any]) -> Any:
        """The value of that key, made when it is first asked for."""
        if key not in self:
            self[key] = make()
        return self[key]

    def exchange(self, key: Any, value: Any) -> Any:
        """The value of the step before, None at first; this one is kept for the next."""
        before = self.get(key)
        self[key] = value
        return before
