"""Which assignments an expert keeps when it may take only so many (Lepikhin et al. 2020, GShard).

capacity = ⌈factor · N · K / E⌉ (rounded_up), at least `minimum`, at most N.  Who stays:
    probs      the assignments with the largest weights
    position   those of the earliest tokens
    slot       first choices before second choices, then by position
Padding takes no place, and is not counted in N."""

import math
from typing import Any

from nn.backends.array_api import namespace, on_device
from nn.names import check_name
from nn.tensor import Array

POLICIES = ("probs", "position", "slot")
MIN_CAPACITY = 4


def capacity(tokens: int, top_k: int, num_experts: int, factor: float, minimum: int = MIN_CAPACITY) -> int:
    """How many assignments each expert keeps."""
    return min(tokens, max(minimum, int(rounded_up(factor * tokens * top_k / num_experts))))


def rounded_up(x: Any) -> Any:
    """⌈x⌉ of a number or an array of them, but not one more for an error of rounding: 1.1 · 100 / 10 is 11,
    in float64 as in a device's float32."""
    least = x * (1.0 - 1e-6)
    return math.ceil(least) if isinstance(least, float) else namespace(x).ceil(least)


def keep_within_capacity(experts: Array, weights: Array, num_experts: int, factor: float, policy: str,
                         minimum: int = MIN_CAPACITY, tokens: Array | None = None) -> Array:
    """Boolean [N,K]: the assignments experts[N,K] that stay; tokens: booleans [N], False for padding."""
    check_name("drop_policy", policy, POLICIES)
    xp, (count, top_k) = namespace(experts), experts.shape
    room: Any = capacity(count, top_k, num_experts, factor, minimum)
    if tokens is not None:
        experts = xp.where(tokens[:, None], experts, num_experts)       # a group of its own, of no expert
        room = _room(tokens, top_k, num_experts, factor, minimum)
    priority = _by_priority(weights, count, top_k, policy)              # flat pairs, most important first
    ranked = xp.reshape(experts, (-1,))[priority]
    grouped = xp.argsort(ranked, stable=True)                           # by expert, then by priority
    sorted_experts = ranked[grouped]
    first = xp.searchsorted(sorted_experts, sorted_experts)             # where each pair's expert begins
    rank = xp.arange(count * top_k) - first                             # place within the expert
    kept_in_order = rank < room
    back = xp.argsort(priority[grouped])                                # to flat (token, choice) order
    kept = xp.reshape(kept_in_order[back], (count, top_k))
    return kept if tokens is None else kept & tokens[:, None]


def _room(tokens: Array, top_k: int, num_experts: int, factor: float, minimum: int) -> Any:
    """The capacity for as many tokens as are no padding; on a device it stays there."""
    xp = namespace(tokens)
    if not on_device(tokens):
        return capacity(int(xp.sum(tokens)), top_k, num_experts, factor, minimum)
    count = xp.sum(xp.astype(tokens, xp.float32))
    wanted = xp.clip(rounded_up(count * (factor * top_k / num_experts)), float(minimum), None)
    return xp.minimum(wanted, count)


def _by_priority(weights: Array, tokens: int, top_k: int, policy: str) -> Array:
    xp = namespace(weights)
    flat = xp.arange(tokens * top_k)
    if policy == "probs":
        return xp.argsort(-xp.reshape(weights, (-1,)), stable=True)
    if policy == "slot":
        return xp.reshape(xp.reshape(flat, (tokens, top_k)).T, (-1,))
    return flat
