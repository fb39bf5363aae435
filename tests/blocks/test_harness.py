"""The tests of every block find what they are for: faults planted in retention and in attention's cache."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from nn.cache import LayerCache
from nn.layers.attention.linear import decayed, retention
from nn.layers.attention.linear.retention import Retention, RetentionSettings, RetentionState
from nn.ops import decayed as chunks
from nn.tensor import Tensor
from tests.blocks import harness, test_every_block

Patch = pytest.MonkeyPatch
forward, decayed_flops = Retention.forward, decayed.decayed_flops


def changed(function: Callable[..., Any]) -> Callable[[Patch], None]:
    """Retention.forward replaced by `function(self, x, options)`"""
    def called(self: Retention, x: Tensor, **options: Any) -> Any:
        return function(self, x, options)

    return plants(Retention, "forward", called)


def plants(owner: Any, name: str, value: Any) -> Callable[[Patch], None]:
    return lambda patch: patch.setattr(owner, name, value)


def sees_one_ahead(patch: Patch) -> None:
    def between(sums: np.ndarray, like: np.ndarray) -> np.ndarray:
        place = np.arange(sums.shape[-1])
        seen = place[None, :] <= place[:, None] + 1
        return np.asarray(np.exp(np.where(seen, sums[..., None] - sums[..., None, :], -np.inf)))

    patch.setattr(chunks, "between", between)


def forgets_to_decay(patch: Patch) -> None:
    real = decayed._recurrent
    patch.setattr(decayed, "_recurrent", lambda q, k, v, g, s: real(q, k, v, g * 0.0, s))


def stays_at_its_position(self: Retention, x: Tensor, options: dict[str, Any]) -> Any:
    y, state = forward(self, x, **options)
    return y, state and RetentionState(state.s, state.padding, 0)


def starts_again(self: Retention, x: Tensor, options: dict[str, Any]) -> Any:
    fresh = None if options.get("state") is None else self.init_state(x.shape[0])
    return forward(self, x, **options | {"state": fresh})


def meets_other_rows(self: Retention, x: Tensor, options: dict[str, Any]) -> Any:
    y, state = forward(self, x, **options)
    return y - y.mean(axis=0, keepdims=True), state


def meets_later_tokens(self: Retention, x: Tensor, options: dict[str, Any]) -> Any:
    y, state = forward(self, x, **options)
    return y + x.mean(axis=1, keepdims=True), state


def keeps_wide(self: Retention, x: Tensor, options: dict[str, Any]) -> Any:
    y, state = forward(self, x, **options)
    return y, state and RetentionState(state.s.astype(np.float64), state.padding, state.offset)


def cuts_a_gradient(self: Retention, x: Tensor, options: dict[str, Any]) -> Any:
    y, state = forward(self, x, **options)
    return y + forward(self, x.detach(), **options)[0], state


def cuts_a_gradient_in_one_mode(self: Retention, x: Tensor, options: dict[str, Any]) -> Any:
    return forward(self, x.detach() * 0.5 + x * 0.5 if options["mode"] == "recurrent" else x, **options)


def keeps_unasked(self: Retention, x: Tensor, options: dict[str, Any]) -> Any:
    return forward(self, x, **options)[0], self.init_state(x.shape[0])


def widens(self: Retention, x: Tensor, options: dict[str, Any]) -> Any:
    y, state = forward(self, x, **options)
    return y.cast("float64"), state


def forgets_a_parameter(self: RetentionSettings, active: bool = False) -> dict[str, int]:
    return {"projections": 8 * self.hidden_size**2}


Fault = tuple[Callable[[Patch], None], str, str, dict[str, Any]]
RETENTION, ATTENTION = "retention", "full_attention"
FAULTS: dict[str, Fault] = {
    "sees the future": (sees_one_ahead, RETENTION, "the_future_changes_nothing_to_the_bit",
                        {"mode": "chunk"}),
    "modes differ": (forgets_to_decay, RETENTION, "chunks_and_recurrence_agree",
                     {"dtype": "float32", "rtol": 1e-4}),
    "positions start again": (changed(stays_at_its_position), RETENTION, "a_state_continues_where_it_was_cut",
                              {"cuts": [2, 3, 7]}),
    "the state is not used": (changed(starts_again), RETENTION, "a_state_continues_where_it_was_cut",
                              {"cuts": [8]}),
    "padding is taken in": (plants(retention, "masked", lambda x, mask: x), RETENTION,
                            "padding_on_the_left_changes_nothing", {"pads": [0, 3, 1]}),
    "padding has a gradient": (plants(retention, "masked", lambda x, mask: x), RETENTION,
                               "gradients_of_padded_rows_are_those_of_the_rows_alone", {"mode": "chunk"}),
    "padding on the right counts": (changed(meets_later_tokens), RETENTION,
                                    "padding_on_the_right_changes_nothing", {"mode": "chunk"}),
    "a state turns wide": (changed(keeps_wide), RETENTION, "half_precision_continues_from_a_state",
                           {"dtype": "bfloat16"}),
    "rows meet": (changed(meets_other_rows), RETENTION, "rows_do_not_meet", {}),
    "rows stay": (plants(RetentionState, "reorder", lambda self, rows: None), RETENTION,
                  "states_are_picked_by_row", {}),
    "a copy is shared": (plants(LayerCache, "copy", lambda self: self), ATTENTION,
                         "a_copied_state_goes_its_own_way", {}),
    "the position is not saved": (plants(RetentionState, "state_dict", lambda self: {"s": self.s}), RETENTION,
                                  "weights_and_state_are_saved_and_loaded", {}),
    "a gradient is cut": (changed(cuts_a_gradient), RETENTION, "gradients_are_those_of_differences", {}),
    "a gradient is cut in one mode": (changed(cuts_a_gradient_in_one_mode), RETENTION,
                                      "gradients_do_not_depend_on_the_mode", {}),
    "a parameter is forgotten": (plants(RetentionSettings, "parameters", forgets_a_parameter), RETENTION,
                                 "parameters_are_those_of_the_formula", {}),
    "a chunk is not filled up": (plants(decayed, "ceil_to", lambda length, multiple: length), RETENTION,
                                 "flops_are_those_counted", {"mode": "chunk"}),
    "decoding is counted as chunks": (
        plants(retention, "decayed_flops", lambda *sizes: decayed_flops(*sizes[:5], "chunk", 4)), RETENTION,
        "flops_of_decoding_are_those_counted", {}),
    "a wider type comes back": (changed(widens), RETENTION, "shapes_and_types", {"mode": "chunk"}),
    "a state is kept unasked": (changed(keeps_unasked), RETENTION, "shapes_and_types", {"mode": None})}


@pytest.mark.parametrize("name", FAULTS)
def test_a_planted_fault_is_found(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    plant, block, test, options = FAULTS[name]
    case, check = harness.cases_of("mixer", block)[0], getattr(test_every_block, f"test_{test}")
    check(case, **options)
    plant(monkeypatch)
    with pytest.raises((AssertionError, ValueError)):
        check(case, **options)
