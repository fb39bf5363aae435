"""Stacks: against compositions written out, memories in every place, inputs besides x."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

from nn import ops
from nn.errors import InputError
from nn.layers import DecoderBlock, registry
from nn.layers.formulas import projection, total
from nn.layers.linear import Embedding, Linear
from nn.layers.protocol import Block, BlockSettings
from nn.layers.stack import Stack, StackSettings
from nn.ops.count import count_flops
from nn.state import State
from nn.tensor import Tensor
from tests.blocks import harness

SMALL = harness.SMALL


@dataclass(frozen=True)
class PairSettings(BlockSettings):
    """What a memory of the last two tokens' ids would be."""

    vocab_size: int = 7      # ids

    def parameters(self, active: bool = False) -> dict[str, int]:
        return {"table": self.vocab_size * self.hidden_size, "value": self.hidden_size**2}

    def flops(self, batch: int, length: int, past: int = 0, mode: str | None = None) -> dict[str, int]:
        return {"value": projection(batch * length, (self.hidden_size, self.hidden_size))}

    @classmethod
    def examples(cls) -> dict[str, Any]:
        return {"": cls(hidden_size=8)}


@dataclass
class PairState(State):
    """The id before."""

    last: Any      # [B,1]; −1 = none


class Pair(Block):
    """σ(x) ⊙ W (E[id_t] + E[id_{t−1}])"""

    Settings = PairSettings
    needs = ("ids",)
    prenorm = False

    def __init__(self, settings: PairSettings, dtype: Any = "float32") -> None:
        self.settings = settings
        self.table = Embedding(settings.vocab_size, settings.hidden_size, std=1.0, dtype=dtype)
        self.value = Linear(settings.hidden_size, settings.hidden_size, std=0.5, dtype=dtype)

    def init_state(self, batch_size: int) -> PairState:
        return PairState(np.full((batch_size, 1), -1))

    def forward(self, x: Tensor, *, ids: Any = None, state: Any = None, mask: Any = None,
                mode: Any = None) -> tuple[Tensor, Any]:
        before = (state or self.init_state(len(ids))).last
        keep = np.ones_like(ids, bool) if mask is None else mask[:, -ids.shape[1] :]
        ids = np.where(keep, ids, -1)
        earlier = np.concatenate([before, ids], axis=1)[:, :-1]
        now, then = (self.table(np.maximum(places, 0)) for places in (ids, earlier))
        found = now + then * (earlier >= 0)[..., None]
        return ops.sigmoid(x) * self.value(found), None if state is None else PairState(ids[:, -1:])


@pytest.fixture
def pair(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(registry.MEMORIES, "pair", f"{__name__}.Pair")
    monkeypatch.setattr(registry, "find", lambda role, name, real=registry.find:
                        Pair if name == "pair" else real(role, name))


def stacked(**changes: Any) -> StackSettings:
    return StackSettings(**{"hidden_size": 8, "options": SMALL} | changes)


# ---- against what is written out ----


def test_a_stack_is_decoder_blocks() -> None:
    """Bit for bit what DecoderBlock computes with the same layers"""
    stack, given = harness.shaken(Stack(stacked(), dtype="float64"), 0), harness.inputs(stacked())
    x = Tensor(given.x)
    for layer in stack.layers:
        norms, mixer = layer.connection.norms, layer.mixer
        x, _ = DecoderBlock(norms[0], mixer, norms[1], layer.feed_forward.ffn)(x)
    assert np.array_equal(harness.run(stack, given)[0], x.data)


def written_out(name: str, layer: Any, x: Tensor, order: list[Any]) -> Tensor:
    """A layer's connection in the words of its docstring"""
    norms = layer.connection.norms
    if name == "parallel":
        n = norms[0](x)
        return x + order[0](n) + order[1](n)
    for i, f in enumerate(order):
        if name == "pre_norm":
            x = x + f(norms[i](x))
        elif name == "post_norm":
            x = norms[i](x + f(x))
        else:
            x = x + norms[2 * i + 1](f(norms[2 * i](x)))
    return x


@pytest.mark.parametrize("name", ["pre_norm", "post_norm", "sandwich", "parallel"])
def test_connections_are_their_formulas(name: str) -> None:
    stack = harness.shaken(Stack(stacked(residual=name), dtype="float64"), 0)
    given = harness.inputs(stacked())
    x = Tensor(given.x)
    for layer in stack.layers:
        x = written_out(name, layer, x, [lambda n, b=b: b(n)[0] for b in (layer.mixer, layer.feed_forward)])
    harness.close(harness.run(stack, given)[0], x.data, 1e-13)


def test_the_same_pattern_in_other_words_is_the_same_model() -> None:
    given = harness.inputs(stacked())
    ways = ["full_attention", "A", "AA", ("full_attention",), ["A", "full_attention"]]
    stacks = [harness.shaken(Stack(stacked(mixer=way), dtype="float64"), 0) for way in ways]
    first, *others = [harness.run(stack, given)[0] for stack in stacks]
    assert all(np.array_equal(first, other) for other in others)


def test_projections_into_the_stream_start_smaller_with_depth() -> None:
    stack = Stack(stacked(num_layers=8, init_std=0.1)).initialize(0)
    assert stack.layers[0].mixer.o_proj.weight.std == pytest.approx(0.1 / 4.0)
    assert stack.layers[7].mixer.q_proj.weight.std == 0.1


# ---- memories and other inputs ----


@pytest.mark.usefixtures("pair")
@pytest.mark.parametrize("place", ["pre_attn", "post_attn", "ffn"])
@pytest.mark.parametrize("residual", ["pre_norm", "post_norm", "sandwich", "parallel"])
def test_memories_in_every_place(place: str, residual: str) -> None:
    settings = stacked(memory=("none", "pair"), memory_at=place, residual=residual, norm="layernorm")
    stack, given = harness.shaken(Stack(settings, dtype="float64"), 0), harness.inputs(settings)
    assert stack.inputs == ("ids",)
    with count_flops() as count:
        whole, _ = harness.run(stack, given, mode="chunk")
    assert count.flops == total(settings.flops(3, 9))
    assert stack.num_parameters() == total(settings.parameters())
    parts, state = harness.in_parts(stack, given, [4, 8], ["chunk", "chunk", "recurrent"])
    harness.close(parts, whole)
    assert state.layers[0].memory is None
    assert np.array_equal(state.layers[1].memory.last, given.ids[:, -1:])
    given.ids[:, 5] = (given.ids[:, 5] + 1) % 7
    changed, _ = harness.run(stack, given, mode="chunk")
    assert np.array_equal(changed[:, :5], whole[:, :5])
    assert not np.allclose(changed[:, 5], whole[:, 5])


@pytest.mark.usefixtures("pair")
def test_a_memory_is_written_where_it_stands() -> None:
    """pre_norm, memory first, which gets the stream itself: x + m(x), and then the layer"""
    settings = stacked(num_layers=1, memory="pair")
    stack, given = harness.shaken(Stack(settings, dtype="float64"), 0), harness.inputs(settings)
    layer, x = stack.layers[0], Tensor(given.x)
    assert layer.connection.norms[0] is None
    x = x + layer.memory(x, ids=given.ids)[0]
    x = x + layer.mixer(layer.connection.norms[1](x))[0]
    x = x + layer.feed_forward(layer.connection.norms[2](x))[0]
    harness.close(harness.run(stack, given)[0], x.data, 1e-13)


@pytest.mark.usefixtures("pair")
def test_what_a_block_needs_is_asked_for() -> None:
    stack, x = Stack(stacked(memory="pair")), Tensor(np.zeros((1, 2, 8), np.float32))
    with pytest.raises(InputError, match="pair needs ids, integers"):
        stack(x)
    with pytest.raises(InputError, match="'idx' is not known; did you mean 'ids'"):
        stack(x, idx=np.zeros((1, 2), int))
    with pytest.raises(InputError, match="a memory beside no feed-forward"):
        stacked(memory="pair", memory_at="ffn", feed_forward="none", options={})


def test_parts_that_need_nothing_are_not_given_anything() -> None:
    x = Tensor(np.zeros((1, 2, 8), np.float32))
    assert Stack(stacked())(x, ids=np.zeros((1, 2), int), context=x)[0].shape == (1, 2, 8)


@pytest.mark.parametrize(("role", "name"), [(role, name) for role in registry.ROLES if role != "residual"
                                            for name in registry.names(role)])
def test_a_mode_that_is_none_is_refused_by_every_block(role: str, name: str) -> None:
    """Also by those that compute the same in both"""
    case = harness.cases_of(role, name)[0]
    with pytest.raises(InputError, match="mode: 'chnk'.*did you mean 'chunk'"):
        harness.run(case.build(), harness.inputs(case.settings, 1, 2), mode="chnk")
