"""This library's single operations, forward and forward + backward.  A worker's module.

The sizes are those of nn/bench/peers/torch_operations.py.  AdamW is measured in float32 alone."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np

from nn import ops
from nn.bench.models import DTYPES
from nn.bench.sizes import FORWARD, FULL, SMALL, Sizes, work
from nn.bench.task import Task, Tasks
from nn.dtypes import DType, narrow
from nn.layers.module import Parameter
from nn.optim import create_optimizer
from nn.tensor import Array, Op, Tensor, no_grad

NAMES = (*(f"{op} {way}" for op in FORWARD for way in ("forward", "forward + backward")), "adamw")


def tasks(small: bool = False, dtype: str = "f32") -> Tasks:
    """{"softmax forward": ..., "softmax forward + backward": ..., ..., "adamw": ...}; dtype: f32 or bf16"""
    made_of = DTYPES[dtype]
    sizes = SMALL if small else FULL
    made: Tasks = {}
    for op in FORWARD:
        made[f"{op} forward"] = partial(_forward, op, sizes, made_of)
        made[f"{op} forward + backward"] = partial(_both, op, sizes, made_of)
    return made | ({"adamw": lambda: _adamw(sizes)} if dtype == "f32" else {})


def _forward(op: str, sizes: Sizes, dtype: str) -> Task:
    function, inputs = _prepared(op, sizes, dtype, gradients=False)

    def run() -> None:
        with no_grad():
            function(*inputs)

    return Task(run, **work(op, sizes, dtype=dtype))


def _both(op: str, sizes: Sizes, dtype: str) -> Task:
    function, inputs = _prepared(op, sizes, dtype, gradients=True)
    y = function(*inputs)
    above = np.ones(y.shape, y.dtype)

    def run() -> None:
        for x in inputs:
            x.grad = None
        function(*inputs).backward(above)

    return Task(run, **work(op, sizes, backward=True, dtype=dtype))


class _Given(Op):
    """x, as another operation made it: its gradient is handed over and not kept, nor widened"""

    def forward(self, x: Array) -> Array:
        return x

    def backward(self, dy: Array) -> None:
        return None


def _prepared(op: str, sizes: Sizes, dtype: str,
              gradients: bool) -> tuple[Callable[..., Tensor], Sequence[Tensor]]:
    """(function, its inputs)"""
    random = np.random.default_rng(0)

    def leaf(*shape: int, scale: float = 1.0) -> Tensor:
        values = random.standard_normal(shape, dtype=np.float32) * np.float32(scale)
        return Tensor(narrow(values, DType(dtype).numpy), requires_grad=gradients)

    s, given = sizes, _Given.apply
    if op == "rms_norm":
        return (lambda x, w: ops.rms_norm(given(x), w, 1e-6)), [leaf(s.rows, s.width), leaf(s.width)]
    if op == "softmax":
        return (lambda x: ops.softmax(given(x))), [leaf(s.square, s.square)]
    if op == "linear_cross_entropy":
        labels = random.integers(0, s.vocab, s.tokens)
        return ((lambda h, w: ops.linear_cross_entropy(given(h), w, labels, scale=1.0 / s.tokens)),
                [leaf(s.tokens, s.width), leaf(s.vocab, s.width, scale=0.02)])
    if op == "attention":
        q = leaf(1, s.heads, s.length, s.head_dim)
        return ((lambda q, k, v: ops.attention(given(q), given(k), given(v), scale=s.head_dim**-0.5)),
                [q, *(leaf(1, 1, s.length, s.head_dim) for _ in range(2))])
    return _swiglu, [leaf(s.tokens, s.width), leaf(2 * s.inner, s.width), leaf(s.width, s.inner)]


def _swiglu(x: Tensor, up: Tensor, down: Tensor) -> Tensor:
    return ops.linear(ops.swiglu_packed(ops.linear(_Given.apply(x), up)), down)


def _adamw(sizes: Sizes) -> Task:
    random = np.random.default_rng(0)
    parameters: dict[str, Any] = {}
    for i in range(sizes.tensors):
        parameter = Parameter((sizes.tensor,))
        parameter.load(random.standard_normal(sizes.tensor, dtype=np.float32))
        parameter.grad = random.standard_normal(sizes.tensor, dtype=np.float32)
        parameters[f"p{i}"] = parameter
    optimizer = create_optimizer("adamw", parameters, lr=1e-3, weight_decay=0.01)
    return Task(optimizer.step, **work("adamw", sizes))
