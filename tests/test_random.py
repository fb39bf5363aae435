"""Philox against its published answers; the counter layout that every backend has to follow; streams."""

import numpy as np
import pytest

from nn.errors import InputError
from nn.random import apart, bits, counter, derive, generator, philox4x32, uniform

# "philox4x32 10" in tests/kat_vectors of the Random123 distribution: counter, key, result
KNOWN = [
    ("00000000 00000000 00000000 00000000", "00000000 00000000", "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
    ("ffffffff ffffffff ffffffff ffffffff", "ffffffff ffffffff", "408f276d 41c83b0e a20bc7c6 6d5451fd"),
    ("243f6a88 85a308d3 13198a2e 03707344", "a4093822 299f31d0", "d16cfe09 94fdcceb 5001e420 24126ea1"),
]


def words(text: str) -> tuple[int, ...]:
    return tuple(int(word, 16) for word in text.split())


@pytest.mark.parametrize(("counter", "key", "expected"), KNOWN)
def test_known_answers_as_integers_and_as_arrays(counter, key, expected):
    k0, k1 = words(key)
    assert philox4x32(words(counter), k1 << 32 | k0) == words(expected)
    arrays = tuple(np.array([word, 1], dtype=np.uint64) for word in words(counter))
    assert tuple(int(out[0]) for out in philox4x32(arrays, k1 << 32 | k0)) == words(expected)


def test_counter_layout():
    """Element i is word i % 4 of block (i // 4, stream words), also beyond one internal chunk."""
    key, size = derive(3, "layout"), 4 * 16384 + 7
    drawn = bits(key, 5, 6, 7, shape=(size,))
    for i in (0, 1, 2, 3, 4, 65535, 65536, size - 1):
        assert drawn[i] == philox4x32((i // 4, 5, 6, 7), key)[i % 4]
    assert np.array_equal(bits(key, 5, shape=(3, 2)).reshape(-1), bits(key, 5, 0, 0, shape=(6,)))
    assert bits(key, 5, 6) == bits(key, 5, 6, shape=(9,))[0]


def test_stream_arrays_broadcast_and_rows_do_not_depend_on_the_batch():
    key = derive(0, "rows")
    together = uniform(key, np.array([4, 9, 2]), 11, shape=(2, 5))
    assert together.shape == (3, 2, 5)
    for row, values in zip([4, 9, 2], together, strict=True):
        assert np.array_equal(values, uniform(key, row, 11, shape=(2, 5)))
    assert uniform(key, np.arange(6).reshape(2, 3), np.array([1, 2, 3])).shape == (2, 3)
    assert uniform(key, np.arange(0), 1, shape=(4,)).shape == (0, 4)
    assert uniform(key, 1, shape=(0, 3)).shape == (0, 3)


def test_uniform_is_the_top_24_bits_and_stays_below_one():
    key = derive(1, "u")
    drawn = uniform(key, shape=(1000,))
    assert drawn.dtype == np.float32
    assert np.array_equal(drawn.astype(np.float64) * 2**24, bits(key, shape=(1000,)) >> 8)
    assert np.array_equal(drawn, uniform(key, shape=(1000,), dtype=np.float64))
    assert np.float32((0xFFFFFFFF >> 8) * 2.0**-24) < 1
    with pytest.raises(InputError, match="float16"):
        uniform(key, dtype=np.float16)


def test_uniform_is_uniform_and_uncorrelated():
    drawn = uniform(derive(2, "chi"), shape=(200_000,), dtype=np.float64)
    counts = np.histogram(drawn, bins=100, range=(0, 1))[0]
    assert ((counts - 2000) ** 2 / 2000).sum() < 160  # chi-square, 99 degrees of freedom: p = 0.0001
    assert abs(np.corrcoef(drawn[:-1], drawn[1:])[0, 1]) < 0.01


def test_keys_are_stable_and_distinct():
    assert derive(0, "sampling") == 0x45647EC6853A7FD5
    assert derive(2**64 - 1, "router_jitter") == 0x4D517D9FA1CCBC59
    names = [f"layers.{i}.weight" for i in range(1000)] + ["sampling", "router_jitter", ""]
    assert len({derive(seed, name) for seed in (0, 1, 2**64 - 1) for name in names}) == 3 * len(names)
    for seed in (-1, 2**64):
        with pytest.raises(InputError, match="seed"):
            derive(seed, "sampling")


def test_parts_of_a_counter_draw_apart():
    """Under other keys, which are not what the counter itself draws, parts of parts too; words stay."""
    place = counter(3, "dropout", 5, 6, 7)
    parts = [apart(place, i) for i in range(4)]
    nested = [apart(part, i) for part in parts for i in range(4)]
    assert len({int(each[0]) for each in (place, *parts, *nested)}) == 21
    assert all(each[1:].tolist() == [5, 6, 7] for each in nested)
    low, high, *_ = philox4x32((2, 0, 0, 2**32 - 1), derive(3, "dropout"))
    assert int(parts[2][0]) % 2**64 == low + high * 2**32
    assert np.array_equal(place, counter(3, "dropout", 5, 6, 7))


def test_words_outside_32_bits_are_refused():
    for word in (-1, 2**32, 0.5, np.array([1, -1]), np.array([2**32]), np.array([0.5])):
        with pytest.raises(InputError, match="stream"):
            bits(0, word)
    with pytest.raises(InputError, match="room for 3"):
        bits(0, 1, 2, 3, 4)
    assert bits(0, 2**32 - 1) == bits(0, np.array([2**32 - 1]))[0]


def test_generator_is_reproducible_and_normal():
    first = generator(0, "layers.0.weight").standard_normal(100_000, dtype=np.float32)
    assert np.array_equal(first, generator(0, "layers.0.weight").standard_normal(100_000, dtype=np.float32))
    other = generator(0, "layers.1.weight").standard_normal(100_000, dtype=np.float32)
    assert abs(np.corrcoef(first, other)[0, 1]) < 0.015
    assert abs(first.mean()) < 0.015
    assert abs(first.std() - 1) < 0.01
