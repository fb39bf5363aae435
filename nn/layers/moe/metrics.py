"""How evenly experts are used, from the shares of the load that routers report ("moe/load")."""

import math
from typing import Any

import numpy as np


def usage(load: np.ndarray) -> dict[str, Any]:
    """Figures per layer [...] of load[...,E], shares that add up to 1:

        usage_entropy      H(f) = −Σ f ln f, in nats: ln E where all experts are used alike, 0 where one is
        usage_evenness     H(f) / ln E, between 0 and 1 (1 for a single expert)
        load_cv            standard deviation of f / its mean
        max_violation      max f / mean f − 1: 0 is even (Wang et al. 2024)
        min_load           min f / mean f: 1 is even
        dead_experts       how many got nothing"""
    f = np.asarray(load, np.float64)
    experts = f.shape[-1]
    entropy = -np.sum(f * np.log(np.where(f > 0.0, f, 1.0)), axis=-1)
    return {"usage_entropy": entropy,
            "usage_evenness": entropy / math.log(experts) if experts > 1 else np.ones_like(entropy),
            "load_cv": f.std(axis=-1) * experts, "max_violation": f.max(axis=-1) * experts - 1.0,
            "min_load": f.min(axis=-1) * experts, "dead_experts": np.sum(f <= 0.0, axis=-1)}
