"""Depths to train at, so that any depth works later (recurrent depth, Geiping et al. 2025).

    n ~ Poisson(λ) + 1,  ln λ ~ Normal(ln r − σ²/2, σ²):  E[n] = r + 1, with a long tail

    y, _ = engine(x, n_steps=sampled_depth(32.0, random))       # bptt_steps=8: the newest 8 learn"""

import math

import numpy as np

from nn.errors import InputError


def sampled_depth(mean: float, random: np.random.Generator, sigma: float = 0.5) -> int:
    """One draw of n, at least 1; mean: r"""
    if mean <= 0.0 or sigma < 0.0:
        raise InputError(f"mean: {mean}, sigma: {sigma}; a mean is positive, a deviation not negative")
    rate = math.exp(random.normal(math.log(mean) - 0.5 * sigma * sigma, sigma))
    return int(random.poisson(rate)) + 1
