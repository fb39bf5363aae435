"""The generation loop on a stand-in model whose logits depend on every visible token and on their order."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from nn.errors import InputError
from nn.generate import SamplingConfig, generate, generate_batch, stream_text
from nn.tape import state

GREEDY = SamplingConfig(temperature=0, max_tokens=40)


class Cache:
    """Keeps the ids themselves; otherwise what KVCache promises."""

    def __init__(self):
        self.ids, self.offset = None, 0

    @property
    def length(self):
        return 0 if self.ids is None else self.ids.shape[1]

    def append(self, ids):
        self.ids = ids if self.ids is None else np.concatenate([self.ids, ids], axis=1)
        self.offset += ids.shape[1]
        return self.ids

    def trim(self, keep):
        self.ids = self.ids[:, self.length - keep :]


class Model:
    """Logits from the visible ids, the newest counting most.  Writes down each call."""

    def __init__(self, vocab=17, max_seq_len=8):
        rng = np.random.default_rng(3)
        self.config = SimpleNamespace(max_seq_len=max_seq_len)
        self.embedding, self.head = rng.normal(size=(vocab, 16)), rng.normal(size=(16, vocab)) * 2
        self.training = True
        self.calls, self.caches = [], []

    def init_state(self, batch_size):
        self.caches.append(Cache())
        return self.caches[-1]

    def train(self, on=True):
        self.training = on

    def __call__(self, ids, *, cache=None, last_only=False):
        assert ids.dtype == np.int64
        assert last_only
        seen = ids if cache is None else cache.append(ids)
        mode = {"training": self.training, "recording": state.recording}
        self.calls.append(SimpleNamespace(new=ids.shape, seen=seen.copy(), **mode))
        assert seen.shape[1] <= self.config.max_seq_len
        age = np.arange(seen.shape[1])[::-1, None]
        hidden = np.tanh((self.embedding[seen] * 0.8**age).sum(axis=1, keepdims=True))
        return SimpleNamespace(numpy=lambda: (hidden @ self.head).astype(np.float32))


class Letters:
    """Token i is the i-th letter; 26 ends the text."""

    eos_id, vocab_size = 26, 27

    def encode(self, text):
        return [ord(c) - 97 for c in text]

    def token_bytes(self, id):
        return bytes([97 + id]) if id < 26 else b""


def test_prefill_once_then_one_token_at_a_time():
    model = Model(max_seq_len=64)
    ids = list(generate(model, [1, 2, 3], SamplingConfig(max_tokens=5)))
    assert len(ids) == 5
    assert [call.new for call in model.calls] == [(1, 3), (1, 1), (1, 1), (1, 1), (1, 1)]
    assert model.calls[-1].seen.tolist() == [[1, 2, 3, *ids[:-1]]]


@pytest.mark.parametrize("config", [GREEDY, SamplingConfig(top_k=5, repetition_penalty=1.3, max_tokens=40)])
@pytest.mark.parametrize("max_seq_len", [1, 2, 7, 8, 100])
def test_cached_equals_recomputed_also_past_the_context(config, max_seq_len):
    model = Model(max_seq_len=max_seq_len)
    cached = list(generate(model, [4], config))
    seen = [call.seen.tolist() for call in model.calls]
    model.calls.clear()
    assert list(generate(model, [4], config, use_cache=False)) == cached
    assert [call.seen.tolist() for call in model.calls] == seen
    assert len(set(cached)) > 2


def test_the_window_slides_by_half_and_positions_go_on():
    model = Model(max_seq_len=8)
    ids = list(generate(model, [1, 2, 3], SamplingConfig(max_tokens=14)))
    lengths = [call.seen.shape[1] for call in model.calls]
    assert lengths == [3, 4, 5, 6, 7, 8, 5, 6, 7, 8, 5, 6, 7, 8]
    everything = [1, 2, 3, *ids]
    for i, call in enumerate(model.calls):
        assert call.seen[0].tolist() == everything[3 + i - lengths[i] : 3 + i]
    assert [cache.offset for cache in model.caches] == [3 + 13]


def test_a_prompt_that_fills_the_context():
    model = Model(max_seq_len=8)
    assert len(list(generate(model, range(8), SamplingConfig(max_tokens=3)))) == 3
    assert [call.seen.shape[1] for call in model.calls] == [8, 5, 6]


def test_a_longer_prompt_is_refused_or_cut_at_its_beginning():
    model = Model(max_seq_len=8)
    with pytest.raises(InputError, match=r"prompt_ids: 9 tokens .*max_seq_len 8.*truncate_prompt"):
        generate(model, range(9))
    cut = list(generate(model, range(9), GREEDY, truncate_prompt=True))
    assert model.calls[0].seen.tolist() == [[1, 2, 3, 4, 5, 6, 7, 8]]
    assert cut == list(generate(model, range(1, 9), GREEDY))


def test_an_empty_prompt_needs_a_first_token():
    model = Model()
    with pytest.raises(InputError, match="prompt_ids: empty"):
        generate(model, [])
    assert list(generate(model, [], GREEDY, start_id=5)) == list(generate(model, [5], GREEDY))
    for bad in ([0.5], [[1, 2]], ["a"]):
        with pytest.raises(InputError, match=r"prompt_ids: .* give a list of integers"):
            generate(model, bad)


def test_stops_before_the_end_of_text_or_at_max_tokens():
    model = Model()
    ids = list(generate(model, [1], GREEDY))
    assert len(ids) == GREEDY.max_tokens
    for eos in set(ids):
        config = SamplingConfig(temperature=0, max_tokens=40, eos_ids=(99, eos))
        assert list(generate(model, [1], config)) == ids[: ids.index(eos)]


def test_mode_and_tape_between_tokens_are_the_callers():
    model = Model()
    for training in (True, False):
        model.train(training)
        for _ in generate(model, [1], SamplingConfig(max_tokens=3)):
            assert model.training is training
            assert state.recording
        tokens = generate(model, [1])
        next(tokens)  # and stop early
        assert model.training is training
    assert not any(call.training or call.recording for call in model.calls)


def test_mode_comes_back_when_the_model_fails():
    model = Model()
    with pytest.raises(IndexError):
        next(generate(model, [99]))
    assert model.training
    assert state.recording


def test_same_seed_same_text_other_seed_or_row_another():
    model = Model()
    def text(seed, row=0):
        config = SamplingConfig(temperature=1.5, seed=seed, max_tokens=30)
        return list(generate(model, [1, 2], config, row=row))
    assert text(1) == text(1)
    assert len({tuple(text(*key)) for key in [(1, 0), (2, 0), (1, 1)]}) == 3


def test_a_batch_is_its_rows_one_by_one():
    model = Model(max_seq_len=16)
    prompts = [[1, 2], [3], [4, 5], [1, 2], [6, 7, 8]]
    config = SamplingConfig(temperature=1.5, top_p=0.9, repetition_penalty=1.2, max_tokens=30, eos_ids=[0, 9])
    alone = [list(generate(model, prompt, config, row=i)) for i, prompt in enumerate(prompts)]
    assert len({len(ids) for ids in alone}) > 2  # rows of a group end at different steps
    model.calls.clear()
    assert generate_batch(model, prompts, config) == alone
    assert [call.new for call in model.calls if call.new[1] > 1] == [(3, 2), (1, 3)]
    assert generate_batch(model, [], config) == []


def test_ids_beyond_the_tokenizer_are_never_drawn():
    model = Model(vocab=17)
    ids = list(generate(model, [1], SamplingConfig(temperature=5, max_tokens=200), vocab_size=9))
    assert max(ids) == 8
    assert max(generate(model, [1], SamplingConfig(temperature=5, max_tokens=200))) == 16


def test_text_is_the_decoded_tokens():
    model, tokenizer = Model(vocab=40), Letters()
    config = SamplingConfig(temperature=2, max_tokens=200, eos_ids=())
    ids = list(generate(model, tokenizer.encode("hello"), config, vocab_size=27))
    assert {26} < set(ids)
    def decoded(ids):
        return b"".join(map(tokenizer.token_bytes, ids)).decode()
    assert "".join(stream_text(model, tokenizer, "hello", config)) == decoded(ids)
    until_eos = "".join(stream_text(model, tokenizer, "hello", replace(config, eos_ids=None)))
    assert until_eos == decoded(ids[: ids.index(26)])


def test_text_ends_at_a_stop_string_without_computing_on():
    model, tokenizer = Model(vocab=26), Letters()
    whole = "".join(stream_text(model, tokenizer, "a", GREEDY))
    stop = whole[10:13]
    model.calls.clear()
    config = SamplingConfig(temperature=0, max_tokens=40, stop=(stop,))
    assert "".join(stream_text(model, tokenizer, "a", config)) == whole[: whole.index(stop)]
    assert len(model.calls) == whole.index(stop) + 3


def test_an_empty_text_starts_from_the_end_of_text_token():
    model, tokenizer = Model(vocab=27), Letters()
    next(stream_text(model, tokenizer, "", GREEDY))
    assert model.calls[0].seen.tolist() == [[26]]
    with pytest.raises(InputError, match="truncate_prompt"):
        stream_text(model, tokenizer, "a" * 9)
    list(stream_text(model, tokenizer, "a" * 9, GREEDY, truncate_prompt=True))
