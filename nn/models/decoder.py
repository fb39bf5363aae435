"""The decoder stack: embedding, blocks, final norm, head.

Every decoder-only model is this with other layers in it."""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import numpy as np

from nn import ops
from nn.backends.array_api import namespace, on_device
from nn.cache import KVCache, StaticKVCache
from nn.errors import InputError
from nn.layers import auxiliary
from nn.layers.linear import Embedding, Linear
from nn.layers.module import Module
from nn.layers.residual import Residual
from nn.tape import no_grad, state
from nn.tensor import Array, Tensor

Cache = KVCache | StaticKVCache


class Decoder(Module):
    """ids [B,T] -> logits [B,T,V].

    gradient_checkpointing: keep only each block's input and run the block again in backward."""

    def __init__(self, embed_tokens: Embedding, layers: list[Any], norm: Module, lm_head: Linear | None,
                 max_seq_len: int) -> None:
        self.embed_tokens = embed_tokens
        self.layers = layers
        self.norm = norm
        self.lm_head = lm_head               # None: tied to the embedding
        self.max_seq_len = max_seq_len
        self.gradient_checkpointing = False

    @property
    def vocab_size(self) -> int:
        return self.embed_tokens.weight.shape[0]

    def init_state(self, batch_size: int) -> KVCache:
        """An empty cache for `model(ids, cache=...)`."""
        return KVCache(len(self.layers))

    def forward(self, ids: Any, *, cache: Cache | None = None, mask: Any = None, last_only: bool = False,
                return_aux: bool = False) -> Any:
        """Logits [B,T,V] of integer ids [B,T].

        cache: keys and values of what came before; extended by these tokens, without gradients.
        mask: keep-mask [B,S] over cached and new tokens (False = padding).
        last_only: logits of the last position only, [B,1,V].
        return_aux: also a dict of auxiliary losses.
        InputError for ids outside the vocabulary or more tokens than the context."""
        ids = self._checked(ids, cache)
        keep = None if mask is None else _checked_mask(mask, (ids.shape[0], _held(cache) + ids.shape[1]))
        collecting = auxiliary.collect() if return_aux else nullcontext(auxiliary.Auxiliary())
        with no_grad() if cache is not None else nullcontext(), collecting as aux:
            hidden = self._hidden(ids, cache, keep)
            if isinstance(cache, StaticKVCache):
                cache.advance(ids.shape[1])
            if last_only:
                hidden = hidden[:, -1:]
            logits = ops.linear(hidden, self._head())
        return (logits, aux.totals()) if return_aux else logits

    def loss(self, inputs: Any, targets: Any, *, valid_tokens: int | None = None, aux_scale: float = 1.0,
             ignore_index: int = -100) -> tuple[Tensor, dict[str, Any]]:
        """(total, figures), without the logits of all positions ever existing at once.

        total: Σ cross-entropy / valid_tokens + aux_scale · Σ auxiliary losses, a scalar in nats.
        figures: "loss" and each auxiliary loss as floats, "moe/load" [layers, experts] and what else the
        layers report.
        inputs, targets: integers [B,T]; targets equal to ignore_index do not count.
        valid_tokens: by default the number of targets that count; for gradient accumulation pass the number
        in all micro-batches, and aux_scale = 1 / their number."""
        total, figures = self.loss_terms(inputs, targets, valid_tokens=valid_tokens, aux_scale=aux_scale,
                                         ignore_index=ignore_index)
        return total, {name: _on_host(value) for name, value in figures.items()}

    def loss_terms(self, inputs: Any, targets: Any, *, valid_tokens: Any = None, aux_scale: float = 1.0,
                   ignore_index: int = -100) -> tuple[Tensor, dict[str, Array]]:
        """loss() with figures left as arrays: scalars [], or one entry per layer [layers, ...].  On a device
        nothing is read back; inputs and targets may be there already, unchecked, and then valid_tokens, which
        may be an array on the device, must be given."""
        ids, labels = self._checked(inputs, None), _as_labels(targets)
        if labels.shape != ids.shape or labels.dtype.kind not in "iu":
            raise InputError(f"targets: shape {list(labels.shape)} of {labels.dtype} does not match "
                             f"the inputs, integers {list(ids.shape)}")
        labels = labels.reshape(-1)
        if valid_tokens is None:
            valid_tokens = int((labels != ignore_index).sum())
        if isinstance(valid_tokens, int):
            valid_tokens = max(1, valid_tokens)
        with auxiliary.collect() as aux:
            hidden = self._hidden(ids, None, None)
            loss = ops.linear_cross_entropy(hidden, self._head(), labels, scale=1.0 / valid_tokens,
                                            ignore_index=ignore_index)
        extra, total = aux.totals(), loss
        for term in extra.values():
            total = total + term * aux_scale
        figures = {"loss": loss.data} | {name: term.data for name, term in extra.items()}
        for name in dict.fromkeys(name for name, _ in aux.figures):
            figures[name] = _stacked([value for key, value in aux.figures if key == name])
        return total, figures

    def _head(self) -> Tensor:
        return self.lm_head.weight if self.lm_head else self.embed_tokens.weight

    def _hidden(self, ids: Array, cache: Cache | None, mask: Array | None) -> Tensor:
        """[B,T] -> [B,T,D], normalised, ready for the head"""
        x = Residual(self.embed_tokens(ids))
        recompute = self.gradient_checkpointing and state.recording and cache is None
        for i, layer in enumerate(self.layers):
            if recompute:
                x = Residual(_checkpointed(layer, x.total(), mask))         # one array is kept, not two
            else:
                x, _ = layer(x, state=cache.layers[i] if cache else None, mask=mask)
        return self.norm(x)[0]

    def _checked(self, ids: Any, cache: Cache | None) -> Array:
        ids = ids if hasattr(ids, "__array_namespace__") else _as_array(ids)
        if ids.ndim != 2 or ids.dtype.kind not in "iu":
            raise InputError(f"ids: shape {list(ids.shape)} of {ids.dtype}; "
                             "expected integers [batch, length]")
        if cache is not None and len(cache.layers) != len(self.layers):
            raise InputError(f"cache: made for {len(cache.layers)} layers, "
                             f"the model has {len(self.layers)}; use init_state()")
        held = _held(cache)
        if held + ids.shape[1] > self.max_seq_len:
            raise InputError(f"ids: {held} cached + {ids.shape[1]} new tokens exceed "
                             f"the context of {self.max_seq_len}; shorten the input, or trim() the cache")
        return ids


def _held(cache: Cache | None) -> int:
    return cache.length if cache is not None else 0


def _as_labels(targets: Any) -> Array:
    return targets if on_device(targets) else np.asarray(targets)


def _stacked(values: list[Array]) -> Array:
    """[layers, ...]"""
    return namespace(values[0]).stack(values) if on_device(values[0]) else np.stack(values)


def _on_host(value: Array) -> Any:
    """A number, or a NumPy array"""
    host = value.numpy() if on_device(value) else np.asarray(value)
    return float(host) if host.ndim == 0 else host


def _as_array(ids: Any) -> np.ndarray:
    try:
        return np.asarray(ids)
    except ValueError:
        raise InputError("ids: rows of different lengths; pad them, and pass mask=") from None


def _checked_mask(mask: Any, shape: tuple[int, int]) -> np.ndarray:
    keep = np.asarray(mask)
    if keep.dtype.kind not in "biu" or (keep.size and not 0 <= keep.min() <= keep.max() <= 1):
        raise InputError(f"mask: {keep.dtype} values; expected True (or 1) for tokens and False (or 0) for "
                         "padding")
    keep = keep.astype(bool)
    if keep.shape != shape:
        raise InputError(f"mask: shape {list(keep.shape)}; "
                         f"expected [batch, cached + new tokens] = {list(shape)}")
    return keep


def _switches(layer: Module) -> list[tuple[Module, dict[str, Any]]]:
    """The modules of a layer, each with its mode and, of a router, its noise."""
    return [(module, {name: getattr(module, name) for name in ("training", "noise") if hasattr(module, name)})
            for module in layer.modules()]


@contextmanager
def _switched(switches: list[tuple[Module, dict[str, Any]]]) -> Iterator[None]:
    """Modules with the switches they had then, which may have moved on before backward."""
    now = [(module, {name: getattr(module, name) for name in then}) for module, then in switches]
    try:
        _set(switches)
        yield
    finally:
        _set(now)


def _set(switches: list[tuple[Module, dict[str, Any]]]) -> None:
    for module, attributes in switches:
        vars(module).update(attributes)


def _checkpointed(layer: Module, x: Tensor, mask: Array | None) -> Tensor:
    """The block, recomputed in backward; what it emits is emitted once, its losses keep their gradients."""
    emitted = auxiliary.Auxiliary()
    then = _switches(layer)

    def run(inputs: Tensor) -> tuple[Tensor, ...]:
        nonlocal emitted
        with _switched(then), auxiliary.collect() as emitted:
            y, _ = layer(inputs, state=None, mask=mask)
        return (y, *(loss for _, loss in emitted.losses))

    y, *losses = ops.checkpoint(run, x)
    for (name, _), loss in zip(emitted.losses, losses, strict=True):
        auxiliary.emit_loss(name, loss)
    for name, value in emitted.figures:
        auxiliary.emit_figure(name, value)
    return y
