"""Decoding on the CPU: the step from one token to the next is recorded once and replayed.

What device.py does on a device: the cache has a fixed place, positions and lengths are read from memory, and
a replay runs the kernels one after the other without Python between them.  Sampling stays outside.  Where
weights have been loaded meanwhile the step is recorded anew.  A step that cannot be recorded runs kernel by
kernel, and the log says once why, as does refusals()."""

import logging
from typing import Any

import numpy as np

from nn.backends import forced, native
from nn.cache import StaticKVCache
from nn.errors import InputError
from nn.generate.config import SamplingConfig
from nn.generate.sampling import sample

log = logging.getLogger("nn.generate")
MOST_POSITIONS = 1 << 16
_refused: list[str] = []


def refusals() -> list[str]:
    """Of this process so far: why texts went on kernel by kernel whose step should have been recorded."""
    return list(_refused)


def servable(model: Any, positions: int = 0) -> bool:
    """Whether the model's weights are arrays that the native kernels serve, and these may be used; not for a
    text of more positions than tables of angles are made for in advance."""
    if positions > MOST_POSITIONS:
        return False
    weight = getattr(getattr(model, "embed_tokens", None), "weight", None)
    return (weight is not None and isinstance(weight.data, np.ndarray) and weight.data.dtype in native.DTYPES
            and native.missing() is None and forced() in (None, "native"))


class RecordedTexts:
    """The texts that follow prompts [B,T]; next() gives one id per row, drawn by nn.generate.sampling."""

    def __init__(self, model: Any, prompts: np.ndarray, config: SamplingConfig, rows: np.ndarray,
                 vocab_size: int | None = None) -> None:
        self.model, self.config, self.rows, self.vocab_size = model, config, rows, vocab_size
        batch, length = prompts.shape
        self.limit = model.config.max_seq_len
        last = length + config.max_tokens
        self.cache = StaticKVCache(model.config.num_layers, batch, min(last, self.limit),
                                   like=model.embed_tokens.weight.data, last_position=last)
        self._history = np.zeros((batch, last), np.int64)
        self._history[:, :length] = prompts
        self._held, self._drawn = length, 0
        self._ids = prompts                                # those that the model has not seen
        self.step: Any = None                              # the recorded step, once there is one
        self._weights: Any = None                          # nn.backends.native.recording.Places, at that time
        self._logits: Any = None                           # where it leaves its result
        self._eager = False                                # it cannot be recorded

    def next(self) -> np.ndarray:
        """int64 [B].  NonFiniteError if a row's logits hold NaN or infinity."""
        logits = self.logits()
        ids = sample(logits, self._history[:, : self._held], self.config, self._drawn, rows=self.rows)
        self._history[:, self._held] = ids
        if self._drawn == 0:
            self._ids = np.zeros((len(ids), 1), np.int64)
        self._ids[:, 0] = ids
        self._held, self._drawn = self._held + 1, self._drawn + 1
        return ids

    def logits(self) -> np.ndarray:
        """[B,V] behind the history, all of which the cache then holds."""
        if self._drawn:
            self._make_room()
        if self.step is not None and not self._weights.unchanged():
            self.step = self._logits = None                # its memory first
        if self._drawn and self.step is None and not self._eager and self._record():
            self.cache.advance(1)
        elif self.step is None:
            return self._forward()
        else:
            self.cache.expect(1)
            self.step.replay()
            self.cache.advance(1)
        return self._logits

    def _forward(self) -> np.ndarray:
        return self.model(self._ids, cache=self.cache, last_only=True).data[:, -1, : self.vocab_size]

    def _record(self) -> bool:
        """Whether the step is recorded now, and has been run; it does not count yet: the cache holds what it
        held."""
        from nn.backends.native.recording import AlreadyRecording, Places, record
        held = self.cache.length
        try:
            with record(everything=True) as step:
                self._logits = step.result(self._forward(), "logits")
                self.cache.advance(held - self.cache.length)     # before the recording checks itself
            self.step, self._weights = step, Places(self.model.parameters())
        except AlreadyRecording:                                 # another thread is: at the next token, then
            pass
        except (InputError, MemoryError) as problem:
            self._eager = True
            why = str(problem) or "out of memory"
            if why not in _refused:
                log.info("decoding goes on kernel by kernel, its step cannot be recorded (%s)", why)
            _refused.append(why)
        self.cache.advance(held - self.cache.length)
        return self.step is not None

    def _make_room(self) -> None:
        """A full cache drops its older half; positions go on."""
        if self.cache.length + 1 > self.cache.capacity:
            self.cache.trim(keep=self.limit // 2)
