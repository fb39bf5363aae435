"""PyTorch's single operations, float32 or bfloat16, in the sizes of nn/bench/sizes.py: eager, or compiled."""

import os
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from nn.bench.models import DTYPES
from nn.bench.peers import library
from nn.bench.sizes import FORWARD, FULL, SMALL, Sizes, work
from nn.bench.task import Task, Tasks


def tasks(small: bool = False, compiled: bool = False, dtype: str = "f32") -> Tasks:
    """As ours; "adamw" is the fused one, in float32, and not compiled."""
    made_of = DTYPES[dtype]
    torch, sizes = library("torch"), SMALL if small else FULL
    torch.set_num_threads(int(os.environ["NN_THREADS"]))
    made: Tasks = {}
    for op in FORWARD:
        made[f"{op} forward"] = partial(_task, torch, op, sizes, made_of, False, compiled)
        made[f"{op} forward + backward"] = partial(_task, torch, op, sizes, made_of, True, compiled)
    return made if compiled or dtype != "f32" else made | {"adamw": lambda: _adamw(torch, sizes)}


def _task(torch: Any, op: str, sizes: Sizes, dtype: str, backward: bool, compiled: bool) -> Task:
    function, inputs = _prepared(torch, op, sizes, dtype, backward)
    call = torch.compile(function) if compiled else function
    above = torch.ones_like(call(*inputs)) if backward else None

    def forward() -> None:
        with torch.no_grad():
            call(*inputs)

    def both() -> None:
        for x in inputs:
            x.grad = None
        call(*inputs).backward(above)

    return Task(both if backward else forward, **work(op, sizes, backward, dtype),
                facts={"versions": {"torch": torch.__version__}})


def _prepared(torch: Any, op: str, sizes: Sizes, dtype: str,
              backward: bool) -> tuple[Callable[..., Any], Sequence[Any]]:
    """(function, its inputs)"""
    f, s = torch.nn.functional, sizes

    def leaf(*shape: int, scale: float = 1.0) -> Any:
        return (torch.randn(*shape) * scale).to(getattr(torch, dtype)).requires_grad_(backward)

    if op == "rms_norm":
        return (lambda x, w: f.rms_norm(x, (s.width,), w, 1e-6)), [leaf(s.rows, s.width), leaf(s.width)]
    if op == "softmax":
        return (lambda x: x.softmax(-1)), [leaf(s.square, s.square)]
    if op == "linear_cross_entropy":
        labels = torch.randint(0, s.vocab, (s.tokens,))
        return ((lambda h, w: f.cross_entropy(f.linear(h, w), labels)),
                [leaf(s.tokens, s.width), leaf(s.vocab, s.width, scale=0.02)])
    if op == "attention":
        q = leaf(1, s.heads, s.length, s.head_dim)
        return ((lambda q, k, v: f.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)),
                [q, *(leaf(1, 1, s.length, s.head_dim) for _ in range(2))])

    def swiglu(x: Any, up: Any, down: Any) -> Any:
        gate, value = f.linear(x, up).chunk(2, -1)
        return f.linear(f.silu(gate) * value, down)

    return swiglu, [leaf(s.tokens, s.width), leaf(2 * s.inner, s.width), leaf(s.width, s.inner)]


def _adamw(torch: Any, sizes: Sizes) -> Task:
    parameters = [torch.randn(sizes.tensor, requires_grad=True) for _ in range(sizes.tensors)]
    for parameter in parameters:
        parameter.grad = torch.randn_like(parameter)
    optimizer = torch.optim.AdamW(parameters, lr=1e-3, weight_decay=0.01, fused=True)
    return Task(optimizer.step, **work("adamw", sizes), facts={"versions": {"torch": torch.__version__}})
