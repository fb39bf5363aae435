"""The tokens of the native kernel against a definition in float64 and whole numbers, for a vocabulary that
several threads share, over many seeds."""

from contextlib import suppress
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from nn.backends import kernels, native, use_backend
from nn.errors import NonFiniteError
from nn.generate import SamplingConfig, sample
from nn.random import bits, derive

pytestmark = pytest.mark.skipif(native.missing() is not None, reason=str(native.missing()))
VOCABULARY = 20011
HOW = ({"temperature": 0.8}, {"temperature": 1.3, "top_k": 40}, {"temperature": 1.0, "top_p": 0.9},
       {"temperature": 0.7, "min_p": 0.05}, {"temperature": 1.0, "top_k": 200, "top_p": 0.95, "min_p": 0.01},
       {"temperature": 3.0, "top_p": 0.999})


def expected(z: np.ndarray, config: SamplingConfig, row: int, step: int) -> int:
    """Everything sorted, everything in whole numbers: by falling weight, then rising id"""
    cold = (z - z.max()) / np.float32(config.temperature)
    order = np.argsort(-cold, kind="stable")[: config.top_k or len(z)]
    weights = [int(w) for w in np.rint(np.exp(cold[order].astype(np.float64)) * 2.0**32)]
    pairs, need, held = [], config.top_p * sum(weights), 0
    ranked = sorted(zip(order.tolist(), weights, strict=True), key=lambda pair: (-pair[1], pair[0]))
    for token, weight in ranked:
        if held >= need and config.top_p < 1:
            break
        pairs.append((token, weight))
        held += weight
    left = sorted((token, weight) for token, weight in pairs if weight >= round(config.min_p * 2**32))
    word = int(bits(derive(config.seed, "sampling"), row, step))
    target = word * sum(weight for _, weight in left) // 2**32
    running = 0
    for token, weight in left:
        running += weight
        if running > target:
            return token
    raise AssertionError


@pytest.mark.parametrize("how", HOW, ids=str)
@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("spread", [0.0, 0.3, 4.0])
def test_many_seeds(how: dict[str, Any], dtype: Any, spread: float) -> None:
    z = (np.random.default_rng(1).standard_normal((1, VOCABULARY)) * spread).astype(dtype)
    for seed in range(4):
        config = SamplingConfig(seed=seed, **how)
        with use_backend("native"):
            got = sample(z, [[]], config, 7 + seed, rows=[seed])
        assert got.tolist() == [expected(z[0].astype(np.float32), config, seed, 7 + seed)]


@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16], ids=["float32", "bfloat16"])
def test_the_largest_with_the_lowest_id(dtype: Any) -> None:
    z = np.random.default_rng(2).standard_normal((3, VOCABULARY)).astype(dtype)
    greedy = SamplingConfig(temperature=0)
    for places in ((4095, 4096), (0, VOCABULARY - 1), (8192, 12288), (VOCABULARY - 1,), (20000, 20005)):
        again = z.copy()
        again[1, list(places)] = 9
        assert sample(again, [[]] * 3, greedy, 0).tolist() == again.astype(np.float32).argmax(axis=1).tolist()
        again[1, places[0]] = np.nan
        with pytest.raises(NonFiniteError, match="row 1 hold NaN"):
            sample(again, [[]] * 3, greedy, 0)


@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("size", [1, 15, 17, 63, 64, 65, 127, 4097, 8191])
def test_masked_rows_and_nan_at_every_place(dtype: Any, size: int) -> None:
    z = np.full((1, size), -np.inf, dtype)
    places = {0, 1, size // 2, size - 2, size - 1} & set(range(size))
    for hot in (0.0, 1.0):
        config = SamplingConfig(temperature=hot)
        with use_backend("native"):
            with pytest.raises(NonFiniteError, match="nothing above -inf"):
                sample(z, [[]], config, 0)
            for place in places:
                for worst, text in ((np.nan, "NaN"), (np.inf, r"\+inf")):
                    odd = z.copy()
                    odd[0, place] = worst
                    with pytest.raises(NonFiniteError, match=text):
                        sample(odd, [[]], config, 0)
                only = z.copy()
                only[0, place] = -3e38                       # all that is left, and at the end of the range
                assert sample(only, [[]], config, 0).tolist() == [place]


@pytest.mark.parametrize("how", [{"temperature": -1.0}, {"temperature": 1e39}, {"temperature": np.nan},
                                 {"top_p": 0.0}, {"top_p": np.nan}, {"min_p": 1.5}, {"min_p": np.nan},
                                 {"top_k": -1}], ids=str)
def test_what_no_configuration_allows_is_left_to_the_reference(how: dict[str, float]) -> None:
    arguments = np.ones((1, 70), np.float32), np.ones((1, 3), np.int64)
    before = dict(native.fallbacks())
    kernels.next_token(*arguments)
    assert native.fallbacks() == before
    with np.errstate(all="ignore"), suppress(ValueError):
        kernels.next_token(*arguments, **how)
    assert native.fallen_back(before).startswith("next_token 1 time ")


def test_a_device_that_was_asked_for_does_not_matter_to_logits_on_the_host() -> None:
    z = np.random.default_rng(4).standard_normal((2, 50)).astype(np.float32)
    for config in (SamplingConfig(temperature=0), SamplingConfig(seed=5)):
        wanted = sample(z, [[]] * 2, config, 3)
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("NN_BACKEND", "cuda")
            assert sample(z, [[]] * 2, config, 3).tolist() == wanted.tolist()


def test_rows_at_a_distance_and_a_shorter_vocabulary_are_taken() -> None:
    wide = np.random.default_rng(3).standard_normal((4, 9000)).astype(np.float32)
    before = dict(native.fallbacks())
    for config in (SamplingConfig(temperature=0), SamplingConfig(top_p=0.9)):
        view = wide[::2, :8191]
        assert sample(view, [[]] * 2, config, 3).tolist() == sample(view.copy(), [[]] * 2, config, 3).tolist()
    assert dict(native.fallbacks()) == before
