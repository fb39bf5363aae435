"""The plan of a mixture of experts: pairs in the order of their experts."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from cuda.nn.device import EmulatedDevice
from nn.backends.device import moe


def plain_plan(experts: np.ndarray, num_experts: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """By one list per expert"""
    lists: list[list[int]] = [[] for _ in range(num_experts + 1)]
    for pair, e in enumerate(experts.ravel().tolist()):
        lists[e if 0 <= e < num_experts else num_experts].append(pair)
    order = np.array([pair for one in lists for pair in one], np.int64)
    offsets = np.cumsum([0, *map(len, lists)])[:-1]
    inverse = np.empty_like(order)
    inverse[order] = np.arange(len(order))
    return order, inverse, offsets


PATTERNS: dict[str, Callable[[np.random.Generator, int, int], np.ndarray]] = {
    "any": lambda rng, pairs, e: rng.integers(0, e, pairs),
    "dropped": lambda rng, pairs, e: rng.integers(0, e + 1, pairs),
    "all-dropped": lambda rng, pairs, e: np.full(pairs, e),
    "one-takes-all": lambda rng, pairs, e: np.full(pairs, e // 2),
    "backwards": lambda rng, pairs, e: np.arange(pairs)[::-1] * e // max(pairs, 1),
}
PLANS = [(0, 1, 4, "any"), (1, 1, 1, "any"), (7, 2, 3, "any"), (37, 2, 4, "dropped"), (33, 1, 1, "dropped"),
         (64, 4, 16, "any"), (20, 2, 5, "all-dropped"), (50, 3, 64, "one-takes-all"), (300, 1, 7,
                                                                                       "backwards"),
         (1024, 2, 64, "any"), (1365, 3, 3, "any"), (40, 8, 1024, "any")]
LONG_PLANS = [(4097, 1, 3, "dropped"), (2100, 2, 64, "any"), (4098, 2, 1024, "any"), (6000, 1, 4,
                                                                                      "one-takes-all"),
              (6145, 1, 2, "backwards")]


@pytest.mark.parametrize(("tokens", "choices", "num_experts", "pattern"), PLANS + LONG_PLANS)
@pytest.mark.parametrize("index", ["int64", "int32"])
def test_plan(device: EmulatedDevice, rng: np.random.Generator, tokens: int, choices: int, num_experts: int,
              pattern: str, index: str) -> None:
    experts = PATTERNS[pattern](rng, tokens * choices, num_experts).astype(index).reshape(tokens, choices)
    found = moe.expert_order(device.asarray(experts), num_experts)
    for name, result, right in zip(("order", "inverse", "offsets"), found, plain_plan(experts, num_experts),
                                   strict=True):
        assert result.dtype == np.int64
        np.testing.assert_array_equal(result.numpy(), right, name)


def test_what_is_no_expert_is_dropped(device: EmulatedDevice) -> None:
    experts = np.array([[2, -1], [3, 1], [2**40 + 1, -(2**40)]])
    order, _, offsets = moe.expert_order(device.asarray(experts), 3)
    assert order.numpy().tolist() == [3, 0, 1, 2, 4, 5]
    assert offsets.numpy().tolist() == [0, 0, 1, 2]


@pytest.mark.parametrize(("tokens", "num_experts"), [(600, 5), (4200, 40)])
def test_plan_under_any_schedule(device: EmulatedDevice, same_bits: Any, rng: np.random.Generator,
                                 tokens: int, num_experts: int) -> None:
    experts = device.asarray(rng.integers(0, num_experts + 1, (tokens, 1)))
    same_bits(lambda: [array.numpy() for array in moe.expert_order(experts, num_experts)])


def test_plan_workspace_only_grows(device: EmulatedDevice) -> None:
    size = device.library.nn_moe_plan_workspace_size
    sizes = [size(pairs, 64) for pairs in (0, 4096, 4097, 6144, 6145, 2**20, 2**21, 2**21 + 1, 2**30, 2**31)]
    assert sizes == sorted(sizes)
    assert sizes[1] == 0 < sizes[2]
    assert sizes[-1] < 2**20
    assert size(5000, 64) < size(5000, 65)
