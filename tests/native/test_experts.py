"""What the experts' kernels promise beyond values: bits of random numbers, order, independence of tokens."""

from typing import Any

import ml_dtypes
import numpy as np
import pytest

from nn.backends import kernels, native, use_backend
from nn.random import counter

pytestmark = pytest.mark.skipif(native.missing() is not None, reason=str(native.missing()))
LEVELS = native.levels() if native.missing() is None else []
DTYPES = [np.float32, ml_dtypes.bfloat16]


def on(backend: str, name: str, *arguments: Any, **options: Any) -> Any:
    with use_backend(backend):
        return getattr(kernels, name)(*arguments, **options)


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("dtype", DTYPES, ids=["float32", "bfloat16"])
def test_jitter_draws_the_references_numbers_to_the_bit(level: str, dtype: Any) -> None:
    x, place = np.random.default_rng(0).standard_normal((37, 131)).astype(dtype), counter(3, "jitter", 5, 6)
    with native.use_level(level):
        for epsilon in (0.0, 0.01, 0.37, 1.0):
            y, expected = (on(name, "jitter", x, place, epsilon=epsilon) for name in ("native", "reference"))
            assert y.tobytes() == expected.tobytes()


def test_ties_and_what_is_no_number() -> None:
    inf, nan = np.inf, np.nan
    logits = np.array([[1, 1, 1, 1], [0, inf, 0, inf], [-inf, 2, -inf, -inf], [nan, 1, 2, nan]], np.float32)
    experts = on("native", "router_topk", logits, 3)[1]
    assert experts[:3].tolist() == [[0, 1, 2], [1, 3, 0], [1, 0, 2]]
    assert experts[3, :2].tolist() == [2, 1]


def test_wrong_indices_are_the_references_to_judge() -> None:
    x, order = np.ones((2, 3), np.float32), np.array([0, 4, 1, 2])
    with pytest.raises(IndexError):
        on("native", "moe_dispatch", x, order, 2)
    with pytest.raises(IndexError):
        on("native", "moe_combine", x, np.ones((2, 1), np.float32), np.array([0, 2]))


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("dtype", DTYPES, ids=["float32", "bfloat16"])
def test_a_tokens_bits_do_not_depend_on_the_others(level: str, dtype: Any) -> None:
    """Alone, among few and among many, in whatever place: the same bits, through both linear maps."""
    random = np.random.default_rng(1)
    tokens, width, hidden, experts = 150, 70, 50, 3
    x = random.standard_normal((tokens, width)).astype(dtype)
    up = (random.standard_normal((experts, 2 * hidden, width)) * 0.1).astype(dtype)
    down = random.standard_normal((experts, width, hidden)).astype(dtype)
    chosen = np.stack([random.permutation(experts)[:2] for _ in range(tokens)])

    def run(which: np.ndarray) -> np.ndarray:
        order, inverse, offsets = kernels.expert_order(chosen[which], experts)
        y, kept = kernels.gathered_swiglu(x[which], up, offsets, order, 2)
        bits = [kernels.grouped_linear(y, down, offsets), y, kept]
        return np.concatenate([np.ascontiguousarray(part[inverse]) for part in bits], axis=1)

    before = native.fallbacks()
    with native.use_level(level), use_backend("native"):
        whole = run(np.arange(tokens)).reshape(tokens, 2, -1)
        for which in (np.array([7]), np.array([149, 3, 77]), random.permutation(tokens)[:101]):
            part = run(which).reshape(len(which), 2, -1)
            assert part.tobytes() == np.ascontiguousarray(whole[which]).tobytes()
    assert native.fallbacks() == before


@pytest.mark.parametrize("scale", [1e-32, 1e-25, 1e25, 3e38])
def test_floats_near_the_ends_of_their_range(scale: float) -> None:
    """Tiles multiply floats in parts of bfloat16, which flush to zero and overflow before floats do."""
    random = np.random.default_rng(2)
    x = (random.uniform(0.5, 1.0, (40, 64)) * scale).astype(np.float32)
    weight = (random.uniform(0.5, 1.0, (1, 33, 64)) / 64).astype(np.float32)
    exact = x.astype(np.float64) @ weight[0].astype(np.float64).T
    for left, right in ((x, weight), (weight[0], x[None])):
        y = on("native", "grouped_linear", left, right, np.array([0, len(left)]))
        right_one = exact if left is x else exact.T
        assert np.abs(y / right_one - 1.0).max() < 2e-6


def test_infinities_reach_their_rows_alone() -> None:
    x, weight = np.ones((40, 64), np.float32), np.ones((1, 33, 64), np.float32)
    x[3, 5], x[7, 60], x[9, 1] = np.inf, np.nan, -np.inf
    y = on("native", "grouped_linear", x, weight, np.array([0, 40]))
    assert (y[3] == np.inf).all()
    assert np.isnan(y[7]).all()
    assert (y[9] == -np.inf).all()
    assert (np.delete(y, [3, 7, 9], axis=0) == 64.0).all()


@pytest.mark.parametrize("dtype", DTYPES, ids=["float32", "bfloat16"])
def test_few_rows_one_by_one(dtype: Any) -> None:
    """Decoding: rows of their own weights, no equal bits asked for."""
    random = np.random.default_rng(3)
    x = random.standard_normal((3, 100)).astype(dtype)
    up = (random.standard_normal((6, 38, 100)) * 0.1).astype(dtype)
    chosen = np.array([[0, 4], [4, 2], [5, 6]])
    order, inverse, offsets = kernels.expert_order(chosen, 6)
    y, kept = on("native", "gathered_swiglu", x, up, offsets, order, 2, batch_invariant=False)
    z = np.einsum("nd,nkcd->nkc", x.astype(np.float64), up.astype(np.float64)[np.minimum(chosen, 5)])
    z[2, 1] = 0.0                                                                       # a dropped pair
    z = z.reshape(6, 38)
    unit = 2.0**-22 if dtype is np.float32 else 2.0**-8
    assert np.allclose(kept[inverse].astype(np.float64), z, rtol=unit, atol=unit)
    gate, value = z[:, :19], z[:, 19:]
    right = gate / (1 + np.exp(-gate)) * value
    assert np.allclose(y[inverse].astype(np.float64), right, rtol=unit, atol=unit)
