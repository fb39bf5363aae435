"""The generation loop: the prompt in one pass, then one token at a time on what the model keeps of the past.

When a cache of keys and values is full its older half is dropped and generation goes on; positions keep
counting, because the keys that stay are already rotated to theirs.  A model with learned positions, which end
there (`rereads`), reads the half that stays anew, from position 0.  States that do not grow (recurrences,
windows) have no limit.  The model is in evaluation mode and records nothing only
while it computes, so the code that consumes the tokens runs as it would without the loop, and may stop at
any token.

Try: python -c "from nn import MoETransformer; from nn.generate import *;
print(list(generate(MoETransformer.tiny(), [1, 2, 3], SamplingConfig(max_tokens=8))))" """

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, Protocol

import numpy as np

from nn.errors import InputError
from nn.generate.config import SamplingConfig
from nn.generate.device import DeviceTexts
from nn.generate.recorded import RecordedTexts, servable
from nn.generate.sampling import sample
from nn.generate.stream import TextStream, TokenBytes, text_pieces
from nn.models.hooks import overriding
from nn.tape import state
from nn.tensor import no_grad

_DEFAULT = SamplingConfig()


class LanguageModel(Protocol):
    """What the loop needs of a model: `config.max_seq_len`, a state, and logits [B,1,V] for ids [B,T].
    `context`, where there is one, counts instead: None for a model that holds any number of tokens.
    `rereads`, where there is one: whether its positions cannot go on beyond the context."""

    config: Any
    training: bool

    def train(self, on: bool = True) -> Any: ...

    def init_state(self, batch_size: int) -> Any: ...

    def __call__(self, ids: Any, *, cache: Any = None, last_only: bool = False) -> Any: ...


class Tokenizer(TokenBytes, Protocol):
    """What `stream_text` needs."""

    @property
    def vocab_size(self) -> int: ...

    @property
    def eos_id(self) -> int: ...

    def encode(self, text: str) -> list[int]: ...


def generate(
    model: LanguageModel,
    prompt_ids: Sequence[int],
    config: SamplingConfig = _DEFAULT,
    *,
    row: int = 0,
    start_id: int | None = None,
    truncate_prompt: bool = False,
    vocab_size: int | None = None,
    use_cache: bool = True,
) -> Iterator[int]:
    """Yields up to `config.max_tokens` ids; stops before an id of `config.eos_ids` (null: at none).

    row: the name of this text for the random numbers.  start_id: what an empty prompt starts from.
    truncate_prompt: keep the end of a prompt longer than the context.  vocab_size: draw only ids below it,
    for a model with more ids than its tokenizer.  use_cache=False: recompute the context, a slow check."""
    prompt = _prompt(prompt_ids, _limit(model), start_id, truncate_prompt)
    context = _Context(model, vocab_size, use_cache)
    return (int(ids[0]) for ids, _ in _texts(context, prompt[None], config, np.array([row])))


def generate_batch(
    model: LanguageModel,
    prompts: Sequence[Sequence[int]],
    config: SamplingConfig = _DEFAULT,
    *,
    start_id: int | None = None,
    truncate_prompt: bool = False,
) -> list[list[int]]:
    """Row i is what `generate(..., row=i)` yields; prompts of equal length go through the model together."""
    limit = _limit(model)
    ready = [_prompt(ids, limit, start_id, truncate_prompt) for ids in prompts]
    out: list[list[int]] = [[] for _ in ready]
    for length in sorted({len(prompt) for prompt in ready}):
        rows = np.array([i for i, prompt in enumerate(ready) if len(prompt) == length])
        for ids, live in _texts(_Context(model), np.stack([ready[i] for i in rows]), config, rows):
            for i in np.flatnonzero(live):
                out[rows[i]].append(int(ids[i]))
    return out


def stream_text(
    model: LanguageModel,
    tokenizer: Tokenizer,
    prompt: str,
    config: SamplingConfig = _DEFAULT,
    *,
    truncate_prompt: bool = False,
) -> Iterator[str]:
    """What follows the prompt, in pieces of complete characters, until EOS, a stop string or `max_tokens`.

    An empty prompt starts from the tokenizer's end-of-text token, which precedes every training document."""
    if config.eos_ids is None:
        config = replace(config, eos_ids=(tokenizer.eos_id,))
    ids = tokenizer.encode(prompt)
    start, known = tokenizer.eos_id, tokenizer.vocab_size
    tokens = generate(model, ids, config, start_id=start, truncate_prompt=truncate_prompt, vocab_size=known)
    return text_pieces(tokens, TextStream(tokenizer, config.stop))


def _texts(
    context: "_Context", prompts: np.ndarray, config: SamplingConfig, rows: np.ndarray
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Prompts [B,T] -> per step the ids [B] and which rows have not met EOS [B]; ends when none is left."""
    draw = context.drawing(prompts, config, rows)
    live, last = np.ones(len(prompts), dtype=bool), frozenset(config.eos_ids or ())
    for step in range(config.max_tokens):
        with context.evaluating():
            ids = draw(step)
        if last:
            live = live & [token not in last for token in ids.tolist()]
            if not live.any():
                return
        yield ids, live


class _Context:
    """What the model still sees of the history, in a cache or recomputed: the same tokens either way."""

    def __init__(self, model: LanguageModel, vocab_size: int | None = None, use_cache: bool = True) -> None:
        self._model, self._vocab_size = model, vocab_size
        self._use_cache = use_cache
        self._cache: Any = None
        self._length = 0
        self._limit = _limit(model)

    def drawing(
        self, prompts: np.ndarray, config: SamplingConfig, rows: np.ndarray
    ) -> Callable[[int], np.ndarray]:
        """What gives the ids [B] of step 0, 1, ... after prompts [B,T]."""
        if self._use_cache and _recordable(self._model, prompts.shape[1], config.max_tokens):
            kind = DeviceTexts if getattr(self._model, "device", None) is not None else RecordedTexts
            texts = kind(self._model, prompts, config, rows, self._vocab_size)
            return lambda step: texts.next()
        history, new = prompts, prompts.shape[1]  # [B,T]

        def draw(step: int) -> np.ndarray:
            nonlocal history, new
            ids = sample(self.logits(history, new), history, config, step, rows=rows)
            history, new = np.concatenate([history, ids[:, None]], axis=1), 1
            return ids

        return draw

    @contextmanager
    def evaluating(self) -> Iterator[None]:
        """Evaluation mode and no tape inside; a model that was training trains again afterwards."""
        training = self._model.training
        if training:
            self._model.train(False)
        try:
            with no_grad():
                yield
        finally:
            if training:
                self._model.train(True)

    def logits(self, history: np.ndarray, new: int) -> np.ndarray:
        """Logits [B,V] after the history, whose last `new` tokens the model has not seen."""
        if self._use_cache and self._cache is None:
            self._cache = self._model.init_state(len(history))
        if self._limit is not None and self._length + new > self._limit:
            self._length = self._limit // 2
            if self._cache is not None and getattr(self._model, "rereads", False):
                self._cache = self._model.init_state(len(history))
                new, self._length = self._length + new, 0
            elif self._cache is not None:
                self._cache.trim(keep=self._length)
        self._length += new
        ids = history[:, -(self._length if self._cache is None else new) :]
        return self._model(ids, cache=self._cache, last_only=True).numpy()[:, -1, : self._vocab_size]


def _limit(model: LanguageModel) -> int | None:
    """Tokens that the model can hold; None: any number."""
    limit: int | None = getattr(model, "context", model.config.max_seq_len)
    return limit


def _recordable(model: LanguageModel, prompt: int, more: int) -> bool:
    """Whether the step from one token to the next can be recorded: the model is on a device or native kernels
    serve it, and a cache of fixed size does, which drops half of what it holds when it is full; windows need
    all of theirs.  Hooks, and what watches or counts every operation, would not see the replays."""
    hooks = getattr(model, "hooks", ())
    if overriding(hooks, "on_hidden") or overriding(hooks, "on_logits"):
        return False
    if state.path is not None or state.count is not None:
        return False
    problem: str = getattr(model, "static_problem", "")
    if problem or not (getattr(model, "device", None) is not None or servable(model, prompt + more)):
        return False
    limit, span = model.config.max_seq_len, getattr(model, "span", 0)
    return not span or prompt + more <= limit or (prompt <= limit and span <= limit // 2)


def _prompt(ids: Sequence[int], limit: int | None, start_id: int | None, truncate: bool) -> np.ndarray:
    """The prompt as int64 [T], 1 <= T <= limit."""
    if len(ids) == 0:
        if start_id is None:
            raise InputError("prompt_ids: empty; give at least one token, or a first one as start_id")
        ids = [start_id]
    if limit is not None and len(ids) > limit and not truncate:
        raise InputError(
            f"prompt_ids: {len(ids)} tokens are more than the model's context (max_seq_len {limit}); "
            "shorten the prompt, or keep only its end with truncate_prompt"
        )
    prompt = np.asarray(ids)[-limit if limit else 0 :]
    if prompt.ndim != 1 or prompt.dtype.kind not in "iu":
        raise InputError(f"prompt_ids: {prompt.dtype} of shape {list(prompt.shape)}; give a list of integers")
    return prompt.astype(np.int64)
