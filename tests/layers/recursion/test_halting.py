"""ACT and PonderNet: golden values, weights that add up to 1, gradients by their published formulas."""

import numpy as np
import pytest

from nn import ops
from nn.layers.recursion.halting import Act, Ponder, geometric_prior, ponder_kl, ponder_loss, ponder_steps
from nn.tensor import Tensor
from tests.blocks.harness import close
from tests.gradients import check

random = np.random.default_rng


def act(p: np.ndarray, eps: float = 0.01) -> tuple[np.ndarray, Act]:
    """Weights [N,B,T] of p[N,B,T], the last of which is not used"""
    halting, like = Act(eps), Tensor(np.zeros((*p.shape[1:], 1)))
    weights = [halting.step(Tensor(each), like, last=s == len(p) - 1).data for s, each in enumerate(p)]
    return np.stack(weights), halting


def ponder(halt: np.ndarray) -> Tensor:
    """p[B,T,N] of λ[N,B,T], the last of which counts as 1"""
    halting, like = Ponder(), Tensor(np.zeros((*halt.shape[1:], 1)))
    for s, each in enumerate(halt):
        halting.step(None if s == len(halt) - 1 else Tensor(each), like)
    return halting.all()


def column(*values: float) -> np.ndarray:
    return np.array(values)[:, None, None]


def test_golden_values() -> None:
    weights, halting = act(column(0.3, 0.4, 0.5))
    close(weights[:, 0, 0], np.array([0.3, 0.4, 0.3]), 1e-15)
    assert halting.steps[0, 0] == 3
    close(halting.remainder.data, np.full((1, 1), 0.3), 1e-15)
    close(halting.cost().data, np.full((1, 1), 3.3), 1e-15)
    close(ponder(column(0.2, 0.5, 1.0)).data[0, 0], np.array([0.2, 0.4, 0.4]), 1e-15)


def by_the_script(p: np.ndarray, eps: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(ω, N, R) token by token as Universal Transformer's code has it"""
    weights, steps, rest = np.zeros_like(p), np.zeros(p.shape[1:]), np.zeros(p.shape[1:])
    for place in np.ndindex(p.shape[1:]):
        total = 0.0
        for s in range(len(p)):
            value = p[(s, *place)]
            steps[place] += 1
            if total + value > 1.0 - eps or s == len(p) - 1:
                weights[(s, *place)] = rest[place] = 1.0 - total
                break
            weights[(s, *place)], total = value, total + value
    return weights, steps, rest


@pytest.mark.parametrize("eps", [0.01, 0.3])
def test_act_is_the_algorithm_token_by_token(eps: float) -> None:
    p = random(0).uniform(0.0, 0.6, (6, 3, 5))
    weights, halting = act(p, eps)
    expected, steps, rest = by_the_script(p, eps)
    close(weights, expected, 1e-14)
    close(halting.steps, steps, 1e-14)
    close(halting.remainder.data, rest, 1e-14)
    np.testing.assert_allclose(weights.sum(0), 1.0, rtol=1e-14)


def test_certain_tokens_stop_at_once_and_unsure_ones_never() -> None:
    weights, halting = act(np.ones((4, 1, 2)))
    assert np.array_equal(weights[0], np.ones((1, 2)))
    assert not weights[1:].any()
    assert (halting.steps == 1).all()
    weights, halting = act(np.full((4, 1, 2), 1e-9))
    assert (halting.steps == 4).all()
    np.testing.assert_allclose(weights[3], 1.0, atol=1e-8)


def test_act_gradient() -> None:
    """dp_s = dω_s − dω_n − τ before the last step n; 0 from it on"""
    p, dweights, tau = random(1).uniform(0.0, 0.6, (5, 2, 3)), random(2).standard_normal((5, 2, 3)), 0.1
    leaves, halting = [Tensor(each, requires_grad=True) for each in p], Act()
    like = Tensor(np.zeros((2, 3, 1)))
    weights = [halting.step(leaf, like, last=s == 4) for s, leaf in enumerate(leaves)]
    (ops.stack(weights, axis=0) * dweights).sum().backward(gradient=np.asarray(1.0))
    _, steps, _ = by_the_script(p, 0.01)
    for s, b, t in np.ndindex(p.shape):
        n = int(steps[b, t]) - 1
        expected = dweights[s, b, t] - dweights[n, b, t] if s < n else 0.0
        found = 0.0 if leaves[s].grad is None else leaves[s].grad[b, t]
        assert abs(found - expected) < 1e-14
    again, halting = [Tensor(each, requires_grad=True) for each in p], Act()
    for s, leaf in enumerate(again):
        halting.step(leaf, like, last=s == 4)
    (halting.cost() * tau).sum().backward()
    for s, b, t in np.ndindex(p.shape):
        found = 0.0 if again[s].grad is None else again[s].grad[b, t]
        assert abs(found - (-tau if s < steps[b, t] - 1 else 0.0)) < 1e-14


def test_ponder_weights_add_up_to_one() -> None:
    p = ponder(random(0).uniform(0.0, 1.0, (6, 3, 4))).data
    np.testing.assert_allclose(p.sum(-1), 1.0, rtol=1e-14)
    assert p.min() >= 0.0


def test_ponder_gradient() -> None:
    """G_s = ℓ_s + β (ln p_s/π_s + 1),  dλ_s = G_s p_s/λ_s − (Σ_(r>s) G_r p_r)/(1 − λ_s)"""
    halt, losses = random(1).uniform(0.2, 0.8, (4, 1, 3)), random(2).standard_normal((1, 3, 4))
    leaves, halting = [Tensor(h, requires_grad=True) for h in halt], Ponder()
    like = Tensor(np.zeros((1, 3, 1)))
    for leaf in leaves[:3]:
        halting.step(leaf, like)
    halting.step(None, like)
    loss = Tensor(losses, requires_grad=True)
    p = halting.all()
    ponder_loss(p, loss, 0.3, 0.4).backward()
    prior = geometric_prior(0.4, 4)
    g = (losses + 0.3 * (np.log(p.data / prior) + 1.0)) / 3.0
    for s in range(3):
        behind = (g * p.data)[..., s + 1 :].sum(-1)
        close(leaves[s].grad, g[..., s] * p.data[..., s] / halt[s] - behind / (1.0 - halt[s]), 1e-12)
    close(loss.grad, p.data / 3.0, 1e-14)
    check(lambda x: ponder_kl(ops.softmax(x)), random(3).standard_normal((2, 4)))


def test_divergence_from_the_prior() -> None:
    p = ponder(random(0).uniform(0.0, 1.0, (5, 3, 4)))
    assert ponder_kl(p).data.min() > 0.0
    prior = np.broadcast_to(geometric_prior(0.2, 5), (2, 3, 5))
    close(ponder_kl(Tensor(prior)).data, np.zeros((2, 3)), 1e-15)
    constant = ponder(np.full((60, 1, 1), 0.2))          # λ_s = λ: the prior itself, far from where it ends
    assert ponder_kl(constant).data[0, 0] < 1e-5
    certain = ponder(np.concatenate([np.ones((1, 1, 1)), np.zeros((2, 1, 1))]))
    close(ponder_kl(certain).data, np.full((1, 1), -np.log(geometric_prior(0.2, 3)[0])), 1e-12)


def test_a_strong_prior_is_followed() -> None:
    """β → ∞ drives p to the prior"""
    logits = random(4).standard_normal((3, 1, 1))
    for _ in range(600):
        leaves, halting = [Tensor(z, requires_grad=True) for z in logits], Ponder()
        like = Tensor(np.zeros((1, 1, 1)))
        for leaf in leaves:
            halting.step(ops.sigmoid(leaf), like)
        halting.step(None, like)
        ponder_loss(p := halting.all(), Tensor(np.zeros((1, 1, 4))), 10.0).backward()
        logits = logits - 0.4 * np.stack([leaf.grad for leaf in leaves])
    np.testing.assert_allclose(p.data[0, 0], geometric_prior(0.2, 4), atol=1e-6)


def test_the_prior_says_how_many_steps_to_allow() -> None:
    assert ponder_steps(0.2) == 14                       # 1 − 0.8^14 = 0.956
    assert ponder_steps(0.5) == 5
    assert ponder_steps(0.95) == 1
    for rate in (0.0, 1.0):
        with pytest.raises(ValueError, match="rate: "):
            ponder_steps(rate)
        with pytest.raises(ValueError, match="rate: "):
            geometric_prior(rate, 3)
