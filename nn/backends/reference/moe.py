"""Mixture of experts: the router's top-k, the order that groups tokens by expert, and the grouped linear map.

Router (Mixtral): p = softmax(z); the k largest, ties to the lowest expert; w = p_sel / Σ p_sel.  With dw on w
    renormalised:  dz_e = w_e (dw_e − Σ_sel w dw) for the selected e, else 0
    as they are:   dz_j = p_j (1[j selected] dw_j − Σ_sel p dw) for every j
The selection itself carries no gradient."""

from itertools import pairwise
from typing import Any

import numpy as np

from nn.backends.array_api import namespace, on_device
from nn.backends.reference.activation import swiglu_packed, swiglu_packed_backward
from nn.backends.reference.softmax import row_max, softmax
from nn.dtypes import narrow, widen
from nn.random import drawn_from

Array = Any

# The order in which a matrix library adds up a row depends on the size of the matrix and on the row's place
# in it.  Where bits matter, every product has this many rows: a row's bits then depend on its place alone,
# and later tokens, which come later in every group, change nothing.
TILE = 64


def router_topk(logits: Array, k: int, *, renormalize: bool = True) -> tuple[Array, Array, Array]:
    """(weights[N,k], experts[N,k] int64, probs[N,E]) from logits[N,E], formed in float32 or wider.

    The largest logits are chosen, not the largest probabilities: those underflow to ties, and round
    differently elsewhere."""
    xp = namespace(logits)
    probs = softmax(widen(logits))
    experts = xp.argsort(-widen(logits), axis=-1, stable=True)[:, :k]
    weights = xp.take_along_axis(probs, experts, axis=-1)
    if renormalize:
        weights = weights / xp.sum(weights, axis=-1, keepdims=True, dtype=weights.dtype)
    return weights, experts, probs


def router_topk_backward(dweights: Array, weights: Array, experts: Array, probs: Array, *,
                         renormalize: bool = True) -> Array:
    """dlogits[N,E]"""
    xp = namespace(probs)
    mean = xp.sum(weights * dweights, axis=-1, keepdims=True, dtype=weights.dtype)
    chosen = experts[:, :, None] == xp.arange(probs.shape[1])[None, None, :]                  # [N,k,E]
    values = weights * (dweights - mean) if renormalize else weights * dweights
    dlogits = xp.sum(xp.where(chosen, values[:, :, None], xp.zeros_like(values)[:, :, None]), axis=1)
    return dlogits if renormalize else dlogits - probs * mean


def jitter(x: Array, counter: Array, *, epsilon: float) -> Array:
    """y[N,D]: x times U(1 − ε, 1 + ε), drawn on the host wherever x is"""
    z, place = widen(x), counter.numpy() if on_device(counter) else np.asarray(counter)
    xp = namespace(z)
    dtype = np.float64 if z.dtype == xp.float64 else np.float32
    u = xp.asarray(drawn_from(place, tuple(x.shape), dtype))
    return narrow(z * (1.0 - epsilon + 2.0 * epsilon * u), x.dtype)


def moe_balance_loss(probs: Array, experts: Array, coefficient: float) -> tuple[Array, Array]:
    """(loss[1], load[E]): α E Σ_e load_e mean probs_e (Fedus et al. 2021)"""
    xp, p, pairs = namespace(probs), widen(probs), max(1, probs.shape[0]) * experts.shape[1]
    count = probs.shape[1]
    load = xp.sum(xp.astype(experts[:, :, None] == xp.arange(count), p.dtype), axis=(0, 1)) / pairs
    mean = xp.sum(p, axis=0, dtype=p.dtype) * (1.0 / max(1, probs.shape[0]))
    return xp.sum(mean * load, keepdims=True, dtype=p.dtype) * (coefficient * count), load


def moe_balance_loss_backward(dloss: Array, load: Array, tokens: int, coefficient: float) -> Array:
    """dprobs[N,E]: the same row for every token"""
    xp, count = namespace(load), load.shape[0]
    row = widen(dloss) * (coefficient * count) * load * (1.0 / max(1, tokens))
    return xp.asarray(xp.broadcast_to(row, (tokens, count)), copy=True)


def moe_z_loss(logits: Array, coefficient: float) -> tuple[Array, Array]:
    """(loss[1], lse[N]): β mean lse² (Zoph et al. 2022)"""
    xp, z = namespace(logits), widen(logits)
    m = row_max(z)
    lse = m[:, 0] + xp.log(xp.sum(xp.exp(z - m), axis=-1, dtype=z.dtype))
    return xp.sum(lse * lse, keepdims=True, dtype=z.dtype) * (coefficient / max(1, z.shape[0])), lse


def moe_z_loss_backward(dloss: Array, logits: Array, lse: Array, coefficient: float) -> Array:
    """dlogits[N,E] = softmax(logits) dlse,  dlse = 2 β / N lse dloss"""
    dlse = widen(dloss) * (coefficient / max(1, logits.shape[0])) * lse
    return softmax(widen(logits)) * (dlse + dlse)[:, None]


def expert_order(experts: Array, num_experts: int) -> tuple[Array, Array, Array]:
    """(order[N*k], inverse[N*k], offsets[E+1]) from experts[N,k]: the flat (token, choice) pairs sorted by
    expert, stable, the row where each pair went, and where each expert's pairs begin.  A pair whose expert is
    E (a dropped one) comes after offsets[E]."""
    xp = namespace(experts)
    flat = xp.reshape(experts, (-1,))
    order = xp.argsort(flat, stable=True)
    offsets = xp.searchsorted(flat[order], xp.arange(num_experts + 1))
    return order, xp.argsort(order), offsets


def moe_dispatch(x: Array, order: Array, choices: int) -> Array:
    """xs[M,D]: every token's row, once per choice, grouped by expert"""
    return namespace(x).take(x, order // choices, axis=0)


def moe_dispatch_backward(dxs: Array, inverse: Array, choices: int) -> Array:
    """dx[N,D] from dxs[M,D]"""
    pairs = _pairs(dxs, inverse, inverse.shape[0] // choices, choices)
    return narrow(namespace(dxs).sum(pairs, axis=1, dtype=pairs.dtype), dxs.dtype)


def moe_combine(ys: Array, weights: Array, inverse: Array) -> Array:
    """y[N,D] from the experts' outputs ys[M,D] and weights[N,K]"""
    pairs = _pairs(ys, inverse, *weights.shape)
    return narrow(namespace(ys).sum(pairs * weights[:, :, None], axis=1), ys.dtype)


def moe_combine_backward(dy: Array, ys: Array, weights: Array, order: Array,
                         inverse: Array) -> tuple[Array, Array]:
    """(dys[M,D], dweights[N,K])"""
    xp, g = namespace(dy), widen(dy)
    weight_of_row = xp.take(xp.reshape(weights, (-1,)), order)
    dys = xp.take(g, order // weights.shape[1], axis=0) * weight_of_row[:, None]
    dweights = xp.sum(_pairs(ys, inverse, *weights.shape) * g[:, None, :], axis=2)
    return narrow(dys, ys.dtype), dweights


def _pairs(rows: Array, inverse: Array, tokens: int, choices: int) -> Array:
    """[N,K,D]: rows[M,D] grouped by expert, back in the order of tokens and choices"""
    xp = namespace(rows)
    return xp.reshape(xp.take(widen(rows), inverse, axis=0), (tokens, choices, rows.shape[1]))


def _groups(offsets: Array) -> list[tuple[int, slice]]:
    """The experts that have rows, each with its rows."""
    edges = [int(offset) for offset in offsets]
    return [(e, slice(a, b)) for e, (a, b) in enumerate(pairwise(edges)) if b > a]


def _clear_outside(rows: Array, offsets: Array) -> None:
    """Zero in the rows of no expert: those of dropped pairs, and any before the first range."""
    rows[: int(offsets[0]), :] = 0.0
    rows[int(offsets[-1]) :, :] = 0.0


def _by_tiles(x: Array, weight: Array) -> Array:
    """x weightᵀ in products of TILE rows each, the last one filled up with zeros."""
    xp, missing = namespace(x), -x.shape[0] % TILE
    if missing:
        x = xp.concat([x, xp.zeros((missing, x.shape[1]), dtype=x.dtype)])
    tiles = xp.reshape(x, (x.shape[0] // TILE, TILE, x.shape[1]))
    y = xp.reshape(xp.matmul(tiles, weight.T), (x.shape[0], weight.shape[0]))
    return y[: x.shape[0] - missing, :]


def grouped_linear(x: Array, weight: Array, offsets: Array, *, batch_invariant: bool = True) -> Array:
    """y[M,O]: row r of expert e's range times weight[e]ᵀ, from x[M,I] sorted by expert and weight[E,O,I].

    batch_invariant: a row's bits depend on its place in its group, not on the group's size (see TILE)."""
    xp = namespace(x)
    y = xp.empty((x.shape[0], weight.shape[1]), dtype=x.dtype)
    _clear_outside(y, offsets)
    for e, rows in _groups(offsets):
        group, matrix = widen(x[rows, :]), widen(weight[e, ...])
        product = _by_tiles(group, matrix) if batch_invariant else xp.matmul(group, matrix.T)
        y[rows, :] = narrow(product, x.dtype)
    return y


def grouped_linear_backward(dy: Array, x: Array, weight: Array, offsets: Array) -> tuple[Array, Array]:
    """(dx[M,I], dweight[E,O,I]); an expert without rows has gradient zero."""
    xp = namespace(x)
    dx = xp.empty(x.shape, dtype=x.dtype)
    _clear_outside(dx, offsets)
    dweight = xp.zeros(weight.shape, dtype=widen(weight[:0, ...]).dtype)
    for e, rows in _groups(offsets):
        g = widen(dy[rows, :])
        dx[rows, :] = narrow(xp.matmul(g, widen(weight[e, ...])), x.dtype)
        dweight[e, ...] = xp.matmul(g.T, widen(x[rows, :]))
    return dx, dweight


def gathered_swiglu(x: Array, weight: Array, offsets: Array, order: Array, choices: int, *,
                    batch_invariant: bool = True, keep: bool = True) -> tuple[Array, Array | None]:
    """(y[M,F], hidden[M,2F]) from x[N,I] and weight[E,2F,I], gate rows first"""
    rows = moe_dispatch(x, order, choices)
    hidden = grouped_linear(rows, weight, offsets, batch_invariant=batch_invariant)
    return swiglu_packed(hidden), hidden if keep else None


def gathered_swiglu_backward(dy: Array, hidden: Array, x: Array, weight: Array, offsets: Array, order: Array,
                             inverse: Array, choices: int) -> tuple[Array, Array]:
    """(dx[N,I], dweight[E,2F,I]); the rows of x are gathered once more, nothing but x is kept for it"""
    dhidden, rows = swiglu_packed_backward(dy, hidden), moe_dispatch(x, order, choices)
    dxs, dweight = grouped_linear_backward(dhidden, rows, weight, offsets)
    return moe_dispatch_backward(dxs, inverse, choices), dweight
