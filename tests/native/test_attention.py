"""Attention beyond the conformance suite's small sizes: many blocks, odd widths, views, against float64."""

from typing import Any

import ml_dtypes
import numpy as np
import pytest

from nn.backends import kernels, native, use_backend

pytestmark = pytest.mark.skipif(native.missing() is not None, reason=str(native.missing()))
LEVELS = native.levels() if native.missing() is None else []
DTYPES = [np.float32, ml_dtypes.bfloat16]

# B, H, G, T, S, D, Dv, options
SHAPES = {
    "blocks": (1, 3, 1, 200, 200, 64, 64, {}),
    "odd": (2, 2, 2, 77, 133, 80, 72, {}),
    "narrow": (1, 2, 1, 67, 67, 5, 3, {"causal": False}),
    "wide": (1, 1, 1, 50, 70, 130, 129, {}),
    "window": (1, 2, 1, 300, 300, 24, 16, {"window": 37}),
    "endless window": (1, 2, 1, 150, 150, 16, 16, {"window": 1 << 32}),
    "two-sided": (1, 1, 1, 150, 190, 16, 16, {"window": 70, "causal": False}),
    "large": (1, 1, 1, 150, 150, 16, 16, {"scale": 40.0}),
    "few": (2, 6, 2, 3, 700, 64, 48, {"window": 500}),
    "more-queries": (1, 1, 1, 200, 70, 16, 16, {}),
}


def drawn(shape: tuple[int, ...], seed: int, dtype: Any) -> np.ndarray:
    """[B,H,T,D], split from [B,T,H·D + 3]: the last axis alone is dense"""
    batch, heads, length, width = shape
    x = np.random.default_rng(seed).standard_normal((batch, length, heads * width + 3)).astype(dtype)
    return x[:, :, : heads * width].reshape(batch, length, heads, width).transpose(0, 2, 1, 3)


def seen(length: int, keys: int, causal: bool, window: int) -> np.ndarray:
    behind = np.arange(keys - length, keys)[:, None] - np.arange(keys)[None, :]
    ahead = 1 if causal else window or keys + length
    return (behind < (window or keys + length)) & (behind > -ahead)


def exact(q: np.ndarray, k: np.ndarray, v: np.ndarray, do: np.ndarray, visible: np.ndarray,
          scale: float) -> tuple[np.ndarray, ...]:
    """(o, lse, dq, dk, dv) in float64, every product written out"""
    q, k, v, do = (x.astype(np.float64) for x in (q, k, v, do))
    repeat = q.shape[1] // k.shape[1]
    every_k, every_v = np.repeat(k, repeat, 1), np.repeat(v, repeat, 1)
    s = np.where(visible, scale * q @ every_k.swapaxes(2, 3), -np.inf)
    most = np.max(s, -1, keepdims=True)
    weights = np.exp(s - np.where(np.isfinite(most), most, 0.0))
    total = weights.sum(-1, keepdims=True)
    p = weights / np.where(total == 0, 1, total)
    o, dp = p @ every_v, do @ every_v.swapaxes(2, 3)
    ds = p * (dp - (do * o).sum(-1, keepdims=True)) * scale
    dk, dv = ds.swapaxes(2, 3) @ q, p.swapaxes(2, 3) @ do
    groups = (*k.shape[:2], repeat)
    with np.errstate(divide="ignore"):
        lse = (most + np.log(total))[..., 0]
    return (o, lse, ds @ every_k, dk.reshape(*groups, *k.shape[2:]).sum(2),
            dv.reshape(*groups, *v.shape[2:]).sum(2))


@pytest.mark.parametrize("masked", [False, True], ids=["", "masked"])
@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize("dtype", DTYPES, ids=["float32", "bfloat16"])
def test_many_blocks(dtype: Any, name: str, masked: bool) -> None:
    batch, heads, groups, length, keys, width, value_width, options = SHAPES[name]
    options = {"scale": width**-0.5, "causal": True, "window": 0} | options
    q, do = (drawn((batch, heads, length, d), i, dtype) for i, d in enumerate((width, value_width)))
    k, v = (drawn((batch, groups, keys, d), 2 + i, dtype) for i, d in enumerate((width, value_width)))
    visible: np.ndarray = seen(length, keys, options["causal"], options["window"])
    if masked:
        options["mask"] = np.random.default_rng(5).random((batch, 1, length, keys)) < 0.6
        options["mask"][:, :, length // 2] = False
        visible = visible & options["mask"]
    expected = exact(q, k, v, do, visible, options["scale"])
    # scores of size scale |q k| carry their rounding into e^s
    sharpness = 1.0 + options["scale"] * width**0.5
    allowed = sharpness * (2e-6 if dtype is np.float32 else 2e-2)
    for level in LEVELS:
        before = native.fallbacks()
        with native.use_level(level), use_backend("native"):
            o, lse = kernels.attention(q, k, v, **options)
            found = (o, lse, *kernels.attention_backward(do, q, k, v, o, lse, **options))
        assert native.fallbacks() == before
        for what, a, b in zip(("o", "lse", "dq", "dk", "dv"), found, expected, strict=True):
            finite = np.isfinite(b)
            assert np.array_equal(a[~finite].astype(np.float64), b[~finite]), (level, what)
            size = np.max(np.abs(b[finite]), initial=1.0)
            error = np.max(np.abs(a[finite].astype(np.float64) - b[finite]), initial=0.0) / size
            assert error <= allowed, (level, what, error)


@pytest.mark.parametrize("dtype", DTYPES, ids=["float32", "bfloat16"])
def test_a_cache_is_read_as_far_as_it_is_held(dtype: Any) -> None:
    """Rows of different lengths, one of none, over several parts of the keys; a cache that is a slice."""
    lengths, room = np.array([0, 1, 64, 65, 300], np.int64), 320
    cache = np.full((5, 4, room, 40), np.nan).astype(dtype)[:, 1:3]
    values = np.full((5, 2, room + 7, 33), np.nan).astype(dtype)[:, :, 7:]
    q, k, v = (drawn((5, h, t, d), 6 + d, dtype) for h, t, d in ((6, 1, 40), (2, room, 40), (2, room, 33)))
    for b, n in enumerate(lengths):
        cache[b, :, :n], values[b, :, :n] = k[b, :, :n], v[b, :, :n]
    for level in LEVELS:
        before = native.fallbacks()
        with native.use_level(level):
            o = kernels.decode_attention(q, cache, values, lengths, scale=0.2)
        assert native.fallbacks() == before
        for b, n in enumerate(lengths):
            visible = np.ones((1, n), bool)
            if n == 0:
                assert not o[b].any()
                continue
            right = exact(q[b : b + 1], k[b : b + 1, :, :n], v[b : b + 1, :, :n], q[b : b + 1, :, :, :33],
                          visible, 0.2)[0]
            error = np.max(np.abs(o[b].astype(np.float64) - right[0]))
            assert error <= (2e-6 if dtype is np.float32 else 2e-2), (level, b)
