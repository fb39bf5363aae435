"""The rule bank against its equations in NumPy, and what it promises."""

from typing import Any

import numpy as np
import pytest

from nn.layers.auxiliary import collect
from nn.layers.memory.nsb import NSB, NSBSettings
from nn.random import counter
from nn.tensor import Tensor, no_grad
from tests.blocks.harness import check_slopes, close, shaken
from tests.gradients import gradients, leaf

random = np.random.default_rng


def build(**options: Any) -> NSB:
    settings = NSBSettings.create(**{"hidden_size": 6, "rules": 3, "rdim": 5} | options)
    return shaken(NSB(settings, "float64"), 0)


def given(seed: int = 1) -> np.ndarray:
    return random(seed).standard_normal((2, 4, 6))


def run(block: NSB, x: np.ndarray) -> np.ndarray:
    with no_grad():
        return np.asarray(block(Tensor(x))[0].data)


def weights(block: NSB) -> dict[str, np.ndarray]:
    return {name: p.data for name, p in block.named_parameters().items()}


def by_equations(w: dict[str, np.ndarray], x: np.ndarray, tau: float, hard: bool = False) -> np.ndarray:
    logits = (x @ w["query.weight"].T + w["query.bias"]) @ w["rules"].T / tau
    p = np.exp(logits - logits.max(-1, keepdims=True))
    p = p / p.sum(-1, keepdims=True)
    p = np.eye(p.shape[-1])[p.argmax(-1)] if hard else p
    hidden = np.concatenate([x, p @ w["rules"]], -1) @ w["fc1.weight"].T
    return hidden / (1.0 + np.exp(-hidden)) @ w["fc2.weight"].T


@pytest.mark.parametrize(("tau", "divisor"), [(1.0, 1.0), (0.3, 0.3), (0.0, 5**0.5)])
@pytest.mark.parametrize("hard", [False, True])
def test_the_equations(tau: float, divisor: float, hard: bool) -> None:
    block = build(tau=tau, hard=hard)
    close(run(block, given()), by_equations(weights(block), given(), divisor, hard), 1e-12)


def test_nothing_is_added_without_the_last_matrix() -> None:
    block = build()
    block.fc2.weight.data = np.zeros((6, 6))
    assert not run(block, given()).any()


def test_a_single_rule_is_always_the_one() -> None:
    block = build(rules=1)
    s = np.broadcast_to(block.rules.data[0], (2, 4, 5))
    hidden = np.concatenate([given(), s], -1) @ block.fc1.weight.data.T
    close(run(block, given()), hidden / (1.0 + np.exp(-hidden)) @ block.fc2.weight.data.T, 1e-12)


def test_the_order_of_the_rules_is_nothing() -> None:
    block, x = build(), given()
    before = run(block, x)
    block.rules.data = block.rules.data[[2, 0, 1]]
    close(run(block, x), before, 1e-12)


def test_a_low_temperature_selects_the_likeliest() -> None:
    cold, hard = build(tau=1e-4), build(hard=True)
    close(run(cold, given()), run(hard, given()), 1e-9)


def test_the_bank_has_its_gradient_as_key_and_as_value() -> None:
    """dR = pᵀ ds + dℓᵀ q / τ"""
    block, x, tau = build(tau=0.7), given(), 0.7
    found = gradients(lambda t: block(t)[0], [leaf(x)], block.parameters())
    w = weights(block)
    dy = random(0).standard_normal((2, 4, 6))                                   # the constants of `weighted`
    q = x @ w["query.weight"].T + w["query.bias"]
    logits = q @ w["rules"].T / tau
    p = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    hidden = np.concatenate([x, p @ w["rules"]], -1) @ w["fc1.weight"].T
    gate = 1.0 / (1.0 + np.exp(-hidden))
    dhidden = dy @ w["fc2.weight"] * gate * (1.0 + hidden * (1.0 - gate))
    ds = (dhidden @ w["fc1.weight"])[..., 6:]
    dp = ds @ w["rules"].T
    dlogits = p * (dp - (p * dp).sum(-1, keepdims=True))
    expected = np.einsum("btr,btd->rd", p, ds) + np.einsum("btr,btd->rd", dlogits, q) / tau
    close(found[1 + list(w).index("rules")], expected, 1e-11)


def test_a_hard_choice_has_the_gradient_of_the_soft_one() -> None:
    """Behind the selection nothing is bent if the feed-forward is a straight line: then they are equal."""
    found = []
    for hard in (False, True):
        block = build(hard=hard)
        p = block.selection(x := Tensor(given(), requires_grad=True))
        chosen = block._hardened(p) if hard else p
        assert not hard or np.array_equal(np.unique(chosen.data.round(12)), [0.0, 1.0])
        (chosen @ block.rules.detach() * random(5).standard_normal((2, 4, 5))).sum().backward()
        found.append(x.grad)
    close(found[1], found[0], 1e-12)


def test_entropy_is_told_and_punished() -> None:
    block, x, mask = build(entropy_coef=0.1), given(), np.ones((2, 4), bool)
    mask[1, :2] = False
    for keep in (None, mask):
        with collect() as heard, no_grad():
            block(Tensor(x), mask=keep)
            p = block.selection(Tensor(x)).data
        entropy = -(p * np.log(p)).sum(-1)
        mean = entropy.mean() if keep is None else entropy[mask].mean()
        close(np.asarray(heard.totals()["nsb/entropy"].data), np.asarray(0.1 * mean), 1e-6)
        close(np.asarray(heard.figures[0][1]), np.asarray(mean), 1e-6)
    x_leaf = leaf(x)
    with collect() as heard:
        block(x_leaf)
    heard.totals()["nsb/entropy"].backward()

    def loss() -> float:
        with collect() as again, no_grad():
            block(Tensor(x))
        return again.totals()["nsb/entropy"].item()

    check_slopes(loss, {"x": (x, x_leaf.grad)}, tolerance=1e-5)


def test_rules_drop_out_of_training_alone() -> None:
    block = build(rules=8, dropout=0.5)
    still = block.selection(Tensor(given())).data
    assert (still > 0.0).all()
    block.train()
    first = block.selection(Tensor(given())).data
    dropped = (first == 0.0).all(axis=(0, 1))
    assert 0 < dropped.sum() < 8
    close(first.sum(-1), np.ones((2, 4)), 1e-12)
    assert np.array_equal(block.selection(Tensor(given())).data, first), "the same place draws the same"
    block.noise = counter(0, "rule_dropout", 1)
    assert not np.array_equal((block.selection(Tensor(given())).data == 0.0).all(axis=(0, 1)), dropped)


def test_one_rule_is_always_left() -> None:
    """However likely it is that all are left out"""
    block = build(rules=2, dropout=0.97).train()
    alone = 0
    for step in range(20):
        block.noise = counter(0, "rule_dropout", step)
        p = block.selection(Tensor(given())).data
        close(p.sum(-1), np.ones((2, 4)), 1e-12)
        alone += int((p[0, 0] == 1.0).any())
    assert alone > 10


def test_the_temperature_falls_while_training() -> None:
    """Linearly from tau_start to tau over tau_steps; evaluated at tau, whatever the step"""
    block, x = build(tau=0.5, tau_start=4.5, tau_steps=8), given()
    w = weights(block)
    logits = (x @ w["query.weight"].T + w["query.bias"]) @ w["rules"].T
    for step, tau in ((0, 4.5), (2, 3.5), (6, 1.5), (8, 0.5), (100, 0.5)):
        block.noise = counter(0, "rule_dropout", step, 1, 1)
        for training in (True, False):
            block.train(training)
            p = np.exp(logits / (tau if training else 0.5))
            close(block.selection(Tensor(x)).data, p / p.sum(-1, keepdims=True), 1e-12)


def test_bad_settings_are_named() -> None:
    with pytest.raises(ValueError, match="tau: -1"):
        NSBSettings(tau=-1.0)
    for half in ({"tau_start": 2.0}, {"tau_steps": 5}, {"tau_start": -1.0, "tau_steps": 5}):
        with pytest.raises(ValueError, match="tau_start: .*give both"):
            NSBSettings(**half)


