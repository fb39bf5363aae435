"""Sequences that a block must be able to learn, and what a model reaches that cannot see what it takes.

A task draws batches for which the best loss is known twice: `perfect`, of a model that sees everything (0:
its targets are determined), and `blind`, of the best guess without what the block under test is to find.
Both are computed from how the task is drawn.  Losses are nats per scored token."""

import math
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from itertools import combinations_with_replacement

import numpy as np

IGNORED = -100      # a target where nothing is asked


@dataclass(frozen=True)
class Batch:
    """Tokens, what is to be answered at each, and what an encoder has read."""

    ids: np.ndarray                        # [B,T]
    targets: np.ndarray                    # [B,T], IGNORED where nothing is asked
    context: np.ndarray | None = None      # [B,S]


@dataclass(frozen=True)
class Task:
    """A family of sequences."""

    name: str
    vocab_size: int
    blind: float                           # loss of the best guess without what is to be found
    draw: Callable[[np.random.Generator, int], Batch]      # (random, rows)
    perfect: float = 0.0                   # loss of a model that finds it


def answers(count: int, targets: np.ndarray) -> np.ndarray:
    """[B,count + n]: nothing is asked of the first `count` tokens"""
    return np.concatenate([np.full((len(targets), count), IGNORED), targets], axis=1)


def copy(symbols: int = 6, length: int = 4) -> Task:
    """a b c | a b: symbols, a mark, and the symbols again; the token at a fixed distance is asked for.

    Blind: which symbols there were is known, their order is not."""

    def draw(random: np.random.Generator, rows: int) -> Batch:
        first = random.integers(0, symbols, (rows, length))
        mark = np.full((rows, 1), symbols)
        return Batch(np.concatenate([first, mark, first[:, :-1]], axis=1), answers(length, first))

    return Task("copy", symbols + 1, expected(symbols, length, log_orders) / length, draw)


def expected(symbols: int, length: int, of: Callable[[list[int]], float]) -> float:
    """Over all rows of `length` independent symbols: of how many times each symbol in it occurs"""
    bags = [list(Counter(bag).values()) for bag in combinations_with_replacement(range(symbols), length)]
    return sum(math.exp(log_orders(counts)) / symbols**length * of(counts) for counts in bags)


def log_orders(counts: list[int]) -> float:
    """ln of in how many orders so many of each symbol can come"""
    return math.lgamma(sum(counts) + 1) - sum(math.lgamma(count + 1) for count in counts)


def entropy(counts: list[int]) -> float:
    """Of one of them, drawn"""
    return -sum(count / sum(counts) * math.log(count / sum(counts)) for count in counts)


def induction(symbols: int = 5) -> Task:
    """c a d b | a d b: all symbols in an order of the row, then the same circle entered anywhere; what
    followed the token the last time is asked for.

    Blind: which symbols have not come again is known, which of them is next is not."""

    def draw(random: np.random.Generator, rows: int) -> Batch:
        order = random.permuted(np.tile(np.arange(symbols), (rows, 1)), axis=1)
        place = random.integers(0, symbols, (rows, 1)) + np.arange(symbols)
        again = np.take_along_axis(order, place % symbols, axis=1)
        return Batch(np.concatenate([order, again[:, :-1]], axis=1), answers(symbols, again[:, 1:]))

    return Task("induction", symbols, math.lgamma(symbols) / (symbols - 1), draw)


def recall(keys: int = 4, values: int = 4, in_context: bool = False) -> Task:
    """2→c 0→a 1→a | 1 0 2: pairs, one token each, then the keys alone; their values are asked for.

    Blind: which values there were is known, whose they were is not.  In a context, nothing is."""

    def draw(random: np.random.Generator, rows: int) -> Batch:
        order, asked = (random.permuted(np.tile(np.arange(keys), (rows, 1)), axis=1) for _ in range(2))
        bound = random.integers(0, values, (rows, keys))                          # of key 0, 1, ...
        pairs = keys + order * values + np.take_along_axis(bound, order, axis=1)
        found = np.take_along_axis(bound, asked, axis=1)
        if in_context:
            return Batch(asked, found, pairs)
        return Batch(np.concatenate([pairs, asked], axis=1), answers(keys, found))

    name, blind = ("recall from a context", math.log(values)) if in_context else (
        "associative recall", expected(values, keys, entropy))
    return Task(name, keys * (values + 1), blind, draw)


def modular_sum(modulus: int = 5, length: int = 3) -> Task:
    """3 4 1: the sum of the digits so far, modulo the modulus, is asked for from the second on.

    Blind: with one digit unknown every result is as likely."""

    def draw(random: np.random.Generator, rows: int) -> Batch:
        digits = random.integers(0, modulus, (rows, length))
        return Batch(digits, answers(1, np.cumsum(digits, axis=1)[:, 1:] % modulus))

    return Task("modular sum", modulus, math.log(modulus), draw)


def bigrams(symbols: int = 8, length: int = 8) -> Task:
    """A symbol drawn once for every pair of symbols, for good, is asked for behind each pair.

    Blind: the second of the pair is known."""
    table = np.random.default_rng(1).integers(0, symbols, (symbols, symbols))       # [first, second]
    shares = np.stack([np.bincount(column, minlength=symbols) for column in table.T]) / symbols
    blind = -float(np.sum(shares * np.log(np.maximum(shares, 1e-30)))) / symbols

    def draw(random: np.random.Generator, rows: int) -> Batch:
        ids = random.integers(0, symbols, (rows, length))
        return Batch(ids, answers(1, table[ids[:, :-1], ids[:, 1:]]))

    return Task("bigrams", symbols, blind, draw)


def first_token(classes: int = 4, others: int = 4, length: int = 6) -> Task:
    """A class, then other tokens; the class is asked for at each of them.

    Blind: every class is as likely."""

    def draw(random: np.random.Generator, rows: int) -> Batch:
        first = random.integers(0, classes, (rows, 1))
        rest = random.integers(classes, classes + others, (rows, length - 1))
        return Batch(np.concatenate([first, rest], axis=1), answers(1, np.repeat(first, length - 1, axis=1)))

    return Task("copy of the first", classes + others, math.log(classes), draw)
