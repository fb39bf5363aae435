"""Which blocks of keys a query looks at, by how much it attends to their summaries (Yuan et al. 2025, NSA).

Summaries cover l tokens every d; blocks are l' tokens long.  The importance of block j is the probability of
the summaries that overlap it, each counted once per stretch of d tokens that both have:

    I_j = Σ_{s = j l'/d}^{(j+1) l'/d − 1} Σ_{n=0}^{l/d − 1} p_{s−n}"""

import numpy as np


def importance(p: np.ndarray, count: int, size: int, stride: int, block: int) -> np.ndarray:
    """[...,C] probabilities of summaries (size l, stride d) -> [...,count], of blocks of l' tokens"""
    stretches = count * (block // stride)
    per_stretch = np.zeros((*p.shape[:-1], stretches), p.dtype)
    for n in range(size // stride):
        width = min(p.shape[-1], stretches - n)
        if width > 0:
            per_stretch[..., n : n + width] += p[..., :width]
    return per_stretch.reshape(*p.shape[:-1], count, block // stride).sum(axis=-1)


def select(scores: np.ndarray, position: np.ndarray, block: int, wanted: int, first: int,
           near: int) -> np.ndarray:
    """integers [B,G,T,n]: ascending, −1 behind them where there are fewer than n = min(wanted, count) blocks.

    scores [B,G,T,count], position [B,T].  A query may choose its own block and earlier ones; the `first`
    first and the `near` last of those are always chosen, then the most important, of equals the earlier."""
    count = scores.shape[-1]
    own, j = (position // block)[:, None, :, None], np.arange(count)                    # [B,1,T,1]
    ranked = np.where((j < first) | (j > own - near), np.inf, scores)
    ranked = np.where(j <= own, ranked, -np.inf)
    order = np.argsort(-ranked, axis=-1, kind="stable")[..., : min(wanted, count)]
    chosen = np.where(np.take_along_axis(ranked, order, axis=-1) > -np.inf, order, count)
    chosen = np.sort(chosen, axis=-1)
    return np.where(chosen < count, chosen, -1)
