"""nn/sampling.h: one launch from logits to tokens; Philox."""

import math
from ctypes import byref, sizeof

import numpy as np

from cuda.nn.benchmarks.case import Bench, Call, Check, benchmark
from cuda.nn.prototypes.sampling import Sample

LARGE, SMALL = {"batch": 32, "vocabulary": 128256}, {"batch": 3, "vocabulary": 4096}
KEY, STEP = 0x0123456789ABCDEF, 5
ONE = 2.0**32             # the weight of the likeliest token


def philox(counter: list[np.ndarray], key: int) -> list[np.ndarray]:
    """Philox 4x32-10 (Salmon et al. 2011) of four uint64 arrays that hold 32 bits each."""
    low, high, mask = key & 0xFFFFFFFF, key >> 32, np.uint64(0xFFFFFFFF)
    c = counter
    for i in range(10):
        k0, k1 = np.uint64((low + i * 0x9E3779B9) % 2**32), np.uint64((high + i * 0xBB67AE85) % 2**32)
        p, q = c[0] * np.uint64(0xD2511F53), c[2] * np.uint64(0xCD9E8D57)
        c = [(q >> np.uint64(32)) ^ c[1] ^ k0, q & mask, (p >> np.uint64(32)) ^ c[3] ^ k1, p & mask]
    return c


def _word(row: int, step: int) -> int:
    """The random word of a row at a step."""
    counter = [np.array([value], np.uint64) for value in (0, row, step, 0)]
    return int(philox(counter, KEY)[0][0])


def _nucleus(logits: np.ndarray, temperature: float, top_p: float, word: int) -> int:
    """The token of one row, in integers."""
    z = (logits - logits.max()) / np.float32(temperature)
    weights = np.rint(np.exp(z, dtype=np.float64) * ONE).astype(np.int64)
    order = np.argsort(-weights, kind="stable")
    enough = int(np.searchsorted(np.cumsum(weights[order]), math.ceil(top_p * int(weights.sum())))) + 1
    kept = np.zeros_like(weights)
    kept[order[:enough]] = weights[order[:enough]]
    return int(np.argmax(np.cumsum(kept) > word * int(kept.sum()) // 2**32))


def _sample(at: Bench, batch: int, vocabulary: int, temperature: float, top_p: float) -> Call:
    logits, tokens = at.normal(batch, vocabulary, scale=2.0), at.empty(batch, dtype=np.int64)
    keys, steps = at.put(np.array([KEY])), at.put(np.array([STEP]))
    some = at.some(batch, 4)
    call = Sample(size=sizeof(Sample), tokens=tokens.pointer, logits=logits.pointer, keys=keys.pointer,
                  steps=steps.pointer, batch=batch, vocabulary=vocabulary, stride=vocabulary,
                  temperature=temperature, top_p=top_p, repetition_penalty=1.0, dtype=at.code)

    def formula() -> np.ndarray:
        rows = at.values(logits)[some].astype(np.float32)
        if temperature == 0:
            return rows.argmax(axis=1)
        return np.array([_nucleus(row, temperature, top_p, _word(int(r), STEP))
                         for r, row in zip(some, rows, strict=True)])

    size = at.device.library.nn_sample_workspace_size(batch, vocabulary, temperature)
    return Call(at.queue("sample_forward", byref(call), *at.workspace(size)), [logits], [tokens],
                [Check("tokens", tokens, formula, some)])


@benchmark("sampling", large=LARGE, small=SMALL, function="sample_forward", variant="greedy")
def sample_greedy(at: Bench, batch: int, vocabulary: int) -> Call:
    return _sample(at, batch, vocabulary, 0.0, 1.0)


@benchmark("sampling", large=LARGE, small=SMALL, function="sample_forward", variant="nucleus")
def sample_nucleus(at: Bench, batch: int, vocabulary: int) -> Call:
    return _sample(at, batch, vocabulary, 0.8, 0.9)


@benchmark("sampling", large={"n": 1 << 24}, small={"n": 1 << 14}, dtypes=("float32",))
def random_bits(at: Bench, n: int) -> Call:
    out, some = at.empty(n, dtype=np.uint32), at.some(n, 64)
    key, words = at.put(np.array([KEY])), at.put(np.array([1, 2, 3]))

    def formula() -> np.ndarray:
        counter = [(some // 4).astype(np.uint64), *(np.full(len(some), w, np.uint64) for w in (1, 2, 3))]
        return np.stack(philox(counter, KEY))[some % 4, np.arange(len(some))].astype(np.uint32)

    return Call(at.queue("random_bits", out, key, words, n), [], [out], [Check("out", out, formula, some)])
