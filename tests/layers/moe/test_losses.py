"""Balance losses: by hand, by formulas of their own, by differences; padding is in none of them."""

import math
from typing import Any

import numpy as np
import pytest

from nn import ops
from nn.errors import InputError
from nn.layers import auxiliary
from nn.layers.moe import losses
from nn.layers.moe.block import Mixture, MixtureSettings
from nn.layers.moe.decision import Rows
from nn.layers.moe.general import GeneralRouter
from nn.layers.moe.noise import standard_normal
from nn.tensor import Tensor
from tests.gradients import check

LOGITS = np.array([[0.1, 0.9, -0.3, 0.5], [1.0, -1.0, 0.2, 0.4]])       # f = [.25, .25, 0, .5]
E, K, B, T = 5, 2, 3, 4


def router(experts: int = E, **options: Any) -> GeneralRouter:
    """Training, whose inputs are its logits"""
    settings = MixtureSettings.create(hidden_size=experts, intermediate_size=2, num_experts=experts,
                                      **{"router_z_coef": 0.0, "top_k": K} | options)
    made = GeneralRouter(settings, "float64")
    made.weight.data = np.eye(experts)
    return made


def emitted(made: GeneralRouter, logits: Any, rows: Rows | None = None) -> dict[str, Tensor]:
    with auxiliary.collect() as found:
        made(logits if isinstance(logits, Tensor) else Tensor(logits), rows)
    return found.totals()


def softmax(z: np.ndarray) -> np.ndarray:
    p = np.exp(z - z.max(axis=-1, keepdims=True))
    return p / p.sum(axis=-1, keepdims=True)


def counts(experts: np.ndarray, number: int) -> np.ndarray:
    return np.bincount(experts.ravel(), minlength=number)


P1 = np.array([0.18560845, 0.41307921, 0.12441707, 0.27689527])
P2 = np.array([0.46871868, 0.06343418, 0.21060888, 0.25723827])


@pytest.mark.parametrize(("name", "value"), [
    ("switch", 1.0995538), ("switch_global", 1.0995538),
    ("gshard", 0.25 * (0.5 * 0.32716357 + 0.5 * 0.2382567)),           # experts 1 and 0 are the first choices
    ("sequence", 1.0995538),                                            # both tokens are one sequence
    ("token_entropy", 0.5 * ((P1 * np.log(P1)).sum() + (P2 * np.log(P2)).sum())),
    ("usage_entropy", ((P1 + P2) / 2 * np.log((P1 + P2) / 2)).sum()),
    # gates: token 0 .59868766, .40131234 to 1, 3; token 1 .64567 (.46871868/.72595695), .35434349 to 0, 3
    ("importance", np.var([0.64565651, 0.59868766, 0, 0.75565583]) / 0.25),
])
def test_by_hand(name: str, value: float) -> None:
    found = emitted(router(4, balance={name: 0.3}), LOGITS)[losses.name_of(name)]
    assert found.item() == pytest.approx(0.3 * value, abs=2e-8)


def test_load_by_hand() -> None:
    """K = 1, two experts: who wins is who is larger by its own noise than the other's noisy value."""
    made = router(2, top_k=1, noisy_topk=True, balance={"load": 1.0})
    z, spread = np.array([[0.3, 0.1]]), np.log(2.0) + 0.01
    noisy = z + spread * standard_normal(made.noise, z)
    u = (z - noisy[:, ::-1]) / spread
    load = np.array([0.5 + 0.5 * np.vectorize(math.erf)(u / np.sqrt(2.0))]).ravel()
    found = emitted(made, z)["moe/balance_load"].item()
    assert found == pytest.approx(np.var(load) / np.mean(load)**2, rel=1e-9)


def plain(name: str, z: np.ndarray, keep: np.ndarray, score: str = "softmax_pre") -> float:
    """The losses of rows [T·B] ordered by time, token by token"""
    s = softmax(z) if score == "softmax_pre" else 1 / (1 + np.exp(-z))
    p = s / s.sum(axis=1, keepdims=True)
    order = np.argsort(-z, axis=1, kind="stable")[:, :K]
    gates = np.take_along_axis(s, order, 1)
    gates /= gates.sum(axis=1, keepdims=True)
    tokens = int(keep.sum())
    share, mean = counts(order[keep], E) / (K * tokens), p[keep].mean(axis=0)
    if name in ("switch", "switch_global"):
        return float(E * share @ mean)
    if name == "gshard":
        return float(counts(order[keep][:, :1], E) / tokens @ mean / E)
    if name == "importance":
        total = np.zeros(E)
        np.add.at(total, order[keep], gates[keep])
        return float(total.var() / (total.mean()**2 + 1e-10))
    if name == "token_entropy":
        return float((p * np.log(p)).sum(axis=1)[keep].mean())
    if name == "usage_entropy":
        return float(mean @ np.log(mean))
    each = []
    for b in range(B):
        rows = [t * B + b for t in range(T) if keep[t * B + b]]
        if rows:
            f = E / (K * len(rows)) * counts(order[rows], E)
            each.append(f @ p[rows].mean(axis=0))
    return float(np.mean(each))


NAMES = [name for name in losses.LOSSES if name != "load"]


@pytest.mark.parametrize("score", ["softmax_pre", "sigmoid"])
@pytest.mark.parametrize("name", NAMES)
def test_formulas_with_padding(name: str, score: str) -> None:
    random = np.random.default_rng(1)
    z, keep = 2.0 * random.standard_normal((T * B, E)), np.ones(T * B, bool)
    made = router(balance={name: 1.0}, score=score).eval()
    for padding in ([], [0, 3, 6], [0, 1, 3, 4, 6, 7, 10]):
        keep[padding] = False
        rows = Rows(B, T, True, keep if padding else None)
        found = emitted(made, z, rows)[losses.name_of(name)].item()
        assert found == pytest.approx(plain(name, z, keep, score), rel=1e-9)
        if padding:
            z[padding] = 50.0 * random.standard_normal((len(padding), E))
            assert emitted(made, z, rows)[losses.name_of(name)].item() == pytest.approx(found, rel=1e-12)


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("score", ["softmax_pre", "sigmoid", "sqrtsoftplus"])
@pytest.mark.parametrize("name", losses.LOSSES)
def test_gradients(name: str, score: str, padded: bool) -> None:
    """Of the logits, and of the size of the noise"""
    z, keep = np.random.default_rng(2).standard_normal((T * B, E)), np.arange(T * B) % 4 != 1
    made = router(balance={name: 0.7}, score=score, router_z_coef=0.2, noisy_topk=name == "load")
    rows = Rows(B, T, True, keep if padded else None)

    def total(x: Tensor) -> Tensor:
        return sum(emitted(made, x, rows).values(), start=Tensor(np.zeros(())))

    noise = [made.noise_weight] if name == "load" else []
    check(total, z, parameters=noise)


def test_closed_forms_of_the_gradient() -> None:
    """dz_tj = α E / N p_tj (f_j − Σ_e f_e p_te) (switch), and DeepSeek's of sigmoid scores"""
    z = np.random.default_rng(3).standard_normal((T, E))
    x = Tensor(z, requires_grad=True)
    emitted(router(balance={"switch": 0.3}), x)["moe/load_balance"].backward()
    p, f = softmax(z), counts(np.argsort(-z, axis=1)[:, :K], E) / (T * K)
    np.testing.assert_allclose(x.grad, 0.3 * E / T * p * (f - (p @ f)[:, None]), rtol=1e-10, atol=1e-15)

    x = Tensor(z, requires_grad=True)
    emitted(router(balance={"sequence": 0.3}, score="sigmoid"), x)["moe/balance_sequence"].backward()
    s = 1 / (1 + np.exp(-z))
    total, g = s.sum(axis=1, keepdims=True), 0.3 * E * f / T
    ds = (g - (s / total * g).sum(axis=1, keepdims=True)) / total
    np.testing.assert_allclose(x.grad, ds * s * (1 - s), rtol=1e-10, atol=1e-15)


@pytest.mark.parametrize("name", ["switch", "switch_global", "sequence"])
def test_even_load_has_the_least_loss(name: str) -> None:
    even = emitted(router(4, top_k=1, balance={name: 0.3}), np.zeros((4, 4)) + 5.0 * np.eye(4))
    assert even[losses.name_of(name)].item() == pytest.approx(0.3)
    uneven = emitted(router(4, top_k=1, balance={name: 0.3}), 5.0 * np.eye(4)[[0, 0, 0, 1]])
    assert uneven[losses.name_of(name)].item() > 0.5


def test_several_at_once_and_none() -> None:
    names = {name: 0.1 * (i + 1) for i, name in enumerate(NAMES)}
    found = emitted(router(4, balance=names), LOGITS)
    assert set(found) == {losses.name_of(name) for name in names}
    for name, weight in names.items():
        alone = emitted(router(4, balance={name: 1.0}), LOGITS)[losses.name_of(name)]
        assert found[losses.name_of(name)].item() == pytest.approx(weight * alone.item(), rel=1e-12)
    for nothing in ({"balance": "none"}, {"balance_coef": 0.0}, {"balance": {}},
                    {"balance": {"switch": 0.0}}):
        assert not emitted(router(4, **nothing), LOGITS)
    assert set(emitted(router(4, balance="none", router_z_coef=0.1), LOGITS)) == {"moe/router_z"}


def test_a_name_alone_takes_the_coefficient() -> None:
    found = emitted(router(4, balance="sequence", balance_coef=1e-4), LOGITS)
    assert found["moe/balance_sequence"].item() == pytest.approx(1e-4 * 1.0995538, abs=1e-11)


def test_z_loss_leaves_padding_out() -> None:
    keep = np.array([True, True, False])
    z = np.concatenate([LOGITS, [[9.0, 9.0, 9.0, 9.0]]])
    found = emitted(router(4, balance="none", router_z_coef=0.7), z, Rows(1, 3, True, keep))
    assert found["moe/router_z"].item() == pytest.approx(0.7 * 3.13638177, abs=1e-8)


def test_all_padding_is_no_division_by_zero() -> None:
    rows = Rows(B, T, True, np.zeros(T * B, bool))
    with auxiliary.collect() as found:
        router(balance=dict.fromkeys(NAMES, 1.0), router_z_coef=1.0)(Tensor(np.ones((T * B, E))), rows)
    assert all(np.isfinite(loss.item()) for _, loss in found.losses)
    assert all(np.isfinite(value).all() for _, value in found.figures)


def test_load_without_rivals_is_even() -> None:
    """K = E: everyone is among the K"""
    made = router(4, top_k=4, noisy_topk=True, balance="load")
    assert emitted(made, LOGITS)["moe/balance_load"].item() == 0.0


def test_a_program_may_enter_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """Registered under a name, it is computed with the weight it is given, and its gradient flows."""
    monkeypatch.setitem(losses.LOSSES, "squares", lambda d: d.mean(d.probs * d.probs).sum())
    made = router(4, balance={"squares": 0.5})
    found = emitted(made, LOGITS)["moe/balance_squares"]
    assert found.item() == pytest.approx(0.5 * (softmax(LOGITS)**2).sum() / 2)
    check(lambda x: emitted(made, x)["moe/balance_squares"], LOGITS)
    with pytest.raises(InputError, match="balance: 'square'"):
        router(4, balance="square")


def test_global_switch_counts_the_micro_batches_of_the_step() -> None:
    """Its f is of all pairs so far, its P of this micro-batch"""
    made, random = router(balance={"switch_global": 1.0}), np.random.default_rng(4)
    parts, seen = [random.standard_normal((6, E)) for _ in range(3)], np.zeros(E)
    for _ in range(2):                                   # two steps: counts begin anew
        for z in parts:
            found = emitted(made, Tensor(z, requires_grad=True))["moe/balance_switch_global"]
            seen += counts(np.argsort(-z, axis=1)[:, :K], E)
            assert found.item() == pytest.approx(E * seen / seen.sum() @ softmax(z).mean(axis=0), rel=1e-12)
        made.finish_step(taken=True)
        seen[:] = 0.0


@pytest.mark.parametrize("by_time", [False, True])
def test_a_block_sorts_its_rows_into_sequences(by_time: bool) -> None:
    """The sequence loss of a block is the mean of those of its rows alone, without their padding."""
    block = Mixture(MixtureSettings.create(hidden_size=6, intermediate_size=2, num_experts=4,
                                           balance="sequence", router_z_coef=0.0), dtype="float64")
    block.initialize(0)
    block.moe.router.weight.data = np.random.default_rng(0).standard_normal((4, 6))
    x, pads = np.random.default_rng(1).standard_normal((3, 7, 6)), [0, 3, 5]
    mask = np.arange(7) >= np.array(pads)[:, None]

    def loss(x: np.ndarray, mask: np.ndarray | None = None) -> float:
        with auxiliary.collect() as found:
            block(Tensor(x), mask=mask)
        return found.losses[0][1].item()

    alone = [loss(x[b : b + 1, pad:]) for b, pad in enumerate(pads)]
    assert loss(x, mask) == pytest.approx(np.mean(alone), rel=1e-12)
    rows = Rows.of(Tensor(x), mask, by_time)
    flat = Tensor(x.transpose(1, 0, 2).reshape(21, 6) if by_time else x.reshape(21, 6))
    np.testing.assert_array_equal(rows.in_sequences(flat).data, x)
    assert ops.sum(Tensor(rows.keep.astype(float))).item() == mask.sum()
