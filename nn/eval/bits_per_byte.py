"""Held-out text measured three ways: nats per token sequence, perplexity, and bits per byte.

    bits per byte = −Σ log p(token) / (ln 2 · bytes of the original text)

counts every byte once, whatever the tokenizer, so that models can be compared with each other and with `gzip`
and `xz`.  Every token is scored exactly once: the text is read through windows of `seq_len` tokens, of which
each scores only what none before it did.  The very first token is predicted from `prefix_id` (the end-of-text
token).

    bits_per_byte(model, shard.tokens, num_bytes, seq_len=256, batch_size=16, prefix_id=tokenizer.eos_id)"""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np

from nn.errors import InputError, NonFiniteError

IGNORED = -100      # a target that is not scored


class Window(NamedTuple):
    """Targets are tokens[begin:end]; those from `score` on count, the earlier ones are context."""

    begin: int
    score: int
    end: int


def windows(num_tokens: int, seq_len: int, overlap: int = 1) -> list[Window]:
    """Windows of min(seq_len, num_tokens) targets that score every token once.  Each after the first has
    `overlap` tokens of context before the first one it scores; the last window is moved left to be full, and
    has more."""
    if not 1 <= overlap <= seq_len:
        raise InputError(f"overlap: {overlap} must be between 1 and seq_len ({seq_len})")
    found, done = [], 0
    while done < num_tokens:
        end = min(num_tokens, done + (seq_len - overlap + 1 if done else seq_len))
        found.append(Window(max(0, end - seq_len), done, end))
        done = end
    return found


def spread(found: Sequence[Window], max_tokens: int) -> list[Window]:
    """About `max_tokens` tokens' worth of the windows (0: all of them), evenly spaced over the text."""
    longest = max((w.end - w.score for w in found), default=1)
    keep = min(len(found), max(1, max_tokens // longest)) if max_tokens else len(found)
    return [found[i * len(found) // keep] for i in range(keep)]


def negative_log_likelihood(model: Any, tokens: np.ndarray, *, seq_len: int, batch_size: int, prefix_id: int,
                            overlap: int = 1, chosen: Sequence[Window] | None = None) -> float:
    """−Σ log p(token | before it), nats, over all tokens or over those that the `chosen` windows score."""
    chosen = windows(len(tokens), seq_len, overlap) if chosen is None else chosen
    if batch_size < 1:
        raise InputError(f"batch_size: {batch_size}; give 1 or more")
    with _evaluating(model), np.errstate(all="ignore"):
        nats = math.fsum(_score(model, tokens, chosen[i:i + batch_size], prefix_id)
                         for i in range(0, len(chosen), batch_size))
    if not math.isfinite(nats):
        raise NonFiniteError("evaluation: the loss is not finite; the weights are too large or broken")
    return nats


def bits_per_byte(model: Any, tokens: np.ndarray, num_bytes: int, seq_len: int, batch_size: int, *,
                  prefix_id: int, overlap: int = 1) -> float:
    """Bits the model needs per byte of the text behind `tokens`, whose length in UTF-8 is `num_bytes`."""
    if num_bytes < 1:
        raise InputError(f"num_bytes: {num_bytes}; there is no held-out text to measure, give more data")
    nats = negative_log_likelihood(model, tokens, seq_len=seq_len, batch_size=batch_size, prefix_id=prefix_id,
                                   overlap=overlap)
    return nats / (math.log(2.0) * num_bytes)


def perplexity(model: Any, tokens: np.ndarray, seq_len: int, batch_size: int, *, prefix_id: int,
               overlap: int = 1) -> float:
    """exp of the mean negative log-likelihood per token.  Compares models of one tokenizer only."""
    if len(tokens) == 0:
        raise InputError("tokens: there are none; perplexity needs at least one")
    nats = negative_log_likelihood(model, tokens, seq_len=seq_len, batch_size=batch_size, prefix_id=prefix_id,
                                   overlap=overlap)
    return math.exp(nats / len(tokens))


def compressed_bits_per_byte(data: bytes) -> dict[str, float]:
    """What `gzip -9` and `xz -9` need for the same bytes: the marks a model has to beat."""
    import lzma
    import zlib
    if not data:
        raise InputError("data: empty; there is nothing to compress")
    gzip = zlib.compressobj(9, wbits=31)        # 31: with gzip's header and check sum
    zipped = gzip.compress(data) + gzip.flush()
    # a dictionary larger than the data finds nothing more, and xz -9 would reserve 674 MiB for it
    dictionary = min(64 << 20, max(4096, 1 << (len(data) - 1).bit_length()))
    xz = lzma.compress(data, filters=[{"id": lzma.FILTER_LZMA2, "preset": 9, "dict_size": dictionary}])
    return {"gzip": 8.0 * len(zipped) / len(data), "xz": 8.0 * len(xz) / len(data)}


def _score(model: Any, tokens: np.ndarray, batch: Sequence[Window], prefix_id: int) -> float:
    """Nats of one batch of windows, all of the same length."""
    targets = np.stack([tokens[w.begin:w.end] for w in batch]).astype(np.int64)                     # [B,T]
    inputs = np.empty_like(targets)
    inputs[:, 1:] = targets[:, :-1]
    inputs[:, 0] = [tokens[w.begin - 1] if w.begin else prefix_id for w in batch]
    for row, w in zip(targets, batch, strict=True):
        row[:w.score - w.begin] = IGNORED
    count = sum(w.end - w.score for w in batch)
    return model.loss(inputs, targets, valid_tokens=count)[1]["loss"] * count


@contextmanager
def _evaluating(model: Any) -> Iterator[None]:
    """Evaluation mode and no tape inside; the model's own mode again afterwards."""
    from nn.tensor import no_grad
    before = model.training
    model.eval()
    try:
        with no_grad():
            yield
    finally:
        model.train(before)
