"""What the mixture-of-experts tests share: draws, the accuracy rule, plans of pairs, groups."""

import numpy as np

from cuda.nn.device import DeviceArray, EmulatedDevice
from nn.backends.device import moe
from tests.conformance.compare import compare
from tests.device.accuracy import DTYPES

__all__ = ["DTYPES", "drawn", "judge", "offsets_of", "planned", "wide"]


def drawn(rng: np.random.Generator, dtype: str, *shape: int) -> np.ndarray:
    return rng.standard_normal(shape, np.float32).astype(DTYPES[dtype])


def wide(x: np.ndarray) -> np.ndarray:
    return np.asarray(x).astype(np.float64)


def judge(what: str, result: DeviceArray, right: np.ndarray, dtype: str) -> None:
    """Against float64; a plain implementation rounds at least once, to its type."""
    found = result.numpy()
    rough = right.astype(np.float32).astype(found.dtype)
    compare(what, found, right, rough, dtype if found.dtype != np.float32 else "float32",
            scale=max(1.0, float(np.abs(right).max(initial=0.0))))


def planned(device: EmulatedDevice, rng: np.random.Generator, tokens: int, choices: int,
            num_experts: int = 5) -> tuple[np.ndarray, DeviceArray, DeviceArray]:
    """(row of each pair [N,K], order, inverse), with dropped pairs among them"""
    order, inverse, _ = moe.expert_order(device.asarray(rng.integers(0, num_experts + 1, (tokens, choices))),
                                         num_experts)
    return inverse.numpy().reshape(tokens, choices), order, inverse


def offsets_of(counts: tuple[int, ...]) -> np.ndarray:
    return np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
