"""Decoding on a device: the step from one token to the next is recorded once and replayed.

Weights, cache, history and random state stay there; per token, its id comes back, 8 bytes a row.  Positions,
lengths and the step number are read from device memory, so that one recording serves the whole text."""

from typing import Any

import numpy as np

from nn.cache import StaticKVCache
from nn.errors import NonFiniteError
from nn.generate.config import SamplingConfig


class DeviceTexts:
    """The texts that follow prompts [B,T]; next() gives one id per row, the same that nn.generate.sampling
    draws from these logits."""

    def __init__(self, model: Any, prompts: np.ndarray, config: SamplingConfig, rows: np.ndarray,
                 vocab_size: int | None = None) -> None:
        from nn.backends.device import sampling_key
        self.model, self.config, self.vocab_size = model, config, vocab_size
        device, (batch, length) = model.device, prompts.shape
        self.limit = model.config.max_seq_len
        last = length + config.max_tokens
        self.cache = StaticKVCache(model.config.num_layers, batch, min(last, self.limit),
                                   like=model.embed_tokens.weight.data, last_position=last)
        self.device, self._prompt = device, device.asarray(prompts)
        self._ids = device.zeros((batch,), np.int64)                    # the newest token of each row
        self._history = device.zeros((batch, last), np.int64)
        self._history[:, :length] = self._prompt
        self._held = device.full((batch,), length, np.int64)            # ids in the history
        self._begin = device.asarray(np.arange(batch, dtype=np.int64) * last)     # of each row's history
        self._key, self._rows = sampling_key(device, config.seed), device.asarray(rows.astype(np.int64))
        self._step, self._flags = device.zeros((1,), np.int64), device.zeros((batch,), np.int32)
        self._graph: Any = None
        self._drawn = 0

    def next(self) -> np.ndarray:
        """int64 [B].  NonFiniteError if a row's logits hold NaN or infinity."""
        if self._drawn == 0:
            self._queue(self._prompt)
        else:
            self._make_room()
            self._advance()
        self._drawn += 1
        ids = self._ids.numpy()
        if (ids < 0).any():
            raise NonFiniteError(f"sample: the logits of row {int(np.argmin(ids))} hold NaN or infinity; "
                                 "no token can be chosen")
        return ids

    def _advance(self) -> None:
        """One more token: queued kernel by kernel the first time, then recorded, then replayed."""
        if self._drawn == 1:
            self._queue(self._ids[:, None])
            return
        if self._graph is None:
            from cuda.nn.graph import Graph
            held = self.cache.length
            with Graph.capture(self.device) as graph:
                self._queue(self._ids[:, None])
            self._graph = graph
            self.cache.note(held - self.cache.length)                   # recording has run nothing
        self._graph.replay()
        self.cache.note(1)

    def _queue(self, ids: Any) -> None:
        """ids [B,T] -> the next ones, in self._ids."""
        from nn.backends.device import increment, sample
        logits = self.model(ids, cache=self.cache, last_only=True).data[:, -1, : self.vocab_size]
        sample(logits, self._history, self._held, self.config, self._key, self._step, rows=self._rows,
               flags=self._flags, out=self._ids)
        self._history.reshape(-1)[self._begin + self._held] = self._ids
        self._held += 1
        increment(self._step)

    def _make_room(self) -> None:
        """A full cache drops its older half; positions go on."""
        if self.cache.length + 1 > self.cache.capacity:
            self.cache.trim(keep=self.limit // 2)
