"""Batches of windows from a token file, shuffled anew in every epoch, resumable anywhere from a few integers.

A window is seq_len + 1 consecutive tokens: its first seq_len are the inputs, the same shifted by one the
targets.  Windows follow each other at distance seq_len: an epoch has (tokens − 1) // seq_len of them and
predicts no token twice.

- Order: epoch e is permuted by Philox words keyed by (seed, e) alone; nothing depends on earlier draws.
- Phase: an epoch's first window starts at a random token and the file is read as a ring (its end, an
  end-of-text token, is followed by its beginning), so that epochs cut the text at different places.
- Last batch: epochs follow each other without a gap; a batch that reaches the end of one is filled up from
  the next.

Try: python -c "import numpy as np; from nn.data import Loader; print(Loader(np.arange(50), 2, 8).next())" """

from typing import Any

import numpy as np

from nn.data.shard import TokenShard
from nn.errors import InputError
from nn.random import derive


def num_windows(num_tokens: int, seq_len: int) -> int:
    """How many windows of seq_len + 1 tokens, seq_len apart, fit: 195 for 50,000 tokens and seq_len 256."""
    return max(0, num_tokens - 1) // seq_len


def gather(tokens: np.ndarray, starts: np.ndarray, seq_len: int) -> tuple[np.ndarray, np.ndarray]:
    """Inputs and targets [B,T], int64, of the windows at `starts`; after the last token comes the first."""
    positions = starts[:, None] + np.arange(seq_len + 1)                            # [B,T+1]
    taken = np.take(tokens, positions, mode="wrap").astype(np.int64)
    return np.ascontiguousarray(taken[:, :-1]), np.ascontiguousarray(taken[:, 1:])


def epoch_order(seed: int, epoch: int, count: int) -> tuple[np.ndarray, int]:
    """(permutation of 0 .. count − 1, one more random 64-bit integer), made of a bit generator's words: NumPy
    promises that those stay as they are, and promises no such thing for Generator.permutation."""
    bits = np.random.Philox(key=derive(seed, "order of windows"), counter=[0, epoch, 0, 0])
    words = bits.random_raw(count + 1)
    return np.argsort(words[1:], kind="stable"), int(words[0])


def token_array(source: TokenShard | np.ndarray, seq_len: int) -> np.ndarray:
    """The tokens of a token file, or an array as it is; refused if too short for one window."""
    tokens = np.asarray(source.tokens if isinstance(source, TokenShard) else source)
    if tokens.ndim != 1 or (tokens.dtype.kind not in "iu" and tokens.size):
        raise InputError(f"tokens: {tokens.dtype} of shape {tokens.shape}; give a 1-D integer array")
    if seq_len < 1:
        raise InputError(f"seq_len: {seq_len}; give 1 or more")
    if len(tokens) <= seq_len:
        raise InputError(f"seq_len: {seq_len} needs {seq_len + 1} tokens for one window and the text has "
                         f"{len(tokens)}; give more text or a smaller seq_len")
    return tokens


class Loader:
    """An endless iterator over (inputs, targets), both int64 [batch_size, seq_len]."""

    def __init__(self, shard: TokenShard | np.ndarray, batch_size: int, seq_len: int,
                 seed: int = 0) -> None:
        if batch_size < 1:
            raise InputError(f"batch_size: {batch_size}; give 1 or more")
        self.tokens = token_array(shard, seq_len)
        self.batch_size, self.seq_len, self.seed = batch_size, seq_len, seed
        self.num_windows = num_windows(len(self.tokens), seq_len)
        self._begin(epoch=0, position=0)

    def next(self) -> tuple[np.ndarray, np.ndarray]:
        """The next batch: inputs and targets, [B,T] each."""
        return gather(self.tokens, self._take(self.batch_size), self.seq_len)

    __next__ = next

    def __iter__(self) -> "Loader":
        return self

    def state(self) -> dict[str, int]:
        """Where the next batch begins, and what that depends on.  The batch size is free to change."""
        return {"epoch": self._epoch, "position": self._position, **self._identity()}

    def load_state(self, state: dict[str, Any]) -> None:
        """Continue exactly where the loader that gave `state` was."""
        if set(state) != set(self.state()):
            raise InputError(f"state: keys {sorted(state)}; a loader's are {sorted(self.state())}")
        for name, value in self._identity().items():
            if state[name] != value:
                raise InputError(f"{name}: {value}, but the run to resume had {state[name]}; "
                                 "use that, or start a new run")
        if state["epoch"] < 0 or not 0 <= state["position"] < self.num_windows:
            raise InputError(f"state: position {state['position']} of epoch {state['epoch']} is not one of "
                             f"an epoch's {self.num_windows} windows; the state is damaged")
        self._begin(int(state["epoch"]), int(state["position"]))

    def _identity(self) -> dict[str, int]:
        return {"seed": self.seed, "seq_len": self.seq_len, "num_tokens": len(self.tokens)}

    def _begin(self, epoch: int, position: int) -> None:
        order, phase = epoch_order(self.seed, epoch, self.num_windows)
        self._starts = order * self.seq_len + phase % len(self.tokens)
        self._epoch, self._position = epoch, position

    def _take(self, count: int) -> np.ndarray:
        """The starts of the next `count` windows, through as many epochs as that takes."""
        parts: list[np.ndarray] = []
        while count:
            parts.append(self._starts[self._position:self._position + count])
            count -= len(parts[-1])
            self._position += len(parts[-1])
            if self._position == self.num_windows:      # at once: state() never points behind an epoch
                self._begin(self._epoch + 1, 0)
        return np.concatenate(parts)
