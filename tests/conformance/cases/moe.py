"""Mixture of experts."""

from typing import Any

import numpy as np

from tests.conformance import naive
from tests.conformance.cases.table import Draw, Table, exact, label, table

ROUTING = ((0, 4, 2), (1, 1, 1), (5, 4, 1), (13, 5, 2), (9, 16, 4), (6, 3, 3))


@table("router_topk")
def router(kernel: str) -> Table:
    for tokens, experts, k in ROUTING:
        for renormalize in (True, False):
            name = label(tokens, experts, k) + ("" if renormalize else "-raw")
            yield name, lambda draw, s=(tokens, experts), k=k, r=renormalize: (
                (draw(*s), k), {"renormalize": r})
    ties = np.array([[1.0, 2.0, 2.0, 0.0], [0.0, 0.0, 0.0, 0.0],
                     [3.0, 1.0, 3.0, 3.0], [-1.0, -1.0, -2.0, -1.0]])
    yield "ties", lambda draw: ((draw.like(ties), 2), {"renormalize": True})
    yield "large", lambda draw: ((draw(4, 6, scale=300.0), 2), {"renormalize": True})


@table("router_topk_backward")
def router_backward(kernel: str) -> Table:
    def build(draw: Draw, tokens: int, experts: int, k: int, renormalize: bool) -> Any:
        forward = naive.router_topk(exact(draw(tokens, experts)), k, renormalize=renormalize)
        weights, chosen, probs = draw.statistic(forward[0]), forward[1], draw.statistic(forward[2])
        return (draw.wide(tokens, k), weights, chosen, probs), {"renormalize": renormalize}

    for sizes in ROUTING:
        for renormalize in (True, False):
            name = label(*sizes) + ("" if renormalize else "-raw")
            yield name, lambda draw, s=sizes, r=renormalize: build(draw, *s, r)


@table("jitter")
def jittered(kernel: str) -> Table:
    words = ((0, 0, 0, 0), (-1, 2**32 - 1, 2**32 - 1, 2**32 - 1), (0x0123456789ABCDEF, 7, 1, 3),
             (-(2**63), 1, 0, 2))
    for shape in ((0, 3), (1, 1), (1, 3), (5, 7), (3, 8), (33, 41)):
        for i, place in enumerate(words):
            yield f"{label(*shape)}-{i}", lambda draw, s=shape, p=place: (
                (draw(*s), np.array(p, np.int64)), {"epsilon": 0.1})
    for epsilon in (0.0, 1.0):
        yield f"epsilon-{epsilon:g}", lambda draw, e=epsilon: (
            (draw(3, 5), np.array(words[2], np.int64)), {"epsilon": e})


@table("moe_balance_loss", "moe_balance_loss_backward", "moe_z_loss", "moe_z_loss_backward")
def auxiliary(kernel: str) -> Table:
    def build(draw: Draw, tokens: int, experts: int, k: int) -> Any:
        logits, dloss = draw(tokens, experts, scale=2.0), draw.wide(1)
        if kernel.startswith("moe_z_loss"):
            if kernel == "moe_z_loss":
                return (logits, 0.3), {}
            return (dloss, logits, draw.statistic(naive.moe_z_loss(exact(logits), 0.3)[1]), 0.3), {}
        probs, chosen = draw.like(naive.softmax(exact(logits))), draw.integers(experts, tokens, k)
        if kernel == "moe_balance_loss":
            return (probs, chosen, 0.7), {}
        load = naive.moe_balance_loss(exact(probs), chosen, 0.7)[1]
        return (dloss, draw.statistic(load), tokens, 0.7), {}

    for sizes in (*ROUTING, (300, 7, 3)):
        yield label(*sizes), lambda draw, s=sizes: build(draw, *s)


@table("expert_order")
def order(kernel: str) -> Table:
    for tokens, experts, k in ROUTING:
        yield label(tokens, experts, k), lambda draw, s=(tokens, experts, k): (
            (draw.integers(s[1], s[0], s[2]), s[1]), {})
    yield "one-expert-takes-all", lambda draw: ((np.full((6, 2), 3), 5), {})
    yield "dropped-pairs", lambda draw: ((draw.integers(4, 9, 2), 3), {})        # expert 3 of 3: dropped
    yield "all-dropped", lambda draw: ((np.full((3, 2), 4), 4), {})


@table("moe_dispatch", "moe_dispatch_backward", "moe_combine", "moe_combine_backward")
def permuted(kernel: str) -> Table:
    def build(draw: Draw, tokens: int, choices: int, width: int) -> Any:
        order = draw.random.permutation(tokens * choices)
        inverse, x, rows = np.argsort(order), draw(tokens, width), draw(tokens * choices, width)
        weights = draw.wide(tokens, choices, low=0.0, high=1.0)
        arguments = {"moe_dispatch": (x, order, choices), "moe_dispatch_backward": (rows, inverse, choices),
                     "moe_combine": (rows, weights, inverse),
                     "moe_combine_backward": (x, rows, weights, order, inverse)}
        return arguments[kernel], {}

    for sizes in ((0, 2, 4), (1, 1, 1), (5, 2, 3), (9, 4, 64), (33, 3, 7)):
        yield label(*sizes), lambda draw, s=sizes: build(draw, *s)


GROUPS = {"even": (4, 4, 4), "uneven": (1, 0, 7, 3), "one": (5,), "empty": (0, 0), "all-to-one": (0, 9, 0),
          "beyond-a-tile": (33, 70, 2)}


@table("grouped_linear", "grouped_linear_backward")
def grouped(kernel: str) -> Table:
    def build(draw: Draw, counts: tuple[int, ...], inputs: int, outputs: int, dropped: int,
              options: dict[str, Any]) -> Any:
        offsets = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
        rows = int(offsets[-1]) + dropped
        x, weight = draw(rows, inputs), draw(len(counts), outputs, inputs)
        if kernel == "grouped_linear":
            return (x, weight, offsets), options
        return (draw(rows, outputs), x, weight, offsets), {}

    for name, counts in GROUPS.items():
        yield name, lambda draw, c=counts: build(draw, c, 6, 4, 0, {})
    yield "dropped-rows", lambda draw: build(draw, (2, 0, 5), 6, 4, 3, {})
    yield "odd-widths", lambda draw: build(draw, (3, 2), 33, 17, 0, {})
    yield "width-1", lambda draw: build(draw, (3, 2), 1, 1, 0, {})
    if kernel == "grouped_linear":
        yield "small-groups-as-they-are", lambda draw: build(
            draw, (1, 0, 7, 3), 6, 4, 1, {"batch_invariant": False})


@table("gathered_swiglu", "gathered_swiglu_backward")
def gathered(kernel: str) -> Table:
    def build(draw: Draw, tokens: int, choices: int, experts: int, inputs: int, width: int, dropped: bool,
              options: dict[str, Any]) -> Any:
        chosen = draw.integers(experts + dropped, tokens, choices)                  # expert E of E: dropped
        order, inverse, offsets = naive.expert_order(chosen, experts)
        x, weight = draw(tokens, inputs), draw(experts, 2 * width, inputs, scale=inputs**-0.5)
        if kernel == "gathered_swiglu":
            return (x, weight, offsets, order, choices), {"keep": True} | options
        hidden = naive.gathered_swiglu(exact(x), exact(weight), offsets, order, choices)[1]
        return (draw(tokens * choices, width), draw.like(hidden), x, weight, offsets, order, inverse,
                choices), {}

    for sizes in ((0, 2, 3, 4, 5), (1, 1, 1, 1, 1), (5, 2, 4, 6, 3), (9, 3, 2, 33, 17), (40, 2, 3, 16, 8),
                  (70, 1, 2, 8, 24)):
        for dropped in (False, True):
            yield label(*sizes) + "-dropped" * dropped, lambda draw, s=sizes, d=dropped: (
                build(draw, *s, d, {}))
    if kernel == "gathered_swiglu":
        yield "not-kept", lambda draw: build(draw, 5, 2, 4, 6, 3, True, {"keep": False})
        yield "as-it-is", lambda draw: build(draw, 5, 2, 4, 6, 3, True, {"batch_invariant": False})
