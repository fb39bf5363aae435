"""Which experts a token visits: the K largest scores, ties to the lowest expert; in groups, if there are
several (DeepSeek): only experts of the best groups are eligible.

No gradient passes through a choice: everything here works on arrays."""

from nn.backends.array_api import namespace
from nn.tensor import Array

GROUP_RULES = ("max", "top2", "share")


def choose(scores: Array, top_k: int, groups: int = 1, best_groups: int = 1, rule: str = "max") -> Array:
    """experts[N,K], the best first, of scores[N,E]"""
    if best_groups < groups:
        scores = within_groups(scores, top_k, groups, best_groups, rule)
    return namespace(scores).argsort(-scores, axis=-1, stable=True)[:, :top_k]


def within_groups(scores: Array, top_k: int, groups: int, best_groups: int, rule: str) -> Array:
    """scores[N,E], −inf but in each token's `best_groups` best groups of E/groups neighbours; ties go to the
    lower group.

    A group's score is its largest (DeepSeek-V2), the sum of its two largest (top2: DeepSeek-V3), or of as
    many as each of the best groups gives on average (share: K / best_groups)."""
    xp, (tokens, experts) = namespace(scores), scores.shape
    grouped = xp.reshape(scores, (tokens, groups, experts // groups))
    added = {"max": 1, "top2": 2, "share": max(1, top_k // best_groups)}[rule]
    order = xp.argsort(-grouped, axis=-1, stable=True)[:, :, :added]
    strength = xp.sum(xp.take_along_axis(grouped, order, axis=-1), axis=-1)                   # [N,G]
    best = xp.argsort(-strength, axis=-1, stable=True)[:, :best_groups]
    eligible = xp.any(best[:, :, None] == xp.arange(groups), axis=1)                            # [N,G]
    bounded = xp.where(eligible[:, :, None], grouped, -xp.inf * xp.ones_like(grouped))
    return xp.reshape(bounded, (tokens, experts))
