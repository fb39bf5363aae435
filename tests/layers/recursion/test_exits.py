"""Exit criteria by their definitions; what leaving means for a token."""

from typing import Any

import numpy as np
import pytest

from nn.cache import StepCache
from nn.dtypes import DType
from nn.layers.linear import Linear
from nn.layers.recursion.exits import THRESHOLDS, ExitRouter, exit_loss
from nn.tensor import Tensor
from tests.blocks.harness import close
from tests.gradients import check

random = np.random.default_rng
HEAD = random(9).standard_normal((6, 5))


def softmax(x: np.ndarray) -> np.ndarray:
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def routed(criterion: str, states: list[np.ndarray], threshold: float | None = None) -> list[np.ndarray]:
    """What it says at each step"""
    router, cache = ExitRouter(criterion, 6, threshold, dtype="float64"), StepCache()
    router.read_out(lambda h: Tensor(h.data @ HEAD))
    if criterion == "learned":
        router.exit_weight.data, router.exit_bias.data = HEAD[:, :1].T.copy(), np.array([0.3])
    return [np.asarray(router(Tensor(h), s, cache)) for s, h in enumerate(states)]


def walk(steps: int = 4) -> list[np.ndarray]:
    """States that move less and less"""
    h, move = random(0).standard_normal((2, 2, 3, 6))
    return [h + move * 0.3**s for s in range(steps)]


def expected(criterion: str, states: list[np.ndarray], s: int, tau: float) -> np.ndarray:
    now, before = states[s], states[s - 1]
    p, q = softmax(now @ HEAD), softmax(before @ HEAD)
    top = np.sort(p, axis=-1)
    if criterion == "max_prob":
        return top[..., -1] >= tau
    if criterion == "margin":
        return top[..., -1] - top[..., -2] >= tau
    if criterion == "learned":
        return 1.0 / (1.0 + np.exp(-(now @ HEAD[:, 0] + 0.3))) > tau
    if s == 0:
        return np.zeros(now.shape[:2], bool)
    size = np.linalg.norm
    distances = {
        "entropy": lambda: np.abs((p * np.log(p)).sum(-1) - (q * np.log(q)).sum(-1)),
        "kl": lambda: (q * np.log(q / p)).sum(-1),
        "latent": lambda: size(now - before, axis=-1) / size(now, axis=-1),
        "cosine": lambda: 1.0 - (now * before).sum(-1) / size(now, axis=-1) / size(before, axis=-1)}
    return distances[criterion]() < tau


@pytest.mark.parametrize(("criterion", "tau"), [
    ("max_prob", 0.6), ("margin", 0.3), ("learned", 0.5), ("entropy", 0.1), ("kl", 0.05), ("latent", 0.2),
    ("cosine", 0.05)])
def test_criteria_are_their_definitions(criterion: str, tau: float) -> None:
    said = routed(criterion, walk(), tau)
    for s, found in enumerate(said):
        assert np.array_equal(found, expected(criterion, walk(), s, tau))
    assert 0 < np.sum(said) < 24, "some leave, some do not"


@pytest.mark.parametrize(("criterion", "tau"), [("entropy", 1e-3), ("kl", 1e-3), ("margin", 0.02),
                                                ("max_prob", 0.05)])
def test_predictions_in_half_precision_are_compared_wide(criterion: str, tau: float) -> None:
    """bfloat16 logits: rounded probabilities would make a divergence of 0.01 negative, and tokens leave"""
    draw, kind = random(2), DType.of("bfloat16").numpy
    head, h = draw.standard_normal((6, 40)), draw.standard_normal((1, 50, 6))
    logits = [(z @ head).astype(kind) for z in (h, h + 0.03 * draw.standard_normal(h.shape))]
    router, cache = ExitRouter(criterion, 6, tau), StepCache()
    router.read_out(lambda h: Tensor(logits[int(h.data[0, 0, 0])]))
    said = [np.asarray(router(Tensor(np.full((1, 50, 6), s, np.float32)), s, cache)) for s in (0, 1)][1]
    before, now = (softmax(z.astype(np.float64)) for z in logits)
    top = np.sort(now, axis=-1)
    exact = {"entropy": np.abs((now * np.log(now)).sum(-1) - (before * np.log(before)).sum(-1)) < tau,
             "kl": (before * np.log(before / now)).sum(-1) < tau, "max_prob": top[..., -1] >= tau,
             "margin": top[..., -1] - top[..., -2] >= tau}[criterion]
    assert np.array_equal(said, exact)


def test_the_best_token_has_to_stay_the_best() -> None:
    a, b = np.eye(6)[0], np.eye(6)[1]
    states = [np.stack([[a, a if s != 2 else b]]) for s in range(5)]
    router, cache = ExitRouter("argmax", 6, 3, dtype="float64"), StepCache()
    router.read_out(lambda h: h)
    said = np.array([router(Tensor(h), s, cache)[0] for s, h in enumerate(states)])
    assert said.T.tolist() == [[False, False, True, True, True], [False, False, False, False, False]]


def test_defaults_are_the_specified_ones() -> None:
    for name, tau in (("entropy", 1e-3), ("latent", 0.03), ("kl", 1e-3), ("cosine", 1e-3), ("argmax", 5),
                      ("learned", 0.5)):
        assert THRESHOLDS[name] == tau
    assert not any(said.any() for said in routed("never", walk()))


def test_what_needs_predictions_says_so() -> None:
    with pytest.raises(ValueError, match=r"needs the model's head; call read_out\(head\)"):
        ExitRouter("kl", 6)(Tensor(np.zeros((1, 1, 6))), 0, StepCache())
    with pytest.raises(ValueError, match="did you mean 'max_prob'"):
        ExitRouter("max_probs", 6)


def test_a_head_stays_its_models() -> None:
    router = ExitRouter("kl", 6)
    router.read_out(Linear(6, 3))
    assert not router.parameters()


def test_the_loss_of_a_learned_router() -> None:
    """Cross-entropy with whether another step gains less than δ"""
    z, now, after = random(1).standard_normal((3, 2, 4))
    stop = now - after < 0.1
    expected_loss = -np.where(stop, np.log(1.0 / (1.0 + np.exp(-z))), np.log(1.0 / (1.0 + np.exp(z)))).mean()
    assert 0 < stop.sum() < 8
    close(np.asarray(exit_loss(Tensor(z), now, after, 0.1).data), np.asarray(expected_loss), 1e-13)
    check(lambda t: exit_loss(t, now, after, 0.1), z)


def test_step_cache() -> None:
    cache, made = StepCache(), []

    def make() -> Any:
        made.append(1)
        return "k"

    assert [cache.once("a", make), cache.once("a", make)] == ["k", "k"]
    assert len(made) == 1
    assert [cache.exchange("b", value) for value in (1, 2, 3)] == [None, 1, 2]
