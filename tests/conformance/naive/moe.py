"""Mixture of experts: router, its losses, and each pair of token and expert on its way."""

import numpy as np

from tests.conformance.naive.activation import swiglu_packed, swiglu_packed_backward
from tests.conformance.naive.arithmetic import Array, accumulator, philox_word, product, total
from tests.conformance.naive.softmax import softmax


def router_topk(logits: Array, k: int, *, renormalize: bool = True) -> tuple[Array, Array, Array]:
    probs = softmax(logits)
    experts = np.array([sorted(range(len(row)), key=lambda e: (-float(row[e]), e))[:k] for row in logits],
                       np.int64)
    experts = experts.reshape(len(logits), k)
    weights = np.array([row[chosen] for row, chosen in zip(probs, experts, strict=True)], logits.dtype)
    weights = weights.reshape(experts.shape)
    return weights / total(weights) if renormalize else weights, experts, probs


def router_topk_backward(dweights: Array, weights: Array, experts: Array, probs: Array, *,
                         renormalize: bool = True) -> Array:
    """Through ∂w_a/∂z_b, written out: w_a (1[a=b] − w_b) over the chosen, or p_a (1[a=b] − p_b) over all."""
    dlogits = np.zeros_like(probs)
    for n, chosen in enumerate(experts):
        for a, e in enumerate(chosen):
            for j in range(probs.shape[1]):
                share = weights[n, a] if renormalize else probs[n, e]
                if renormalize:
                    other = sum((weights[n, b] for b, f in enumerate(chosen) if f == j), probs.dtype.type(0))
                else:
                    other = probs[n, j]
                dlogits[n, j] += dweights[n, a] * share * (probs.dtype.type(e == j) - other)
    return dlogits


def jitter(x: Array, counter: Array, *, epsilon: float) -> Array:
    u = np.array([philox_word(counter, i) // 256 * 2.0**-24 for i in range(x.size)], np.float64)
    return x * (1.0 - epsilon + 2.0 * epsilon * u.reshape(x.shape)).astype(x.dtype)


def moe_balance_loss(probs: Array, experts: Array, coefficient: float) -> tuple[Array, Array]:
    c, (tokens, count) = probs.dtype.type, probs.shape
    load = np.array([c((experts == e).sum()) / c(max(1, experts.size)) for e in range(count)], probs.dtype)
    mean = total(probs, axis=0, keepdims=False) / c(max(1, tokens))
    return total(load * mean) * c(coefficient * count), load


def moe_balance_loss_backward(dloss: Array, load: Array, tokens: int, coefficient: float) -> Array:
    c = load.dtype.type
    row = dloss * c(coefficient * len(load)) * load / c(max(1, tokens))
    return np.array([row for _ in range(tokens)], load.dtype).reshape(tokens, len(load))


def moe_z_loss(logits: Array, coefficient: float) -> tuple[Array, Array]:
    lse = np.array([np.log(np.sum(np.exp(row.astype(np.float64)))) for row in logits]).astype(logits.dtype)
    return total(lse * lse) * logits.dtype.type(coefficient / max(1, len(lse))), lse


def moe_z_loss_backward(dloss: Array, logits: Array, lse: Array, coefficient: float) -> Array:
    slope = dloss * logits.dtype.type(2 * coefficient / max(1, len(lse))) * lse
    return softmax(logits) * slope[:, None]


def expert_order(experts: Array, num_experts: int) -> tuple[Array, Array, Array]:
    flat = [int(e) for row in experts for e in row]
    order = sorted(range(len(flat)), key=lambda pair: (flat[pair], pair))
    offsets = [sum(f < e for f in flat) for e in range(num_experts + 1)]
    inverse = [order.index(pair) for pair in range(len(flat))]
    return tuple(np.array(found, np.int64) for found in (order, inverse, offsets))


def moe_dispatch(x: Array, order: Array, choices: int) -> Array:
    return np.array([x[pair // choices] for pair in order], x.dtype).reshape(len(order), x.shape[1])


def moe_dispatch_backward(dxs: Array, inverse: Array, choices: int) -> Array:
    dx = np.zeros((len(inverse) // choices, dxs.shape[1]), accumulator(dxs.dtype))
    for pair, row in enumerate(inverse):
        dx[pair // choices] += dxs[row]
    return dx.astype(dxs.dtype)


def moe_combine(ys: Array, weights: Array, inverse: Array) -> Array:
    y = np.zeros((len(weights), ys.shape[1]), accumulator(ys.dtype))
    for pair, row in enumerate(inverse):
        y[pair // weights.shape[1]] += weights.reshape(-1)[pair] * ys[row].astype(y.dtype)
    return y.astype(ys.dtype)


def moe_combine_backward(dy: Array, ys: Array, weights: Array, order: Array,
                         inverse: Array) -> tuple[Array, Array]:
    dys, dweights = np.zeros_like(ys), np.zeros_like(weights)
    for row, pair in enumerate(order):
        n, k = divmod(int(pair), weights.shape[1])
        dys[row] = weights[n, k] * dy[n]
        dweights[n, k] = np.sum(dy[n].astype(accumulator(dy.dtype)) * ys[row])
    return dys, dweights


def _expert_of_row(offsets: Array, rows: int) -> list[int | None]:
    """None beyond the last range"""
    owner: list[int | None] = [None] * rows
    for e in range(len(offsets) - 1):
        owner[offsets[e] : offsets[e + 1]] = [e] * int(offsets[e + 1] - offsets[e])
    return owner


def grouped_linear(x: Array, weight: Array, offsets: Array, *, batch_invariant: bool = True) -> Array:
    y = np.zeros((len(x), weight.shape[1]), x.dtype)
    for r, e in enumerate(_expert_of_row(offsets, len(x))):
        if e is not None:
            y[r] = product(weight[e], x[r])
    return y


def grouped_linear_backward(dy: Array, x: Array, weight: Array, offsets: Array) -> tuple[Array, Array]:
    dx, dweight = np.zeros_like(x), np.zeros(weight.shape, accumulator(x.dtype))
    for r, e in enumerate(_expert_of_row(offsets, len(x))):
        if e is not None:
            dx[r] = product(weight[e].T, dy[r])
            dweight[e] += np.outer(dy[r], x[r])
    return dx, dweight


def gathered_swiglu(x: Array, weight: Array, offsets: Array, order: Array, choices: int, *,
                    batch_invariant: bool = True, keep: bool = True) -> tuple[Array, Array | None]:
    hidden = grouped_linear(moe_dispatch(x, order, choices), weight, offsets)
    return swiglu_packed(hidden), hidden if keep else None


def gathered_swiglu_backward(dy: Array, hidden: Array, x: Array, weight: Array, offsets: Array, order: Array,
                             inverse: Array, choices: int) -> tuple[Array, Array]:
    rows = moe_dispatch(x, order, choices)
    dxs, dweight = grouped_linear_backward(swiglu_packed_backward(dy, hidden), rows, weight, offsets)
    return moe_dispatch_backward(dxs, inverse, choices), dweight
