"""What every language model has in common: embedding, a trunk of layers, final norm, head, loss.

A model is this with another trunk: nn/models/moe_transformer.py, nn/models/language_model.py."""

from collections.abc import Mapping
from contextlib import nullcontext
from typing import Any

import numpy as np

from nn import flops, ops
from nn.backends.array_api import beside, namespace, on_device
from nn.cache import StaticKVCache
from nn.errors import InputError
from nn.layers import auxiliary
from nn.layers.linear import Embedding, Linear
from nn.layers.mode import check_mode
from nn.layers.module import Module
from nn.layers.noise import noise_counters
from nn.layers.residual import Residual
from nn.models.hooks import Constraint, Hook, overriding
from nn.names import check_name
from nn.tape import no_grad
from nn.tensor import Array, Tensor


class Decoder(Module):
    """ids [B,T] -> logits [B,T,V].  A subclass defines `trunk` and init_state.

    parts: {attribute: module, or list of modules}, what stands between embedding and norm.
    norm: None leaves the final norm out.  lm_head: None ties the head to the embedding.
    gradient_checkpointing: keep only each layer's input and run the layer again in backward.
    hooks, constraints: see nn/models/hooks.py."""

    config: Any
    inputs: tuple[str, ...] = ()             # what forward takes besides ids, by keyword
    mtp: Any = None                          # what predicts further ahead in training (nn/models/mtp.py)
    packed_format: Any = None                # of a model that pack() made
    packed_head: Any = None                  # and its head
    logit_softcap = 0.0                      # logits are c·tanh(logits / c)   (Gemma 2); 0 = not

    def __init__(self, embed_tokens: Embedding, parts: Mapping[str, Any], norm: Module | None,
                 lm_head: Linear | None, max_seq_len: int) -> None:
        self.embed_tokens = embed_tokens
        for name, part in parts.items():
            setattr(self, name, part)
        self.norm = norm
        self.lm_head = lm_head
        self.max_seq_len = max_seq_len
        self.gradient_checkpointing = False
        self.hooks: list[Hook] = []
        self.constraints: list[Constraint] = []
        self.step = 0                        # the training step that set_noise was told

    @property
    def vocab_size(self) -> int:
        return self.embed_tokens.weight.shape[0]

    @property
    def context(self) -> int | None:
        """Tokens that can be held at once; None: any number."""
        return self.max_seq_len

    def init_state(self, batch_size: int) -> Any:
        """The state of no tokens, for `model(ids, cache=...)`."""
        raise TypeError(f"{type(self).__name__} defines no init_state")

    def num_parameters(self, active: bool = False) -> int:
        """Of the whole model, or only those that one token meets (`active`)."""
        return sum(flops.parameters(self.config, active).values()) if active else super().num_parameters()

    def flops(self, seq_len: int, training: bool = False) -> float:
        """Floating-point operations per token at this context, averaged over its positions; see nn.flops."""
        return sum((flops.training if training else flops.breakdown)(self.config, seq_len).values())

    def trunk(self, ids: Array, cache: Any, mask: Array | None, mode: str | None, **inputs: Any) -> Residual:
        """The stream behind the last layer, [B,T,D], before the final norm; the cache has seen the tokens."""
        raise TypeError(f"{type(self).__name__} defines no trunk")

    def set_noise(self, seed: int, step: int, micro: int = 0) -> None:
        """Which random numbers the layers draw: the same triple draws the same."""
        self.step = step
        for module, place in noise_counters(self, seed, step, micro):
            module.noise = place

    # ---- packed weights ----

    def pack(self, format: str) -> "Decoder":
        """A model for inference whose large weights are packed: f32, bf16, q8_0 or q4_0 (nn/packed).  It
        generates as this one does, on the CPU at the speed of memory, and has no gradients.

        What is not packed (embedding, norms, routers, biases) it shares with this model, the rest is as it
        was: once this one is trained further, or changed in place, the packed one is neither the old nor the
        new model.  Pack again then.  nn.layers.packed.file saves and maps models that share nothing."""
        from nn.layers.packed.convert import packed
        if self.packed_format is not None:
            raise InputError(f"pack: packed already, as {self.packed_format.name}; pack the model it was "
                             "made of")
        return packed(self, format)

    def state_dict(self) -> dict[str, np.ndarray]:
        if self.packed_format is not None:
            raise InputError("state_dict: weights are packed; keep the model that was packed, or write them "
                             "with nn.layers.packed.file.save")
        return super().state_dict()

    # ---- from ids to logits ----

    def forward(self, ids: Any, *, cache: Any = None, mask: Any = None, last_only: bool = False,
                return_aux: bool = False, mode: str | None = None, **inputs: Any) -> Any:
        """Logits [B,T,V] of integer ids [B,T].

        cache: what init_state gave: what came before; extended by these tokens, without gradients.
        mask: keep-mask [B,S] over cached and new tokens (False = padding).
        last_only: logits of the last position only, [B,1,V].
        return_aux: also a dict of auxiliary losses.
        mode: "chunk" or "recurrent" (nn/layers/protocol.py).  inputs: what the layers need besides.
        InputError for ids outside the vocabulary or more tokens than the context."""
        collecting = auxiliary.collect() if return_aux else nullcontext(auxiliary.Auxiliary())
        with no_grad() if cache is not None else nullcontext(), collecting as aux:
            hidden = self.hidden(ids, state=cache, mask=mask, mode=mode, **inputs)
            logits = self.logits(hidden[:, -1:] if last_only else hidden)
        return (logits, aux.totals()) if return_aux else logits

    def hidden(self, ids: Any, *, state: Any = None, mask: Any = None, mode: str | None = None,
               **inputs: Any) -> Tensor:
        """[B,T,D], normalised, ready for the head; as forward."""
        ids = self._checked(ids, state)
        keep = None if mask is None else _checked_mask(mask, (ids.shape[0], _held(state) + ids.shape[1]))
        return self._hidden(ids, state, keep, mode, **inputs)[0]

    def logits(self, hidden: Tensor) -> Tensor:
        """[..., D] -> [..., V]"""
        if self.packed_head is not None:
            return self._shaped(self.packed_head(hidden))
        return self._shaped(ops.linear(hidden, self._head()))

    def _hidden(self, ids: Array, cache: Any, mask: Array | None, mode: str | None,
                **inputs: Any) -> tuple[Tensor, Tensor]:
        """[B,T,D]: normalised, ready for the head, and the stream as it was"""
        for name in inputs:
            check_name("input", name, self.inputs)
        check_mode(mode)
        stream = self.trunk(ids, cache, mask, mode, **inputs)
        if isinstance(cache, StaticKVCache):
            cache.advance(ids.shape[1])
        n, h = self.norm(stream) if self.norm else [stream.total()] * 2
        for hook in self.hooks:
            n = hook.on_hidden(n)
        return n, h

    def _head(self) -> Tensor:
        return self.lm_head.weight if self.lm_head else self.embed_tokens.weight

    def _shaped(self, logits: Tensor) -> Tensor:
        """Logits as they leave the model"""
        if self.logit_softcap:
            logits = ops.tanh(logits * (1.0 / self.logit_softcap)) * self.logit_softcap
        for hook in self.hooks:
            logits = hook.on_logits(logits)
        return logits

    # ---- loss ----

    def loss(self, inputs: Any, targets: Any, *, valid_tokens: int | None = None, aux_scale: float = 1.0,
             ignore_index: int = -100, **options: Any) -> tuple[Tensor, dict[str, Any]]:
        """(total, figures), without the logits of all positions ever existing at once.

        total: Σ cross-entropy / valid_tokens + aux_scale · Σ auxiliary losses, a scalar in nats.
        figures: "loss" and each auxiliary loss as floats, "moe/load" [layers, experts] and what else the
        layers report.
        inputs, targets: integers [B,T]; targets equal to ignore_index do not count.
        valid_tokens: by default the number of targets that count; for gradient accumulation pass the number
        in all micro-batches, and aux_scale = 1 / their number.
        options: mask, mode and inputs as in forward; mode is "chunk" unless given."""
        total, figures = self.loss_terms(inputs, targets, valid_tokens=valid_tokens, aux_scale=aux_scale,
                                         ignore_index=ignore_index, **options)
        return total, {name: _on_host(value) for name, value in figures.items()}

    def loss_terms(self, inputs: Any, targets: Any, *, valid_tokens: Any = None, aux_scale: float = 1.0,
                   ignore_index: int = -100, mask: Any = None, mode: str | None = "chunk",
                   **given: Any) -> tuple[Tensor, dict[str, Array]]:
        """loss() with figures left as arrays: scalars [], or one entry per layer [layers, ...].  On a device
        nothing is read back; inputs and targets may be there already, unchecked, and then valid_tokens, which
        may be an array on the device, must be given."""
        ids, labels = self._checked(inputs, None), _as_labels(targets)
        if labels.shape != ids.shape or labels.dtype.kind not in "iu":
            raise InputError(f"targets: shape {list(labels.shape)} of {labels.dtype} does not match "
                             f"the inputs, integers {list(ids.shape)}")
        if valid_tokens is None:
            valid_tokens = int((labels != ignore_index).sum())
        if isinstance(valid_tokens, int):
            valid_tokens = max(1, valid_tokens)
        keep = None if mask is None else _checked_mask(mask, tuple(ids.shape))
        with auxiliary.collect() as aux:
            hidden, stream = self._hidden(ids, None, keep, mode, **given)
            loss = self.cross_entropy(hidden, labels.reshape(-1), 1.0 / valid_tokens, ignore_index)
            if self.mtp and aux_scale:           # its share of valid_tokens, not one of the micro-batches
                self.mtp.emit(self, ids, labels, stream, scale=1.0 / (valid_tokens * aux_scale),
                              ignore_index=ignore_index, mask=keep, mode=mode,
                              segment_ids=given.get("segment_ids"))
            outputs = {"hidden": hidden, "loss": loss}
            own = [each.terms(self, (ids, labels), outputs, self.step) for each in self.constraints]
        terms = {"loss": loss} | aux.totals()
        for extra in own:
            terms |= extra
        for hook in self.hooks:
            terms = hook.on_loss(terms)
        return _summed(terms, aux_scale), _figures(terms, aux)

    def cross_entropy(self, hidden: Tensor, labels: Array, scale: Any, ignore_index: int) -> Tensor:
        """scale · Σ cross-entropy of hidden[B,T,D] and labels[B·T]"""
        if overriding(self.hooks, "on_logits") or self.packed_head is not None:
            logits = self.logits(hidden)
            flat = logits.reshape(labels.shape[0], logits.shape[-1])
            return ops.cross_entropy(flat, labels, ignore_index=ignore_index).sum() * scale
        options = {"softcap": self.logit_softcap} if self.logit_softcap else {}
        return ops.linear_cross_entropy(hidden, self._head(), labels, scale=scale, ignore_index=ignore_index,
                                        **options)

    # ---- checks ----

    def _checked(self, ids: Any, cache: Any) -> Array:
        ids = ids if hasattr(ids, "__array_namespace__") else _as_array(ids)
        if ids.ndim != 2 or ids.dtype.kind not in "iu":
            raise InputError(f"ids: shape {list(ids.shape)} of {ids.dtype}; "
                             "expected integers [batch, length]")
        if cache is not None:
            self._check_cache(cache)
        held = _held(cache)
        if held + ids.shape[1] > self.max_seq_len and self.context is not None:
            raise InputError(f"ids: {held} cached + {ids.shape[1]} new tokens exceed "
                             f"the context of {self.max_seq_len}; shorten the input, or trim() the cache")
        if isinstance(cache, StaticKVCache) and held + ids.shape[1] > cache.capacity:
            raise InputError(f"ids: {held} cached + {ids.shape[1]} new tokens exceed the cache's capacity of "
                             f"{cache.capacity}; trim() it, or make a larger one")
        return ids

    def _check_cache(self, cache: Any) -> None:
        """InputError unless the cache is one of this model's."""


def _summed(terms: dict[str, Tensor], aux_scale: float) -> Tensor:
    total = terms["loss"]
    for name, term in terms.items():
        if name != "loss":
            total = total + term * aux_scale
    return total


def _figures(terms: dict[str, Tensor], aux: auxiliary.Auxiliary) -> dict[str, Array]:
    figures = {name: term.data for name, term in terms.items()}
    like = terms["loss"].data
    for name in dict.fromkeys(name for name, _ in aux.figures):
        found = [value for key, value in aux.figures if key == name]
        figures[name] = (auxiliary.Stacked(found) if auxiliary.later()
                         else _stacked([beside(value, like) for value in found]))
    return figures


def _held(cache: Any) -> int:
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
