"""nn/moe.h: the plan that groups rows by expert, rows there and back, all experts' products, auxiliary
losses."""

from dataclasses import dataclass

import numpy as np

from cuda.nn.array import DeviceArray
from cuda.nn.benchmarks.case import Bench, Call, Check, benchmark
from cuda.nn.benchmarks.families.elementwise import silu
from cuda.nn.benchmarks.families.loss import log_sum_exp
from cuda.nn.benchmarks.families.softmax import softmax

PLAN, PLAN_SMALL = {"tokens": 16384, "choices": 8, "experts": 64}, {"tokens": 640, "choices": 2, "experts": 8}
ROWS, ROWS_SMALL = ({"tokens": 8192, "choices": 2, "experts": 16, "width": 4096},
                    {"tokens": 64, "choices": 2, "experts": 4, "width": 256})
PRODUCT, PRODUCT_SMALL = ({"rows": 8192, "experts": 16, "inputs": 2048, "outputs": 4096},
                          {"rows": 256, "experts": 4, "inputs": 128, "outputs": 128})
LOSS, LOSS_SMALL = {"tokens": 16384, "experts": 64}, {"tokens": 256, "experts": 16}
COEFFICIENT = 0.01
FLOAT32 = ("float32",)


@dataclass(frozen=True)
class Plan:
    """What nn_moe_plan makes, made by NumPy, and on the device."""

    experts: np.ndarray              # [pairs]
    order: DeviceArray               # [pairs]
    inverse: DeviceArray             # [pairs]
    offsets: DeviceArray             # [experts+1]


def _plan(at: Bench, pairs: int, experts: int) -> Plan:
    chosen = at.random.integers(experts, size=pairs)
    order = np.argsort(chosen, kind="stable")
    inverse = np.empty_like(order)
    inverse[order] = np.arange(pairs)
    offsets = np.concatenate([[0], np.cumsum(np.bincount(chosen, minlength=experts))])
    return Plan(chosen, at.put(order), at.put(inverse), at.put(offsets))


@benchmark("moe", large=PLAN, small=PLAN_SMALL, dtypes=FLOAT32)
def moe_plan(at: Bench, tokens: int, choices: int, experts: int) -> Call:
    pairs = tokens * choices
    expected = _plan(at, pairs, experts)
    chosen = at.put(expected.experts)
    order, inverse = at.empty(pairs, dtype=np.int64), at.empty(pairs, dtype=np.int64)
    offsets = at.empty(experts + 1, dtype=np.int64)
    scratch = at.workspace(at.device.library.nn_moe_plan_workspace_size(pairs, experts))
    return Call(at.queue("moe_plan", order, inverse, offsets, chosen, pairs, experts, chosen.code, *scratch),
                [chosen], [order, inverse, offsets],
                [Check("order", order, lambda: at.values(expected.order)),
                 Check("inverse", inverse, lambda: at.values(expected.inverse)),
                 Check("offsets", offsets, lambda: at.values(expected.offsets))])


# ---- rows there and back ----


@benchmark("moe", large=ROWS, small=ROWS_SMALL)
def moe_dispatch_forward(at: Bench, tokens: int, choices: int, experts: int, width: int) -> Call:
    plan, x, rows = _plan(at, tokens * choices, experts), at.normal(tokens, width), tokens * choices
    xs, some = at.empty(rows, width), at.some(rows)
    return Call(at.queue("moe_dispatch_forward", xs, x, plan.order, tokens, choices, width, at.code),
                [x, plan.order], [xs],
                [Check("xs", xs, lambda: at.wide(x, at.values(plan.order)[some] // choices), some)])


@benchmark("moe", large=ROWS, small=ROWS_SMALL)
def moe_dispatch_backward(at: Bench, tokens: int, choices: int, experts: int, width: int) -> Call:
    plan, dxs = _plan(at, tokens * choices, experts), at.normal(tokens * choices, width)
    dx, some = at.empty(tokens, width), at.some(tokens)

    def formula() -> np.ndarray:
        return at.wide(dxs, at.values(plan.inverse).reshape(tokens, choices)[some]).sum(axis=1)

    return Call(at.queue("moe_dispatch_backward", dx, dxs, plan.inverse, tokens, choices, width, at.code),
                [dxs, plan.inverse], [dx], [Check("dx", dx, formula, some)])


@benchmark("moe", large=ROWS, small=ROWS_SMALL)
def moe_combine_forward(at: Bench, tokens: int, choices: int, experts: int, width: int) -> Call:
    plan, ys = _plan(at, tokens * choices, experts), at.normal(tokens * choices, width)
    weights, y, some = at.uniform(tokens, choices, dtype=np.float32), at.empty(tokens, width), at.some(tokens)

    def formula() -> np.ndarray:
        rows = at.wide(ys, at.values(plan.inverse).reshape(tokens, choices)[some])   # [some,K,W]
        return (rows * at.wide(weights, some)[..., None]).sum(axis=1)

    return Call(at.queue("moe_combine_forward", y, ys, weights, plan.inverse, tokens, choices, width,
                         at.code), [ys, weights, plan.inverse], [y], [Check("y", y, formula, some)])


@benchmark("moe", large=ROWS, small=ROWS_SMALL)
def moe_combine_backward(at: Bench, tokens: int, choices: int, experts: int, width: int) -> Call:
    pairs, some = tokens * choices, at.some(tokens)
    plan, dy, ys = _plan(at, pairs, experts), at.normal(tokens, width), at.normal(pairs, width)
    weights, dys = at.uniform(tokens, choices, dtype=np.float32), at.empty(pairs, width)
    dweights = at.empty(tokens, choices, dtype=np.float32)
    rows = at.values(plan.inverse).reshape(tokens, choices)[some]                    # [some,K]

    def d_rows() -> np.ndarray:
        return at.wide(dy, some)[:, None] * at.wide(weights, some)[..., None]

    def d_weights() -> np.ndarray:
        return (at.wide(dy, some)[:, None] * at.wide(ys, rows)).sum(axis=2)

    return Call(at.queue("moe_combine_backward", dys, dweights, dy, ys, weights, plan.inverse, tokens,
                         choices, width, at.code), [dy, ys, weights, plan.inverse], [dys, dweights],
                [Check("dys", dys, d_rows, rows), Check("dweights", dweights, d_weights, some)])


# ---- all experts' products ----


def _expert_of(at: Bench, plan: Plan, rows: np.ndarray) -> np.ndarray:
    return np.searchsorted(at.values(plan.offsets), rows, side="right") - 1


def _product(at: Bench, x: DeviceArray, weight: DeviceArray, plan: Plan, rows: np.ndarray) -> np.ndarray:
    """x[r] weight[expert of r]ᵀ for some rows"""
    experts = _expert_of(at, plan, rows)
    return np.stack([at.wide(weight, e) @ at.wide(x, r) for r, e in zip(rows, experts, strict=True)])


@benchmark("moe", large=PRODUCT, small=PRODUCT_SMALL)
def grouped_linear_forward(at: Bench, rows: int, experts: int, inputs: int, outputs: int) -> Call:
    plan, x, y = _plan(at, rows, experts), at.normal(rows, inputs), at.empty(rows, outputs)
    weight, some = at.normal(experts, outputs, inputs, scale=inputs**-0.5), at.some(rows, 8)
    return Call(at.queue("grouped_linear_forward", y, x, weight, plan.offsets, None, 1, rows, experts, inputs,
                         outputs, at.code), [x, weight, plan.offsets], [y],
                [Check("y", y, lambda: _product(at, x, weight, plan, some), some)],
                flops=2 * rows * inputs * outputs)


@benchmark("moe", large=PRODUCT | {"outputs": 2048}, small=PRODUCT_SMALL)
def grouped_swiglu_forward(at: Bench, rows: int, experts: int, inputs: int, outputs: int) -> Call:
    plan, x, y = _plan(at, rows, experts), at.normal(rows, inputs), at.empty(rows, outputs)
    hidden, some = at.empty(rows, 2 * outputs), at.some(rows, 8)
    weight = at.normal(experts, 2 * outputs, inputs, scale=inputs**-0.5)

    def formula() -> np.ndarray:
        both = _product(at, x, weight, plan, some).astype(at.dtype).astype(np.float64)
        gate, up = np.split(both, 2, axis=1)
        return silu(gate) * up

    return Call(at.queue("grouped_swiglu_forward", y, hidden, x, weight, plan.offsets, None, 1, rows, experts,
                         inputs, outputs, at.code), [x, weight, plan.offsets], [y, hidden],
                [Check("y", y, formula, some, loose=2),
                 Check("hidden", hidden, lambda: _product(at, x, weight, plan, some), some)],
                flops=4 * rows * inputs * outputs)


@benchmark("moe", large=PRODUCT, small=PRODUCT_SMALL)
def grouped_linear_backward_input(at: Bench, rows: int, experts: int, inputs: int, outputs: int) -> Call:
    plan, dy, dx = _plan(at, rows, experts), at.normal(rows, outputs), at.empty(rows, inputs)
    weight, some = at.normal(experts, outputs, inputs, scale=outputs**-0.5), at.some(rows, 8)

    def formula() -> np.ndarray:
        return np.stack([at.wide(dy, r) @ at.wide(weight, e)
                         for r, e in zip(some, _expert_of(at, plan, some), strict=True)])

    return Call(at.queue("grouped_linear_backward_input", dx, dy, weight, plan.offsets, rows, experts, inputs,
                         outputs, at.code), [dy, weight, plan.offsets], [dx],
                [Check("dx", dx, formula, some)], flops=2 * rows * inputs * outputs)


@benchmark("moe", large=PRODUCT, small=PRODUCT_SMALL)
def grouped_linear_backward_weight(at: Bench, rows: int, experts: int, inputs: int, outputs: int) -> Call:
    """The last expert's gradient is compared."""
    plan, dy, x = _plan(at, rows, experts), at.normal(rows, outputs), at.normal(rows, inputs)
    dweight, some = at.empty(experts, outputs, inputs, dtype=np.float32), at.some(outputs)
    first = int(at.values(plan.offsets)[experts - 1])

    def formula() -> np.ndarray:
        return at.wide(dy, np.s_[first:, some]).T @ at.wide(x, np.s_[first:])

    return Call(at.queue("grouped_linear_backward_weight", dweight, dy, x, plan.offsets, None, 1, rows,
                         experts, inputs, outputs, at.code), [dy, x, plan.offsets], [dweight],
                [Check("dweight", dweight, formula, (experts - 1, some))], flops=2 * rows * inputs * outputs)


# ---- auxiliary losses ----


@benchmark("moe", large=LOSS | {"choices": 8}, small=LOSS_SMALL | {"choices": 2}, dtypes=FLOAT32)
def moe_balance_loss_forward(at: Bench, tokens: int, experts: int, choices: int) -> Call:
    probs = at.put(softmax(at.random.standard_normal((tokens, experts))).astype(np.float32))
    chosen, loss, load = at.integers(experts, tokens, choices), at.empty(1), at.empty(experts)
    scratch = at.workspace(at.device.library.nn_moe_balance_loss_workspace_size(tokens, experts))

    def loads() -> np.ndarray:
        return np.bincount(at.values(chosen).ravel(), minlength=experts) / (tokens * choices)

    def losses() -> np.ndarray:
        return COEFFICIENT * experts * (loads() * at.wide(probs).mean(axis=0)).sum(keepdims=True)

    return Call(at.queue("moe_balance_loss_forward", loss, load, probs, chosen, tokens, choices, experts,
                         COEFFICIENT, chosen.code, *scratch), [probs, chosen], [loss, load],
                [Check("load", load, loads), Check("loss", loss, losses)])


@benchmark("moe", large=LOSS, small=LOSS_SMALL, dtypes=FLOAT32)
def moe_balance_loss_backward(at: Bench, tokens: int, experts: int) -> Call:
    dloss, load, dprobs = at.normal(1), at.uniform(experts), at.empty(tokens, experts)
    some = at.some(tokens)

    def formula() -> np.ndarray:
        row = at.wide(dloss) * COEFFICIENT * experts * at.wide(load) / tokens
        return np.broadcast_to(row, (len(some), experts))

    return Call(at.queue("moe_balance_loss_backward", dprobs, dloss, load, tokens, experts, COEFFICIENT),
                [dloss, load], [dprobs], [Check("dprobs", dprobs, formula, some)])


@benchmark("moe", large=LOSS, small=LOSS_SMALL, dtypes=FLOAT32)
def moe_z_loss_forward(at: Bench, tokens: int, experts: int) -> Call:
    logits, loss, lse = at.normal(tokens, experts), at.empty(1), at.empty(tokens)
    scratch = at.workspace(at.device.library.nn_moe_z_loss_workspace_size(tokens))

    def formula() -> np.ndarray:
        return COEFFICIENT * (log_sum_exp(at.wide(logits))**2).mean(keepdims=True)

    return Call(at.queue("moe_z_loss_forward", loss, lse, logits, tokens, experts, COEFFICIENT, *scratch),
                [logits], [loss, lse],
                [Check("loss", loss, formula), Check("lse", lse, lambda: log_sum_exp(at.wide(logits)))])


@benchmark("moe", large=LOSS, small=LOSS_SMALL, dtypes=FLOAT32)
def moe_z_loss_backward(at: Bench, tokens: int, experts: int) -> Call:
    dloss, logits, dlogits = at.normal(1), at.normal(tokens, experts), at.empty(tokens, experts)
    lse, some = at.put(log_sum_exp(at.wide(logits)).astype(np.float32)), at.some(tokens)

    def formula() -> np.ndarray:
        of = at.wide(lse, some)[:, None]
        return at.wide(dloss) * 2 * COEFFICIENT / tokens * of * np.exp(at.wide(logits, some) - of)

    return Call(at.queue("moe_z_loss_backward", dlogits, dloss, logits, lse, tokens, experts, COEFFICIENT),
                [dloss, logits, lse], [dlogits], [Check("dlogits", dlogits, formula, some)])
