"""What every registered block promises (nn/layers/protocol.py), tried on every example of every block.

One block alone: pytest tests/blocks/test_every_block.py -k retention"""

import math
from typing import Any

import numpy as np
import pytest

from nn.layers.formulas import total
from nn.ops.count import count_flops
from nn.tensor import Tensor, no_grad
from tests.blocks import harness
from tests.blocks.harness import Case, check_slopes, close, in_parts, inputs, run, same_state
from tests.gradients import gradients, leaf, weighted

CASES = harness.cases()
CAUSAL = [case for case in CASES if case.settings.is_causal]
BOTH = ["chunk", "recurrent"]

every = pytest.mark.parametrize("case", CASES, ids=str)
every_causal = pytest.mark.parametrize("case", CAUSAL, ids=str)


# ---- shapes and counts ----


@every
@pytest.mark.parametrize("mode", [*BOTH, None])
def test_shapes_and_types(case: Case, mode: str | None) -> None:
    for dtype in ("float32", "float64"):
        block = case.build(dtype)
        for batch, length in ((1, 1), (2, 5)):
            given = inputs(case.settings, batch, length, dtype=dtype)
            y, state = run(block, given, mode=mode)
            assert y.shape == given.x.shape
            assert y.dtype == given.x.dtype
            assert np.isfinite(y).all()
            assert state is None, "without a state, none is kept"


@every
@pytest.mark.parametrize("mode", BOTH)
def test_half_precision_is_stored_and_sums_are_wide(case: Case, mode: str) -> None:
    """bfloat16 in and out, the rest as in float32 with the same values: off by a few roundings.

    The seed is one at which no choice is nearly a tie, and no norm meets a row of nearly equal channels: at
    seed 0 the sandwich's divides one by 0.014 and so makes one rounding 70 times larger."""
    block, wide, given = case.build("bfloat16"), case.build("float32"), inputs(case.settings, 2, 9, seed=3)
    half = given.cast("bfloat16")
    wide.load_state_dict({name: values.astype(np.float32) for name, values in block.state_dict().items()})
    y, _ = run(block, half, mode=mode)
    assert y.dtype == half.x.dtype
    close(y.astype(np.float32), run(wide, half.cast("float32"), mode="chunk")[0], 0.05)
    x = Tensor(half.x, requires_grad=True)
    function_of(block, half, mode)(x).sum().backward()
    for gradient in (x.grad, *(p.grad for p in reached(block).values())):
        assert np.isfinite(np.asarray(gradient, np.float32)).all()


@every_causal
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_continues_from_a_state(case: Case, dtype: str) -> None:
    """What a state's arrays are stored in does not change from call to call."""
    block, wide, half = case.build(dtype), case.build("float32"), inputs(case.settings, 2, 9).cast(dtype)
    wide.load_state_dict({name: values.astype(np.float32) for name, values in block.state_dict().items()})
    y, state = in_parts(block, half, [4, 8], ["chunk", "recurrent", "recurrent"])
    assert y.dtype == half.x.dtype
    close(y.astype(np.float32), run(wide, half.cast("float32"), mode="chunk")[0], 0.05)
    if state is not None:
        kinds = {name: values.dtype for name, values in block.init_state(2).state_dict().items()}
        found = {name: values.dtype for name, values in state.state_dict().items() if name in kinds}
        assert found == kinds


@every
def test_parameters_are_those_of_the_formula(case: Case) -> None:
    block, formula = case.build(), case.settings.parameters()
    assert block.num_parameters() == total(formula) == sum(p.data.size for p in block.parameters())
    active = case.settings.parameters(active=True)
    assert active.keys() == formula.keys()
    assert all(active[name] <= count for name, count in formula.items())


@every
@pytest.mark.parametrize("mode", BOTH)
def test_flops_are_those_counted(case: Case, mode: str) -> None:
    block, settings = case.build(), case.settings
    for batch, length in ((2, 9), (1, 4)):
        given = inputs(settings, batch, length)
        with count_flops() as count:
            run(block, given, mode=mode)
        assert count.flops == total(settings.flops(batch, length, mode=mode)), count.by_operation
        assert block.flops(batch, length, mode=mode) == settings.flops(batch, length, 0, mode)


@every_causal
def test_flops_of_decoding_are_those_counted(case: Case) -> None:
    block, given, past = case.build(), inputs(case.settings, 2, 8), 6
    _, state = run(block, given.cut(0, past), state=block.init_state(2))
    with count_flops() as count:
        _, state = run(block, given.cut(past, past + 1), state=state, mode="recurrent")
    assert count.flops == total(case.settings.flops(2, 1, past, "recurrent")), count.by_operation


# ---- time ----


@every_causal
@pytest.mark.parametrize("mode", BOTH)
def test_the_future_changes_nothing_to_the_bit(case: Case, mode: str) -> None:
    block, given, other = case.build(), inputs(case.settings), inputs(case.settings, seed=5)
    before, _ = run(block, given, mode=mode)
    for t in (1, 4, 8):
        given.x[:, t:], given.ids[:, t:] = other.x[:, t:] * 3.0, other.ids[:, t:]
        after, _ = run(block, given, mode=mode)
        assert np.array_equal(before[:, :t], after[:, :t])
        given = inputs(case.settings)


@every_causal
@pytest.mark.parametrize(("dtype", "rtol"), [("float32", 1e-4), ("float64", 1e-9)])
def test_chunks_and_recurrence_agree(case: Case, dtype: str, rtol: float) -> None:
    block, given = case.build(dtype), inputs(case.settings, dtype=dtype)
    chunked, state = run(block, given, mode="chunk", state=block.init_state(3))
    stepped, other = run(block, given, mode="recurrent", state=block.init_state(3))
    close(chunked, stepped, rtol)
    same_state(state, other, rtol)
    close(run(block, given, mode="chunk")[0], chunked, rtol)


@every_causal
@pytest.mark.parametrize("cuts", [[1], [3], [4], [8], [2, 3, 7], [0, 4, 4], [*range(1, 9)]], ids=str)
def test_a_state_continues_where_it_was_cut(case: Case, cuts: list[int]) -> None:
    """Calls without tokens among them."""
    block, given = case.build(), inputs(case.settings)
    whole, state = run(block, given, state=block.init_state(3), mode="chunk")
    for modes in (["chunk"] * (len(cuts) + 1), ["chunk"] + ["recurrent"] * len(cuts)):
        y, after = in_parts(block, given, cuts, modes)
        close(y, whole)
        same_state(after, state)


# ---- rows ----


@every_causal
@pytest.mark.parametrize("pads", [[0, 3, 1], [7, 0, 6]], ids=["some", "whole calls"])
def test_padding_on_the_left_changes_nothing(case: Case, pads: list[int]) -> None:
    """What tokens get, in the first call and behind the state, is what their row gets by itself."""
    block, length = case.build(), 9
    given, garbage = inputs(case.settings), inputs(case.settings, seed=7)
    mask = np.arange(length)[None, :] >= np.array(pads)[:, None]
    given.x[~mask], given.ids[~mask] = 5.0 * garbage.x[~mask], garbage.ids[~mask]
    for mode in BOTH:
        y, _ = in_parts(block, given, [6, 7], [mode, mode, "recurrent"], mask)
        assert np.isfinite(y).all()
        close(run(block, given, mask=mask, mode=mode)[0][mask], y[mask])
        for row, pad in enumerate(pads):
            alone, _ = run(block, given.rows([row]).cut(pad), mode="chunk")
            close(y[row, pad:], alone[0])


@every
@pytest.mark.parametrize("mode", BOTH)
def test_padding_on_the_right_changes_nothing(case: Case, mode: str) -> None:
    block, given, tokens = case.build(), inputs(case.settings), [9, 5, 1]
    mask = np.arange(9)[None, :] < np.array(tokens)[:, None]
    alone = [run(block, given.rows([row]).cut(0, count))[0][0] for row, count in enumerate(tokens)]
    given.x[~mask] *= 7.0
    y, _ = run(block, given, mask=mask, mode=mode)
    assert np.isfinite(y).all()
    close(y[mask], np.concatenate(alone))


@every
def test_rows_do_not_meet(case: Case) -> None:
    block, given, order = case.build(), inputs(case.settings), [2, 0, 1]
    y, _ = run(block, given)
    close(run(block, given.rows(order))[0], y[order])
    for row in range(3):
        close(run(block, given.rows([row]))[0], y[row : row + 1])


@every_causal
def test_states_are_picked_by_row(case: Case) -> None:
    block, given, picked = case.build(), inputs(case.settings), [2, 0, 0, 1]
    _, state = run(block, given.cut(0, 6), state=block.init_state(3))
    if state is None:
        return
    twin = state.copy()
    expected, _ = run(block, given.cut(6), state=state)
    twin.reorder(np.array(picked))
    y, _ = run(block, given.cut(6).rows(picked), state=twin)
    close(y, expected[picked])


@every_causal
def test_a_copied_state_goes_its_own_way(case: Case) -> None:
    block, given, other = case.build(), inputs(case.settings), inputs(case.settings, seed=3)
    _, state = run(block, given.cut(0, 4), state=block.init_state(3))
    if state is None:
        return
    twin = state.copy()
    run(block, other.cut(4), state=state)
    whole, _ = run(block, given)
    close(run(block, given.cut(4), state=twin)[0], whole[:, 4:])


# ---- saving ----


@every
def test_weights_and_state_are_saved_and_loaded(case: Case) -> None:
    block, twin, given = case.build(), case.build(seed=2), inputs(case.settings)
    saved = {name: np.array(values) for name, values in block.state_dict().items()}
    twin.load_state_dict(saved)
    assert np.array_equal(run(block, given)[0], run(twin, given)[0])
    _, state = run(block, given.cut(0, 5), state=block.init_state(3))
    if state is None or not case.settings.is_causal:
        return
    fresh = twin.init_state(3)
    fresh.load_state_dict({name: np.array(values) for name, values in state.state_dict().items()})
    assert np.array_equal(run(block, given.cut(5), state=state)[0], run(twin, given.cut(5), state=fresh)[0])


# ---- gradients ----


def function_of(block: Any, given: Any, mode: str) -> Any:
    """x -> y, and the context if the block looks at one"""
    extra = given.given(block)

    def call(x: Tensor, *context: Tensor) -> Tensor:
        return block(x, **extra | ({"context": context[0]} if context else {}), mode=mode)[0]

    return call


@every
def test_gradients_are_those_of_differences(case: Case) -> None:
    block, given = case.build(), inputs(case.settings, 2, 5)
    context = [given.context] if "context" in given.given(block) else []
    arrays, parameters, function = [given.x, *context], reached(block), function_of(block, given, "chunk")
    found = gradients(function, [leaf(array) for array in arrays], list(parameters.values()))
    named = zip(("x", "context")[: len(arrays)], arrays, strict=True)
    places = dict(named) | {name: p.data for name, p in parameters.items()}

    def loss() -> float:
        with no_grad():
            return weighted(function(*map(Tensor, arrays))).item()

    check_slopes(loss, dict(zip(places, zip(places.values(), found, strict=True), strict=True)))


@every_causal
def test_gradients_do_not_depend_on_the_mode(case: Case) -> None:
    block, given, found = case.build(), inputs(case.settings, 2, 5), []
    for mode in BOTH:
        block.zero_grad()
        x = Tensor(given.x, requires_grad=True)
        weighted(function_of(block, given, mode)(x)).backward()
        found.append([x.grad, *(p.grad for p in reached(block).values())])
    for chunked, stepped in zip(*found, strict=True):
        close(chunked, stepped)


@every
@pytest.mark.parametrize("mode", BOTH)
def test_gradients_of_padded_rows_are_those_of_the_rows_alone(case: Case, mode: str) -> None:
    """and padding gets none"""
    block, given, pads = case.build(), inputs(case.settings, 2, 7), [0, 3]
    mask = np.arange(7)[None, :] >= np.array(pads)[:, None]
    weights = np.random.default_rng(3).standard_normal(given.x.shape) * mask[..., None]

    def gradient(part: harness.Inputs, weight: np.ndarray, **options: Any) -> list[np.ndarray]:
        block.zero_grad()
        x = Tensor(part.x, requires_grad=True)
        y, _ = block(x, **part.given(block), mode=mode, **options)
        (y * Tensor(weight)).sum().backward()
        return [np.array(z.grad) for z in (x, *reached(block).values())]

    whole = gradient(given, weights, mask=mask)
    alone = [gradient(given.rows([row]).cut(pad), weights[row : row + 1, pad:])
             for row, pad in enumerate(pads)]
    assert not whole[0][~mask].any()
    close(whole[0][mask], np.concatenate([found[0][0] for found in alone]))
    for together, *each in zip(whole[1:], *(found[1:] for found in alone), strict=True):
        close(together, each[0] + each[1])


def reached(block: Any) -> dict[str, Any]:
    """The parameters that get a gradient: all but those that a block names"""
    detached = {name for module in block.modules() for name in getattr(module, "detached", ())}
    return {name: p for name, p in block.named_parameters().items()
            if name.rpartition(".")[2] not in detached}


# ---- the harness itself ----


def test_examples_are_small_and_the_first_has_the_common_width() -> None:
    for case in CASES:
        assert case.settings.hidden_size <= 16, case
        assert total(case.settings.parameters()) < 20_000, case
        assert harness.vocabulary(case.settings) > 1
    firsts = {case.name: case for case in reversed(CASES)}
    assert {case.settings.hidden_size for case in firsts.values()} == {8}
    assert all(math.isfinite(total(case.settings.flops(1, 3))) for case in CASES)
