"""What every registered block is tried with: its examples, random weights and inputs, and how to run it.

A case is one example of one block (`retention`, `full_attention/qk-norm`).  A connection of the residual
stream is tried as a stack of two layers around it.        Try: pytest tests/blocks -k retention"""

from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any

import numpy as np

from nn.dtypes import DType
from nn.layers import registry
from nn.layers.protocol import Block, BlockSettings
from nn.layers.stack import Stack, StackSettings
from nn.tensor import Tensor, no_grad

WIDTH = 8                # of the first example of every block, so that they can be combined
COMMON = {"hidden_size", "init_std", "out_std"}
SMALL = {"full_attention": {"num_heads": 2}, "swiglu": {"intermediate_size": 6}}


@dataclass(frozen=True)
class Case:
    """One example of one block."""

    role: str
    name: str
    example: str
    settings: BlockSettings

    def __str__(self) -> str:
        return f"{self.name}/{self.example}" if self.example else self.name

    def build(self, dtype: str = "float64", seed: int = 1) -> Block:
        """Its block, evaluating, with weights far enough from their start that every part matters."""
        cls = Stack if self.role == "residual" else registry.find(self.role, self.name)
        return shaken(cls(self.settings, dtype=dtype), seed)


def shaken(block: Any, seed: int) -> Any:
    block.initialize(seed).eval()
    random = np.random.default_rng(seed)
    for parameter in block.parameters():
        noise = 0.3 * random.standard_normal(parameter.shape)
        parameter.data = (parameter.data + noise).astype(parameter.dtype)
    return block


def cases() -> list[Case]:
    """Every example of every registered block"""
    return [case for role in registry.ROLES for name in registry.names(role) for case in cases_of(role, name)]


def cases_of(role: str, name: str) -> list[Case]:
    examples = registry.find(role, name).Settings.examples()
    return [Case(role, name, example, settings if role != "residual" else around(name, settings))
            for example, settings in examples.items()]


def around(name: str, settings: Any) -> StackSettings:
    """Two layers with this connection"""
    own = {key: value for key, value in options_of(settings).items() if key not in ("branches", "layer")}
    return StackSettings(hidden_size=settings.hidden_size, residual=name, options={**SMALL, name: own})


def options_of(settings: BlockSettings) -> dict[str, Any]:
    """Its fields, but those that a stack sets for all blocks"""
    return {f.name: getattr(settings, f.name) for f in fields(settings) if f.name not in COMMON}


# ---- inputs ----


@dataclass(frozen=True)
class Inputs:
    """x[B,T,D] and whatever else the block needs."""

    x: np.ndarray
    ids: np.ndarray
    context: np.ndarray

    def cut(self, start: int, end: int | None = None) -> "Inputs":
        """Some of the tokens"""
        return Inputs(self.x[:, start:end], self.ids[:, start:end], self.context)

    def rows(self, rows: Any) -> "Inputs":
        """Some of the rows"""
        return Inputs(self.x[rows], self.ids[rows], self.context[rows])

    def cast(self, dtype: str) -> "Inputs":
        """In another type of numbers"""
        kind = DType.of(dtype).numpy
        return Inputs(self.x.astype(kind), self.ids, self.context.astype(kind))

    def given(self, block: Any) -> dict[str, Any]:
        """What the block takes besides x"""
        return {name: self.ids if name == "ids" else Tensor(self.context) for name in block.inputs}


def vocabulary(settings: Any) -> int:
    """The fewest ids that any of its blocks knows"""
    layers = settings.layers() if isinstance(settings, StackSettings) else []
    parts = [settings, *(block for layer in layers for block in layer.blocks.values())]
    return min(getattr(part, "vocab_size", 50) for part in parts)


def inputs(settings: Any, batch: int = 3, length: int = 9, seed: int = 0, dtype: str = "float64") -> Inputs:
    random = np.random.default_rng(seed)
    x = random.standard_normal((batch, length, settings.hidden_size)).astype(dtype)
    context = random.standard_normal((batch, 5, settings.hidden_size)).astype(dtype)
    return Inputs(x, random.integers(0, vocabulary(settings), (batch, length)), context)


# ---- running ----


def run(block: Any, given: Inputs, **options: Any) -> tuple[np.ndarray, Any]:
    """(y, state), nothing recorded"""
    with no_grad():
        y, state = block(Tensor(given.x), **given.given(block), **options)
    return y.data, state


def in_parts(block: Any, given: Inputs, cuts: list[int], modes: list[str | None],
             mask: np.ndarray | None = None) -> tuple[np.ndarray, Any]:
    """(y, state) of the tokens in several calls, cut at `cuts`, each in its mode"""
    state = block.init_state(len(given.x))
    edges, parts = [0, *cuts, given.x.shape[1]], []
    for start, end, mode in zip(edges[:-1], edges[1:], modes, strict=True):
        seen = None if mask is None else mask[:, :end]
        y, state = run(block, given.cut(start, end), state=state, mask=seen, mode=mode)
        parts.append(y)
    return np.concatenate(parts, axis=1), state


def check_slopes(loss: Callable[[], float], named: dict[str, tuple[np.ndarray, np.ndarray]],
                 step: float = 1e-4, tolerance: float = 1e-6) -> None:
    """loss() along one random direction of every {name: (array, its gradient)}: four values in a row give the
    slope up to step⁴.  The tolerance is relative to the slope that a direction has at most."""
    random = np.random.default_rng(0)
    for name, (array, gradient) in named.items():
        before, direction = array.copy(), random.standard_normal(array.shape) / np.sqrt(array.size)
        values = []
        for factor in (-2, -1, 1, 2):
            array[...] = before + factor * step * direction
            values.append(loss())
        array[...] = before
        numeric = (values[0] - 8 * values[1] + 8 * values[2] - values[3]) / (12 * step)
        analytic = float(np.sum(gradient * direction))
        scale = max(1e-3, float(np.sqrt(np.sum(gradient**2) / gradient.size)))
        assert abs(numeric - analytic) <= tolerance * scale, f"{name}: gradient {analytic}, slope {numeric}"


def close(a: np.ndarray, b: np.ndarray, rtol: float = 1e-9) -> None:
    """Equal up to rtol of the largest entry"""
    np.testing.assert_allclose(a, b, rtol=rtol, atol=rtol * max(1.0, float(np.abs(b).max(initial=0.0))))


def same_state(a: Any, b: Any, rtol: float = 1e-9) -> None:
    if a is None or b is None:
        assert a is b
        return
    mine, other = a.state_dict(), b.state_dict()
    assert mine.keys() == other.keys()
    for name, values in mine.items():
        assert values.shape == other[name].shape, name
        close(values, other[name], rtol)
