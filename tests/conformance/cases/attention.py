"""Attention, decoding, and appending to the cache."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from tests.conformance import naive
from tests.conformance.cases.table import Draw, Table, exact, label, table


@dataclass(frozen=True)
class Heads:
    """One attention case: sizes and masking."""

    batch: int = 2
    heads: int = 4
    groups: int = 2
    queries: int = 5
    keys: int = 5
    width: int = 8
    value_width: int = 6
    causal: bool = True
    window: int = 0
    mask: tuple[int, ...] = ()        # shape of a random keep-mask
    hide: bool = False                # query 0 of batch 0 sees nothing


ATTENTION = {
    "plain": Heads(), "multi-head": Heads(groups=4), "multi-query": Heads(groups=1),
    "one-token": Heads(queries=1, keys=1), "decode": Heads(queries=1, keys=17),
    "continued": Heads(queries=5, keys=8), "17": Heads(queries=17, keys=17),
    "17+3": Heads(queries=17, keys=20, groups=1), "more-queries-than-keys": Heads(queries=6, keys=3),
    "no-query": Heads(queries=0, keys=4), "no-key": Heads(queries=3, keys=0), "no-batch": Heads(batch=0),
    "bidirectional": Heads(causal=False, queries=4, keys=7), "window-1": Heads(window=1, queries=7, keys=7),
    "window-3": Heads(window=3, queries=9, keys=9), "window-3-continued": Heads(window=3, queries=4, keys=11),
    "window-100": Heads(window=100, queries=9, keys=9),
    "two-sided-window": Heads(causal=False, window=3, queries=9, keys=9),
    "padding": Heads(queries=6, keys=6, mask=(2, 1, 1, 6)),
    "own-masks": Heads(queries=6, keys=6, mask=(2, 4, 6, 6)),
    "shared-mask": Heads(queries=6, keys=9, mask=(1, 1, 6, 9)),
    "masked-row": Heads(mask=(2, 1, 5, 5), hide=True),
    "masked-window": Heads(window=3, queries=8, keys=8, mask=(2, 1, 1, 8)),
    "masked-bidirectional": Heads(causal=False, queries=3, keys=7, mask=(2, 1, 3, 7), hide=True),
    "smallest": Heads(batch=1, heads=1, groups=1, queries=1, keys=1, width=1, value_width=1),
    "128": Heads(batch=1, heads=2, groups=1, queries=128, keys=128, width=16, value_width=16),
    "129": Heads(batch=1, heads=2, groups=1, queries=129, keys=129, width=4, value_width=3),
    "131+2": Heads(batch=1, heads=2, groups=2, queries=131, keys=133, width=4, value_width=3),
    "long-window": Heads(batch=1, heads=1, groups=1, queries=130, keys=150,
                         width=4, value_width=3, window=20),
    "long-masked": Heads(batch=1, heads=1, groups=1, queries=130, keys=130,
                         width=4, value_width=3, mask=(1, 1, 130, 130)),
}


def _attention_inputs(draw: Draw, h: Heads) -> tuple[list[np.ndarray], dict[str, Any]]:
    q = draw(h.batch, h.heads, h.queries, h.width)
    k, v = draw(h.batch, h.groups, h.keys, h.width), draw(h.batch, h.groups, h.keys, h.value_width)
    mask = draw.random.random(h.mask) < 0.7 if h.mask else None
    if h.hide:
        assert mask is not None
        mask[0, :, 0] = False
    return [q, k, v], {"scale": h.width**-0.5, "causal": h.causal, "window": h.window, "mask": mask}


@table("attention", "attention_backward")
def attention(kernel: str) -> Table:
    def build(draw: Draw, h: Heads) -> Any:
        inputs, options = _attention_inputs(draw, h)
        if kernel == "attention":
            return tuple(inputs), options
        o, lse = naive.attention(*map(exact, inputs), **options)
        return (draw(*o.shape), *inputs, draw.like(o), draw.statistic(lse)), options

    for name, h in ATTENTION.items():
        yield name, lambda draw, h=h: build(draw, h)


# lengths, room, queries, heads, groups, width, window
DECODING = {"one": ((1,), 4, 1, 2, 1, 8, 0), "full": ((9, 9), 9, 1, 4, 2, 8, 0),
            "uneven": ((3, 17, 1), 20, 1, 4, 1, 16, 0), "several-queries": ((5, 12), 16, 4, 4, 2, 8, 0),
            "window": ((30, 7), 33, 1, 2, 2, 8, 6), "window-several": ((30, 7), 33, 3, 2, 1, 8, 6),
            "fewer-than-queries": ((2, 4), 8, 4, 2, 1, 8, 0), "no-row": ((), 4, 1, 2, 1, 8, 0),
            "long": ((200, 131), 260, 1, 4, 1, 16, 0), "prompt": ((40, 33), 64, 33, 2, 1, 8, 0)}


@table("decode_attention")
def decoding(kernel: str) -> Table:
    def build(draw: Draw, lengths: tuple[int, ...], room: int, queries: int, heads: int, groups: int,
              width: int, window: int) -> Any:
        batch = len(lengths)
        k, v = draw(batch, groups, room, width), draw(batch, groups, room, width)
        for b, n in enumerate(lengths):
            k[b, :, n:], v[b, :, n:] = np.nan, np.nan
        return ((draw(batch, heads, queries, width), k, v, np.array(lengths, np.int32)),
                {"scale": width**-0.5, "window": window})

    for name, sizes in DECODING.items():
        yield name, lambda draw, s=sizes: build(draw, *s)


@table("cache_append")
def appending(kernel: str) -> Table:
    def build(draw: Draw, lengths: tuple[int, ...], room: int, new: int) -> Any:
        shape = (len(lengths), 2)
        caches = draw(*shape, room, 8), draw(*shape, room, 6)
        return (*caches, draw(*shape, new, 8), draw(*shape, new, 6), np.array(lengths, np.int32)), {}

    for lengths, room, new in (((0,), 4, 1), ((0, 3, 2), 5, 2), ((7, 0), 8, 3), ((4,), 4, 1), ((), 4, 1)):
        yield f"{label(*lengths)}-{room}-{new}", lambda draw, s=(lengths, room, new): build(draw, *s)
