"""Attention on the device (csrc/kernels/attention): forward, decoding from a cache, and the cache's append.

Views are passed as they lie as long as their last axis is dense: q of [B,T,H,D] seen as [B,H,T,D] is not
copied, and o then lies like q."""

from ctypes import byref
from typing import Any

import numpy as np

from cuda.nn.array import DeviceArray
from cuda.nn.prototypes.attention import Attention, Cache, Decode
from nn.backends.device.arrays import cast, expect, expect_device, expect_size, scratch

DECODE_QUERIES = 16        # at most, in nn_attention_decode


def attention(q: DeviceArray, k: DeviceArray, v: DeviceArray, *, scale: float, causal: bool = True,
              window: int = 0, mask: Any = None) -> tuple[DeviceArray, DeviceArray]:
    """(o[B,H,T,Dv], lse[B,H,T]) from q[B,H,T,D], k[B,G,S,D], v[B,G,S,Dv]; as the reference's."""
    q, k, v = _rows(q, k, v)
    if mask is None and _few(q, k):
        return decode_attention(q, k, v, None, scale=scale, causal=causal, window=window)
    return attention_forward(q, k, v, scale=scale, causal=causal, window=window, mask=mask)


def attention_forward(q: DeviceArray, k: DeviceArray, v: DeviceArray, *, scale: float, causal: bool = True,
                      window: int = 0, mask: Any = None, softcap: float = 0.0,
                      key_lengths: Any = None) -> tuple[DeviceArray, DeviceArray]:
    """softcap c > 0: a score s becomes c tanh(s / c).  key_lengths: int32[B] on the device, instead of S."""
    q, k, v = _rows(q, k, v)
    o, lse = _like(q, v.shape[-1]), q.device.empty(q.shape[:3], np.float32)
    call, _keep = attention_call(q, k, v, o, lse, scale=scale, causal=causal, window=window, mask=mask,
                                 softcap=softcap, key_lengths=key_lengths)
    q.device.call("attention_forward", byref(call))
    return o, lse


def attention_varlen(q: DeviceArray, k: DeviceArray, v: DeviceArray, cu_queries: Any, cu_keys: Any, *,
                     queries: int, keys: int, scale: float, causal: bool = True, window: int = 0,
                     softcap: float = 0.0) -> tuple[DeviceArray, DeviceArray]:
    """(o[N,H,Dv], lse[H,N]) of packed sequences q[N,H,D], k[M,G,D], v[M,G,Dv]: sequence b has the positions
    cu_queries[b] ... cu_queries[b+1] - 1, and of keys likewise; `queries`, `keys`: the greatest lengths."""
    tokens, heads, _ = q.shape
    q, k, v = _rows(*(_packed(x) for x in (q, k, v)))                  # [1,H,N,D]
    o, lse = _like(q, v.shape[-1]), q.device.empty((heads, tokens), np.float32)
    call, _keep = attention_call(q, k, v, o, lse.reshape(1, heads, tokens), scale=scale, causal=causal,
                                 window=window, softcap=softcap, cu_queries=cu_queries, cu_keys=cu_keys)
    call.batch, call.queries, call.keys = len(cu_queries) - 1, queries, keys
    q.device.call("attention_forward", byref(call))
    return o.reshape(heads, tokens, -1).permute((1, 0, 2)), lse


def attention_call(q: DeviceArray, k: DeviceArray, v: DeviceArray, o: DeviceArray, lse: DeviceArray, *,
                   scale: float, causal: bool = True, window: int = 0, mask: Any = None, softcap: float = 0.0,
                   key_lengths: Any = None, cu_queries: Any = None,
                   cu_keys: Any = None) -> tuple[Attention, list[DeviceArray]]:
    """The C structure, and the arrays made for it, to be kept until the call."""
    (batch, heads, queries, width), (groups, keys) = q.shape, k.shape[1:3]
    check_shapes(q, k, v)
    lengths = {"key_lengths": (key_lengths, batch), "cu_queries": (cu_queries, None),
               "cu_keys": (cu_keys, None if cu_queries is None else len(cu_queries))}
    kept: list[DeviceArray] = []
    pointers = {name: _pointer(name, q, values, kept, size) for name, (values, size) in lengths.items()}
    call = Attention(
        o=o.pointer, lse=lse.pointer, q=q.pointer, k=k.pointer, v=v.pointer, batch=batch, heads=heads,
        groups=groups, queries=queries, keys=keys, width=width, value_width=v.shape[3],
        o_strides=o.strides[:3], q_strides=q.strides[:3], k_strides=k.strides[:3], v_strides=v.strides[:3],
        lse_strides=lse.strides[:2], window=window, scale=scale, softcap=softcap, causal=causal, dtype=q.code,
        **pointers)
    if mask is not None:
        mask = q.device.asarray(mask)
        if mask.dtype != np.dtype(np.bool_):
            raise TypeError(f"attention: the mask holds {mask.dtype}; give booleans, True keeps")
        mask = mask.broadcast_to((batch, heads, queries, keys))
        call.mask, call.mask_strides = mask.pointer, mask.strides
        kept.append(mask)
    return call, kept


def decode_attention(q: DeviceArray, k_cache: DeviceArray, v_cache: DeviceArray, lengths: Any, *,
                     scale: float, causal: bool = True, window: int = 0, softcap: float = 0.0,
                     block_table: Any = None) -> tuple[DeviceArray, DeviceArray]:
    """(o[B,H,T,Dv], lse[B,H,T]) of T <= 16 queries, the newest, against caches k[B,G,capacity,D],
    v[B,G,capacity,Dv] that hold lengths[B] (int32 on the device; None: all of it) keys each.  With
    block_table[B,max_pages] (int32) the caches are pools [pages,G,page,D]."""
    (q,) = _rows(q)
    _same_types(q, k_cache, v_cache)
    o, lse = _like(q, v_cache.shape[-1]), q.device.empty(q.shape[:3], np.float32)
    kept: list[DeviceArray] = []
    k_cache, v_cache = _rows(k_cache, v_cache)
    cache = _cache(q.shape[0], k_cache, v_cache, block_table, kept)
    expect_device(q, k_cache=k_cache, v_cache=v_cache)
    expect("k_cache", k_cache, (*k_cache.shape[:3], q.shape[3]))
    call = Decode(o=o.pointer, lse=lse.pointer, q=q.pointer, heads=q.shape[1], queries=q.shape[2],
                  lengths=_pointer("lengths", q, lengths, kept, q.shape[0]), o_strides=o.strides[:3],
                  q_strides=q.strides[:3], window=window, scale=scale, softcap=softcap, causal=causal)
    size = q.device.library.nn_attention_decode_workspace_size(*q.shape[:3], cache.capacity,
                                                               cache.value_width)
    q.device.call("attention_decode", byref(call), byref(cache), *scratch(q, size))
    return o, lse


def cache_append(k_cache: DeviceArray, v_cache: DeviceArray, k: DeviceArray, v: DeviceArray, positions: Any,
                 *, block_table: Any = None) -> None:
    """cache[b, :, positions[b] + t] = k, v[b, :, t]; positions int32[B] on the device.  What lies outside the
    cache is not written."""
    kept: list[DeviceArray] = []
    k, v = _rows(k, v)
    _same_types(k, k_cache, v_cache)
    expect_device(k, k_cache=k_cache, v_cache=v_cache)
    cache = _cache(k.shape[0], k_cache, v_cache, block_table, kept)
    for name, new, held in (("k", k, k_cache), ("v", v, v_cache)):
        expect(name, new, (k.shape[0], held.shape[1], k.shape[2], held.shape[3]))
    k.device.call("cache_append", byref(cache), k, v, _pointer("positions", k, positions, kept, k.shape[0]),
                  k.shape[2], *k.strides[:3], *v.strides[:3])


def check_shapes(q: DeviceArray, k: DeviceArray, v: DeviceArray) -> None:
    """q[B,H,T,D], k[B,G,S,D], v[B,G,S,Dv]"""
    expect_device(q, k=k, v=v)
    expect("k", k, (q.shape[0], *k.shape[1:3], q.shape[3]))
    expect("v", v, (*k.shape[:3], v.shape[-1]))


def _same_types(x: DeviceArray, *others: DeviceArray) -> None:
    if any(y.dtype != x.dtype for y in others):
        raise TypeError(f"attention: {x.dtype} beside a cache of {', '.join(str(y.dtype) for y in others)}")


def _few(q: DeviceArray, k: DeviceArray) -> bool:
    """Whether the decode kernels are better: rows too few for a tile, or keys enough to split."""
    queries, rows = q.shape[2], q.shape[2] * (q.shape[1] // k.shape[1])
    return queries <= DECODE_QUERIES and (rows <= 8 or k.shape[2] >= 512)


def _rows(*arrays: DeviceArray) -> list[DeviceArray]:
    """Arrays of one type whose last axis is dense."""
    dtype = arrays[0].dtype if len({x.dtype for x in arrays}) == 1 else np.dtype(np.float32)
    same = [cast(x if x.dtype == dtype else x.contiguous(), dtype) for x in arrays]
    return [x if x.strides[-1] == 1 or x.shape[-1] == 1 else x.contiguous() for x in same]


def _like(q: DeviceArray, width: int) -> DeviceArray:
    """An empty [B,H,T,width] that lies in memory as q does, heads within positions or outside."""
    batch, heads, length, _ = q.shape
    if q.strides[2] > q.strides[1]:
        return q.device.empty((batch, length, heads, width), q.dtype).permute((0, 2, 1, 3))
    return q.device.empty((batch, heads, length, width), q.dtype)


def _packed(x: DeviceArray) -> DeviceArray:
    """[N,H,D] -> [1,H,N,D]"""
    return x.reshape(1, *x.shape).permute((0, 2, 1, 3))


def _pointer(name: str, x: DeviceArray, values: Any, kept: list[DeviceArray],
             size: int | None = None) -> int | None:
    """Of int32 values on the device of x, so many of them."""
    if values is None:
        return None
    array = x.device.asarray(values, dtype=np.int32)
    if size is not None:
        expect_size(name, array, size)
    kept.append(array if array.is_contiguous else array.contiguous())
    return kept[-1].pointer


def _cache(batch: int, k: DeviceArray, v: DeviceArray, block_table: Any, kept: list[DeviceArray]) -> Cache:
    """k, v: caches [B,G,capacity,D], or with a table pools [pages,G,page,D]."""
    if k.strides[-1] != 1 or v.strides[-1] != 1:
        raise ValueError("attention: the last axis of a cache must be dense")
    pages, groups, length, width = k.shape
    if block_table is None:
        expect("k_cache", k, (batch, *k.shape[1:]))
    expect("v_cache", v, (*k.shape[:3], v.shape[-1]))
    cache = Cache(k=k.pointer, v=v.pointer, batch=batch, groups=groups, capacity=length, width=width,
                  value_width=v.shape[3], k_strides=k.strides[:3], v_strides=v.strides[:3], dtype=k.code)
    if block_table is not None:
        cache.block_table = _pointer("block_table", k, block_table, kept)
        expect("block_table", kept[-1], (batch, *kept[-1].shape[1:2]))
        cache.page, cache.pages, cache.max_pages = length, pages, kept[-1].shape[1]
        cache.capacity = length * cache.max_pages
    return cache
