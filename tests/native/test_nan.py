"""NaN of any payload stays NaN, at every level: bits that are added to an exponent must not lose it."""

from typing import Any

import ml_dtypes
import numpy as np
import pytest

from nn.backends import kernels, native, use_backend

pytestmark = pytest.mark.skipif(native.missing() is not None, reason=str(native.missing()))
LEVELS = native.levels() if native.missing() is None else []
# the usual one, CUDA's, one whose low bits alone differ from the usual, negative ones
PAYLOADS = [0x7FC00000, 0x7FFFFFFF, 0x7FC00001, 0xFFC00001, 0xFFFFFFFF]
DTYPES = pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16], ids=["float32", "bfloat16"])
PAYLOAD = pytest.mark.parametrize("payload", PAYLOADS, ids=hex)


def draw(*shape: int, dtype: Any) -> np.ndarray:
    return np.random.default_rng(sum(shape)).standard_normal(shape).astype(dtype)


def spoil(x: np.ndarray, place: tuple[int, ...], payload: int) -> None:
    if x.dtype == np.float32:
        x.view(np.uint32)[place] = payload
    else:
        x.view(np.uint16)[place] = payload >> 16 | payload & 1
    assert np.isnan(x[place].astype(np.float32))


def nan(x: np.ndarray) -> np.ndarray:
    return np.isnan(x.astype(np.float32))


@DTYPES
@PAYLOAD
@pytest.mark.parametrize("length", [1, 2, 16, 70])
@pytest.mark.parametrize("which", ["q", "k", "v"])
def test_attention(which: str, length: int, payload: int, dtype: Any) -> None:
    """The queries that see the key have NaN, with their lse; the others have not."""
    keys, key = 90, 90 - max(length // 2, 1)
    query = key - (90 - length)                                    # that stands at the key's place
    seeing = np.arange(length) >= query
    x = {"q": draw(1, 2, length, 24, dtype=dtype), "k": draw(1, 1, keys, 24, dtype=dtype),
         "v": draw(1, 1, keys, 20, dtype=dtype)}
    spoil(x[which], (0, 0, query if which == "q" else key, 7), payload)
    rows = np.broadcast_to(seeing, (2, length)).copy()
    if which == "q":
        rows[1], rows[0] = False, np.arange(length) == query
    for level in LEVELS:
        before = native.fallbacks()
        with native.use_level(level), use_backend("native"):
            o, lse = kernels.attention(x["q"], x["k"], x["v"], scale=0.2)
            decoded = kernels.decode_attention(
                x["q"][:, :, -1:], x["k"], x["v"], np.array([keys], np.int32), scale=0.2)
        assert native.fallbacks() == before
        if which == "v":
            assert nan(o)[0, :, seeing, 7].all(), level
            assert not nan(o)[..., :7].any(), level
            assert not nan(lse).any(), level
            assert np.array_equal(nan(decoded)[0, :, 0].all(0), np.arange(20) == 7), level
        else:
            assert np.array_equal(nan(o)[0], np.broadcast_to(rows[..., None], o.shape[1:])), level
            assert np.array_equal(nan(lse)[0], rows), level
            assert np.array_equal(nan(decoded)[0, :, 0].all(-1), rows[:, -1]), level


@DTYPES
@PAYLOAD
def test_exponentials_of_rows(payload: int, dtype: Any) -> None:
    x, targets = draw(3, 150, dtype=dtype), np.array([1, 2, 3])
    spoil(x, (1, 77), payload)
    expected = np.array([False, True, False])
    for level in LEVELS:
        before = native.fallbacks()
        with native.use_level(level), use_backend("native"):
            loss, lse = kernels.cross_entropy(x, targets)
            d = kernels.cross_entropy_backward(np.ones(3, np.float32), x, targets, lse)
            found = [kernels.softmax(x), kernels.log_softmax(x), loss[:, None], lse[:, None], d]
            places = [kernels.silu(x), kernels.gelu(x), kernels.swiglu(x, x)]
        assert native.fallbacks() == before
        for i, each in enumerate(found):
            assert np.array_equal(nan(each), np.broadcast_to(expected[:, None], each.shape)), (level, i)
        for i, each in enumerate(places):
            assert np.array_equal(nan(each), nan(x)), (level, i)
