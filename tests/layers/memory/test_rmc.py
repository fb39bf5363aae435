"""The recursive memory core against its equations in NumPy: reading, writing, and what may not leak."""

from typing import Any

import numpy as np
import pytest

from nn.layers.auxiliary import collect
from nn.layers.memory.rmc import RMC, RMCSettings
from nn.tensor import Tensor, no_grad
from tests.blocks.harness import close, shaken

random = np.random.default_rng


def build(**options: Any) -> RMC:
    settings = RMCSettings.create(**{"hidden_size": 6, "mem_size": 4} | options)
    return shaken(RMC(settings, "float64"), 0)


def given(seed: int = 1, length: int = 7) -> np.ndarray:
    return random(seed).standard_normal((3, length, 6))


def run(block: RMC, x: np.ndarray, **options: Any) -> np.ndarray:
    with no_grad():
        return np.asarray(block(Tensor(x), **options)[0].data)


def softmax(x: np.ndarray) -> np.ndarray:
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def summaries(x: np.ndarray, kind: str, prefix: int = 0) -> np.ndarray:
    c = np.zeros_like(x)
    for t in range(x.shape[1]):
        end = x.shape[1] if kind == "mean" else min(t + 1, prefix) if prefix else t + 1
        c[:, t] = x[:, :end].mean(axis=1)
    return c


MEAN = {"summary": "mean", "allow_noncausal": True}
KINDS = [{}, {"summary": "prefix", "prefix": 1}, {"summary": "prefix", "prefix": 3}, MEAN]


@pytest.mark.parametrize("options", KINDS, ids=lambda o: "-".join(map(str, o.values())) or "causal")
def test_the_equations(options: dict[str, Any]) -> None:
    block, x = build(**options), given()
    w = {name: p.data for name, p in block.named_parameters().items()}
    c = summaries(x, options.get("summary", "causal"), options.get("prefix", 0))
    r = softmax(c @ w["read.weight"].T + w["read.bias"]) @ w["memory"]
    expected = np.concatenate([x, r], -1) @ w["proj.weight"].T + w["proj.bias"]
    close(run(block, x), expected, 1e-12)


def test_the_default_leaks_nothing_and_the_mean_does() -> None:
    for options in KINDS:
        block, x = build(**options), given()
        before = run(block, x)
        x[:, 4] += 1.0
        same = np.array_equal(run(block, x)[:, :4], before[:, :4])
        assert same == (options is not MEAN)
        assert block.settings.is_causal == same
    assert RMCSettings().summary == "causal"


def test_the_mean_has_to_be_asked_for_and_cannot_be_continued() -> None:
    with pytest.raises(ValueError, match="allow_noncausal=True"):
        RMCSettings(summary="mean")
    block = build(**MEAN)
    assert block.init_state(2) is None
    with pytest.raises(ValueError, match="cannot be continued"):
        block(Tensor(given()), state=build().init_state(3))


@pytest.mark.parametrize("options", [{"summary": "prefix"}, {"prefix": 2}])
def test_a_prefix_needs_a_length_and_only_it(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="prefix:"):
        RMCSettings(**options)


def test_one_slot_is_read_by_every_token() -> None:
    block, x = build(mem_size=1), given()
    r = np.broadcast_to(block.memory.data[0], x.shape)
    close(run(block, x), np.concatenate([x, r], -1) @ block.proj.weight.data.T + block.proj.bias.data, 1e-12)


def test_a_first_token_beside_padding_is_its_own_summary() -> None:
    """Padding counts for nothing, in the sum and in the count"""
    block, x = build(), given()
    mask = np.arange(7)[None, :] >= np.array([0, 3, 6])[:, None]
    close(run(block, x, mask=mask)[2, 6], run(block, x[2:, 6:])[0, 0], 1e-12)


# ---- writing ----


def written(block: RMC, x: np.ndarray, **options: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(ΔM, w, c) by the equations"""
    c = x.mean(axis=1)
    w = softmax(c @ block.write_weight.data.T + block.write_bias.data)
    return w[:, :, None] * c[:, None, :], w, c


def test_the_write_is_the_outer_product_of_slots_and_summary() -> None:
    block, x = build(), given()
    run(block, x)
    assert block.delta is None, "kept only when asked for"
    run(block, x, update=True)
    delta, w, _ = written(block, x)
    assert block.delta.shape == (3, 4, 6)
    assert block.delta.mean(0).shape == (4, 6)
    close(block.delta, delta, 1e-12)
    close(block.weights, w, 1e-12)


def test_a_state_writes_what_the_whole_sequence_would() -> None:
    block, x = build(), given()
    with no_grad():
        _, state = block(Tensor(x[:, :3]), state=block.init_state(3))
        block(Tensor(x[:, 3:]), state=state, update=True)
    close(block.delta, written(block, x)[0], 1e-12)


@pytest.mark.parametrize("write", ["ema", "add"])
@pytest.mark.parametrize("averaged", [True, False])
def test_applying_the_write(write: str, averaged: bool) -> None:
    block, x = build(write=write), given()
    run(block, x, update=True)
    before, (delta, w, _) = block.memory.data.copy(), written(block, x)
    block.apply_update(block.delta.mean(0) if averaged else block.delta, lr=0.01)
    kept = w.mean(0)[:, None] * before if write == "ema" else 0.0
    close(block.memory.data, before + 0.01 * (delta.mean(0) - kept), 1e-12)
    assert np.linalg.matrix_rank(block.memory.data - before) > 1, "slots are written each by itself"


def test_the_call_of_the_document() -> None:
    model_rmc = build()
    run(model_rmc, given(), update=True)
    delta = model_rmc.delta
    if delta is not None:
        model_rmc.apply_update(delta.mean(0), lr=0.01)


def test_a_rate_of_zero_changes_nothing_and_annealing_lowers_it() -> None:
    block = build(anneal=0.5)
    run(block, given(), update=True)
    before = block.memory.data.copy()
    block.apply_update(block.delta, lr=0.0)
    assert np.array_equal(block.memory.data, before)
    block.apply_update(block.delta, lr=0.01, step=2)
    first = block.memory.data - before
    assert block.rate(0.01, 2) == 0.005
    block.memory.data = before
    block.apply_update(block.delta, lr=0.005)
    close(block.memory.data - before, first, 1e-12)


def test_equal_rows_write_as_one() -> None:
    moved = []
    for rows in (1, 5):
        block = build()
        run(block, np.repeat(given()[:1], rows, axis=0), update=True)
        block.apply_update(block.delta.mean(0))
        moved.append(block.memory.data)
    close(moved[0], moved[1], 1e-13)


def test_ema_keeps_every_slot_among_what_was_seen() -> None:
    block, largest = build(), 0.0
    bound = np.linalg.norm(block.memory.data, axis=1)
    drifting = build(write="add")
    for step in range(60):
        x = 3.0 + given(step)
        for each in (block, drifting):
            run(each, x, update=True)
            each.apply_update(each.delta, lr=1.0)
        largest = max(largest, float(np.linalg.norm(x.mean(axis=1), axis=1).max()))
        assert (np.linalg.norm(block.memory.data, axis=1) <= np.maximum(bound, largest) + 1e-12).all()
    assert np.linalg.norm(drifting.memory.data, axis=1).max() > 2.0 * largest


def test_no_gradient_reaches_the_write_and_no_decay_the_memory() -> None:
    block = build()
    y, _ = block(Tensor(given(), requires_grad=True), update=True)
    y.sum().backward()
    assert block.write_weight.grad is None
    assert block.write_bias.grad is None
    assert block.memory.grad is not None
    assert not block.memory.decay


def test_an_ema_write_needs_its_weights() -> None:
    block, delta = build(), np.zeros((4, 6))
    with pytest.raises(ValueError, match="weights: an ema write needs"):
        block.apply_update(delta)
    block.apply_update(delta, weights=np.zeros(4))
    with pytest.raises(ValueError, match=r"delta: shape \[6\]; expected \[4, 6\]"):
        block.apply_update(np.zeros(6))


def test_the_size_of_the_memory_is_told() -> None:
    block = build()
    with collect() as heard:
        run(block, given())
    [(name, norm)] = heard.figures
    assert name == "rmc/norm"
    close(np.asarray(norm), np.asarray(np.sqrt((block.memory.data**2).sum())), 1e-12)


def test_reset_draws_the_memory_it_started_with() -> None:
    block = RMC(RMCSettings(hidden_size=6, mem_size=4))
    block.initialize(3)
    before = block.memory.data.copy()
    run(block, given().astype(np.float32), update=True)
    block.apply_update(block.delta)
    assert not np.array_equal(block.memory.data, before)
    block.reset()
    assert np.array_equal(block.memory.data, before)


def test_episodes_have_memories_of_their_own() -> None:
    """Each row's memory moves by its own summary; the block's stays; reopening restores it."""
    block, x = build(), given()
    whole = block.memory.data.copy()
    state = block.open_episode(block.init_state(3))
    with no_grad():
        first, state = block(Tensor(x), state=state)
        close(first.data, run(block, x), 1e-12)
        state = block.write_episode(state, lr=0.5)
        after, _ = block(Tensor(x), state=state)
    delta, w, _ = written(block, x)
    close(state.memory, whole + 0.5 * (delta - w[:, :, None] * whole), 1e-12)
    assert np.array_equal(block.memory.data, whole)
    assert np.abs(after.data - run(block, x)).max() > 1e-3
    state.reorder(np.array([2, 0]))
    close(state.memory[0], (whole + 0.5 * (delta - w[:, :, None] * whole))[2], 1e-12)
    assert np.array_equal(block.open_episode(state).memory[1], whole)
    with pytest.raises(ValueError, match="no episode is open"):
        block.write_episode(block.init_state(2))


# ---- writing within a sequence ----

WITHIN = {"differentiable_write": True, "segment": 3, "write_lr": 0.5}


@pytest.mark.parametrize("write", ["ema", "add"])
@pytest.mark.parametrize("kind", [{}, {"summary": "prefix", "prefix": 4}], ids=["causal", "prefix"])
def test_segments_read_what_those_before_them_wrote(write: str, kind: dict[str, Any]) -> None:
    """By the equations, row by row and segment by segment"""
    block, x = build(**WITHIN, **kind, write=write), given(length=11)
    w = {name: p.data for name, p in block.named_parameters().items()}
    c = summaries(x, kind.get("summary", "causal"), kind.get("prefix", 0))
    expected = np.empty_like(x)
    for row in range(3):
        memory = w["memory"].copy()
        for t in range(11):
            r = softmax(c[row, t] @ w["read.weight"].T + w["read.bias"]) @ memory
            expected[row, t] = np.concatenate([x[row, t], r]) @ w["proj.weight"].T + w["proj.bias"]
            if t % 3 == 2:
                slots = softmax(c[row, t] @ w["write_weight"].T + w["write_bias"])
                memory += 0.5 * (np.outer(slots, c[row, t]) - (write == "ema") * slots[:, None] * memory)
    close(run(block, x), expected, 1e-12)


def test_writes_within_a_sequence_have_gradients_and_need_a_second_segment() -> None:
    for length in (3, 4):
        block = build(**WITHIN)
        block(Tensor(given(length=length)))[0].sum().backward()
        assert (block.write_weight.grad is not None) == (length > 3)


def test_no_rate_is_no_write_within_a_sequence() -> None:
    close(run(build(**WITHIN | {"write_lr": 0.0}), given()), run(build(), given()), 1e-13)


def test_padding_that_is_all_there_is_is_finite() -> None:
    block = build(**WITHIN)
    assert np.isfinite(run(block, given(), mask=np.zeros((3, 7), bool))).all()
    assert np.isfinite(run(block, given(), mask=np.arange(7)[None, :] >= np.full((3, 1), 6))).all()


@pytest.mark.parametrize("options", [{}, {"write": "add"}], ids=str)
def test_rows_without_tokens_write_nothing(options: dict[str, Any]) -> None:
    """Neither by padding alone nor by no columns at all; ema takes nothing away for them."""
    block, x = build(**options), given()
    run(block, x, update=True, mask=np.array([[True] * 7, [False] * 7, [True] * 7]))
    assert not block.delta[1].any()
    assert not block.weights[1].any()
    assert block.delta[0].any()
    before = block.memory.data.copy()
    run(block, x, update=True, mask=np.zeros((3, 7), bool))
    block.apply_update(block.delta, lr=1.0)
    run(block, x[:, :0], update=True)
    block.apply_update(block.delta, lr=1.0)
    assert np.array_equal(block.memory.data, before)
    state = block.open_episode(block.init_state(3))
    assert np.array_equal(block.write_episode(state, lr=1.0).memory, np.stack([before] * 3))


def test_segments_of_the_mean_are_refused() -> None:
    with pytest.raises(ValueError, match="differentiable_write: the mean .* has no segments"):
        build(**WITHIN, **MEAN)


def test_a_write_can_be_applied_after_calls_that_do_not_write() -> None:
    """An evaluation between the two changes nothing."""
    block, other = build(), build()
    for each in (block, other):
        run(each, given(), update=True)
    delta = block.delta
    run(block, given(5))
    assert block.delta is None
    block.apply_update(delta.mean(0))
    other.apply_update(other.delta.mean(0))
    assert np.array_equal(block.memory.data, other.memory.data)
