"""Which assignments an expert keeps when it may take only so many (Lepikhin et al. 2020, GShard).

capacity = ⌈factor · N · K / E⌉, at least 4, at most N.  Who stays:
    probs      the assignments with the largest weights
    position   those of the earliest tokens
    slot       first choices before second choices, then by position
"""

import math

from nn.backends.array_api import namespace
from nn.names import check_name
from nn.tensor import Array

POLICIES = ("probs", "position", "slot")
MIN_CAPACITY = 4


def capacity(tokens: int, top_k: int, num_experts: int, factor: float, minimum: int = MIN_CAPACITY) -> int:
    """How many assignments each expert keeps."""
    return min(tokens, max(minimum, math.ceil(factor * tokens * top_k / num_experts)))


def keep_within_capacity(experts: Array, weights: Array, num_experts: int, factor: float, policy: str,
                         minimum: int = MIN_CAPACITY) -> Array:
    """Boolean [N,K]: the assignments experts[N,K] that stay."""
    check_name("drop_policy", policy, POLICIES)
    xp = namespace(experts)
    tokens, top_k = experts.shape
    priority = _by_priority(weights, tokens, top_k, policy)             # flat pairs, most important first
    ranked = xp.reshape(experts, (-1,))[priority]
    grouped = xp.argsort(ranked, stable=True)                           # by expert, then by priority
    sorted_experts = ranked[grouped]
    first = xp.searchsorted(sorted_experts, sorted_experts)             # where each pair's expert begins
    rank = xp.arange(tokens * top_k) - first                            # place within the expert
    kept_in_order = rank < capacity(tokens, top_k, num_experts, factor, minimum)
    back = xp.argsort(priority[grouped])                                # to flat (token, choice) order
    return xp.reshape(kept_in_order[back], (tokens, top_k))


def _by_priority(weights: Array, tokens: int, top_k: int, policy: str) -> Array:
    xp = namespace(weights)
    flat = xp.arange(tokens * top_k)
    if policy == "probs":
        return xp.argsort(-xp.reshape(weights, (-1,)), stable=True)
    if policy == "slot":
        return xp.reshape(xp.reshape(flat, (tokens, top_k)).T, (-1,))
    return flat
