"""What a model is to predict, made of plain token ids: masked language modelling, denoising, shifted targets.

    inputs, labels = masked_lm(ids, mask_id=4, vocab_size=1000, seed=0, step=7)      # encoder: BERT
    inputs, labels = span_corruption(ids, sentinels=range(999, 899, -1), random=random)    # seq2seq: T5
    decoder_inputs = shift_right(labels, start_id=0, pad_id=0)

Labels of -100 are not predicted."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from nn.errors import InputError
from nn.random import derive, uniform

IGNORED = -100


def shift_right(labels: Any, start_id: int, pad_id: int, ignore_index: int = IGNORED) -> Any:
    """What a decoder is given while it learns to predict labels [B,T]: start_id, then all but the last of
    them, pad_id where one is not predicted.  Arrays of a device stay there."""
    from nn.backends.array_api import namespace
    labels = labels if hasattr(labels, "__array_namespace__") else np.asarray(labels)
    if labels.ndim != 2 or labels.dtype.kind not in "iu":
        raise InputError(f"labels: shape {list(labels.shape)} of {labels.dtype}; expected integers [B,T]")
    xp = namespace(labels)
    start = xp.full((labels.shape[0], min(1, labels.shape[1])), start_id, dtype=labels.dtype)
    shifted = xp.concat([start, labels[:, :-1]], axis=1)
    return xp.where(shifted == ignore_index, xp.full_like(shifted, pad_id), shifted)


def masked_lm(ids: Any, *, mask_id: int, vocab_size: int, special_ids: Sequence[int] = (), rate: float = 0.15,
              at_least_one: bool = False, seed: int = 0, step: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """(inputs, labels), both [B,T]: of the ids that are not special (padding is to be named there), each is
    chosen with probability `rate` and becomes mask_id in 8 cases of 10, any id in 1, and stays in 1; labels
    are the chosen ids, -100 elsewhere   (Devlin et al. 2018).

    at_least_one: a row of which none was chosen gets the one that was nearest to it.
    The draw is a function of (seed, step)."""
    ids = np.asarray(ids)
    if ids.ndim != 2 or ids.dtype.kind not in "iu":
        raise InputError(f"ids: shape {list(ids.shape)} of {ids.dtype}; expected integers [B,T]")
    if not 0.0 <= rate <= 1.0 or not 0 <= mask_id < vocab_size:
        raise InputError(f"rate: {rate}, mask_id: {mask_id}; expected a rate in [0, 1] and an id below "
                         f"vocab_size = {vocab_size}")
    ids = _signed(ids)
    choice, kind, other = (uniform(derive(seed, f"masked_lm/{what}"), step, shape=ids.shape)
                           for what in ("choice", "kind", "other"))
    choice = np.where(np.isin(ids, list(special_ids)), np.inf, choice)
    chosen = choice < rate
    if at_least_one and ids.shape[1]:
        nearest = choice.argmin(axis=1)[:, None]
        empty = ~chosen.any(axis=1, keepdims=True) & np.isfinite(np.take_along_axis(choice, nearest, 1))
        chosen |= empty & (np.arange(ids.shape[1]) == nearest)
    drawn = np.minimum((other * vocab_size).astype(ids.dtype), vocab_size - 1)
    inputs = np.where(chosen & (kind < 0.8), mask_id, np.where(chosen & (kind >= 0.9), drawn, ids))
    return inputs, np.where(chosen, ids, IGNORED)


def span_corruption(ids: Any, *, sentinels: Sequence[int], random: np.random.Generator, density: float = 0.15,
                    mean_span: float = 3.0) -> tuple[np.ndarray, np.ndarray]:
    """(inputs, labels) of ids [T], one sequence: spans of about mean_span tokens, `density` of all, are each
    replaced by the next sentinel; labels are each sentinel and what it stands for, and one sentinel more at
    the end   (Raffel et al. 2020)."""
    ids, sentinels = _signed(np.asarray(ids)), list(sentinels)
    length = ids.size
    if ids.ndim != 1 or length < 2 or not 0.0 < density < 1.0 or mean_span < 1.0:
        raise InputError(f"ids: shape {list(ids.shape)}, density: {density}, mean_span: {mean_span}; "
                         "expected two ids or more in a row, a density in (0, 1) and spans of 1 or more")
    hidden = min(max(round(length * density), 1), length - 1)
    spans = min(max(round(hidden / mean_span), 1), hidden, length - hidden)
    if len(sentinels) <= spans:
        raise InputError(f"sentinels: {len(sentinels)} are too few for {spans} spans and the labels' end")
    shown, gone = _parts(length - hidden, spans, random), _parts(hidden, spans, random)
    inputs, labels, at = [], [], 0
    for sentinel, keep, drop in zip(sentinels, shown, gone, strict=False):
        inputs += [*ids[at : at + keep], sentinel]
        labels += [sentinel, *ids[at + keep : at + keep + drop]]
        at += keep + drop
    return np.array(inputs, ids.dtype), np.array([*labels, sentinels[spans]], ids.dtype)


def _signed(ids: np.ndarray) -> np.ndarray:
    """Tokens are stored in types too narrow for labels of -100, or for ids that do not occur among them"""
    return ids if ids.dtype.kind == "i" and ids.itemsize >= 4 else ids.astype(np.int64)


def _parts(total: int, count: int, random: np.random.Generator) -> np.ndarray:
    """`count` positive whole numbers that add up to `total`, every way equally likely"""
    cuts = np.sort(random.choice(np.arange(1, total), count - 1, replace=False))
    return np.diff(np.concatenate([[0], cuts, [total]]))
