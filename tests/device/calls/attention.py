"""Attention: forward, backward, decoding from a cache, appending to it."""

import numpy as np

from cuda.nn.array import DeviceArray
from cuda.nn.prototypes.attention import Attention, Cache, Decode
from cuda.nn.prototypes.attention_backward import AttentionGradients
from tests.device.accuracy import WIDE
from tests.device.calls.made import Arguments, Arrays, exported

HALF = {"dtype": "bfloat16"}
TENSOR = {"dtype": "bfloat16", "width": 16}


def strides(length: int, heads: int, width: int) -> tuple[int, int, int]:
    """Of a dense [B,heads,length,width]"""
    return heads * length * width, length * width, width


def problem(a: Arrays, o: DeviceArray, lse: DeviceArray, batch: int, heads: int, groups: int, queries: int,
            keys: int, width: int) -> Attention:
    q, k, v = (a(batch, n, t, width) for n, t in ((heads, queries), (groups, keys), (groups, keys)))
    return Attention(o=o.pointer, lse=lse.pointer, q=q.pointer, k=k.pointer, v=v.pointer, batch=batch,
                     heads=heads, groups=groups, queries=queries, keys=keys, width=width, value_width=width,
                     o_strides=strides(queries, heads, width), q_strides=strides(queries, heads, width),
                     k_strides=strides(keys, groups, width), v_strides=strides(keys, groups, width),
                     lse_strides=(heads * queries, queries), window=50, scale=width**-0.5, causal=1,
                     dtype=a.code)


@exported(half=HALF, tensor=TENSOR)
def attention_forward(a: Arrays, heads: int = 4, groups: int = 2, queries: int = 70, keys: int = 70,
                      width: int = 12) -> Arguments:
    o, lse = a.out(1, heads, queries, width), a.floats(1, heads, queries)
    return problem(a, o, lse, 1, heads, groups, queries, keys, width),


@exported(half=HALF, tensor=TENSOR)
def attention_backward(a: Arrays, heads: int = 4, groups: int = 2, queries: int = 70, keys: int = 70,
                       width: int = 12) -> Arguments:
    o, lse = a(1, heads, queries, width), a(1, heads, queries, dtype=WIDE)
    call = problem(a, o, lse, 1, heads, groups, queries, keys, width)
    d_o = a(1, heads, queries, width)
    dq, dk, dv = (a.out(1, n, t, width) for n, t in ((heads, queries), (groups, keys), (groups, keys)))
    of_q, of_k = strides(queries, heads, width), strides(keys, groups, width)
    gradients = AttentionGradients(d_o=d_o.pointer, dq=dq.pointer, dk=dk.pointer, dv=dv.pointer,
                                   d_o_strides=of_q, dq_strides=of_q, dk_strides=of_k, dv_strides=of_k)
    return call, gradients, *a.scratch("attention_backward", 1, heads, groups, queries, keys, width, width)


def cache(a: Arrays, k: DeviceArray, v: DeviceArray, *, page: int) -> Cache:
    """k, v[B,G,capacity,D], or the pages of pools [pages,G,page,D] in a random order"""
    pages, groups, length, width = k.shape
    made = Cache(k=k.pointer, v=v.pointer, batch=2, groups=groups, capacity=length, width=width,
                 value_width=width, k_strides=strides(length, groups, width),
                 v_strides=strides(length, groups, width), dtype=a.code)
    if page:
        table = a.given(a.random.permutation(pages).astype(np.int32))
        made.block_table, made.page, made.pages, made.max_pages = table.pointer, page, pages, pages // 2
        made.capacity = page * made.max_pages
    return made


def room(page: int, groups: int, capacity: int, width: int) -> tuple[int, int, int, int]:
    return (2 * (capacity // page), groups, page, width) if page else (2, groups, capacity, width)


@exported(half=HALF, tensor=TENSOR, paged={"page": 16})
def attention_decode(a: Arrays, heads: int = 4, groups: int = 2, queries: int = 2, capacity: int = 608,
                     width: int = 12, page: int = 0) -> Arguments:
    o, lse, q = (a.out(2, heads, queries, width), a.floats(2, heads, queries), a(2, heads, queries, width))
    k, v = (a(*room(page, groups, capacity, width)) for _ in "kv")
    lengths = a.given(np.array([capacity - 1, 300], np.int32) + a.random.integers(0, 2, 2, np.int32))
    of_q = strides(queries, heads, width)
    call = Decode(o=o.pointer, lse=lse.pointer, q=q.pointer, lengths=lengths.pointer, heads=heads,
                  queries=queries, o_strides=of_q, q_strides=of_q, scale=width**-0.5, causal=1)
    return call, cache(a, k, v, page=page), *a.scratch("attention_decode", 2, heads, queries, capacity, width)


@exported(half=HALF, paged={"page": 16})
def cache_append(a: Arrays, groups: int = 2, queries: int = 40, capacity: int = 96, width: int = 12,
                 page: int = 0) -> Arguments:
    k, v = (a.in_place(*room(page, groups, capacity, width)) for _ in "kv")
    given = [a(2, groups, queries, width) for _ in "kv"]
    positions = a.integers(50, 2, dtype=np.int32)
    return (cache(a, k, v, page=page), *given, positions, queries, *strides(queries, groups, width),
            *strides(queries, groups, width))
