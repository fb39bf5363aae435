"""Chunks as long as layers have them, on the emulated device: its arrays have no axis for each halving."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from cuda.nn.device import EmulatedDevice
from nn import ops
from nn.tensor import Tensor

CORES = {"decayed": ops.decayed_chunks, "gla": ops.gla_chunks, "delta": ops.delta_chunks}


@pytest.mark.parametrize("core", CORES)
def test_a_chunk_of_64_tokens(fast: EmulatedDevice, core: str) -> None:
    """Values and gradients there and here"""
    random, tokens = np.random.default_rng(0), (1, 2, 2, 64)                          # [B,H,n,C]
    q, k, v = (0.5 * random.standard_normal((*tokens, 3)) for _ in range(3))
    given = [q, k, v, -random.uniform(0.0, 0.2, (*tokens, 3) if core == "gla" else tokens)]
    given += [random.uniform(0.1, 0.9, tokens)] if core == "delta" else []
    given = [x.astype(np.float32) for x in (*given, random.standard_normal((1, 2, 3, 3)))]

    def run(place: Callable[[np.ndarray], Any]) -> list[np.ndarray]:
        leaves = [Tensor(place(x), requires_grad=True) for x in given]
        o, s = CORES[core](*leaves)
        ((o * o).sum() + (s * s).sum()).backward()
        return [Tensor(x).numpy() for x in (o.data, s.data, *(leaf.grad for leaf in leaves))]

    for found, expected in zip(run(fast.asarray), run(np.asarray), strict=True):
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5 * np.abs(expected).max())
