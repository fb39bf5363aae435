"""Losses, mixture of experts, optimizer, embedding."""

from ctypes import byref, sizeof
from typing import Any

import numpy as np

from cuda.nn.array import DeviceArray
from cuda.nn.prototypes.loss import CrossEntropy, LinearCrossEntropy
from nn.backends.device.optimizer import AdamWPlan, adamw_plan
from tests.device.accuracy import WIDE
from tests.device.calls.made import Arguments, Arrays, exported, pointer

HALF = {"dtype": "bfloat16"}
IGNORED = -100
LOSS: dict[str, float] = {"label_smoothing": 0.1, "z_loss": 0.01, "softcap": 20.0}


def targets(a: Arrays, rows: int, vocabulary: int) -> DeviceArray:
    """Every seventh is ignored."""
    found = a.random.integers(0, vocabulary, rows)
    found[3::7] = IGNORED
    return a.given(found)


# ---- losses ----


def cross_entropy(a: Arrays, loss: DeviceArray | None, lse: DeviceArray, dlogits: DeviceArray | None,
                  rows: int, vocabulary: int) -> CrossEntropy:
    logits, wanted, dloss = a(rows, vocabulary), targets(a, rows, vocabulary), a(rows, dtype=WIDE)
    return CrossEntropy(size=sizeof(CrossEntropy), lse=lse.pointer, loss=pointer(loss),
                        dlogits=pointer(dlogits), dloss=dloss.pointer,
                        logits=logits.pointer, targets=wanted.pointer, rows=rows, vocabulary=vocabulary,
                        stride=vocabulary, gradient_stride=vocabulary, ignore_index=IGNORED, target_dtype=3,
                        dtype=a.code, gradient_dtype=a.code, **LOSS)


@exported(half=HALF, wide={"rows": 3, "vocabulary": 1100})
def cross_entropy_forward(a: Arrays, rows: int = 70, vocabulary: int = 65) -> Arguments:
    return cross_entropy(a, a.floats(rows), a.floats(rows), None, rows, vocabulary),


@exported(half=HALF, wide={"rows": 3, "vocabulary": 1100})
def cross_entropy_backward(a: Arrays, rows: int = 70, vocabulary: int = 65) -> Arguments:
    lse = a.given(np.full(rows, 4.0, np.float32))
    return cross_entropy(a, None, lse, a.out(rows, vocabulary), rows, vocabulary),


@exported()
def mean_loss_forward(a: Arrays, rows: int = 3000) -> Arguments:
    return (a.floats(1), a.floats(1), a.out(1, dtype=np.int64), a(rows), targets(a, rows, 9), None, rows,
            IGNORED, 3)


@exported()
def mean_loss_backward(a: Arrays, rows: int = 3000) -> Arguments:
    return a.floats(rows), a(1), targets(a, rows, 9), a.given(np.array([17])), rows, IGNORED, 3


@exported(half=HALF, tensor={"dtype": "bfloat16", "vocabulary": 56})
def linear_cross_entropy_forward(a: Arrays, rows: int = 70, width: int = 24,
                                 vocabulary: int = 50) -> Arguments:
    loss, dx, dweight = a.floats(rows), a.out(rows, width), a.floats(vocabulary, width)
    x, weight, wanted, dloss = a(rows, width), a(vocabulary, width), targets(a, rows, vocabulary), a(
        rows, dtype=WIDE)
    call = LinearCrossEntropy(size=sizeof(LinearCrossEntropy), loss=loss.pointer, dx=dx.pointer,
                              dweight=dweight.pointer, x=x.pointer, weight=weight.pointer,
                              targets=wanted.pointer, dloss=dloss.pointer, rows=rows, width=width,
                              vocabulary=vocabulary, chunk=32, ignore_index=IGNORED, target_dtype=3,
                              dtype=a.code, **LOSS)
    return call, *a.scratch("linear_cross_entropy", byref(call))


# ---- mixture of experts ----

TOKENS, CHOICES, EXPERTS = 40, 2, 5


@exported(many={"pairs": 5000})
def moe_plan(a: Arrays, pairs: int = 700, num_experts: int = 33) -> Arguments:
    order, inverse, offsets = (a.out(n, dtype=np.int64) for n in (pairs, pairs, num_experts + 1))
    return (order, inverse, offsets, a.integers(num_experts, pairs), pairs, num_experts, 3,
            *a.scratch("moe_plan", pairs, num_experts))


def grouping(a: Arrays, tokens: int = TOKENS) -> dict[str, DeviceArray]:
    """order, inverse and offsets of a random choice"""
    experts = a.random.integers(0, EXPERTS, tokens * CHOICES)
    order = np.argsort(experts, kind="stable")
    inverse, offsets = np.argsort(order), np.searchsorted(experts[order], np.arange(EXPERTS + 1))
    return {"order": a.given(order), "inverse": a.given(inverse), "offsets": a.given(offsets)}


@exported(half=HALF)
def moe_dispatch_forward(a: Arrays, tokens: int = TOKENS, width: int = 72) -> Arguments:
    rows, order = tokens * CHOICES, grouping(a, tokens)["order"]
    return a.out(rows, width), a(tokens, width), order, tokens, CHOICES, width, a.code


@exported(half=HALF)
def moe_dispatch_backward(a: Arrays, tokens: int = TOKENS, width: int = 72) -> Arguments:
    rows, inverse = tokens * CHOICES, grouping(a, tokens)["inverse"]
    return a.out(tokens, width), a(rows, width), inverse, tokens, CHOICES, width, a.code


@exported(half=HALF)
def moe_combine_forward(a: Arrays, tokens: int = TOKENS, width: int = 72) -> Arguments:
    rows, inverse = tokens * CHOICES, grouping(a, tokens)["inverse"]
    weights = a(tokens, CHOICES, dtype=WIDE)
    return a.out(tokens, width), a(rows, width), weights, inverse, tokens, CHOICES, width, a.code


@exported(half=HALF)
def moe_combine_backward(a: Arrays, tokens: int = TOKENS, width: int = 72) -> Arguments:
    rows, inverse = tokens * CHOICES, grouping(a, tokens)["inverse"]
    weights = a(tokens, CHOICES, dtype=WIDE)
    return (a.out(rows, width), a.floats(tokens, CHOICES), a(tokens, width), a(rows, width), weights, inverse,
            tokens, CHOICES, width, a.code)


TENSOR = {"dtype": "bfloat16", "inputs": 40, "outputs": 72}


@exported(half=HALF, tensor=TENSOR)
def grouped_linear_forward(a: Arrays, inputs: int = 37, outputs: int = 70) -> Arguments:
    rows, plan = TOKENS * CHOICES, grouping(a)
    return (a.out(rows, outputs), a(TOKENS, inputs), a(EXPERTS, outputs, inputs), plan["offsets"],
            plan["order"], CHOICES, rows, EXPERTS, inputs, outputs, a.code)


@exported(half=HALF, tensor=TENSOR)
def grouped_swiglu_forward(a: Arrays, inputs: int = 37, outputs: int = 35) -> Arguments:
    rows, plan = TOKENS * CHOICES, grouping(a)
    return (a.out(rows, outputs), a.out(rows, 2 * outputs), a(TOKENS, inputs),
            a(EXPERTS, 2 * outputs, inputs), plan["offsets"], plan["order"], CHOICES, rows, EXPERTS, inputs,
            outputs, a.code)


@exported(half=HALF, tensor=TENSOR)
def grouped_linear_backward_input(a: Arrays, inputs: int = 37, outputs: int = 70) -> Arguments:
    rows, plan = TOKENS * CHOICES, grouping(a)
    return (a.out(rows, inputs), a(rows, outputs), a(EXPERTS, outputs, inputs), plan["offsets"], rows,
            EXPERTS, inputs, outputs, a.code)


@exported(half=HALF, tensor=TENSOR)
def grouped_linear_backward_weight(a: Arrays, inputs: int = 37, outputs: int = 70) -> Arguments:
    rows, plan = TOKENS * CHOICES, grouping(a)
    return (a.floats(EXPERTS, outputs, inputs), a(rows, outputs), a(TOKENS, inputs), plan["offsets"],
            plan["order"], CHOICES, rows, EXPERTS, inputs, outputs, a.code)


@exported()
def moe_balance_loss_forward(a: Arrays, tokens: int = 1500, num_experts: int = 33) -> Arguments:
    return (a.floats(1), a.floats(num_experts), a(tokens, num_experts),
            a.integers(num_experts, tokens, CHOICES), tokens, CHOICES, num_experts, 0.5, 3,
            *a.scratch("moe_balance_loss", tokens, num_experts))


@exported()
def moe_balance_loss_backward(a: Arrays, tokens: int = 150, num_experts: int = 33) -> Arguments:
    return a.floats(tokens, num_experts), a(1), a(num_experts), tokens, num_experts, 0.5


@exported()
def moe_z_loss_forward(a: Arrays, tokens: int = 1500, num_experts: int = 33) -> Arguments:
    return (a.floats(1), a.floats(tokens), a(tokens, num_experts), tokens, num_experts, 0.5,
            *a.scratch("moe_z_loss", tokens))


@exported()
def moe_z_loss_backward(a: Arrays, tokens: int = 150, num_experts: int = 33) -> Arguments:
    return a.floats(tokens, num_experts), a(1), a(tokens, num_experts), a(tokens), tokens, num_experts, 0.5


# ---- optimizer and embedding ----


def plan_of(a: Arrays, counts: tuple[int, ...], changed: tuple[str, ...]) -> AdamWPlan:
    """Tensors with float32 masters and moments; those of the parts named are changed by the call."""
    def part(name: str, dtype: Any) -> list[DeviceArray]:
        draw = a.in_place if name in changed else a
        return [draw(n, dtype=dtype) for n in counts]

    m, masters = part("m", WIDE), part("master", WIDE)
    v = [a.given(a.random.random(n).astype(WIDE)) for n in counts]
    if "m" in changed:
        a.changed += a.inputs[-len(counts):]
        a.outputs += v
    return a.keep(adamw_plan(part("param", None), part("grad", None), m, v, masters=masters,
                             weight_decay=0.1))


ADAMW = "m", "master", "param"


@exported(half=HALF)
def adamw_forward(a: Arrays, counts: tuple[int, ...] = (300, 8200)) -> Arguments:
    plan = plan_of(a, counts, ADAMW)
    lr, step = a.given(np.array([0.1])), a.given(a.random.integers(1, 9, 1))
    return (plan.tensors, plan.chunks, plan.chunk_count, lr, step, a(1, dtype=WIDE), None, 0.9, 0.95, 1e-8)


@exported(half=HALF)
def gradient_norm_forward(a: Arrays, counts: tuple[int, ...] = (300, 8200)) -> Arguments:
    plan = plan_of(a, counts, ())
    return (a.floats(1), a.floats(1), a.out(1, dtype=np.int32), a.in_place(1, dtype=np.int64), plan.tensors,
            plan.chunks, plan.chunk_count, a(1, dtype=WIDE), 1.0,
            *a.scratch("gradient_norm", plan.chunk_count))


@exported()
def zero_gradients(a: Arrays, counts: tuple[int, ...] = (300, 8200)) -> Arguments:
    plan = plan_of(a, counts, ("grad",))
    return plan.tensors, plan.chunks, plan.chunk_count


@exported()
def counter_increment(a: Arrays) -> Arguments:
    return a.in_place(1, dtype=np.int64), None


@exported(half=HALF)
def sum_of_squares(a: Arrays, count: int = 9000) -> Arguments:
    return a.out(1, dtype=np.float64), a(count), count, a.code, *a.scratch("sum_of_squares", count)


@exported(half=HALF)
def embedding_forward(a: Arrays, count: int = 70, rows: int = 50, width: int = 40) -> Arguments:
    return a.out(count, width), a(rows, width), a.integers(rows, count), count, rows, width, a.code, 3


@exported(half=HALF)
def scatter_add_forward(a: Arrays, count: int = 300, rows: int = 6, width: int = 40) -> Arguments:
    return (a.floats(rows, width), a(count, width), a.integers(rows, count), count, rows, width, 0, a.code, 3,
            *a.scratch("scatter_add", count, rows))
