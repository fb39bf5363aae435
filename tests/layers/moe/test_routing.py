"""The general router: who is selected, with what weight; its noise; what it refuses."""

from typing import Any

import numpy as np
import pytest

from nn import ops
from nn.errors import InputError
from nn.layers.moe.block import Mixture, MixtureSettings
from nn.layers.moe.general import GeneralRouter
from nn.layers.moe.noise import standard_normal
from nn.layers.moe.selection import choose
from nn.random import counter
from nn.tensor import Tensor, no_grad
from tests.gradients import check

EXAMPLE = np.array([[0.1, 0.9, -0.3, 0.5], [1.0, -1.0, 0.2, 0.4]])


def settings(**options: Any) -> MixtureSettings:
    return MixtureSettings.create(**{"hidden_size": 6, "intermediate_size": 4, "num_experts": 6} | options)


def router(**options: Any) -> GeneralRouter:
    """Evaluating, with random weights"""
    made = GeneralRouter(settings(**options), "float64")
    random = np.random.default_rng(0)
    for parameter in made.parameters():
        parameter.data = random.standard_normal(parameter.shape)
    return made.eval()


def on_logits(logits: np.ndarray, **options: Any) -> tuple[np.ndarray, np.ndarray]:
    """(weights, experts) of a router whose inputs are its logits"""
    count = logits.shape[1]
    made = router(hidden_size=count, num_experts=count, **options)
    made.weight.data = np.eye(count)
    with no_grad():
        routing = made(Tensor(logits))
    return routing.weights.data, routing.experts


def scored(name: str, z: np.ndarray) -> np.ndarray:
    if name.startswith("softmax"):
        return np.exp(z) / np.exp(z).sum(axis=-1, keepdims=True)
    return 1 / (1 + np.exp(-z)) if name == "sigmoid" else np.sqrt(np.log(1 + np.exp(z)))


@pytest.mark.parametrize(("options", "weights", "experts"), [
    ({}, [0.59868766, 0.40131234], [1, 3]),
    ({"score": "softmax_post", "renormalize": False}, [0.59868766, 0.40131234], [1, 3]),
    ({"renormalize": False}, [0.41307921, 0.27689527], [1, 3]),
    ({"score": "sigmoid", "routed_scale": 2.5}, [1.33295484, 1.16704516], [1, 3]),
    ({"score": "sqrtsoftplus"}, [0.53025131, 0.46974869], [1, 3]),
])
def test_by_hand(options: dict[str, Any], weights: list[float], experts: list[int]) -> None:
    found, chosen = on_logits(EXAMPLE[:1], **options)
    np.testing.assert_allclose(found[0], weights, atol=1e-7)
    assert chosen[0].tolist() == experts


@pytest.mark.parametrize("renormalize", [True, False])
@pytest.mark.parametrize("score", ["softmax_pre", "softmax_post", "sigmoid", "sqrtsoftplus"])
@pytest.mark.parametrize("k", [1, 2, 6])
@pytest.mark.parametrize("bias", [False, True])
def test_selection_and_weights(score: str, k: int, renormalize: bool, bias: bool) -> None:
    """One token at a time, by the formulas"""
    made = router(score=score, top_k=k, renormalize=renormalize, selection_bias=bias, routed_scale=1.7)
    x = np.random.default_rng(1).standard_normal((9, 6))
    routing = made(Tensor(x))
    for token, weights, experts in zip(x, routing.weights.data, routing.experts, strict=True):
        s = scored(score, made.weight.data @ token)
        key = s + made.e_score_correction_bias.data if bias else s
        expected = sorted(range(6), key=lambda e: (-key[e], e))[:k]
        assert experts.tolist() == expected
        w = s[expected]
        w = w / w.sum() if renormalize or score == "softmax_post" else w
        np.testing.assert_allclose(weights, 1.7 * w, rtol=1e-12)


@pytest.mark.parametrize("score", ["softmax_pre", "sigmoid", "sqrtsoftplus"])
def test_ties_go_to_the_lowest_expert(score: str) -> None:
    for options in ({}, {"selection_bias": True}, {"num_experts": 6, "n_group": 3, "topk_group": 2}):
        made = router(score=score, top_k=3, **options)
        for parameter in made.parameters():
            parameter.data = np.zeros(parameter.shape)
        assert made(Tensor(np.ones((2, 6)))).experts.tolist() == [[0, 1, 2]] * 2


class TestGroups:
    SCORES = np.array([[0.9, 0.1, 0.6, 0.5, 0.7, 0.3]])            # groups of two: max .9 .6 .7, sums 1 1.1 1

    @pytest.mark.parametrize(("rule", "best", "k", "experts"), [
        ("max", 1, 2, [0, 1]), ("top2", 1, 2, [2, 3]), ("max", 2, 3, [0, 4, 5]), ("top2", 2, 2, [0, 2]),
        ("share", 1, 2, [2, 3]), ("share", 2, 2, [0, 4]), ("max", 3, 3, [0, 4, 2])])
    def test_rules(self, rule: str, best: int, k: int, experts: list[int]) -> None:
        assert choose(self.SCORES, k, 3, best, rule)[0].tolist() == experts

    def test_score_decides_the_rule(self) -> None:
        assert settings(n_group=2, top_k=1).grouping["rule"] == "max"
        assert settings(n_group=2, top_k=1, score="sigmoid").grouping["rule"] == "top2"

    @pytest.mark.parametrize("score", ["softmax_pre", "softmax_post", "sigmoid"])
    @pytest.mark.parametrize("bias", [False, True])
    def test_of_a_router(self, score: str, bias: bool) -> None:
        """Two of three groups, each worth its largest score, and the best of these, token by token"""
        made = router(score=score, n_group=3, topk_group=2, top_k=3, group_rule="max", selection_bias=bias)
        if bias:                                              # not so large that it decides alone
            made.e_score_correction_bias.data = 0.2 * made.e_score_correction_bias.data
        x, limited = np.random.default_rng(2).standard_normal((60, 6)), 0
        for token, experts in zip(x, made(Tensor(x)).experts, strict=True):
            s = scored(score, made.weight.data @ token)
            s = s + made.e_score_correction_bias.data if bias else s
            best = sorted(range(3), key=lambda g, s=s: -max(s[2 * g : 2 * g + 2]))[:2]
            eligible = [e for e in range(6) if e // 2 in best]
            assert experts.tolist() == sorted(eligible, key=lambda e, s=s: -s[e])[:3]
            limited += experts.tolist() != np.argsort(-s)[:3].tolist()
        assert limited > 3

    def test_bias_decides_the_groups_but_not_the_weights(self) -> None:
        made = router(score="sigmoid", n_group=3, topk_group=1, selection_bias=True, renormalize=False)
        made.weight.data = np.eye(6)
        made.e_score_correction_bias.data = np.array([0, 0, 0, 0, 9.0, 9.0])
        routing = made(Tensor(np.array([[5.0, 4, 0, 0, -1, -2]])))
        assert routing.experts.tolist() == [[4, 5]]
        np.testing.assert_allclose(routing.weights.data, [[1 / (1 + np.e), 1 / (1 + np.e**2)]])

    def test_all_groups_are_no_groups(self) -> None:
        x = Tensor(np.random.default_rng(2).standard_normal((20, 6)))
        for score in ("softmax_pre", "sigmoid"):
            one, many = (router(score=score, n_group=n, topk_group=n)(x) for n in (1, 3))
            np.testing.assert_array_equal(one.experts, many.experts)
            np.testing.assert_array_equal(one.weights.data, many.weights.data)


class TestNoise:
    def test_normal_numbers(self) -> None:
        like, place = np.zeros((4000, 5)), counter(3, "router_jitter", 7, 0, 2)
        drawn = standard_normal(place, like)
        assert abs(drawn.mean()) < 0.02
        assert abs(drawn.std() - 1) < 0.02
        assert abs((drawn**4).mean() - 3) < 0.2
        assert abs(np.corrcoef(drawn.T)[0, 1]) < 0.05
        np.testing.assert_array_equal(standard_normal(place, like), drawn)
        np.testing.assert_allclose(standard_normal(place, like.astype(np.float32)), drawn, atol=2e-3)
        assert not np.array_equal(standard_normal(counter(3, "router_jitter", 7, 1, 2), like), drawn)

    def test_its_numbers_are_not_the_jitters(self) -> None:
        place, ones = counter(3, "router_jitter", 7, 0, 2), Tensor(np.ones((2000, 2)))
        u = ops.jitter(ones, place, 1.0).data
        assert abs(np.corrcoef(u[:, 0], standard_normal(place, u)[:, 0])[0, 1]) < 0.07

    def test_is_of_training_alone_and_seeded(self) -> None:
        x = Tensor(np.random.default_rng(1).standard_normal((30, 6)))
        made = router(noisy_topk=True, renormalize=False)
        calm = made(x).weights.data
        np.testing.assert_array_equal(calm, router(renormalize=False)(x).weights.data)
        made.train()
        noisy = made(x).weights.data
        np.testing.assert_array_equal(made(x).weights.data, noisy)
        assert not np.allclose(noisy, calm)
        made.noise = counter(0, "router_jitter", 1, 0, 0)
        assert not np.allclose(made(x).weights.data, noisy)

    def test_formula(self) -> None:
        made, x = router(noisy_topk=True, renormalize=False).train(), np.ones((3, 6))
        spread = np.log(1 + np.exp(made.noise_weight.data @ x.T)).T + 0.01
        z = x @ made.weight.data.T + spread * standard_normal(made.noise, spread)
        order = np.argsort(-z, axis=1, kind="stable")[:, :2]
        expected = np.take_along_axis(np.exp(z) / np.exp(z).sum(axis=1, keepdims=True), order, 1)
        np.testing.assert_allclose(made(Tensor(x)).weights.data, expected, rtol=1e-12)

    def test_starts_without_preference(self) -> None:
        assert not GeneralRouter(settings(noisy_topk=True)).noise_weight.data.any()

    @pytest.mark.parametrize("affects", [False, True])
    def test_jitter_may_reach_the_experts(self, affects: bool) -> None:
        block = Mixture(settings(num_experts=1, top_k=1, router_jitter=0.5, jitter_affects_experts=affects),
                        dtype="float64")
        block.initialize(0)
        x = Tensor(np.random.default_rng(0).standard_normal((2, 5, 6)))
        training, calm = block(x)[0].data, block.eval()(x)[0].data          # one expert: of weight 1
        assert np.allclose(training, calm) == (not affects)

    def test_router_and_experts_see_the_same_jitter_once(self) -> None:
        block = Mixture(settings(router_jitter=0.5, jitter_affects_experts=True), dtype="float64")
        block.initialize(0)
        x = np.random.default_rng(0).standard_normal((1, 9, 6))
        jittered = ops.jitter(Tensor(x[0]), block.moe.router.noise, 0.5).data[None]
        training = block(Tensor(x))[0].data
        np.testing.assert_allclose(training, block.eval()(Tensor(jittered))[0].data, rtol=1e-12)


@pytest.mark.parametrize("options", [
    {"score": "sigmoid", "routed_scale": 2.5}, {"score": "sigmoid", "renormalize": False},
    {"score": "sqrtsoftplus"}, {"score": "softmax_post"}, {"selection_bias": True},
    {"selection_bias": True, "renormalize": False}, {"noisy_topk": True, "renormalize": False},
    {"router_jitter": 0.3, "noisy_topk": True, "score": "sigmoid"},
    {"n_group": 3, "topk_group": 2, "score": "sigmoid", "selection_bias": True},
    {"capacity_factor": 0.6, "min_capacity": 1, "score": "sigmoid"},
    {"capacity_factor": 0.6, "min_capacity": 1, "renormalize_after_drop": True, "drop_policy": "position",
     "renormalize": False},
], ids=str)
def test_gradients_while_training(options: dict[str, Any]) -> None:
    """Of the input and of all parameters, against differences"""
    made, x = router(**options).train(), np.random.default_rng(3).standard_normal((7, 6))
    reached = [p for name, p in made.named_parameters().items() if "bias" not in name]
    check(lambda x: made(x).weights, x, parameters=reached)


def test_extreme_scores() -> None:
    """√softplus underflows to 0 below −104 in float32; nothing becomes NaN"""
    z = Tensor(np.array([[-200.0, -90.0, 0.0, 200.0]], np.float32), requires_grad=True)
    y = ops.sqrt_softplus(z)
    y.sum().backward()
    np.testing.assert_allclose(y.data, [[0.0, np.exp(-45.0), np.sqrt(np.log(2)), np.sqrt(200)]], rtol=1e-5)
    np.testing.assert_allclose(z.grad, [[0, np.exp(-45) / 2, 0.25 / np.sqrt(np.log(2)), 0.5 / np.sqrt(200)]],
                               rtol=1e-5)


@pytest.mark.parametrize(("options", "message"), [
    ({"top_k": 7}, "top_k: 7 is not between 1 and num_experts = 6"),
    ({"score": "sigmoidal"}, "score: 'sigmoidal'"), ({"drop_policy": "oldest"}, "drop_policy: 'oldest'"),
    ({"balance": "swich"}, "balance: 'swich'"), ({"balance": {"cv": 1.0}}, "balance: 'cv'"),
    ({"balance": "load"}, "set noisy_topk"), ({"group_rule": "mean"}, "group_rule: 'mean'"),
    ({"n_group": 4}, "n_group: 4 does not divide num_experts = 6"),
    ({"n_group": 3, "topk_group": 4}, "topk_group: 4 of 3 groups"),
    ({"n_group": 3, "top_k": 3}, "have 2 experts; at least top_k = 3"),
    ({"capacity_factor": -1.0}, "capacity_factor: -1.0 is negative"),
    ({"router_jitter": 1.5}, "router_jitter: 1.5"), ({"activation": "silly"}, "activation: 'silly'"),
    ({"num_shared_experts": -1}, "num_shared_experts: -1"),
    ({"shared_gate": True}, "shared_gate: there are no"), ({"bias_update_rate": -1.0}, "negative"),
    ({"intermediate_size": 0}, "intermediate_size: 0 is not positive"),
    ({"capacity_factor": float("nan")}, "capacity_factor: nan"),
    ({"router_z_coef": -0.1}, "router_z_coef: -0.1"),
    ({"capacity_factor": float("inf")}, "capacity_factor: inf"), ({"routed_scale": 0.0}, "routed_scale: 0.0"),
    ({"balance": ["switch"]}, r"balance: \['switch'\]; give a name"),
    ({"balance_coef": float("nan")}, "switch has the weight nan"),
])
def test_bad_settings(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        settings(**options)
