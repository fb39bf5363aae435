"""The cache of one attention layer, with the names that LinearNexus's users know.

    cache = KVCache.zeros(batch_size=2, max_seq_len=64, n_kv_heads=1, head_dim=16)
    longer = cache.update(keys, values)                     # [2,1,T,16] each; `cache` stays as it is
    keys, values = longer.get()"""

from typing import Any

import numpy as np

from nn.cache import LayerCache
from nn.dtypes import DType
from nn.tensor import Array


class KVCache(LayerCache):
    """Keys, turned by the angles of their positions, and values, of the key/value heads alone."""

    _lent = False           # whether the arrays are someone else's, who gave them to `holding`

    @classmethod
    def zeros(cls, batch_size: int, max_seq_len: int, n_kv_heads: int, head_dim: int,
              dtype: Any = "float32") -> "KVCache":
        """Of no tokens, with room for max_seq_len; it grows when there are more."""
        cache, shape = cls(), (batch_size, n_kv_heads, max_seq_len, head_dim)
        cache._k, cache._v = (np.zeros(shape, DType.of(dtype).numpy) for _ in "kv")
        return cache

    @classmethod
    def holding(cls, keys: Array, values: Array, offset: int, padding: Array | int = 0) -> "KVCache":
        """Of keys and values [B,G,L,Dh] that are there already, the newest of `offset` tokens, `padding` of
        them padding ([B], or 0).  They are copied when it grows, and never written into."""
        cache = cls()
        cache._k, cache._v, cache.length, cache._lent = keys, values, keys.shape[2], True
        cache.offset, cache.padding = offset, padding
        return cache

    def append(self, k: Array, v: Array) -> tuple[Array, Array]:
        held = super().append(k, v)
        self._lent = self._lent and not k.shape[2]         # without room to spare, everything was copied
        return held

    def trim(self, keep: int) -> None:
        if not self._lent or keep < 0:
            super().trim(keep)
        elif keep < self.length:
            self._narrow(self.length - keep, self.length)

    def crop(self, length: int) -> None:
        super().crop(length)
        if self._lent:
            self._narrow(0, self.length)

    def _narrow(self, start: int, end: int) -> None:
        """Hold a part of what was lent, with no room behind it: what comes next lies in storage of its own"""
        if self._k is not None and self._v is not None:
            self._k, self._v = self._k[:, :, start:end], self._v[:, :, start:end]
        self.length = end - start

    @property
    def keys(self) -> Array:
        """[B,G,length,Dh]; None before the first token, unless there is room already"""
        return self.k

    @property
    def values(self) -> Array:
        """[B,G,length,Dh]"""
        return self.v

    @property
    def position(self) -> int:
        """Tokens seen: the position of the next one."""
        return self.offset

    def update(self, keys: Array, values: Array) -> "KVCache":
        """A cache that holds keys[B,G,T,Dh] and values[B,G,T,Dh] too; this one stays as it is."""
        longer = self.copy()
        longer.append(keys, values)
        return longer

    def get(self) -> tuple[Array, Array]:
        """(keys, values) of everything held"""
        return self.k, self.v
