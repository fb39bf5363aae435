"""Counter-based random numbers: Philox 4x32-10 (Salmon et al. 2011, "Parallel random
numbers: as easy as 1, 2, 3").

A value is a pure function of a 64-bit key and a 128-bit counter, so it depends neither on what was drawn
before nor on what else is in the batch, and a CUDA kernel that evaluates the same function gets the same
bits.  The layout, binding for every backend:

    key      k0 = low 32 bits of derive(seed, name), k1 = high 32 bits
    counter  c0 = i // 4 for the element with flat (C-order) index i; c1, c2, c3 = stream words, absent ones 0
    word     output word i % 4 of that block, a uint32
    uniform  (word >> 8) * 2^-24: the top 24 bits, exact in float32, in [0, 1)

A purpose has its own name, hence its own key ("sampling", "router_jitter"); one key is always used with the
same number of stream words.  Parameters come from `generator`, NumPy's own: no kernel has to repeat those.

Try: python -c "from nn.random import *; print(uniform(derive(0, 'demo'), 7, shape=(2, 4)))" """

import hashlib
import math
from typing import Any

import numpy as np

from nn.errors import InputError

_MASK = 0xFFFFFFFF
_M0, _M1 = 0xD2511F53, 0xCD9E8D57  # round multipliers
_W0, _W1 = 0x9E3779B9, 0xBB67AE85  # key increments: golden ratio and sqrt(3) - 1
_CHUNK = 1 << 14  # blocks at a time, so that a round's temporaries stay in cache: 2.3x on 10 million values


def derive(seed: int, name: str) -> int:
    """The 64-bit key of the stream called `name`: BLAKE2b of the name, keyed by the seed."""
    if not 0 <= seed < 2**64:
        raise InputError(f"seed: {seed} is out of range; give an integer from 0 to 2**64 - 1")
    digest = hashlib.blake2b(name.encode(), digest_size=8, key=int(seed).to_bytes(8, "little")).digest()
    return int.from_bytes(digest, "little")


def generator(seed: int, name: str) -> np.random.Generator:
    """NumPy's generator for the stream called `name`: for what only the host draws (initial parameters)."""
    return np.random.Generator(np.random.Philox(key=derive(seed, name)))


def philox4x32(counter: tuple[Any, ...], key: int) -> tuple[Any, ...]:
    """Ten rounds on four 32-bit words: Python integers or broadcastable uint64 arrays, as they went in."""
    c0, c1, c2, c3 = counter
    k0, k1 = key & _MASK, key >> 32
    for _ in range(10):
        p0, p1 = c0 * _M0, c2 * _M1  # 64-bit products
        c0, c1, c2, c3 = (p1 >> 32) ^ c1 ^ k0, p1 & _MASK, (p0 >> 32) ^ c3 ^ k1, p0 & _MASK
        k0, k1 = (k0 + _W0) & _MASK, (k1 + _W1) & _MASK
    return c0, c1, c2, c3


def bits(key: int, *stream: Any, shape: tuple[int, ...] = ()) -> np.ndarray:
    """uint32 words, shape = (broadcast shape of the stream words) + `shape`.

    Up to three stream words, integers or arrays, in [0, 2**32): `bits(key, rows, step)` is one per row."""
    words = np.broadcast_arrays(*_stream_words(stream))
    lead, count = words[0].shape, math.prod(shape)
    if not shape and words[0].size <= 8:  # for so few values Python's integers beat NumPy's overhead
        streams = zip(*(word.flat for word in words), strict=True)
        drawn = [philox4x32((0, *map(int, stream)), key)[0] for stream in streams]
        return np.array(drawn, dtype=np.uint32).reshape(lead)
    arrays = [word.astype(np.uint64)[..., None] for word in words]
    blocks = -(-count // 4)
    out = np.empty((*lead, blocks, 4), dtype=np.uint32)
    for start in range(0, blocks, _CHUNK):
        c0 = np.arange(start, min(start + _CHUNK, blocks), dtype=np.uint64)
        for i, word in enumerate(philox4x32((c0, *arrays), key)):
            out[..., start : start + _CHUNK, i] = word
    return out.reshape(*lead, 4 * blocks)[..., :count].reshape(*lead, *shape)


def uniform(key: int, *stream: Any, shape: tuple[int, ...] = (), dtype: Any = np.float32) -> np.ndarray:
    """Multiples of 2^-24 in [0, 1), float32 or float64, the same numbers in both; arguments as in `bits`."""
    if np.dtype(dtype) not in (np.float32, np.float64):
        raise InputError(f"dtype: {np.dtype(dtype)} rounds some values up to 1; choose float32 or float64")
    return (bits(key, *stream, shape=shape) >> 8).astype(dtype) * np.asarray(2.0**-24, dtype=dtype)


def counter(seed: int, name: str, *stream: int) -> np.ndarray:
    """int64[4]: the key of the stream called `name`, as its bits, and three stream words, absent ones 0: all
    that a kernel needs to draw from, in memory that it reads."""
    words = np.array([0, *map(int, _stream_words(stream))], np.int64)
    words[0] = np.uint64(derive(seed, name)).astype(np.int64)
    return words


def drawn_from(place: np.ndarray, shape: tuple[int, ...], dtype: Any = np.float32) -> np.ndarray:
    """The uniform numbers at a counter()."""
    return uniform(int(place[0]) % 2**64, *map(int, place[1:]), shape=shape, dtype=dtype)


def apart(place: np.ndarray, index: int) -> np.ndarray:
    """The counter() of part `index`, below 2**32, of what is drawn at a counter(): its stream words, under
    another key, which is two words that the old one gives where nothing else is drawn (c3 = 2**32 - 1)."""
    words = np.array(place, np.int64)
    low, high, *_ = philox4x32((index, 0, 0, _MASK), int(place[0]) % 2**64)
    words[0] = np.uint64(low | high << 32).astype(np.int64)
    return words


def _stream_words(stream: tuple[Any, ...]) -> list[np.ndarray]:
    """Three integer arrays; absent words are 0."""
    if len(stream) > 3:
        raise InputError(f"stream: {len(stream)} words given; a counter has room for 3")
    words = [np.asarray(word) for word in (*stream, 0, 0, 0)[:3]]
    for word in words:
        if word.dtype.kind not in "iu" or ((word < 0) | (word > _MASK)).any():
            raise InputError(f"stream: {word} is not an integer in [0, 2**32)")
    return words
