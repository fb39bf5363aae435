"""Blocks in any combination: 200 drawn from the registry, in all roles and in patterns of layers.

The draw is seeded and grows with the registry: every block of every role is in it."""

import random
from functools import cache
from typing import Any

import numpy as np
import pytest

from nn.layers import pattern, registry
from nn.layers.formulas import total
from nn.layers.stack import BLOCK_ROLES, PLACES, Stack, StackSettings
from nn.ops.count import count_flops
from nn.tensor import no_grad
from tests.blocks import harness
from tests.blocks.harness import check_slopes, close, in_parts, inputs, run, shaken
from tests.blocks.test_every_block import function_of, reached
from tests.gradients import gradients, leaf, weighted

COUNT = 200


def example(role: str, name: str) -> dict[str, Any]:
    """The options of a block's first example"""
    first = next(iter(registry.find(role, name).Settings.examples().values()))
    given = harness.options_of(first)
    return {key: value for key, value in given.items() if key not in ("branches", "layer", "norm")}


@cache
def usable(role: str) -> list[str]:
    """The blocks of a role that may stand in a causal stack"""
    return [name for name in registry.names(role)
            if role == "residual" or harness.cases_of(role, name)[0].settings.is_causal]


def draw(chance: random.Random) -> StackSettings:
    """One combination; in half of them the layers differ."""
    depth = chance.choice((1, 2))
    names: dict[str, tuple[str, ...]] = {
        "mixer": tuple(chance.choice(usable("mixer")) for _ in range(depth)),
        "feed_forward": tuple(chance.choice(usable("feed_forward")) for _ in range(depth)),
        "memory": tuple(chance.choice([pattern.NONE, *usable("memory")]) for _ in range(depth))}
    residual = chance.choice(usable("residual"))
    used = [(role, name) for role in BLOCK_ROLES for name in names[role] if name != pattern.NONE]
    options = {name: example(role, name) for role, name in [*used, ("residual", residual)]}
    return StackSettings.create(
        hidden_size=harness.WIDTH, num_layers=depth, **names, residual=residual, options=options,
        memory_at=chance.choice(PLACES), norm=chance.choice(("rmsnorm", "layernorm")))


def describe(settings: StackSettings) -> str:
    layers = [" + ".join(layer.names.values()) for layer in settings.layers()]
    return f"{' | '.join(layers)} ({settings.residual}, {settings.memory_at})"


COMBINATIONS = [draw(random.Random(seed)) for seed in range(COUNT)]


def test_every_block_is_among_them() -> None:
    for role in (*BLOCK_ROLES, "residual"):
        drawn = {name for settings in COMBINATIONS for layer in settings.layers()
                 for name in (*(layer.names[r] for r in layer.names if r == role),
                              *((settings.residual,) if role == "residual" else ()))}
        assert drawn == set(usable(role))


@pytest.mark.parametrize("seed", range(COUNT))
def test_combination(seed: int) -> None:
    """Counts, decoding through a state that is saved and reordered, padding, gradients along a direction,
    causality to the bit"""
    settings = COMBINATIONS[seed]
    stack, given = shaken(Stack(settings, dtype="float64"), seed), inputs(settings, 2, 6, seed)
    with count_flops() as count:
        whole, _ = run(stack, given, mode="chunk")
    assert count.flops == total(settings.flops(2, 6, mode="chunk")), describe(settings)
    assert stack.num_parameters() == total(settings.parameters()), describe(settings)
    decodes(stack, given, whole, 2 + seed % 3)
    pads(stack, given, 1 + seed % 4)
    gradients_agree(stack, given)
    given.x[:, 3:], given.ids[:, 3:] = 1.0, given.ids[:, :3]
    changed, _ = run(stack, given, mode="chunk")
    assert np.array_equal(changed[:, :3], whole[:, :3]), describe(settings)


def decodes(stack: Stack, given: Any, whole: np.ndarray, cut: int) -> None:
    """The rest token by token, by a state that was saved, loaded, and whose rows were exchanged"""
    y, state = run(stack, given.cut(0, cut), state=stack.init_state(2), mode="chunk")
    close(y, whole[:, :cut])
    loaded = stack.init_state(2)
    loaded.load_state_dict(state.state_dict())
    loaded.reorder(np.array([1, 0]))
    y, _ = run(stack, given.cut(cut).rows([1, 0]), state=loaded, mode="recurrent")
    close(y, whole[[1, 0], cut:])


def pads(stack: Stack, given: Any, pad: int) -> None:
    """A row behind padding is the row alone, in one call and in two"""
    mask = np.ones((2, 6), bool)
    mask[1, :pad] = False
    alone, _ = run(stack, given.rows([1]).cut(pad), mode="chunk")
    close(run(stack, given, mask=mask, mode="chunk")[0][1:, pad:], alone)
    close(in_parts(stack, given, [5], ["chunk", "recurrent"], mask)[0][1:, pad:], alone)


def gradients_agree(stack: Stack, given: Any) -> None:
    """Along one direction of everything together: the input and all parameters"""
    function, parameters = function_of(stack, given, "chunk"), list(reached(stack).values())
    x = leaf(given.x)
    found = gradients(function, [x], parameters)
    flat = np.concatenate([tensor.data.reshape(-1) for tensor in (x, *parameters)])

    def loss() -> float:
        start = 0
        for tensor in (x, *parameters):
            tensor.data = flat[start : start + tensor.size].reshape(tensor.shape)
            start += tensor.size
        with no_grad():
            return weighted(function(x)).item()

    check_slopes(loss, {"everything": (flat, np.concatenate([gradient.reshape(-1) for gradient in found]))})
