"""nn/attention.h, nn/attention_backward.h: causal grouped attention in training, one query against a cache in
decoding."""

from ctypes import byref
from functools import cache

import numpy as np

from cuda.nn.array import DeviceArray
from cuda.nn.benchmarks.case import Bench, Call, Check, benchmark
from cuda.nn.prototypes.attention import Attention, Cache, Decode
from cuda.nn.prototypes.attention_backward import AttentionGradients

LARGE = {"batch": 4, "heads": 32, "groups": 8, "tokens": 2048, "width": 128}
SMALL = {"batch": 1, "heads": 4, "groups": 2, "tokens": 128, "width": 64}
FULL, FULL_SMALL = LARGE | {"groups": 32}, SMALL | {"groups": 4}
DECODE = {"batch": 32, "heads": 32, "groups": 8, "capacity": 8192, "width": 128}
DECODE_SMALL = {"batch": 2, "heads": 8, "groups": 2, "capacity": 512, "width": 64}
PAGE = 64


def _reference(q: np.ndarray, k: np.ndarray, v: np.ndarray,
               causal: bool) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(o[T,D], lse[T], p[T,S]) of one head"""
    scores = q @ k.T * q.shape[1]**-0.5
    if causal:
        queries, keys = scores.shape
        scores = np.where(np.tri(queries, keys, keys - queries, dtype=bool), scores, -np.inf)
    top = scores.max(axis=1, keepdims=True)
    lse = top + np.log(np.exp(scores - top).sum(axis=1, keepdims=True))
    p = np.exp(scores - lse)
    return p @ v, lse[:, 0], p


def _call(q: DeviceArray, k: DeviceArray, v: DeviceArray, o: DeviceArray, lse: DeviceArray) -> Attention:
    batch, heads, tokens, width = q.shape
    return Attention(o=o.pointer, lse=lse.pointer, q=q.pointer, k=k.pointer, v=v.pointer, batch=batch,
                     heads=heads, groups=k.shape[1], queries=tokens, keys=tokens, width=width,
                     value_width=width, o_strides=o.strides[:3], q_strides=q.strides[:3],
                     k_strides=k.strides[:3], v_strides=v.strides[:3], lse_strides=lse.strides[:2],
                     scale=width**-0.5, causal=1, dtype=q.code)


def _inputs(at: Bench, batch: int, heads: int, groups: int, tokens: int,
            width: int) -> tuple[DeviceArray, DeviceArray, DeviceArray]:
    return (at.normal(batch, heads, tokens, width), at.normal(batch, groups, tokens, width),
            at.normal(batch, groups, tokens, width))


def _triangle(batch: int, heads: int, tokens: int, width: int) -> int:
    """Operations of one product over the visible half of the scores."""
    return batch * heads * tokens * (tokens + 1) * width


@benchmark("attention", large=LARGE, small=SMALL)
def attention_forward(at: Bench, batch: int, heads: int, groups: int, tokens: int, width: int) -> Call:
    q, k, v = _inputs(at, batch, heads, groups, tokens, width)
    o, lse = at.empty(*q.shape), at.empty(batch, heads, tokens, dtype=np.float32)
    call, head = _call(q, k, v, o, lse), (batch - 1, heads - 1)
    group = head[0], head[1] * groups // heads

    @cache
    def formula() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        return _reference(at.wide(q, head), at.wide(k, group), at.wide(v, group), causal=True)

    return Call(at.queue("attention_forward", byref(call)), [q, k, v], [o, lse],
                [Check("o", o, lambda: formula()[0], head, loose=2),
                 Check("lse", lse, lambda: formula()[1], head)],
                flops=2 * _triangle(batch, heads, tokens, width))


@benchmark("attention_backward", large=FULL, small=FULL_SMALL)
def attention_backward(at: Bench, batch: int, heads: int, groups: int, tokens: int, width: int) -> Call:
    """What the forward left is made by the forward itself; one head is compared (one group, if grouped)."""
    q, k, v = _inputs(at, batch, heads, groups, tokens, width)
    o, lse = at.empty(*q.shape), at.empty(batch, heads, tokens, dtype=np.float32)
    forward = _call(q, k, v, o, lse)
    at.device.call("attention_forward", byref(forward))
    d_o, dq, dk, dv = at.normal(*q.shape), at.empty(*q.shape), at.empty(*k.shape), at.empty(*v.shape)
    call = AttentionGradients(d_o=d_o.pointer, dq=dq.pointer, dk=dk.pointer, dv=dv.pointer,
                              d_o_strides=d_o.strides[:3], dq_strides=dq.strides[:3],
                              dk_strides=dk.strides[:3], dv_strides=dv.strides[:3])
    size = at.device.library.nn_attention_backward_workspace_size(batch, heads, groups, tokens, tokens, width,
                                                                  width)
    row, group, each = batch - 1, groups - 1, heads // groups

    @cache
    def formula() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """dq of the last head; dk, dv of the last group"""
        found = [_gradients(*(at.wide(x, (row, h)) for x, h in (
            (q, head), (k, group), (v, group), (d_o, head)))) for head in range(heads - each, heads)]
        _, dks, dvs = zip(*found, strict=True)
        return found[-1][0], np.sum(dks, axis=0), np.sum(dvs, axis=0)

    return Call(at.queue("attention_backward", byref(forward), byref(call), *at.workspace(size)),
                [q, k, v, o, lse, d_o], [dq, dk, dv],
                [Check("dq", dq, lambda: formula()[0], (row, heads - 1), loose=2),
                 Check("dk", dk, lambda: formula()[1], (row, group), loose=2),
                 Check("dv", dv, lambda: formula()[2], (row, group), loose=2)],
                flops=5 * _triangle(batch, heads, tokens, width))


def _gradients(q: np.ndarray, k: np.ndarray, v: np.ndarray,
               d_o: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    o, _, p = _reference(q, k, v, causal=True)
    ds = p * (d_o @ v.T - (d_o * o).sum(axis=1, keepdims=True)) * q.shape[1]**-0.5
    return ds @ k, ds.T @ q, p.T @ d_o


# ---- decoding ----


def _decode(at: Bench, batch: int, heads: int, groups: int, capacity: int, width: int, paged: bool) -> Call:
    """Every row holds as many keys as the cache has room for."""
    pages = capacity // PAGE
    shape = (batch * pages, groups, PAGE, width) if paged else (batch, groups, capacity, width)
    q, k, v = at.normal(batch, heads, 1, width), at.normal(*shape), at.normal(*shape)
    o, lengths = at.empty(*q.shape), at.put(np.full(batch, capacity, np.int32))
    table = at.put(at.random.permutation(batch * pages).reshape(batch, pages).astype(np.int32))
    cache = Cache(k=k.pointer, v=v.pointer, batch=batch, groups=groups, capacity=capacity, width=width,
                  value_width=width, k_strides=k.strides[:3], v_strides=v.strides[:3], dtype=at.code)
    if paged:
        cache.block_table, cache.page, cache.pages, cache.max_pages = table.pointer, PAGE, shape[0], pages
    call = Decode(o=o.pointer, q=q.pointer, lengths=lengths.pointer, heads=heads, queries=1,
                  o_strides=o.strides[:3], q_strides=q.strides[:3], scale=width**-0.5, causal=1)
    size = at.device.library.nn_attention_decode_workspace_size(batch, heads, 1, capacity, width)
    row, head = batch - 1, heads - 1

    def held(x: DeviceArray) -> np.ndarray:
        group = head * groups // heads
        if paged:
            return at.wide(x, (at.values(table)[row], group)).reshape(capacity, width)
        return at.wide(x, (row, group))

    return Call(at.queue("attention_decode", byref(call), byref(cache), *at.workspace(size)), [q, k, v], [o],
                [Check("o", o, lambda: _reference(at.wide(q, (row, head)), held(k), held(v), causal=True)[0],
                       (row, head), loose=2)], flops=4 * batch * heads * capacity * width)


@benchmark("attention", large=DECODE, small=DECODE_SMALL)
def attention_decode(at: Bench, batch: int, heads: int, groups: int, capacity: int, width: int) -> Call:
    return _decode(at, batch, heads, groups, capacity, width, paged=False)


@benchmark("attention", large=DECODE, small=DECODE_SMALL, function="attention_decode", variant="paged")
def attention_decode_paged(at: Bench, batch: int, heads: int, groups: int, capacity: int, width: int) -> Call:
    return _decode(at, batch, heads, groups, capacity, width, paged=True)


@benchmark("attention", large={"batch": 32, "groups": 8, "capacity": 8192, "width": 128, "tokens": 16},
           small={"batch": 2, "groups": 2, "capacity": 128, "width": 64, "tokens": 4})
def cache_append(at: Bench, batch: int, groups: int, capacity: int, width: int, tokens: int) -> Call:
    caches = [at.device.zeros((batch, groups, capacity, width), at.dtype) for _ in "kv"]
    k, v = at.normal(batch, groups, tokens, width), at.normal(batch, groups, tokens, width)
    starts = at.integers(capacity - tokens + 1, batch, dtype=np.int32)
    cache = Cache(k=caches[0].pointer, v=caches[1].pointer, batch=batch, groups=groups, capacity=capacity,
                  width=width, value_width=width, k_strides=caches[0].strides[:3],
                  v_strides=caches[1].strides[:3], dtype=at.code)
    row = batch - 1
    first = int(at.values(starts)[row])
    where = np.s_[row, :, first:first + tokens]
    return Call(at.queue("cache_append", byref(cache), k, v, starts, tokens, *k.strides[:3], *v.strides[:3]),
                [k, v, starts], [k.nbytes, v.nbytes],
                [Check("k", caches[0], lambda: at.wide(k, row), where),
                 Check("v", caches[1], lambda: at.wide(v, row), where)])
