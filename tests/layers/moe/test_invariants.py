"""What must hold of every block of experts: equal to dense layers where it should be, to a loop over tokens,
to itself with the experts renamed; capacity; where experts stand."""

from typing import Any

import numpy as np
import pytest

from nn.errors import InputError
from nn.layers import auxiliary
from nn.layers.moe.block import Mixture, MixtureSettings
from nn.layers.moe.capacity import POLICIES, keep_within_capacity
from nn.layers.moe.metrics import usage
from nn.layers.moe.placement import feed_forwards
from nn.layers.registry import create
from nn.ops.count import count_flops
from nn.tensor import Tensor, no_grad

SCORES = ("softmax_pre", "softmax_post", "sigmoid", "sqrtsoftplus")


def block(**options: Any) -> Mixture:
    """With random weights, evaluating"""
    small = {"hidden_size": 6, "intermediate_size": 4, "num_experts": 4}
    made = Mixture(MixtureSettings.create(**small | options), dtype="float64")
    random = np.random.default_rng(0)
    for parameter in made.parameters():
        parameter.data = random.standard_normal(parameter.shape)
    made.eval()
    return made


def inputs(batch: int = 2, length: int = 7) -> np.ndarray:
    return np.random.default_rng(1).standard_normal((batch, length, 6))


def run(made: Mixture, x: np.ndarray, mask: np.ndarray | None = None) -> np.ndarray:
    with no_grad():
        return made(Tensor(x), mask=mask)[0].data


def gelu(x: np.ndarray) -> np.ndarray:
    from math import erf
    return x * (0.5 + 0.5 * np.vectorize(erf)(x / np.sqrt(2.0)))


def expert(made: Mixture, e: int, x: np.ndarray) -> np.ndarray:
    experts = made.moe.experts
    if made.settings.activation == "swiglu":
        gate, up = np.split(experts.gate_up_proj.data[e] @ x, 2)
        return experts.down_proj.data[e] @ (gate / (1 + np.exp(-gate)) * up)
    hidden = experts.up_proj.data[e] @ x
    return experts.down_proj.data[e] @ {"relu": lambda z: np.maximum(z, 0), "gelu": gelu}[
        made.settings.activation](hidden)


def loop(made: Mixture, x: np.ndarray) -> np.ndarray:
    """The routed experts, one token at a time, by the router's weights"""
    routing, y = made.moe.router(Tensor(x.reshape(-1, 6))), np.zeros((x.size // 6, 6))
    for n, (weights, experts) in enumerate(zip(routing.weights.data, routing.experts, strict=True)):
        y[n] = sum(w * expert(made, e, x.reshape(-1, 6)[n]) for w, e in zip(weights, experts, strict=True))
    return y.reshape(x.shape)


@pytest.mark.parametrize("activation", ["swiglu", "relu", "gelu"])
@pytest.mark.parametrize(("experts", "k"), [(4, 2), (1, 1), (3, 3), (16, 1)])
def test_equals_a_loop_over_tokens(experts: int, k: int, activation: str) -> None:
    made = block(num_experts=experts, top_k=k, activation=activation, score="sigmoid", routed_scale=1.3)
    for shape in ((2, 7), (13, 1), (0, 3)):
        x = inputs(*shape)
        np.testing.assert_allclose(run(made, x), loop(made, x), rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("score", SCORES)
def test_one_expert_is_dense(score: str) -> None:
    """For every score, once weights add up to 1"""
    made, x = block(num_experts=1, top_k=1, score=score), inputs()
    dense = [[expert(made, 0, row) for row in rows] for rows in x]
    np.testing.assert_allclose(run(made, x), dense, rtol=1e-12)


@pytest.mark.parametrize("score", SCORES)
def test_equal_experts_are_dense(score: str) -> None:
    made, one = block(score=score, num_experts=6, top_k=3, n_group=2), block(num_experts=1, top_k=1)
    for name in ("gate_up_proj", "down_proj"):
        getattr(made.moe.experts, name).data = np.repeat(getattr(one.moe.experts, name).data, 6, axis=0)
    np.testing.assert_allclose(run(made, inputs()), run(one, inputs()), rtol=1e-12, atol=1e-13)


def test_all_experts_are_the_full_mixture() -> None:
    made, x = block(top_k=4, renormalize=False), inputs()
    z = x @ made.moe.router.weight.data.T
    p = np.exp(z) / np.exp(z).sum(axis=-1, keepdims=True)
    y = [[sum(p[b, t, e] * expert(made, e, x[b, t]) for e in range(4)) for t in range(7)] for b in range(2)]
    np.testing.assert_allclose(run(made, x), y, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("score", SCORES)
def test_names_of_experts_do_not_matter(score: str) -> None:
    """Experts, rows of the router and biases renamed together, groups kept together"""
    options: dict[str, Any] = {"score": score, "num_experts": 6, "n_group": 3, "topk_group": 2,
                               "selection_bias": True, "group_rule": "top2"}
    made, other, order = block(**options), block(**options), np.array([4, 5, 1, 0, 3, 2])
    for name, parameter in made.moe.named_parameters().items():
        other.moe.named_parameters()[name].data = parameter.data[order]
    np.testing.assert_allclose(run(other, inputs()), run(made, inputs()), rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("training", [False, True])
def test_tokens_do_not_matter_to_each_other(training: bool) -> None:
    """Dropless: also while training"""
    made = block(score="sigmoid", num_shared_experts=1, shared_gate=True)
    made.train(training)
    whole = run(made, inputs(2, 9))
    for b, t in np.ndindex(2, 9):
        alone = run(made, inputs(2, 9)[b : b + 1, t : t + 1])
        np.testing.assert_allclose(alone[0, 0], whole[b, t], rtol=1e-12, atol=1e-13)


def test_shared_experts_are_added() -> None:
    """Ungated as they are, gated times σ(x · gate); several are one as wide as all"""
    x, routed = inputs(), run(block(), inputs())
    for gated in (False, True):
        made = block(num_shared_experts=2, shared_gate=gated)
        for name, parameter in block().moe.named_parameters().items():
            made.moe.named_parameters()[name].data = parameter.data
        gate, up, down = (getattr(made.shared_experts, f"{name}_proj").weight.data
                          for name in ("gate", "up", "down"))
        assert gate.shape == (8, 6)
        hidden = x @ gate.T
        shared = (hidden / (1 + np.exp(-hidden)) * (x @ up.T)) @ down.T
        if gated:
            shared = shared / (1 + np.exp(-x @ made.shared_expert_gate.weight.data.T))
        np.testing.assert_allclose(run(made, x), routed + shared, rtol=1e-11, atol=1e-12)


# ---- capacity ----


EXPERTS, WEIGHTS = np.array([[1, 0], [0, 1], [1, 2]]), np.array([[0.6, 0.4], [0.8, 0.2], [0.9, 0.1]])


@pytest.mark.parametrize(("policy", "dropped"), [("probs", (1, 1)), ("position", (2, 0)), ("slot", (1, 1))])
def test_who_stays_by_hand(policy: str, dropped: tuple[int, int]) -> None:
    """Room for two; expert 1 is wanted by tokens 0 and 2 first, by token 1 second."""
    keep = keep_within_capacity(EXPERTS, WEIGHTS, 3, 1.0, policy, minimum=1)
    assert [tuple(place) for place in np.argwhere(~keep)] == [dropped]


@pytest.mark.parametrize("policy", POLICIES)
def test_capacity_with_padding(policy: str) -> None:
    """As if the padding were not there"""
    random = np.random.default_rng(3)
    experts, weights = np.argsort(random.random((40, 6)), axis=1)[:, :2], random.random((40, 2))
    tokens = random.random(40) < 0.5
    keep = keep_within_capacity(experts, weights, 6, 0.6, policy, 1, tokens)
    alone = keep_within_capacity(experts[tokens], weights[tokens], 6, 0.6, policy, 1)
    np.testing.assert_array_equal(keep[tokens], alone)
    assert not keep[~tokens].any()
    assert 0 < alone.sum() < alone.size


@pytest.mark.parametrize("policy", POLICIES)
def test_padding_takes_no_place_in_a_block(policy: str) -> None:
    made, x = block(capacity_factor=0.5, min_capacity=1, drop_policy=policy), inputs(1, 12)
    made.train()
    mask = np.arange(12)[None] >= 5
    x[~mask] *= 9.0                                           # would be preferred
    padded, alone = run(made, x, mask), run(made, x[:, 5:])
    assert not np.allclose(alone, run(block(), x[:, 5:]))     # some are dropped
    np.testing.assert_allclose(padded[:, 5:], alone, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("policy", POLICIES)
def test_enough_room_changes_nothing(policy: str) -> None:
    limited = block(capacity_factor=2.0, drop_policy=policy)                                     # E / K
    limited.train()
    with auxiliary.collect() as emitted:
        np.testing.assert_array_equal(run(limited, inputs()), run(block(), inputs()))
    assert dict(emitted.figures)["moe/overflow"] == 0.0


@pytest.mark.parametrize("renormalize", [False, True])
@pytest.mark.parametrize("policy", POLICIES)
def test_overflow_is_exact(policy: str, renormalize: bool) -> None:
    """kept + dropped = N K; nobody beyond the capacity; what is left may be weighed anew"""
    made, x = block(capacity_factor=0.5, min_capacity=1, drop_policy=policy, routed_scale=2.0,
                    renormalize_after_drop=renormalize), inputs(1, 12)[0]
    free = made.moe.router(Tensor(x))
    made.train()
    with auxiliary.collect() as emitted:
        routing = made.moe.router(Tensor(x))
    kept = routing.experts < 4
    room = int(np.ceil(0.5 * 12 * 2 / 4))
    wanted = np.bincount(free.experts.ravel(), minlength=4)
    np.testing.assert_array_equal(np.bincount(routing.experts[kept], minlength=4), np.minimum(wanted, room))
    assert dict(emitted.figures)["moe/overflow"] == pytest.approx(1 - kept.sum() / 24)
    np.testing.assert_allclose(dict(emitted.figures)["moe/load"], wanted / 24)             # before dropping
    expected = free.weights.data * kept
    if renormalize:
        total = expected.sum(axis=1, keepdims=True)
        expected = 2.0 * np.divide(expected, total, out=np.zeros_like(expected), where=total > 0)
    np.testing.assert_allclose(routing.weights.data, expected, rtol=1e-12)


@pytest.mark.parametrize("shape", [(0, 3), (2, 0), (2, 3)])
def test_of_no_tokens_none_is_dropped(shape: tuple[int, int]) -> None:
    """Without rows, without columns, or padding alone"""
    made = block(capacity_factor=0.5)
    made.train()
    with auxiliary.collect() as emitted:
        run(made, np.zeros((*shape, 6)), np.zeros(shape, bool))
        run(made, np.zeros((0, 3, 6)))
    assert [value for name, value in emitted.figures if name == "moe/overflow"] == [0.0, 0.0]


def test_no_room_leaves_shared_experts_alone() -> None:
    made, x = block(capacity_factor=1e-9, min_capacity=0, num_shared_experts=1), inputs()
    made.train()
    shared = made.shared_experts(Tensor(x)).data
    assert made.settings.min_capacity == 0
    y = run(made, x)
    few = np.abs(y - shared).reshape(-1, 6).max(axis=1) > 1e-12
    assert few.sum() <= 4                                       # ⌈1e-9⌉ = 1 for each of four experts


def test_evaluating_has_a_capacity_of_its_own() -> None:
    training = block(capacity_factor=0.5, min_capacity=1)
    evaluating = block(eval_capacity_factor=0.5, min_capacity=1)
    x, free = inputs(), run(block(), inputs())
    np.testing.assert_array_equal(run(training, x), free)
    assert not np.allclose(run(evaluating, x), free)
    assert training.settings.is_causal
    assert not evaluating.settings.is_causal
    training.train()
    np.testing.assert_array_equal(run(training, x), run(evaluating, x))
    evaluating.train()
    np.testing.assert_array_equal(run(evaluating, x), free)


# ---- accounting, figures, placement ----


def test_active_parameters_and_operations() -> None:
    """DeepSeek-V3's layer, from its settings: 256 experts, 8 of them active, one shared"""
    v3 = MixtureSettings.create(hidden_size=7168, intermediate_size=2048, num_experts=256, top_k=8,
                                score="sigmoid", n_group=8, topk_group=4, selection_bias=True,
                                num_shared_experts=1)
    assert v3.parameters() == {"router": 256 * 7168, "router_bias": 256, "experts": 256 * 3 * 7168 * 2048,
                               "shared_experts": 3 * 7168 * 2048}
    assert v3.parameters(active=True)["experts"] == 8 * 3 * 7168 * 2048
    assert sum(v3.flops(1, 1).values()) == 2 * 7168 * 256 + 6 * 9 * 7168 * 2048
    gated = MixtureSettings.create(hidden_size=6, shared_intermediate_size=5, shared_gate=True)
    assert gated.flops(1, 1)["shared_experts"] == 6 * 6 * 5 + 2 * 6


def test_operations_of_dropped_pairs_are_not_done() -> None:
    made = block(capacity_factor=0.5, min_capacity=1)
    made.train()
    with count_flops() as count:
        run(made, inputs(1, 12))
    with auxiliary.collect() as emitted:
        run(made, inputs(1, 12))
    kept = (1.0 - dict(emitted.figures)["moe/overflow"]) * 24
    assert count.flops == pytest.approx(2 * 12 * 6 * 4 + 6 * kept * 6 * 4)


def test_figures_of_a_pass() -> None:
    made, keep = block(top_k=1), np.array([[False, True, True, True, True]])
    made.moe.router.weight.data = np.eye(4, 6) * 3.0
    x = np.zeros((1, 5, 6))
    x[0, [0, 1, 2, 3, 4], [3, 0, 0, 0, 1]] = 1.0
    with auxiliary.collect() as emitted:
        run(made, x, keep)
    figures, top = dict(emitted.figures), np.exp(3) / (np.exp(3) + 3)
    assert figures["moe/load"].tolist() == [0.75, 0.25, 0.0, 0.0]                        # without the padding
    assert figures["moe/top1_probability"] == pytest.approx(top)
    rest = (1 - top) / 3
    assert figures["moe/router_entropy"] == pytest.approx(-top * np.log(top) - 3 * rest * np.log(rest))


def test_usage() -> None:
    found = usage(np.array([[0.25] * 4, [1.0, 0, 0, 0], [0.5, 0.5, 0, 0]]))
    np.testing.assert_allclose(found["usage_entropy"], [np.log(4), 0, np.log(2)])       # ln E when uniform
    np.testing.assert_allclose(found["usage_evenness"], [1, 0, 0.5])
    np.testing.assert_allclose(found["max_violation"], [0, 3, 1])
    np.testing.assert_allclose(found["min_load"], [1, 0, 0])
    np.testing.assert_allclose(found["load_cv"], [0, np.sqrt(3), 1])
    assert found["dead_experts"].tolist() == [0, 3, 2]
    assert usage(np.ones((2, 1)))["usage_evenness"].tolist() == [1, 1]


def test_where_experts_stand() -> None:
    d, m = "swiglu", "moe"
    assert feed_forwards(3) == (m, m, m)
    assert feed_forwards(5, first_k_dense=3) == (d, d, d, m, m)
    assert feed_forwards(6, sparse_step=2) == (d, m, d, m, d, m)
    assert feed_forwards(6, sparse_step=2, mlp_only_layers=[3]) == (d, m, d, d, d, m)
    assert feed_forwards(6, sparse_step=3, first_k_dense=3, dense="mlp") == ("mlp",) * 5 + (m,)
    stack = create("stack", "stack", hidden_size=8, num_layers=3, mixer="none",
                   feed_forward=feed_forwards(3, first_k_dense=1),
                   options={"moe": {"num_experts": 2, "intermediate_size": 3},
                            "swiglu": {"intermediate_size": 3}})
    assert [type(layer.feed_forward).__name__ for layer in stack.layers] == ["SwiGLU", "Mixture", "Mixture"]
    for options in ({"first_k_dense": 7}, {"sparse_step": 0}, {"mlp_only_layers": [6]}):
        with pytest.raises(InputError, match=next(iter(options))):
            feed_forwards(6, **options)
