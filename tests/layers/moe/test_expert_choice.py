"""Expert choice: each expert picks its tokens; against a loop, with padding, and where it may not stand."""

from typing import Any

import numpy as np
import pytest

from nn.errors import InputError
from nn.layers import auxiliary
from nn.layers.moe.expert_choice import ExpertChoice, ExpertChoiceSettings
from nn.models import LanguageModelConfig
from nn.tensor import Tensor, no_grad


def block(**options: Any) -> ExpertChoice:
    own = {"hidden_size": 6, "intermediate_size": 4, "num_experts": 4, "capacity_factor": 1.0} | options
    made = ExpertChoice(ExpertChoiceSettings.create(**own), dtype="float64")
    random = np.random.default_rng(0)
    for parameter in made.parameters():
        parameter.data = random.standard_normal(parameter.shape)
    return made


def run(made: ExpertChoice, x: np.ndarray,
        mask: np.ndarray | None = None) -> tuple[np.ndarray, dict[str, Any]]:
    """(y, figures and losses)"""
    with no_grad(), auxiliary.collect() as emitted:
        y = made(Tensor(x), mask=mask)[0].data
    return y, dict(emitted.figures) | {name: loss.item() for name, loss in emitted.losses}


def loop(made: ExpertChoice, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(y[T,D], experts that each token met), of one sequence"""
    z, y, met = x @ made.weight.data.T, np.zeros_like(x), np.zeros(len(x), int)
    p = np.exp(z) / np.exp(z).sum(axis=1, keepdims=True)
    for e in range(z.shape[1]):
        room = min(len(x), int(np.ceil(made.settings.capacity_factor * len(x) / z.shape[1])))
        for t in sorted(range(len(x)), key=lambda t: (-p[t, e], t))[:room]:
            gate, up = np.split(made.experts.gate_up_proj.data[e] @ x[t], 2)
            y[t] += p[t, e] * (made.experts.down_proj.data[e] @ (gate / (1 + np.exp(-gate)) * up))
            met[t] += 1
    return y, met


@pytest.mark.parametrize("factor", [0.3, 1.0, 2.5, 4.0])
@pytest.mark.parametrize("length", [1, 5, 13])
def test_equals_a_loop(factor: float, length: int) -> None:
    made, x = block(capacity_factor=factor), np.random.default_rng(1).standard_normal((3, length, 6))
    y, figures = run(made, x)
    rows = [loop(made, row) for row in x]
    np.testing.assert_allclose(y, [row for row, _ in rows], rtol=1e-11, atol=1e-12)
    assert figures["moe/unrouted"] == pytest.approx(np.mean([met == 0 for _, met in rows]))


def test_padding_is_not_chosen() -> None:
    """Rows of 3, 8 and no tokens among ten columns are those rows alone."""
    made, x = block(router_z_coef=1.0), np.random.default_rng(2).standard_normal((3, 10, 6))
    mask = np.arange(10) >= np.array([7, 2, 10])[:, None]
    x[~mask] *= 30.0
    y, figures = run(made, x, mask)
    met = []
    for b, length in ((0, 3), (1, 8)):
        alone, reached = loop(made, x[b, 10 - length :])
        np.testing.assert_allclose(y[b, 10 - length :], alone, rtol=1e-11, atol=1e-12)
        met.append(reached == 0)
    assert figures["moe/unrouted"] == pytest.approx(np.concatenate(met).mean())
    z = x[mask] @ made.weight.data.T
    assert figures["moe/router_z"] == pytest.approx((np.log(np.exp(z).sum(axis=1))**2).mean())


@pytest.mark.parametrize(("experts", "factor", "length", "room"), [
    (10, 1.1, 100, 11), (6, 1.2, 35, 7), (3, 0.3, 60, 6), (4, 0.25, 33, 3)])
def test_a_mask_of_tokens_alone_is_no_mask(experts: int, factor: float, length: int, room: int) -> None:
    """1.1 · 100 / 10 tokens are 11: rounding makes no twelfth, with a mask or without one."""
    made = block(num_experts=experts, capacity_factor=factor)
    x = np.random.default_rng(4).standard_normal((1, length, 6))
    assert made.settings.capacity(length) == room
    np.testing.assert_array_equal(run(made, x)[0], run(made, x, np.ones((1, length), bool))[0])
    beside = np.concatenate([x, x], axis=1)                            # the first half is padding
    padded = run(made, beside, np.arange(2 * length)[None] >= length)[0]
    np.testing.assert_allclose(padded[:, length:], run(made, x)[0], rtol=1e-11, atol=1e-12)


def test_ties_go_to_the_earliest_token() -> None:
    made = block(num_experts=2, capacity_factor=1.0)
    made.weight.data = np.zeros((2, 6))
    y, figures = run(made, np.ones((1, 6, 6)))
    assert (np.abs(y[0, :3]).max(axis=1) > 0).all()
    assert not y[0, 3:].any()
    assert figures["moe/unrouted"] == 0.5


def test_all_tokens_for_all_experts_is_the_full_mixture() -> None:
    made, x = block(capacity_factor=4.0), np.random.default_rng(3).standard_normal((2, 5, 6))
    assert (np.array([loop(made, row)[1] for row in x]) == 4).all()
    np.testing.assert_allclose(run(made, x)[0], [loop(made, row)[0] for row in x], rtol=1e-11, atol=1e-12)


def test_is_refused_where_nothing_may_look_ahead() -> None:
    model: dict[str, Any] = {"vocab_size": 11, "hidden_size": 8, "feed_forward": "moe_expert_choice"}
    with pytest.raises(InputError, match="causal"):
        LanguageModelConfig(**model)
    LanguageModelConfig(**model, causal=False)
    LanguageModelConfig(**model, options={"moe_expert_choice": {"allow_lookahead": True}})
    for factor in (0.0, 9.0):
        with pytest.raises(InputError, match="capacity_factor"):
            ExpertChoiceSettings(num_experts=8, capacity_factor=factor)
