"""Mixture of experts: against a loop over tokens, its limits, its capacity, its losses."""

from typing import Any

import numpy as np
import pytest

from nn import ops
from nn.errors import InputError
from nn.layers import Experts, FeedForward, MoELayer, Router, auxiliary
from nn.layers.moe.capacity import POLICIES, capacity, keep_within_capacity
from nn.models import MoETransformer
from nn.random import counter
from nn.tensor import Tensor, no_grad

F64 = {"dtype": "float64"}


def mixture(experts: int = 5, k: int = 2, hidden: int = 6, width: int = 4, dtype: str = "float64",
            **options: Any) -> MoELayer:
    layer = MoELayer(Router(hidden, experts, k, std=1.0, dtype=dtype, **options),
                     Experts(experts, hidden, width, std=0.5, dtype=dtype))
    layer.initialize(0)
    return layer


def inputs(batch: int = 2, length: int = 7, hidden: int = 6) -> np.ndarray:
    return np.random.default_rng(0).standard_normal((batch, length, hidden))


def run(layer: Any, x: np.ndarray) -> np.ndarray:
    with no_grad():
        return layer(Tensor(x)).data


def expert(layer: MoELayer, e: int, x: np.ndarray) -> np.ndarray:
    gate, up = np.split(layer.experts.gate_up_proj.data[e] @ x, 2)
    return layer.experts.down_proj.data[e] @ (gate / (1 + np.exp(-gate)) * up)


def loop(layer: MoELayer, x: np.ndarray, renormalize: bool = True) -> np.ndarray:
    """y_t = Σ w expert(x_t), one token at a time"""
    y = np.zeros_like(x)
    for place in np.ndindex(*x.shape[:-1]):
        z = layer.router.weight.data @ x[place]
        p = np.exp(z - z.max()) / np.exp(z - z.max()).sum()
        chosen = sorted(range(len(z)), key=lambda e: (-z[e], e))[: layer.router.top_k]
        total = sum(p[e] for e in chosen) if renormalize else 1.0
        y[place] = sum(p[e] / total * expert(layer, e, x[place]) for e in chosen)
    return y


@pytest.mark.parametrize("renormalize", [True, False])
@pytest.mark.parametrize(("experts", "k"), [(5, 2), (5, 1), (3, 3), (1, 1), (16, 4)])
@pytest.mark.parametrize("shape", [(2, 7), (13, 1), (1, 1), (0, 3), (2, 0)])
def test_equals_a_loop_over_tokens(experts: int, k: int, renormalize: bool, shape: tuple[int, int]) -> None:
    layer, x = mixture(experts, k, renormalize=renormalize), inputs(*shape)
    np.testing.assert_allclose(run(layer, x), loop(layer, x, renormalize), rtol=1e-12, atol=1e-13)


def test_tiles_change_a_rounding_at_most() -> None:
    layer, x = mixture(), Tensor(inputs(3, 50).reshape(150, 6))
    routing = layer.router(x)
    whole, tiles = (layer.experts(x, routing, batch_invariant=exact).data for exact in (False, True))
    np.testing.assert_allclose(whole, tiles, rtol=1e-12, atol=1e-13)


def test_all_tokens_to_one_expert() -> None:
    layer, x = mixture(4, 1), inputs()
    layer.router.weight.data[:] = 0.0                              # a tie: everyone goes to expert 0
    np.testing.assert_allclose(run(layer, x), loop(layer, x), rtol=1e-12, atol=1e-13)
    layer(Tensor(x)).sum().backward()
    assert np.abs(layer.experts.gate_up_proj.grad[0]).max() > 0
    assert not layer.experts.gate_up_proj.grad[1:].any()           # idle experts: exact zeros
    assert layer.experts.down_proj.grad.shape == (4, 6, 4)


def test_one_expert_is_a_dense_layer() -> None:
    layer, dense = mixture(1, 1), FeedForward(6, 4, **F64)
    gate, up = np.split(layer.experts.gate_up_proj.data[0], 2)
    dense.gate_proj.weight.data, dense.up_proj.weight.data = gate, up
    dense.down_proj.weight.data = layer.experts.down_proj.data[0]
    np.testing.assert_allclose(run(layer, inputs()), run(dense, inputs()), rtol=1e-13, atol=1e-14)


def test_equal_experts_are_a_dense_layer() -> None:
    layer, one = mixture(4, 2), mixture(1, 1)
    for name in ("gate_up_proj", "down_proj"):
        getattr(layer.experts, name).data = np.repeat(getattr(one.experts, name).data, 4, axis=0)
    np.testing.assert_allclose(run(layer, inputs()), run(one, inputs()), rtol=1e-13, atol=1e-14)


def test_the_names_of_the_experts_do_not_matter() -> None:
    layer, other = mixture(), mixture()
    order = np.array([3, 1, 4, 0, 2])
    other.router.weight.data = layer.router.weight.data[order]
    for name in ("gate_up_proj", "down_proj"):
        getattr(other.experts, name).data = getattr(layer.experts, name).data[order]
    np.testing.assert_allclose(run(layer, inputs()), run(other, inputs()), rtol=1e-13, atol=1e-14)


def test_tokens_do_not_matter_to_each_other() -> None:
    layer, x = mixture(), inputs(2, 9)
    whole = run(layer, x)
    for b in range(2):
        for t in range(9):
            np.testing.assert_allclose(run(layer, x[b : b + 1, t : t + 1])[0, 0], whole[b, t],
                                       rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("dtype", ["float32", "float64", "bfloat16"])
@pytest.mark.parametrize(("hidden", "width"), [(6, 4), (33, 17), (64, 10), (128, 64)])
def test_bits_of_a_token_do_not_depend_on_later_ones(dtype: str, hidden: int, width: int) -> None:
    layer = mixture(4, 2, hidden, width, dtype)
    random = np.random.default_rng(1)
    x = random.standard_normal((3, 80, hidden)).astype(layer.router.weight.dtype)
    whole = run(layer, x)
    for cut in (1, 2, 31, 40, 79):
        other = x.copy()
        other[:, cut:] = random.standard_normal(other[:, cut:].shape).astype(x.dtype)
        np.testing.assert_array_equal(run(layer, other)[:, :cut], whole[:, :cut])
        other = x.copy()
        other[0, cut:] *= -1    # of one row only: the others keep their bits up to there too
        np.testing.assert_array_equal(run(layer, other)[:, :cut], whole[:, :cut])


class TestRouter:
    def test_weights_add_up_to_one_unless_taken_as_they_are(self) -> None:
        x = Tensor(inputs().reshape(14, 6))
        for renormalize in (True, False):
            router = mixture(renormalize=renormalize).router
            sums = router(x).weights.data.sum(axis=1)
            assert np.allclose(sums, 1.0) == renormalize
        assert np.all(sums < 1.0)

    @pytest.mark.parametrize(("stored", "formed"), [("float64", "float64"), ("float32", "float32"),
                                                    ("bfloat16", "float32"), ("float16", "float32")])
    def test_routes_in_float32_at_least(self, stored: str, formed: str) -> None:
        layer = mixture(dtype=stored)
        routing = layer.router(Tensor(inputs().reshape(14, 6).astype(layer.router.weight.dtype)))
        assert routing.weights.dtype.name == formed
        assert run(layer, inputs().astype(layer.router.weight.dtype)).dtype.name == stored

    def test_jitter_is_noise_of_training_alone(self) -> None:
        layer, plain = mixture(jitter=0.3), mixture()
        x = inputs()
        noisy = run(layer, x)
        np.testing.assert_array_equal(run(layer, x), noisy)    # the same counter draws the same
        assert not np.array_equal(noisy, run(plain, x))
        layer.router.noise = counter(0, "router_jitter", 1, 0, 0)
        assert not np.array_equal(run(layer, x), noisy)
        np.testing.assert_array_equal(run(layer.eval(), x), run(plain, x))

    def test_jitter_stays_within_its_bounds_and_leaves_the_experts_input_alone(self) -> None:
        u = ops.jitter(Tensor(np.ones((1000, 6))), counter(0, "router_jitter"), 0.25).data
        assert 0.75 <= u.min() < 0.76
        assert 1.24 < u.max() < 1.25
        assert abs(u.mean() - 1.0) < 0.01
        layer = mixture(1, 1, jitter=0.5)
        np.testing.assert_allclose(run(layer, inputs()), loop(layer, inputs()), rtol=1e-12, atol=1e-13)

    def test_k_must_fit(self) -> None:
        for k in (0, 5):
            with pytest.raises(InputError, match=f"top_k: {k} is not between 1 and num_experts = 4"):
                Router(6, 4, k)


class TestLosses:
    def collect(self, router: Router, x: np.ndarray) -> tuple[dict[str, float], dict[str, np.ndarray]]:
        with auxiliary.collect() as emitted:
            router(Tensor(x))
        return {name: loss.item() for name, loss in emitted.losses}, dict(emitted.figures)

    def test_values(self) -> None:
        router = Router(4, 4, 2, balance_coef=0.3, z_coef=0.7, **F64)
        router.weight.data = np.eye(4)                                           # inputs are the logits
        x = np.array([[0.1, 0.9, -0.3, 0.5], [1.0, -1.0, 0.2, 0.4]])
        losses, figures = self.collect(router, x)
        assert losses["moe/load_balance"] == pytest.approx(0.3 * 1.0995538, abs=1e-8)
        assert losses["moe/router_z"] == pytest.approx(0.7 * 3.13638177, abs=1e-8)
        assert figures["moe/load"].tolist() == [0.25, 0.25, 0.0, 0.5]

    def test_balance_is_least_where_the_load_is_even(self) -> None:
        router = Router(4, 4, 1, balance_coef=0.5, z_coef=0.0, **F64)
        router.weight.data = np.eye(4)
        even, figures = self.collect(router, 5.0 * np.eye(4))
        assert even == {"moe/load_balance": pytest.approx(0.5)}
        assert float(figures["moe/router_entropy"]) > 0
        uneven, _ = self.collect(router, 5.0 * np.eye(4)[[0, 0, 0, 1]])
        assert uneven["moe/load_balance"] > 0.9

    def test_uniform_probabilities_have_the_entropy_of_their_number(self) -> None:
        router = Router(4, 4, 2, std=0.0, **F64)
        entropy = self.collect(router, inputs(hidden=4).reshape(-1, 4))[1]["moe/router_entropy"]
        assert float(entropy) == pytest.approx(np.log(4.0))

    def test_balance_gradient(self) -> None:
        """dz_tj = (α E / N) p_tj (f_j − Σ_e f_e p_te)"""
        router = Router(4, 4, 2, balance_coef=0.3, z_coef=0.0, **F64)
        router.weight.data = np.eye(4)
        x = Tensor(2.0 * np.random.default_rng(0).standard_normal((6, 4)), requires_grad=True)
        with auxiliary.collect() as emitted:
            router(x)
        emitted.losses[0][1].backward()
        p = np.exp(x.data) / np.exp(x.data).sum(axis=1, keepdims=True)
        f = dict(emitted.figures)["moe/load"]
        np.testing.assert_allclose(x.grad, 0.3 * 4 / 6 * p * (f - (p @ f)[:, None]), rtol=1e-12, atol=1e-15)

    def test_nothing_is_kept_where_nobody_collects(self) -> None:
        router = mixture().router
        with auxiliary.collect() as outer:
            router(Tensor(inputs().reshape(14, 6)))
            count = len(outer.losses), len(outer.figures)
            with auxiliary.collect() as inner:
                router(Tensor(inputs().reshape(14, 6)))
            assert (len(outer.losses), len(outer.figures)) == count == (len(inner.losses), len(inner.figures))
        router(Tensor(inputs().reshape(14, 6)))
        assert (len(outer.losses), len(outer.figures)) == count
        assert not auxiliary.collecting()

    def test_losses_of_several_layers_add_up(self) -> None:
        with auxiliary.collect() as emitted:
            for scale in (1.0, 2.0):
                mixture().router(Tensor(scale * inputs().reshape(14, 6)))
        totals = emitted.totals()
        assert set(totals) == {"moe/load_balance", "moe/router_z"}
        assert totals["moe/router_z"].item() == sum(
            t.item() for name, t in emitted.losses if name == "moe/router_z")


class TestPadding:
    """What stands at padding changes no loss, no figure and nobody's place."""

    def test_it_is_left_out(self) -> None:
        layer, x = mixture(balance_coef=0.3, z_coef=0.7, capacity_factor=0.5), inputs(2, 11)
        keep = np.arange(11) >= np.array([[6], [0]])
        found = []
        for scale in (1.0, 30.0):
            padded = np.where(keep[..., None], x, scale * x)
            with auxiliary.collect() as emitted:
                y = layer(Tensor(padded), mask=keep).data[keep]
            found.append((y, {name: loss.item() for name, loss in emitted.losses} | dict(emitted.figures)))
        for name, value in found[0][1].items():
            np.testing.assert_array_equal(found[1][1][name], value, err_msg=name)
        np.testing.assert_array_equal(found[0][0], found[1][0])
        rows = x.transpose(1, 0, 2)[keep.T]                        # the tokens alone, by time
        with auxiliary.collect() as emitted:
            routing = layer.router(Tensor(rows))
        alone = {name: loss.item() for name, loss in emitted.losses} | dict(emitted.figures)
        assert alone.keys() == found[0][1].keys()
        for name, value in alone.items():
            np.testing.assert_allclose(found[0][1][name], value, rtol=1e-12, err_msg=name)
        assert 0.0 < alone["moe/overflow"] < 1.0
        right = np.array([sum((w * expert(layer, e, row) for w, e in zip(weights, chosen, strict=True)
                               if e < 5), np.zeros(6)) for row, weights, chosen
                          in zip(rows, routing.weights.data, routing.experts, strict=True)])
        by_time = np.zeros((11, 2, 6))
        by_time[keep.T] = right
        np.testing.assert_allclose(found[0][0], by_time.transpose(1, 0, 2)[keep], rtol=1e-12, atol=1e-13)

    @pytest.mark.parametrize("checkpointing", [False, True])
    def test_it_reaches_the_experts_of_a_model(self, checkpointing: bool) -> None:
        model, random = MoETransformer.tiny(), np.random.default_rng(0)
        model.gradient_checkpointing = checkpointing
        ids, keep = random.integers(0, 1000, (2, 9)), np.arange(9) >= np.array([[5], [0]])
        targets = np.where(keep, random.integers(0, 1000, (2, 9)), -100)
        found = []
        for other in (ids, np.where(keep, ids, 7)):
            figures = model.loss(other, targets, mask=keep)[1]
            found.append({name: np.asarray(value) for name, value in figures.items()})
        for name, value in found[0].items():
            np.testing.assert_array_equal(found[1][name], value, err_msg=name)


class TestCapacity:
    @pytest.mark.parametrize(("tokens", "k", "experts", "factor", "room"), [
        (100, 2, 4, 1.0, 50), (100, 2, 4, 1.25, 63), (10, 2, 8, 1.0, 4), (3, 2, 8, 1.0, 3),
        (100, 2, 4, 9.0, 100), (7, 1, 3, 1.0, 4), (0, 2, 4, 1.0, 0),
        (100, 1, 10, 1.1, 11), (50, 2, 8, 1.12, 14), (101, 1, 10, 1.1, 12)])        # 1.1 · 100 / 10 is 11
    def test_room(self, tokens: int, k: int, experts: int, factor: float, room: int) -> None:
        assert capacity(tokens, k, experts, factor) == room

    @pytest.mark.parametrize("policy", POLICIES)
    @pytest.mark.parametrize("seed", range(5))
    def test_nobody_exceeds_it_and_nobody_is_dropped_without_need(self, policy: str, seed: int) -> None:
        random = np.random.default_rng(seed)
        experts = np.argsort(random.random((40, 6)) * np.linspace(1, 3, 6), axis=1)[:, :2]
        weights = random.random((40, 2))
        keep = keep_within_capacity(experts, weights, 6, 0.7, policy)
        room = capacity(40, 2, 6, 0.7)
        for e in range(6):
            asked, kept = int((experts == e).sum()), int(((experts == e) & keep).sum())
            assert kept == min(asked, room)

    def test_who_stays(self) -> None:
        experts = np.zeros((8, 1), int)
        weights = np.array([[0.1], [0.8], [0.3], [0.9], [0.2], [0.7], [0.3], [0.4]])
        def stay(policy: str) -> list[int]:
            return np.flatnonzero(keep_within_capacity(experts, weights, 2, 0.5, policy, minimum=4)).tolist()
        assert stay("probs") == [1, 3, 5, 7]
        assert stay("position") == stay("slot") == [0, 1, 2, 3]

    @pytest.mark.parametrize("policy", POLICIES)
    def test_enough_room_changes_nothing(self, policy: str) -> None:
        limited, free = mixture(capacity_factor=2.5, drop_policy=policy), mixture()      # E / K = 2.5
        np.testing.assert_array_equal(run(limited, inputs()), run(free, inputs()))

    @pytest.mark.parametrize("policy", POLICIES)
    def test_dropped_assignments_add_nothing(self, policy: str) -> None:
        layer, x = mixture(capacity_factor=0.6, drop_policy=policy), inputs(1, 12)
        routing = mixture().router(Tensor(x[0]))
        keep = keep_within_capacity(routing.experts, routing.weights.data, 5, 0.6, policy)
        assert 0 < keep.sum() < keep.size
        right = np.zeros((12, 6))
        for n, slot in zip(*np.nonzero(keep), strict=True):
            right[n] += routing.weights.data[n, slot] * expert(layer, routing.experts[n, slot], x[0, n])
        np.testing.assert_allclose(run(layer, x)[0], right, rtol=1e-12, atol=1e-13)
        with auxiliary.collect() as emitted:
            layer(Tensor(x))
        figures = dict(emitted.figures)
        assert float(figures["moe/overflow"]) == pytest.approx(1 - keep.mean())
        before_dropping = np.bincount(routing.experts.ravel(), minlength=5) / 24
        np.testing.assert_allclose(figures["moe/load"], before_dropping)

    def test_unknown_policy(self) -> None:
        with pytest.raises(InputError, match="drop_policy: 'oldest'"):
            keep_within_capacity(np.zeros((1, 1), int), np.ones((1, 1)), 1, 1.0, "oldest")


def test_plan_is_a_permutation() -> None:
    chosen = np.random.default_rng(0).integers(0, 4, (9, 2))
    plan = ops.plan(chosen, 3)                                     # expert 3 of 3: dropped
    assert sorted(plan.order.tolist()) == list(range(18))
    np.testing.assert_array_equal(plan.order[plan.inverse], np.arange(18))
    assert plan.offsets.tolist() == [int((chosen < e).sum()) for e in range(4)]
    for e in range(3):
        pairs = plan.order[plan.offsets[e] : plan.offsets[e + 1]]
        assert np.all(chosen.ravel()[pairs] == e)
        assert np.all(np.diff(pairs) > 0)                          # tokens stay in order
