"""Decoding behind a cache: what is_decode says, what the cache must be, and that it changes no result."""

from itertools import pairwise
from typing import Any

import numpy as np
import pytest

from nn.cache import KVCache
from nn.errors import InputError
from nn.generate import SamplingConfig, generate, generate_batch
from nn.models import Transformer

from .transformers import ids, model

VARIANTS: dict[str, dict[str, Any]] = {
    "as it is": {}, "grouped": {"n_heads": 4, "n_kv_heads": 2, "head_dim": 4},
    "layernorm": {"norm": "layernorm"}, "post": {"norm_position": "post"},
    "learned": {"positional": "learned"}, "none": {"positional": "none"},
    "sinusoidal": {"positional": "sinusoidal"}, "manual": {"attn_backend": "manual"}, "window": {"window": 3},
    "experts": {"ffn_type": "moe"}, "swiglu": {"ffn_type": "swiglu"}, "biases": {"bias": True},
    "recursive": {"recursive": True, "recurrence_steps": 3, "recursive_blocks": 2},
    "gated steps": {"recursive": True, "recurrence_steps": 2, "update_rule": "gated", "inject_input": True,
                    "step_embedding": "learned"},
    "exits": {"recursive": True, "recurrence_steps": 3, "exit_router": "max_prob", "exit_threshold": 0.3}}
CUTS = ((3, 4), (1, 1, 5), (7,), (2, 1, 1, 1, 2))


@pytest.mark.parametrize("variant", VARIANTS)
def test_cached_is_whole(variant: str) -> None:
    """Prefill, then any number of tokens at a time"""
    m, x = model(**VARIANTS[variant]), ids()
    whole = m(x).numpy()
    for cut in CUTS:
        cache, edges = KVCache(num_layers=m.cfg.cache_layers()), np.cumsum((0, *cut))
        parts = [m(x[:, start:end], kv_cache=cache, is_decode=start > 0).numpy()
                 for start, end in pairwise(edges)]
        np.testing.assert_allclose(np.concatenate(parts, axis=1), whole, rtol=1e-10, atol=1e-10)
        assert (cache.length, cache.offset) == (7, 7)
    assert m.cfg.cache_layers() == {"recursive": 6, "gated steps": 2, "exits": 3}.get(variant, 2)


def test_prefill_into_a_cache_that_is_not_empty_begins_anew() -> None:
    m, cache = model(), KVCache(num_layers=2)
    first = m(ids(), kv_cache=cache).numpy()
    assert np.array_equal(m(ids(), kv_cache=cache, is_decode=False).numpy(), first)
    assert (cache.length, cache.offset) == (7, 7)
    m(ids(batch=3), kv_cache=cache)                                      # even for another batch
    assert cache.layers[0].k.shape[0] == 3
    m(ids(batch=3), kv_cache=cache, is_decode=True)
    assert cache.length == 14


@pytest.mark.parametrize("positional", ["rope", "learned"])
def test_prefill_into_a_cache_whose_tokens_were_dropped(positional: str) -> None:
    """Nothing is held, but positions went on: they begin anew, for any batch."""
    m, cache = model(positional=positional), KVCache(num_layers=2)
    m(ids(), kv_cache=cache)
    cache.trim(0)
    np.testing.assert_array_equal(m(ids(batch=3), kv_cache=cache).numpy(), m(ids(batch=3)).numpy())
    assert (cache.length, cache.offset) == (7, 7)


def test_tokens_taken_back_into_the_padding() -> None:
    m, x, cache = model(positional="learned"), ids(), KVCache(num_layers=2)
    keep = np.array([[True] * 7, [False] * 3 + [True] * 4])
    m(x[:, :5], kv_cache=cache, mask=keep[:, :5])
    cache.crop(2)
    y = m(x[:, 2:], kv_cache=cache, mask=keep, is_decode=True).numpy()
    np.testing.assert_allclose(y[1:, 1:], m(x[1:, 3:]).numpy(), rtol=1e-10, atol=1e-10)


def test_decoding_into_an_empty_cache_is_a_prefill() -> None:
    m, cache = model(), KVCache(num_layers=2)
    logits = m(ids(), kv_cache=cache, is_decode=True)
    np.testing.assert_allclose(logits.numpy(), m(ids()).numpy(), rtol=1e-12, atol=1e-12)
    assert not logits.requires_grad
    assert m(ids()).requires_grad


@pytest.mark.parametrize("positional", ["rope", "learned"])
def test_padding_behind_a_cache(positional: str) -> None:
    m, x, cache = model(positional=positional), ids(), KVCache(num_layers=2)
    keep = np.array([[True] * 7, [False] * 3 + [True] * 4])
    m(x[:, :5], kv_cache=cache, mask=keep[:, :5])
    y = m(x[:, 5:], kv_cache=cache, mask=keep, is_decode=True).numpy()
    np.testing.assert_allclose(y[1:], m(x[1:, 3:]).numpy()[:, 2:], rtol=1e-10, atol=1e-10)
    with pytest.raises(InputError, match=r"mask: shape \[2, 1\]; expected \[B,S\] with S = 8"):
        m(x[:, :1], kv_cache=cache, mask=np.ones((2, 1), bool), is_decode=True)


def test_refused_caches() -> None:
    m, deep = model(), model(recursive=True, recurrence_steps=3)
    with pytest.raises(InputError, match=r"has 3 layers, the model needs 2; use KVCache\(num_layers=2\)"):
        m(ids(), kv_cache=KVCache(num_layers=3))
    with pytest.raises(InputError, match="needs 3, one for each step of each repeated block"):
        deep(ids(), kv_cache=KVCache(num_layers=2))
    with pytest.raises(InputError, match="an encoder reads whole sequences"):
        model(mode="encoder")(ids(), kv_cache=KVCache(num_layers=2))
    cache = KVCache(num_layers=2)
    m(ids(), kv_cache=cache)
    with pytest.raises(InputError, match="kv_cache: holds float64, the model computes in float32"):
        model("float32")(ids(), kv_cache=cache, is_decode=True)
    with pytest.raises(InputError, match=r"kv_cache: shape \[2, 2, 7, 4\].*B = 3"):
        m(ids(batch=3), kv_cache=cache, is_decode=True)
    with pytest.raises(InputError, match=r"kv_cache: shape \[2, 2, 7, 4\].*Dh = 6"):
        model(head_dim=6)(ids(), kv_cache=cache, is_decode=True)
    assert cache.length == 7                                            # nothing of these was stored


def test_depth_override_with_a_cache() -> None:
    m, x = model(recursive=True, recurrence_steps=4), ids()
    cache = KVCache(num_layers=m.cfg.cache_layers(2))
    m(x[:, :4], kv_cache=cache, recurrence_steps=2)
    y = m(x[:, 4:], kv_cache=cache, is_decode=True, recurrence_steps=2).numpy()
    np.testing.assert_allclose(y, m(x, recurrence_steps=2).numpy()[:, 4:], rtol=1e-10, atol=1e-10)
    with pytest.raises(InputError, match="needs 4"):
        m(x, kv_cache=cache, is_decode=True)


def test_slots_of_a_recursion() -> None:
    """One for each layer and step, the steps of a layer together"""
    m, x = model(recursive=True, recurrence_steps=3, recursive_blocks=2), ids()
    once, thrice = KVCache(num_layers=2), KVCache(num_layers=6)
    m(x, kv_cache=once, recurrence_steps=1)
    m(x, kv_cache=thrice)
    same = [[np.array_equal(first.k, slot.k) for slot in thrice.layers] for first in once.layers]
    assert same == [[True] + [False] * 5, [False] * 3 + [True] + [False] * 2]


# ---- seq2seq ----

SEQ2SEQ = ("as it is", "grouped", "learned", "manual", "experts", "recursive")


@pytest.mark.parametrize("variant", SEQ2SEQ)
def test_seq2seq_cached_is_whole(variant: str) -> None:
    m, src, tgt = model(mode="seq2seq", **VARIANTS[variant]), ids(), ids(length=6, seed=1)
    keep = np.array([[True] * 7, [True] * 5 + [False] * 2])
    whole = m(src, tgt, mask=keep).numpy()
    cache = KVCache(num_layers=m.cfg.cache_layers())
    parts = [m(src, tgt[:, :2], mask=keep, kv_cache=cache),
             m(None, tgt[:, 2:3], kv_cache=cache, is_decode=True),
             m(src, tgt[:, 3:], kv_cache=cache, is_decode=True)]
    np.testing.assert_allclose(np.concatenate(parts, axis=1), whole, rtol=1e-10, atol=1e-10)


def test_the_source_is_read_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """The encoder runs once, and every layer makes keys and values of its states once."""
    m, src, tgt = model(mode="seq2seq"), ids(), ids(length=5, seed=1)
    encoded: list[int] = []
    encode = Transformer.encode
    monkeypatch.setattr(Transformer, "encode", lambda self, *args: encoded.append(1) or encode(self, *args))
    cache = KVCache(num_layers=2)
    for t in range(5):
        m(src, tgt[:, t : t + 1], kv_cache=cache, is_decode=t > 0)
    assert encoded == [1]
    source: Any = cache.source
    keys = [layer.k for layer in source.layers]
    assert [k.shape for k in keys] == [(2, 2, 7, 4)] * 2
    m(src, tgt[:, :1], kv_cache=cache, is_decode=True)
    assert [layer.k is before for layer, before in zip(source.layers, keys, strict=True)] == [True, True]
    m(src, tgt, kv_cache=cache)
    assert encoded == [1, 1]


def test_another_source_is_refused() -> None:
    m, cache = model(mode="seq2seq"), KVCache(num_layers=2)
    m(ids(), ids(length=2), kv_cache=cache)
    with pytest.raises(InputError, match=r"ids: another source \(shape \[2, 7\]\)"):
        m((ids() + 1) % 13, ids(length=2), kv_cache=cache, is_decode=True)
    for keep in (np.array([[True] * 6 + [False], [True] * 7]), np.ones((2, 6), bool)):
        with pytest.raises(InputError, match="mask: another one than the source's"):
            m(ids(), ids(length=2), mask=keep, kv_cache=cache, is_decode=True)
    m(ids(), ids(length=1), mask=np.ones((2, 7), int), kv_cache=cache.copy(), is_decode=True)
    with pytest.raises(InputError, match="the cache holds no source yet"):
        m(None, ids(length=2), kv_cache=KVCache(num_layers=2), is_decode=True)
    with pytest.raises(InputError, match=r"tgt_ids: shape \[3, 2\].*B = 2"):
        m(None, ids(batch=3, length=2), kv_cache=cache, is_decode=True)


def test_rows_of_a_cache_are_reordered_and_copied() -> None:
    """As beam search does"""
    m, src, tgt = model(mode="seq2seq"), ids(), ids(length=4, seed=1)
    keep, rows = np.array([[True] * 7, [True] * 5 + [False] * 2]), np.array([1, 1, 0])
    cache = KVCache(num_layers=2)
    m(src, tgt[:, :3], mask=keep, kv_cache=cache)
    other = cache.copy()
    other.reorder(rows)
    y = m(None, tgt[rows, 3:], kv_cache=other, is_decode=True).numpy()
    np.testing.assert_allclose(y, m(src, tgt, mask=keep).numpy()[rows, 3:], rtol=1e-10, atol=1e-10)
    assert (cache.length, other.length) == (3, 4)
    np.testing.assert_allclose(m(None, tgt[:, 3:], kv_cache=cache, is_decode=True),
                               m(src, tgt, mask=keep).numpy()[:, 3:], rtol=1e-10, atol=1e-10)


def test_a_source_is_reordered_before_it_is_first_read() -> None:
    m, src, tgt, rows = model(mode="seq2seq"), ids(), ids(length=4, seed=1), np.array([1, 1, 0])
    cache = KVCache(num_layers=2)
    cache.source = m.read_source(src)
    cache.reorder(rows)
    y = m(None, tgt[rows], kv_cache=cache, is_decode=True).numpy()
    np.testing.assert_allclose(y, m(src, tgt).numpy()[rows], rtol=1e-10, atol=1e-10)
    cache.reset()
    assert cache.source is None
    with pytest.raises(InputError, match="the cache holds no source yet"):
        m(None, tgt, kv_cache=cache, is_decode=True)


# ---- generation ----

GREEDY = SamplingConfig(max_tokens=6, temperature=0.0)


def greedy(next_logits: Any, start: list[int], steps: int) -> list[int]:
    """By recomputing everything"""
    text = list(start)
    for _ in range(steps):
        text.append(int(next_logits(np.array([text]))[0, -1].argmax()))
    return text[len(start):]


@pytest.mark.parametrize("variant", ["as it is", "recursive", "learned"])
def test_generates_like_any_decoder(variant: str) -> None:
    m = model(**VARIANTS[variant])
    assert list(generate(m, [3, 1, 4], GREEDY)) == greedy(lambda x: m(x).numpy(), [3, 1, 4], 6)


def test_generates_targets() -> None:
    m, src = model(mode="seq2seq", tie_embeddings=False, seed=11, init_std=0.8), ids(batch=3)
    keep = np.array([[True] * 7, [True] * 4 + [False] * 3, [True] * 6 + [False]])
    texts = m.generate(src, GREEDY, mask=keep)
    for row, text in enumerate(texts):
        own = src[row : row + 1, keep[row]]
        assert text == greedy(lambda x, own=own: m(own, x).numpy(), [m.cfg.start_id], 6)
    assert len({tuple(text) for text in texts}) > 1                      # the sources matter
    assert m.generate(src.tolist(), GREEDY) != texts
    with pytest.raises(InputError, match="mode: 'decoder' has no encoder"):
        model().generate(src)


def test_generates_batches() -> None:
    m = model()
    assert generate_batch(m, [[3, 1], [5, 2], [4]], GREEDY) == [
        list(generate(m, prompt, GREEDY)) for prompt in ([3, 1], [5, 2], [4])]
