"""Random numbers of a router besides its jitter."""

import math

import numpy as np

from nn.backends import kernels
from nn.backends.array_api import beside, namespace
from nn.tensor import Array

# Added to a counter's last word, which tells routers apart: the numbers of the jitter are not used twice.
ASIDE = np.array([0, 0, 0, 1 << 20], np.int64)


def standard_normal(counter: Array, like: Array) -> Array:
    """Standard normal numbers of the shape and type of like[N,E] (float32 or wider), by Box and Muller:
    √(−2 ln(1 − u)) cos(2π v), u and v uniform in [0, 1).  Drawn where `like` is, at a nn.random.counter(),
    so that a recorded step draws what the counter holds at each replay."""
    xp, place = namespace(like), beside(counter, like)
    place = place + beside(ASIDE, place)
    ones = xp.ones((2, *like.shape), dtype=like.dtype)
    u = kernels.jitter(ones, place, epsilon=1.0) * 0.5               # with ε = 1, jitter's factor is 2 u
    return xp.sqrt(-2.0 * xp.log(1.0 - u[0, ...])) * xp.cos((2.0 * math.pi) * u[1, ...])
