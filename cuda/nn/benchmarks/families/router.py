"""nn/router.h: softmax over a token's experts and the k largest."""

import numpy as np

from cuda.nn.benchmarks.case import Bench, Call, Check, benchmark
from cuda.nn.benchmarks.families.sampling import philox
from cuda.nn.benchmarks.families.softmax import softmax

LARGE, SMALL = {"tokens": 16384, "experts": 64, "k": 8}, {"tokens": 128, "experts": 16, "k": 2}


@benchmark("router", large=LARGE, small=SMALL)
def router_topk_forward(at: Bench, tokens: int, experts: int, k: int) -> Call:
    logits, some = at.normal(tokens, experts), at.some(tokens)
    weights, probs = at.empty(tokens, k, dtype=np.float32), at.empty(tokens, experts, dtype=np.float32)
    chosen = at.empty(tokens, k, dtype=np.int64)

    def best() -> np.ndarray:
        return np.argsort(-at.wide(logits, some), axis=1, kind="stable")[:, :k]

    def shares() -> np.ndarray:
        found = np.take_along_axis(softmax(at.wide(logits, some)), best(), axis=1)
        return found / found.sum(axis=1, keepdims=True)

    return Call(at.queue("router_topk_forward", weights, chosen, probs, logits, tokens, experts, k, 1,
                         chosen.code, at.code), [logits], [weights, chosen, probs],
                [Check("experts", chosen, best, some), Check("weights", weights, shares, some),
                 Check("probs", probs, lambda: softmax(at.wide(logits, some)), some)])


@benchmark("router", large=LARGE, small=SMALL, dtypes=("float32",))
def router_topk_backward(at: Bench, tokens: int, experts: int, k: int) -> Call:
    dweights, some = at.normal(tokens, k), at.some(tokens)
    chosen = at.put(at.random.permuted(np.tile(np.arange(experts), (tokens, 1)), axis=1)[:, :k].copy())
    weights, dlogits = at.put(softmax(at.random.standard_normal((tokens, k))).astype("f4")), \
        at.empty(tokens, experts)

    def formula() -> np.ndarray:
        w, dw = at.wide(weights, some), at.wide(dweights, some)
        out = np.zeros((len(some), experts))
        np.put_along_axis(out, at.values(chosen)[some], w * (dw - (w * dw).sum(axis=1, keepdims=True)),
                          axis=1)
        return out

    return Call(at.queue("router_topk_backward", dlogits, dweights, weights, chosen, None, tokens, experts, k,
                         1, chosen.code), [dweights, weights, chosen], [dlogits],
                [Check("dlogits", dlogits, formula, some)])


@benchmark("router", large={"n": 1 << 25}, small={"n": 1 << 14})
def router_jitter_forward(at: Bench, n: int) -> Call:
    """Each element times a factor of its own from 1 - epsilon to 1 + epsilon."""
    key, words, epsilon = 0x0123456789ABCDEF, (4, 5, 6), 0.25
    x, y, some = at.normal(n), at.empty(n), at.some(n, 4096)
    counter = at.put(np.array([key, *words]))

    def formula() -> np.ndarray:
        stream = [(some // 4).astype(np.uint64), *(np.full(len(some), word, np.uint64) for word in words)]
        drawn = np.stack(philox(stream, key))[some % 4, np.arange(len(some))]
        uniform = (drawn >> np.uint64(8)).astype(np.float64) * 2.0**-24
        return at.wide(x, some) * (1 - epsilon + 2 * epsilon * uniform)

    return Call(at.queue("router_jitter_forward", y, x, counter, n, epsilon, at.code), [x, counter], [y],
                [Check("y", y, formula, some)])
