"""Balance losses of a router, by name: what makes it use all its experts.

f_e = share of the pairs that chose expert e (a constant), P_e = mean probability of e, N tokens, K choices.

    switch          E Σ_e f_e P_e, which is 1 at balance          (Fedus et al. 2021; over all K choices)
    switch_global   the same with f of all micro-batches of the step so far      (Qiu et al. 2025)
    gshard          1/E Σ_e (c_e/N) P_e, c_e the first choices    (Lepikhin et al. 2020)
    importance      CV² of Σ_t gate_te                            (Shazeer et al. 2017)
    load            CV² of Σ_t P(e is among the K for fresh noise)               (the same; noisy top-k)
    sequence        Σ_e f_e P_e, f_e = E/(K T) count_e, of each sequence; the mean   (DeepSeek-V2, V3)
    token_entropy   −mean_t H(p_t): a bonus for tokens that spread
    usage_entropy   −H(P): a bonus for experts used evenly

Each takes a Decision and gives a scalar, not yet weighted; padding is in none of the sums.  A program may
enter its own: losses.LOSSES["mine"] = function.  CV² = variance / (mean² + 1e-10)."""

from collections.abc import Callable

from nn import ops
from nn.backends.array_api import namespace
from nn.layers.moe.decision import Decision, counted
from nn.tensor import Array, Tensor

TINY = 1e-30     # added to probabilities before their logarithm


def switch(d: Decision) -> Tensor:
    if d.kept is None:
        return ops.balance_loss(d.probs, d.experts, 1.0)[0]
    return _product(d, d.counts)


def switch_global(d: Decision) -> Tensor:
    return _product(d, d.counts if d.seen is None else d.counts + d.seen)


def _product(d: Decision, counts: Array) -> Tensor:
    xp = namespace(counts)
    load = counts / xp.clip(xp.sum(counts), 1.0, None)
    return (d.mean(d.probs) * Tensor(load)).sum() * float(d.shape[2])


def gshard(d: Decision) -> Tensor:
    first = counted(d.experts[:, :1], d.shape[2], d.kept, d.probs.dtype)
    return (d.mean(d.probs) * Tensor(first / d.tokens)).sum() * (1.0 / d.shape[2])


def importance(d: Decision) -> Tensor:
    tokens, top_k, experts = d.shape
    pairs = d.masked(d.weights).reshape(tokens * top_k, 1)
    return variation(ops.scatter_add(pairs, d.experts.reshape(-1), experts).reshape(experts))


def load(d: Decision) -> Tensor:
    """Where no noise is (while evaluating) the load is the count, which has no slope."""
    _, top_k, experts = d.shape
    if d.spread is None or top_k == experts:
        return variation(Tensor(d.counts))
    xp = namespace(d.noisy.data)
    order = xp.argsort(-d.noisy.data, axis=-1, stable=True)[:, : top_k + 1]
    best = ops.take_along_axis(d.noisy, order)                                               # [N,K+1]
    selected = xp.sum(xp.astype(order[:, :top_k, None] == xp.arange(experts), d.probs.dtype), axis=1) > 0.0
    rival = ops.where(selected, best[:, top_k:], best[:, top_k - 1 : top_k])         # largest of the others
    return variation(d.masked(ops.normal_cdf((d.logits - rival) / d.spread)).sum(axis=0))


def sequence(d: Decision) -> Tensor:
    _, top_k, experts = d.shape
    probs = d.rows.in_sequences(d.masked(d.probs)).sum(axis=1)                               # [B,E]
    xp, count = namespace(d.chosen), d.rows.in_sequences(Tensor(d.chosen)).data.sum(axis=1)
    pairs = xp.sum(count, axis=1, keepdims=True)                            # K T_b, 0 where all is padding
    real = xp.clip(pairs, 1.0, None)
    slope = count * (float(experts * top_k) / (real * real))                    # f_e / T_b
    rows = xp.clip(xp.sum(xp.astype(pairs > 0.0, pairs.dtype)), 1.0, None)
    return (probs * Tensor(slope)).sum() / rows


def token_entropy(d: Decision) -> Tensor:
    return d.mean((d.probs * ops.log(d.probs + TINY)).sum(axis=-1))


def usage_entropy(d: Decision) -> Tensor:
    mean = d.mean(d.probs)
    return (mean * ops.log(mean + TINY)).sum()


def variation(x: Tensor) -> Tensor:
    """CV²(x[E]) = variance / (mean² + 1e-10)"""
    mean = x.mean()
    centred = x - mean
    return (centred * centred).mean() / (mean * mean + 1e-10)


LOSSES: dict[str, Callable[[Decision], Tensor]] = {
    "switch": switch, "switch_global": switch_global, "gshard": gshard, "importance": importance,
    "load": load, "sequence": sequence, "token_entropy": token_entropy, "usage_entropy": usage_entropy,
}


def name_of(loss: str) -> str:
    """What a loss is called among a model's figures."""
    return "moe/load_balance" if loss == "switch" else f"moe/balance_{loss}"
