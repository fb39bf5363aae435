"""Writing with any blocks: with a state or recomputed, one prompt or several, past the context."""

from typing import Any

import numpy as np
import pytest

from nn.data import ByteTokenizer
from nn.errors import InputError
from nn.generate import SamplingConfig, generate, generate_batch, stream_text
from nn.models import LanguageModel, LanguageModelConfig
from tests.models.mixed import EVERY, VARIANTS, config, ids, model

GREEDY = SamplingConfig(temperature=0, max_tokens=18)
LONG = SamplingConfig(temperature=0, max_tokens=40)


@pytest.mark.parametrize("name", EVERY)
def test_cached_and_recomputed_tokens_are_equal(name: str) -> None:
    """Within the context; padding that chunks are filled up with is no token"""
    mixer, changes = EVERY[name]
    made = model(mixer, **changes)
    cached = list(generate(made, [3, 1, 4, 1, 5], GREEDY))
    assert cached == list(generate(made, [3, 1, 4, 1, 5], GREEDY, use_cache=False))
    assert len(set(cached)) > 1


@pytest.mark.parametrize("mixer", ["retention", "mamba2", "sliding_attention"])
def test_states_that_do_not_grow_have_no_limit(mixer: str) -> None:
    """The context of 24 tokens is nobody's: all is remembered, or all the window"""
    made = model(mixer)
    cached = list(generate(made, list(range(30)), LONG))
    assert cached == list(generate(made, list(range(30)), LONG, use_cache=False))
    assert len(set(cached)) > 1


def test_past_the_context_caches_are_trimmed(monkeypatch: pytest.MonkeyPatch) -> None:
    """One layer of attention: what was dropped leaves no trace.  Beside a recurrence the text goes on too."""
    made = LanguageModel(config().replace(num_layers=1), seed=1, dtype="float64")
    assert list(generate(made, [3, 1], LONG)) == list(generate(made, [3, 1], LONG, use_cache=False))
    hybrid = model(("full_attention", "retention"))
    state = hybrid.init_state(1)
    monkeypatch.setattr(hybrid, "init_state", lambda batch: state)
    assert len(list(generate(hybrid, [3, 1], LONG))) == 40
    assert state.offset == 41
    assert state.length <= 24


@pytest.mark.parametrize("mixer", ["full_attention", ("retention", "full_attention")], ids=str)
def test_learned_positions_begin_anew_past_the_context(mixer: Any) -> None:
    """There is none for the token behind the last: what stays is read from position 0, as without a cache."""
    made = model(mixer, positions="learned")
    cached = list(generate(made, [3, 1], LONG))
    assert cached == list(generate(made, [3, 1], LONG, use_cache=False))
    assert len(set(cached)) > 1


def test_padded_rows_go_on_behind_a_trim() -> None:
    """A window that is wider than what the caches keep still holds tokens that they have dropped, padding
    among them"""
    made = model(("full_attention", "sliding_attention", "retention"),
                 options={"sliding_attention": {"num_heads": 2, "window": 7}})
    text, more = ids(2, 8), ids(2, 3, seed=5)

    def written(prompt: np.ndarray, new: np.ndarray, mask: np.ndarray | None) -> np.ndarray:
        state = made.init_state(len(prompt))
        made(prompt, cache=state, mask=mask)
        state.trim(4)
        held = None if mask is None else mask[:, -4:]
        for t in range(2):                                     # two tokens, then one more
            keep = None if held is None else np.pad(held, ((0, 0), (0, 1 + t)), constant_values=True)
            y = made(new[:, :2] if not t else new[:, 2:], cache=state,
                     mask=None if keep is None else np.pad(keep, ((0, 0), (0, 1)), constant_values=True))
        return y.data[:, -1]

    mask = np.ones((2, 8), bool)
    mask[0, :3], mask[1, :6] = False, False
    together = written(text, more, mask)
    for row, padding in enumerate((3, 6)):
        alone = written(text[row : row + 1, padding:], more[row : row + 1], None)
        np.testing.assert_allclose(together[row], alone[0], rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize(("mixer", "changes", "message"), [
    ("nsa", {}, "NSAState cannot drop its oldest tokens"),
    ("block_sparse", {"causal": False}, "an encoder reads whole sequences")])
def test_what_cannot_go_on_says_so(mixer: str, changes: dict[str, Any], message: str) -> None:
    made = model(mixer, **changes)
    with pytest.raises(InputError, match=message):
        list(generate(made, [3, 1], LONG))


@pytest.mark.parametrize("name", ["hybrid", "recursion", "memory"])
def test_a_batch_is_its_rows_one_by_one(name: str) -> None:
    mixer, changes = VARIANTS[name]
    made = model(mixer, **changes)
    prompts, sampling = [[1, 2, 3], [9], [4, 5, 6], [1, 2, 3]], SamplingConfig(max_tokens=9, seed=3)
    alone = [list(generate(made, prompt, sampling, row=i)) for i, prompt in enumerate(prompts)]
    assert generate_batch(made, prompts, sampling) == alone
    assert alone[0] != alone[3]


def test_rows_of_a_state_are_chosen_and_copied() -> None:
    """What beam search does: two rows go on from one, each its own way"""
    made = model(*VARIANTS["prelude added"][:1], **VARIANTS["prelude added"][1])
    prompt = np.array([[3, 1, 4], [1, 5, 9]])
    state = made.init_state(2)
    made(prompt, cache=state)
    state.reorder(np.array([1, 1, 0]))
    kept = state.copy()
    found = made(np.array([[2], [6], [2]]), cache=state).data[:, -1]
    again = made(np.array([[2], [6], [2]]), cache=kept).data[:, -1]
    assert np.array_equal(found, again)
    for row, text in zip(found, ([1, 5, 9, 2], [1, 5, 9, 6], [3, 1, 4, 2]), strict=True):
        np.testing.assert_allclose(row, made(np.array([text])).data[0, -1], rtol=1e-8, atol=1e-9)


def test_text_streams_from_a_hybrid() -> None:
    made = LanguageModel(LanguageModelConfig(
        vocab_size=259, hidden_size=16, num_layers=2, mixer="RA", init_std=0.3,
        options={"full_attention": {"num_heads": 2}, "retention": {"num_heads": 2}}), seed=0)
    pieces = list(stream_text(made, ByteTokenizer(), "hi ", SamplingConfig(max_tokens=12, seed=1)))
    assert len("".join(pieces)) > 0
