"""The recursion engine: so many steps are so many layers with the same weights; depth, exits and halting."""

from typing import Any

import numpy as np
import pytest

from nn import ops
from nn.layers.auxiliary import collect
from nn.layers.dropout import Dropout
from nn.layers.formulas import total
from nn.layers.noise import drawing
from nn.layers.recursion.depth import sampled_depth
from nn.layers.recursion.engine import RecursionEngine, RecursionSettings, sinusoid
from nn.layers.recursion.halting import ponder_loss
from nn.layers.recursion.rules import RULES, UpdateRule
from nn.layers.stack import Stack, StackSettings
from nn.ops.count import count_flops
from nn.random import counter, drawn_from
from nn.tensor import Tensor, no_grad
from tests.blocks.harness import close, shaken
from tests.gradients import check

random = np.random.default_rng
CORE: dict[str, Any] = {"num_layers": 1, "options": {"full_attention": {"num_heads": 2},
                                                     "swiglu": {"intermediate_size": 4}}}
RECURRENT: dict[str, Any] = {"num_layers": 1, "mixer": "retention", "feed_forward": "none",
                             "options": {"retention": {"num_heads": 2}}}


def build(**options: Any) -> Any:
    settings = RecursionSettings.create(**{"hidden_size": 8, "recurrence_steps": 3, "core": CORE} | options)
    return shaken(RecursionEngine(settings, "float64"), 0)


def given(length: int = 5, seed: int = 1) -> np.ndarray:
    return random(seed).standard_normal((2, length, 8))


def run(engine: Any, x: np.ndarray, **options: Any) -> np.ndarray:
    with no_grad():
        return np.asarray(engine(Tensor(x), **options)[0].data)


def unrolled(engine: Any, steps: int) -> Stack:
    """A stack of as many layers, each with the core's weights"""
    stack = Stack(StackSettings(hidden_size=8, **CORE | {"num_layers": steps}), "float64")
    core = {name: p.data for name, p in engine.core.named_parameters().items()}
    stack.load_state_dict({f"layers.{s}.{name.removeprefix('layers.0.')}": value
                           for name, value in core.items() for s in range(steps)})
    return stack


# ---- depth ----


@pytest.mark.parametrize("steps", [1, 2, 5])
def test_steps_are_layers_with_tied_weights(steps: int) -> None:
    """Values, the gradient of x, and as gradient of each weight the sum over the layers"""
    engine, x = build(recurrence_steps=steps), given()
    stack, found = unrolled(engine, steps), []
    for model in (engine, stack):
        leaf = Tensor(x, requires_grad=True)
        y, _ = model(leaf)
        (y * random(2).standard_normal(y.shape)).sum().backward()
        found.append((y.data, leaf.grad))
    close(found[0][0], found[1][0], 1e-12)
    close(found[0][1], found[1][1], 1e-12)
    layers = stack.named_parameters()
    for name, p in engine.core.named_parameters().items():
        summed = sum(layers[f"layers.{s}.{name.removeprefix('layers.0.')}"].grad for s in range(steps))
        close(p.grad, summed, 1e-12)


def test_steps_drop_other_parts_and_recomputing_them_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn, forward = list[tuple[float, ...]](), Dropout.forward

    def noted(self: Dropout, x: Tensor) -> Tensor:
        drawn.append((id(self), *drawn_from(self.noise, (4,))))
        return forward(self, x)

    monkeypatch.setattr(Dropout, "forward", noted)
    found = []
    for recompute in (False, True):
        engine = build(core=CORE | {"resid_dropout": 0.5}).train()
        engine.core.recompute = recompute
        drawn.clear()
        leaf = Tensor(given(), requires_grad=True)
        y, _ = engine(leaf)
        assert len(set(drawn)) == 3 * 2, "a step's two blocks are dropped from alike"
        places, count = {each[0] for each in drawn}, len(drawn)
        assert len({each[1:] for each in drawn if each[0] == min(places)}) == 3
        for module in drawing(engine):
            module.noise = counter(1, "the next micro-batch")
        (y * random(2).standard_normal(y.shape)).sum().backward()
        assert sorted(drawn[count:]) == (sorted(drawn[:count]) if recompute else [])
        found.append((y.data, leaf.grad, *(p.grad for p in engine.core.parameters())))
    for one, other in zip(*found, strict=True):
        assert np.array_equal(one, other)


def test_parameters_are_those_of_one_block_at_any_depth() -> None:
    counts = {build(recurrence_steps=steps).num_parameters() for steps in (1, 4, 9)}
    assert counts == {Stack(StackSettings(hidden_size=8, **CORE)).num_parameters()}


def test_depth_is_chosen_at_the_call() -> None:
    engine, x = build(), given()
    for steps in (1, 2, 6):
        close(run(engine, x, n_steps=steps), run(unrolled(engine, steps), x), 1e-12)
    close(run(engine, x), run(engine, x, n_steps=3), 1e-15)
    assert np.array_equal(run(engine, x, n_steps=0), x), "no step is the identity"
    with pytest.raises(ValueError, match="n_steps: -1"):
        engine(Tensor(x), n_steps=-1)


@pytest.mark.parametrize("steps", [0, 1, 4])
def test_operations_at_any_depth(steps: int) -> None:
    engine = build(inject_input=True, rule="gated", prelude=RECURRENT)
    with count_flops() as count:
        run(engine, given(), n_steps=steps)
    assert count.flops == total(engine.settings.flops(2, 5, n_steps=steps))


@pytest.mark.parametrize("kept", [1, 2, 3, 7])
def test_gradients_go_through_the_newest_steps_alone(kept: int) -> None:
    """bptt_steps ≥ n: all of them; fewer: those of the same layers with the first ones cut off"""
    found = []
    for bptt in (kept, 0):
        engine = build(bptt_steps=bptt)
        x = Tensor(given(), requires_grad=True)
        if bptt or kept >= 3:
            y, _ = engine(x)
        else:
            y, _ = engine(Tensor(run(engine, given(), n_steps=3 - kept)), n_steps=kept)
        (y * y).sum().backward()
        found.append((y.data, [p.grad for p in engine.parameters()]))
    close(found[0][0], found[1][0], 1e-12)
    for truncated, expected in zip(found[0][1], found[1][1], strict=True):
        close(truncated, expected, 1e-12)


def test_the_injected_input_learns_though_the_first_steps_do_not() -> None:
    """W_e and the prelude get their gradient from the newest steps; W_e e is formed before the first"""
    found, x = [], given()
    for bptt in (2, 0):
        engine = build(inject_input=True, prelude=RECURRENT, recurrence_steps=4, bptt_steps=bptt)
        if bptt:
            y, _ = engine(Tensor(x))
        else:
            e = engine.prelude(Tensor(x))[0]
            y = Tensor(e.data)
            for step in range(4):
                y = engine.core(engine.inject_h(y) + engine.inject_e(e))[0]
                y = Tensor(y.data) if step < 2 else y
        (y * y).sum().backward()
        found.append({name: p.grad for name, p in engine.named_parameters().items()})
    for name, expected in found[1].items():
        close(found[0][name], expected, 1e-12)


# ---- states ----


def test_every_step_has_a_cache_of_its_own() -> None:
    engine, x = build(), given(7)
    whole = run(engine, x)
    state = engine.init_state(2)
    assert len(state.steps) == 3
    for start, end in ((0, 4), (4, 5), (5, 7)):
        with no_grad():
            y, state = engine(Tensor(x[:, start:end]), state=state)
        close(y.data, whole[:, start:end], 1e-12)
    deep = engine.init_state(2, n_steps=5)
    close(run(engine, x, state=deep, n_steps=5), run(engine, x, n_steps=5), 1e-12)


def test_fewer_steps_go_on_exactly_and_more_have_to_be_asked_for() -> None:
    """Behind a prompt seen with 3 steps: 2 are what 2 would have been; 4 are refused, or approximated"""
    x = given(6)
    for fill in (False, True):
        engine = build(fill_deeper=fill)
        state = engine.init_state(2)
        run(engine, x[:, :4], state=state)
        close(run(engine, x[:, 4:5], state=state, n_steps=2), run(engine, x[:, :5], n_steps=2)[:, 4:], 1e-12)
        assert len(state.steps) == 2
        if fill:
            assert np.isfinite(run(engine, x[:, 5:], state=state, n_steps=4)).all()
            assert len(state.steps) == 4
        else:
            with pytest.raises(ValueError, match="n_steps: 4, but the state has seen 2 steps"):
                run(engine, x[:, 5:], state=state, n_steps=4)


# ---- what a step does ----


def test_update_rules() -> None:
    h, u = random(0).standard_normal((2, 2, 3, 8))
    for rule in RULES:
        update = shaken(UpdateRule(rule, 8, decay=0.3, dtype="float64"), 0)
        w = {name: p.data for name, p in update.named_parameters().items()}
        if rule == "gated":
            gate = 1.0 / (1.0 + np.exp(-(np.concatenate([h, u], -1) @ w["gate.weight"].T + w["gate.bias"])))
            expected = h + gate * (u - h)
        elif rule == "norm":
            expected = (h + u) / np.sqrt(np.mean((h + u) ** 2, -1, keepdims=True) + 1e-6) * w["norm.weight"]
        else:
            expected = {"replace": u, "residual": h + u, "ema": 0.3 * h + 0.7 * u}[rule]
        close(update(Tensor(h), Tensor(u)).data, expected, 1e-12)
    assert (UpdateRule("gated", 8).gate.bias.data == -1.0).all()


def test_the_input_is_given_to_every_step() -> None:
    engine, x = build(inject_input=True, start="zeros", prelude=RECURRENT, coda=RECURRENT), given()
    with no_grad():
        e = engine.prelude(Tensor(x))[0].data
        h = np.zeros_like(e)
        for _ in range(3):
            h = h @ engine.inject_h.weight.data.T + e @ engine.inject_e.weight.data.T
            h = engine.core(Tensor(h))[0].data
        close(run(engine, x), engine.coda(Tensor(h))[0].data, 1e-12)


@pytest.mark.parametrize("kind", ["learned", "sinusoidal"])
def test_steps_are_told_apart(kind: str) -> None:
    engine, x = build(step_embedding=kind, max_steps=4), given()
    h = x
    for s in range(3):
        told = engine.step_embedding.data[s] if kind == "learned" else sinusoid(s, 8)
        h = run(engine.core, h + told)
    close(run(engine, x), h, 1e-12)
    if kind == "learned":
        with pytest.raises(ValueError, match="n_steps: 5 is not between 0 and 4"):
            run(engine, x, n_steps=5)
    close(sinusoid(2, 4), np.array([np.sin(2.0), np.cos(2.0), np.sin(0.02), np.cos(0.02)]), 1e-15)


# ---- leaving ----


def frozen_by(masks: list[np.ndarray]) -> Any:
    """A router that follows a plan"""
    return lambda h, step, cache: masks[step]


def test_nobody_leaves_or_everybody_at_once() -> None:
    engine, plain, x = build(), build(), given()
    engine.exit_router = frozen_by([np.zeros((2, 5), bool)] * 3)
    assert np.array_equal(run(engine, x), run(plain, x))
    engine.exit_router = frozen_by([np.ones((2, 5), bool)] * 3)
    assert np.array_equal(run(engine, x), x)


def test_a_token_that_leaves_keeps_its_state_and_stays_visible() -> None:
    """Frozen at step s: bit for bit what s steps gave; the others see it as it was then"""
    engine, x = build(recurrence_steps=4), given()
    plans = [np.zeros((2, 5), bool) for _ in range(4)]
    plans[1][0, 1] = plans[1][1, 0] = plans[3][0, 3] = True
    engine.exit_router = frozen_by(plans)
    with collect() as heard:
        y = run(engine, x)
    h, frozen, steps = x, np.zeros((2, 5), bool), 0
    for plan in plans:
        frozen |= plan
        steps += (~frozen).sum()
        h = np.where(frozen[..., None], h, run(engine.core, h))
    close(y, h, 1e-13)
    assert np.array_equal(y[0, 1], run(build(recurrence_steps=4), x, n_steps=1)[0, 1])
    figures = dict(heard.figures)
    close(np.asarray(figures["recurrence/exit_frac"]), np.asarray(3 / 10), 1e-12)
    close(np.asarray(figures["recurrence/mean_steps"]), np.asarray(steps / 10), 1e-12)


def test_what_is_injected_does_not_move_a_token_that_has_left() -> None:
    engine, x = build(inject_input=True, step_embedding="sinusoidal"), given()
    plans = [np.zeros((2, 5), bool) for _ in range(3)]
    before = run(engine, x, n_steps=1)
    plans[1][1, 2] = True
    engine.exit_router = frozen_by(plans)
    assert np.array_equal(run(engine, x)[1, 2], before[1, 2])


def test_the_loop_ends_when_all_have_left_and_goes_on_for_a_state() -> None:
    engine, x = build(recurrence_steps=4), given()
    gone = np.ones((2, 5), bool)
    engine.exit_router = frozen_by([~gone, gone, gone, gone])
    with count_flops() as count:
        y = run(engine, x)
    assert count.flops == total(engine.core.flops(2, 5)), "one step"
    state = engine.init_state(2)
    with count_flops() as count:
        assert np.array_equal(run(engine, x, state=state), y)
    assert count.flops == 4 * total(engine.core.flops(2, 5)), "the caches of every step have seen every token"


def test_padding_keeps_nobody_in_the_loop_and_counts_for_nothing() -> None:
    engine, x = build(), given()
    mask = np.arange(5)[None, :] >= np.array([[0], [2]])
    plans = [np.zeros((2, 5), bool) for _ in range(3)]
    plans[1] |= mask
    engine.exit_router = frozen_by(plans)
    with collect() as heard, count_flops() as count:
        run(engine, x, mask=mask)
    assert count.flops == total(engine.core.flops(2, 5))
    close(np.asarray(dict(heard.figures)["recurrence/mean_steps"]), np.asarray(1.0), 1e-12)
    engine = build(core=RECURRENT)
    engine.exit_router = frozen_by(plans)
    found, expected = (run(engine, x, mask=mask.astype(kind))[mask] for kind in (np.int64, bool))
    assert np.array_equal(found, expected), "0 and 1 are a mask, too"
    assert not np.array_equal(expected, x[mask])


def test_gradient_with_tokens_that_leave() -> None:
    """dh = dh' where frozen, through the block elsewhere (and through attention to those that left)"""
    engine = build()
    plans = [random(s).integers(0, 3, (2, 5)) == 0 for s in range(3)]
    engine.exit_router = frozen_by(plans)
    check(lambda x: engine(x)[0], given(), parameters=engine.parameters())


# ---- halting ----


def by_hand(engine: Any, x: np.ndarray, act: bool, basic: bool = False) -> np.ndarray:
    states, halts = [x], []
    for _ in range(3):
        z = states[-1] @ engine.halt.weight.data[0] + engine.halt.bias.data
        halts.append(1.0 / (1.0 + np.exp(-z)))
        states.append(run(engine.core, states[-1]))
    y, rest, out = np.zeros_like(x), np.ones(x.shape[:2]), np.zeros(x.shape[:2], bool)
    for s, halt in enumerate(halts):
        p = halt if act else rest * halt
        new = ~out & ((1.0 - rest + p > 0.99) if act else False)
        w = np.where(out, 0.0, np.where(new | (s == 2), rest, p))
        y = w[..., None] * states[s + 1] + (1.0 - w[..., None] if basic else 1.0) * y
        rest, out = rest - w, out | new
    return y


@pytest.mark.parametrize("basic", [False, True])
def test_act_weighs_the_steps(basic: bool) -> None:
    engine, x = build(halting="act", act_output="basic" if basic else "accumulated", halt_coef=0.1), given()
    with collect() as heard:
        y = run(engine, x)
    close(y, by_hand(engine, x, True, basic), 1e-12)
    steps = float(dict(heard.figures)["recurrence/act_steps"])
    assert 1.0 < steps <= 3.0
    cost = heard.totals()["recurrence/ponder"].item() / 0.1
    assert steps < cost <= steps + 1.0, "N + R"


def test_ponder_weighs_or_picks_the_steps() -> None:
    x = given()
    mean, median, sample = (build(halting="ponder", ponder_read=how) for how in ("mean", "median", "sample"))
    close(run(mean, x), by_hand(mean, x, False), 1e-12)
    with no_grad():
        states, weights, _ = median.unrolled(Tensor(x))
    first = (np.cumsum([w.data for w in weights], axis=0) > 0.5).argmax(axis=0)
    picked = np.stack([h.data for h in states[1:]])[first, np.arange(2)[:, None], np.arange(5)]
    close(run(median, x), picked, 1e-12)
    drawn, options = run(sample, x), np.stack([h.data for h in states[1:]])
    assert (np.abs(options - drawn).max(axis=-1) < 1e-12).any(axis=0).all(), "one of its readings each"
    np.testing.assert_allclose(sum(w.data for w in weights), 1.0, rtol=1e-13)


def test_ponder_is_trained_on_every_reading() -> None:
    engine, x = build(halting="ponder"), Tensor(given(), requires_grad=True)
    readings, weights, _ = engine.unrolled(x)
    losses = ops.stack([(h * h).mean(axis=-1) for h in readings[1:]], axis=-1)
    ponder_loss(ops.stack(weights, axis=-1), losses).backward()
    assert all(p.grad is not None and np.isfinite(p.grad).all() for p in engine.parameters())


def test_depth_is_halted_at_zero_steps_too() -> None:
    engine, x = build(halting="ponder"), given()
    assert np.array_equal(run(engine, x, n_steps=0), x)
    close(run(engine, x, n_steps=1), run(engine.core, x), 1e-13)


def test_auxiliary_losses_are_those_of_all_steps() -> None:
    core = {"num_layers": 1, "feed_forward": "moe", "mixer": "none",
            "options": {"moe": {"intermediate_size": 4, "num_experts": 3}}}
    engine, x = build(core=core), given()
    with collect() as heard:
        run(engine, x)
    once, h = [], x
    for _ in range(3):
        with collect() as part:
            h = run(engine.core, h)
        once.append(part.totals())
    for name, loss in heard.totals().items():
        close(np.asarray(loss.data), np.asarray(sum(each[name].data for each in once)), 1e-12)
    assert heard.totals()


@pytest.mark.parametrize(("options", "named"), [
    ({"rule": "replaced"}, "rule"), ({"recurrence_steps": -1}, "recurrence_steps"),
    ({"halting": "acts"}, "halting"), ({"ponder_prior": 1.0}, "ponder_prior"), ({"act_eps": 0.0}, "act_eps"),
    ({"ema": 1.5}, "ema"), ({"halting": "act", "bptt_steps": 2}, "bptt_steps"),
    ({"exit": "learned", "halting": "act"}, "exit"), ({"core": {"layers": 2}}, "layers")])
def test_bad_settings_are_named(options: dict[str, Any], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        RecursionSettings.create(**{"hidden_size": 8, "core": CORE} | options)


def test_depths_to_train_at() -> None:
    """E[n] = r + 1,  Var[n] = r + r² (e^σ² − 1)"""
    drawn = np.array([sampled_depth(8.0, generator) for generator in [random(0)] for _ in range(20_000)])
    assert drawn.min() >= 1
    assert abs(drawn.mean() - 9.0) < 0.15
    assert abs(drawn.var() - (8.0 + 64.0 * (np.exp(0.25) - 1.0))) < 2.0
    with pytest.raises(ValueError, match="mean: 0"):
        sampled_depth(0.0, random(0))
