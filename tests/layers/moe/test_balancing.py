"""The bias that evens the load without a loss: what moves it, when, and that it is saved."""

from typing import Any

import numpy as np
import pytest

from nn.layers.moe import GeneralRouter, finish_step
from nn.layers.moe.block import MixtureSettings
from nn.layers.moe.metrics import usage
from nn.models import LanguageModel, LanguageModelConfig
from nn.optim import AdamW
from nn.tensor import Tensor, no_grad
from nn.train.update import HostUpdate

CONFIG = LanguageModelConfig(
    vocab_size=23, hidden_size=8, num_layers=2, max_seq_len=16, mixer="none", feed_forward="moe",
    options={"moe": {"intermediate_size": 4, "num_experts": 4, "score": "sigmoid", "bias_update_rate": 0.01,
                     "balance": "none", "router_z_coef": 0.0}})


def router(**options: Any) -> GeneralRouter:
    """Of four experts, whose inputs are its logits"""
    settings = MixtureSettings.create(hidden_size=4, intermediate_size=2, num_experts=4, top_k=1,
                                      **{"score": "sigmoid", "bias_update_rate": 0.5} | options)
    made = GeneralRouter(settings, "float64")
    made.weight.data = np.eye(4)
    return made


def to(*experts: int) -> Tensor:
    """Tokens that prefer these experts"""
    return Tensor(np.eye(4)[list(experts)])


def routers(model: LanguageModel) -> list[Any]:
    return [layer.feed_forward.moe.router for layer in model.body.layers]


def batches(count: int, seed: int = 0) -> list[tuple[np.ndarray, np.ndarray]]:
    random = np.random.default_rng(seed)
    return [tuple(random.integers(0, 23, (2, 2, 12))) for _ in range(count)]


def update_of(model: LanguageModel) -> HostUpdate:
    return HostUpdate(model, AdamW(model.named_parameters(), lr=0.0), clip=1.0, seed=0)


def test_moves_against_the_load_of_all_micro_batches() -> None:
    made = router()
    made(to(0, 0, 0, 1))
    made(to(0, 1, 2, 2))                                  # counts 4, 2, 2, 0: the mean is 2, and sign(0) = 0
    assert not made.e_score_correction_bias.data.any(), "not before the step is over"
    made.finish_step(taken=True)
    assert made.e_score_correction_bias.data.tolist() == [-0.5, 0.0, 0.0, 0.5]
    made(to(3, 3))
    made.finish_step(taken=True)                          # of this step alone
    assert made.e_score_correction_bias.data.tolist() == [-0.0, 0.5, 0.5, 0.0]


def test_is_frozen_where_nothing_is_learned() -> None:
    made = router()
    made.eval()(to(0, 0, 0, 1))
    made.finish_step(taken=True)
    made.train()
    with no_grad():
        made(to(0, 0, 0, 1))
    made.finish_step(taken=True)
    made(to(0, 0))
    made.finish_step(taken=False)                         # a step that was not made
    made.finish_step(taken=True)
    assert not made.e_score_correction_bias.data.any()
    fixed = router(bias_update_rate=0.0, selection_bias=True)
    fixed(to(0, 0))
    fixed.finish_step(taken=True)
    assert fixed.counts is None


def test_padding_and_groups_and_capacity() -> None:
    """Counted is what was selected: with the bias, without padding, before dropping."""
    from nn.layers.moe.decision import Rows
    made = router(capacity_factor=0.25, min_capacity=1)
    made(to(0, 0, 1, 3), Rows(1, 4, True, np.array([True, True, True, False])))
    assert made.counts.tolist() == [2, 1, 0, 0]
    made = router()
    made.e_score_correction_bias.data[2] = 9.0
    made(to(0, 0, 1, 3))
    assert made.counts.tolist() == [0, 0, 4, 0]


def test_no_gradient_and_no_optimizer_touches_it() -> None:
    made = router(renormalize=False)                      # else, of one expert, the weight is always 1
    routing = made(Tensor(np.eye(4), requires_grad=True))
    routing.weights.sum().backward()
    assert made.e_score_correction_bias.grad is None
    assert made.weight.grad.any()
    assert not made.e_score_correction_bias.decay


@pytest.mark.parametrize("checkpointing", [False, True])
def test_updates_of_a_model(checkpointing: bool) -> None:
    """Two micro-batches count as one batch of both; every layer has its own; recomputing counts once."""
    found = []
    for micro in (1, 2):
        model = LanguageModel(CONFIG, seed=1)
        model.gradient_checkpointing = checkpointing
        (one,) = batches(1)
        parts = [one] if micro == 1 else [(one[0][:1], one[1][:1]), (one[0][1:], one[1][1:])]
        update_of(model)(parts, step=1, lr=0.0)
        found.append([each.e_score_correction_bias.data.copy() for each in routers(model)])
        reference = LanguageModel(CONFIG, seed=1)
        _, figures = reference.loss(*one)
        for bias, load in zip(found[-1], figures["moe/load"], strict=True):
            np.testing.assert_allclose(bias, 0.01 * np.sign(0.25 - load), atol=1e-9)
    np.testing.assert_array_equal(found[0], found[1])
    assert not np.array_equal(found[0][0], found[0][1])


@pytest.mark.parametrize("checkpointing", [False, True])
def test_every_pair_is_counted_once(checkpointing: bool) -> None:
    """also where backward computes the layers anew"""
    model, ((inputs, targets),) = LanguageModel(CONFIG, seed=1), batches(1)
    model.gradient_checkpointing = checkpointing
    model.loss(inputs, targets)[0].backward()
    assert [each.counts.sum() for each in routers(model)] == [2 * inputs.size] * 2


def test_recomputing_changes_no_loss_and_no_gradient_of_counts() -> None:
    """A layer that is applied twice counts twice, in that order; its loss goes by what was counted before."""
    recursive = CONFIG.replace(num_layers=1, body="recursion", recursion={"recurrence_steps": 2}, options={
        "moe": CONFIG.options["moe"] | {"balance": {"switch_global": 1.0}}})
    found = []
    for checkpointing in (False, True):
        model = LanguageModel(recursive, seed=1, dtype="float64")
        model.gradient_checkpointing = checkpointing
        totals = []
        for batch in batches(2):                              # two micro-batches
            total, _ = model.loss(*batch)
            total.backward()
            totals.append(total.item())
        router = model.body.core.layers[0].feed_forward.moe.router
        found.append((totals, router.counts.tolist(), router.weight.grad))
    assert found[0][0] == found[1][0]
    assert found[0][1] == found[1][1]
    assert sum(found[0][1]) == 2 * 2 * 2 * 24
    np.testing.assert_allclose(found[1][2], found[0][2], rtol=1e-10, atol=1e-14)


def test_a_step_whose_loss_is_not_finite_does_not_move_it() -> None:
    model = LanguageModel(CONFIG, seed=1)
    model.embed_tokens.weight.data[:] = np.nan
    _, norm = update_of(model)(batches(1), step=1, lr=0.0)
    assert np.isnan(norm)
    assert all(not each.e_score_correction_bias.data.any() for each in routers(model))
    assert all(not each.counts.any() for each in routers(model) if each.counts is not None)


def test_is_saved_and_continued() -> None:
    """Two steps in one life are two steps in two lives."""
    whole, first, second = (LanguageModel(CONFIG, seed=1) for _ in range(3))
    parts = batches(2)
    for step, batch in enumerate(parts, 1):
        update_of(whole)([batch], step=step, lr=0.0)
    update_of(first)(parts[:1], step=1, lr=0.0)
    saved = {name: np.array(values) for name, values in first.state_dict().items()}
    assert sum("e_score_correction_bias" in name for name in saved) == 2
    second.load_state_dict(saved)
    update_of(second)(parts[1:], step=2, lr=0.0)
    for name, values in whole.state_dict().items():
        np.testing.assert_array_equal(second.state_dict()[name], values)


def test_load_becomes_even() -> None:
    """With fixed weights, the bias alone brings every expert near to its share, wherever it starts."""
    model, (batch,) = LanguageModel(CONFIG, seed=3), batches(1)
    for each in routers(model):
        each.weight.data = each.weight.data * 20.0
        each.e_score_correction_bias.data[:] = [0.4, 0.2, 0.0, -0.4]
    before = usage(model.loss(*batch)[1]["moe/load"])["max_violation"]
    finish_step(model, taken=False)
    update = update_of(model)
    for step in range(1, 100):
        metrics, _ = update([batch], step=step, lr=0.0)
    after = usage(metrics["moe/load"])
    assert before.max() > 0.6
    assert after["max_violation"].max() < 0.25
    assert after["usage_evenness"].min() > 0.98
    assert (metrics["moe/bias_range"] > 0.02).all()


def test_the_first_choices_weights_do_not_know_the_bias() -> None:
    plain, biased = router(bias_update_rate=0.0), router()
    biased.e_score_correction_bias.data[:] = 7.0           # the same for all: nobody else is selected
    x = Tensor(np.random.default_rng(0).standard_normal((9, 4)))
    np.testing.assert_array_equal(plain(x).weights.data, biased(x).weights.data)
    np.testing.assert_array_equal(plain(x).experts, biased(x).experts)
