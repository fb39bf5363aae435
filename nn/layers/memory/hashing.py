"""Rows of a hash table for n-grams of token ids, exactly as Engram finds them: 64-bit integers, nothing
random at run time, the same numbers in every program.

    mix_n(t) = x_t m_0 ⊕ x_(t−1) m_1 ⊕ ... ⊕ x_(t−n+1) m_(n−1),    row of head j = mix_n mod prime_(n,j)

Multipliers are odd and so small that no product overflows; no two heads of any layer share a prime, so what
collides in one does not collide in the others."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

LAYER_STRIDE = 10007      # between the seeds of layers


@dataclass(frozen=True)
class HashTables:
    """How one layer finds its rows."""

    multipliers: tuple[int, ...]              # [max_ngram], odd
    primes: tuple[tuple[int, ...], ...]       # per order 2, 3, ..., per head: rows of its table

    @property
    def rows(self) -> int:
        """Of all tables, one behind the other."""
        return sum(map(sum, self.primes))

    @property
    def heads(self) -> int:
        """Lookups per token."""
        return sum(map(len, self.primes))

    def lookup(self, ids: np.ndarray) -> np.ndarray:
        """Rows [B,T,heads] of the flat table, orders ascending, then heads, for the last T columns of
        canonical ids int64[B, max_ngram − 1 + T]."""
        before = len(self.multipliers) - 1
        length = ids.shape[1] - before
        mix = ids[:, before:] * np.int64(self.multipliers[0])
        rows, start = [], 0
        for k, primes in enumerate(self.primes, start=1):
            mix = mix ^ (ids[:, before - k : before - k + length] * np.int64(self.multipliers[k]))
            for prime in primes:
                rows.append(mix % prime + start)
                start += prime
        return np.stack(rows, axis=-1)


def hash_tables(layer: int, layers: Sequence[int], sizes: Sequence[int], heads: int, ids: int,
                seed: int = 0) -> HashTables:
    """Of a layer among the `layers` that have tables, in this order; sizes: of the tables of each order 2, 3,
    ..., at least; ids: how many canonical ids there are."""
    taken: set[int] = set()
    for each in layers:
        primes = []
        for size in sizes:
            found = primes_from(size, heads, taken)
            taken.update(found)
            primes.append(found)
        if each == layer:
            return HashTables(multipliers(layer, len(sizes) + 1, ids, seed), tuple(primes))
    raise ValueError(f"layer: {layer} is not among {list(layers)}")


def multipliers(layer: int, count: int, ids: int, seed: int = 0) -> tuple[int, ...]:
    """Odd numbers m with id · m < 2⁶³ for every id below `ids`"""
    most = max(1, (2**63 - 1) // ids // 2)
    drawn = np.random.default_rng(seed + LAYER_STRIDE * layer).integers(0, most, size=count, dtype=np.int64)
    return tuple(2 * int(r) + 1 for r in drawn)


def primes_from(start: int, count: int, taken: set[int]) -> tuple[int, ...]:
    """The first `count` primes of `start` or more that are not taken"""
    found: list[int] = []
    candidate = start
    while len(found) < count:
        if candidate not in taken and is_prime(candidate):
            found.append(candidate)
        candidate += 1
    return tuple(found)


def is_prime(n: int) -> bool:
    """By division: tables have few enough rows"""
    return n > 1 and all(n % d for d in range(2, int(n**0.5) + 1))
