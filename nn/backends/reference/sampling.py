"""Choosing the candidates for the next token."""

from typing import Any

from nn.backends.array_api import namespace

Array = Any


def top_k(z: Array, k: int) -> Array:
    """[B,k]: ids of the k largest of each row of z[B,V], ties to the lowest id, ascending"""
    xp = namespace(z)
    order = xp.argsort(-z, axis=-1, stable=True)
    return xp.sort(xp.astype(order[:, :k], xp.int64), axis=-1)
