"""Transformer: a decoder, an encoder, or an encoder and a decoder that reads it (Vaswani et al. 2017).

    model = Transformer(TransformerConfig(vocab_size=256, d_model=128, n_layers=4))
    logits = model(ids)                                        # [B,T,V] of integers [B,T]
    cache = KVCache(num_layers=model.cfg.n_layers)
    logits = model(prompt, kv_cache=cache, is_decode=False)    # begins anew, whatever the cache held
    logits = model(next_ids, kv_cache=cache, is_decode=True)   # goes on behind it

The layers are those of nn/models/language_model.py, one of which each of the two parts is."""

import copy
from contextlib import nullcontext
from typing import Any

import numpy as np

from nn.backends.array_api import on_device
from nn.cache import KVCache
from nn.data.objectives import shift_right
from nn.errors import InputError
from nn.generate import SamplingConfig, generate_batch
from nn.layers import auxiliary
from nn.layers.formulas import total
from nn.layers.module import Module
from nn.layers.noise import noise_counters
from nn.layers.shapes import Shapes
from nn.models.language_model import LanguageModel
from nn.models.transformer_config import TransformerConfig
from nn.models.transformer_parts import Continuation, Emitted, Source, cache_state, part_config
from nn.tape import no_grad
from nn.tensor import Array, Tensor

MOE_LOSSES = ("moe/load_balance", "moe/router_z", "moe/router_entropy")
RENAMED = {"moe/balance_token_entropy": "moe/router_entropy"}


def _of_main(name: str, doc: str) -> Any:
    """An attribute of the part that predicts"""
    return property(lambda self: getattr(self.main, name),
                    lambda self, value: setattr(self.main, name, value), doc=doc)


class Transformer(Module):
    """decoder, encoder: language models, None where cfg.mode has none; a seq2seq's share the embedding.

    cfg (also config): a copy of what it was built from; to change it, build another.
    Parameters are drawn when first used, each from its own random stream, named by (seed, name)."""

    def __init__(self, cfg: TransformerConfig, seed: int = 0, dtype: Any = "float32") -> None:
        if not isinstance(cfg, TransformerConfig):
            raise InputError(f"cfg: {type(cfg).__name__}; give a TransformerConfig")
        cfg.check()
        cfg = self.cfg = copy.deepcopy(cfg)
        self.decoder = None if cfg.mode == "encoder" else LanguageModel(part_config(cfg, False), seed, dtype)
        self.encoder = None if cfg.mode == "decoder" else LanguageModel(part_config(cfg, True), seed, dtype)
        if self.decoder and self.encoder:
            self.encoder.embed_tokens = self.decoder.embed_tokens
        if cfg.recursive:
            head = self.main
            head.body.exit_router.read_out(lambda h: head.logits(head.norm(h) if head.norm else h))
        self.initialize(seed)

    @property
    def main(self) -> LanguageModel:
        """The part that predicts."""
        part = self.decoder or self.encoder
        assert part is not None
        return part

    # ---- calling ----

    def forward(self, ids: Any, tgt_ids: Any = None, *, mask: Any = None, tgt_mask: Any = None,
                kv_cache: KVCache | None = None, is_decode: bool = False, cache: Any = None,
                last_only: bool = False, return_aux: bool = False,
                recurrence_steps: int | None = None) -> Any:
        """Logits [B,T,V] of ids [B,T]; of a seq2seq model, of tgt_ids [B,T] behind the source ids [B,S]; an
        encoder's hidden states [B,S,D].  Integers from whatever has the array interface.

        mask: keep-mask of ids, tgt_mask of tgt_ids, False at padding; over cached and new tokens.
        kv_cache: keys and values, without gradients.  is_decode: the tokens follow those that it holds, any
        number of them; otherwise it is emptied first.  A seq2seq model encodes its source when the cache is
        empty; then ids and mask may be None.  cache: the same with is_decode, or another state (nn.generate).
        last_only: logits of the last position only.  recurrence_steps: another depth than cfg's.
        return_aux: also {name: scalar}: moe/load_balance, moe/router_z, moe/router_entropy, weighted as
        loss() adds them; recurrence/exit_frac, the share of the tokens that left, which it does not."""
        if isinstance(cache, KVCache):
            kv_cache, is_decode, cache = cache, True, None
        self._check_call(tgt_ids, tgt_mask, kv_cache or cache, is_decode)
        given: dict[str, Any] = {"last_only": last_only, "steps": recurrence_steps}
        collecting = auxiliary.collect() if return_aux else nullcontext(auxiliary.Auxiliary())
        with collecting as emitted:
            if self.cfg.mode == "encoder":
                y = self.encode(ids, mask, recurrence_steps)
            elif self.cfg.mode == "decoder":
                y = self._decoded("ids", ids, mask, kv_cache, is_decode, cache, **given)
            else:
                y = self._translated(ids, tgt_ids, mask, tgt_mask, kv_cache, is_decode, **given)
        return (y, self._aux(emitted)) if return_aux else y

    def _check_call(self, tgt_ids: Any, tgt_mask: Any, cache: Any, is_decode: bool) -> None:
        mode = self.cfg.mode
        if (tgt_ids is None) == (mode == "seq2seq") or (tgt_mask is not None and tgt_ids is None):
            wants = "model(src_ids, tgt_ids)" if mode == "seq2seq" else "model(ids)"
            raise InputError(f"tgt_ids: a model with mode {mode!r} is called as {wants}")
        if is_decode and cache is None:
            raise InputError("is_decode: there is nothing to go on with; give kv_cache=")
        if cache is not None and mode == "encoder":
            raise InputError("kv_cache: an encoder reads whole sequences, it keeps none")

    def encode(self, ids: Any, mask: Any = None, recurrence_steps: int | None = None) -> Tensor:
        """An encoder's hidden states [B,S,D], normalised, of ids [B,S]; mask [B,S], False at padding."""
        if self.encoder is None:
            raise InputError(f"mode: {self.cfg.mode!r} has no encoder")
        shapes = Shapes()
        ids = shapes.ids("ids", ids, "B S", self.cfg.vocab_size)
        keep = shapes.mask("mask", mask, "B S")
        return self.encoder.hidden(ids, mask=keep, **self._depth(recurrence_steps))

    def _decoded(self, name: str, ids: Any, mask: Any, kv_cache: KVCache | None, is_decode: bool,
                 cache: Any = None, *, last_only: bool = False, steps: int | None = None,
                 source: Source | None = None) -> Tensor:
        """Logits of the decoder, which may read a source"""
        assert self.decoder is not None
        shapes = Shapes(**({"B": len(source.ids)} if source else {}))
        ids = shapes.ids(name, ids, "B T", self.cfg.vocab_size)
        if kv_cache is not None:
            if not is_decode and kv_cache.offset:            # tokens were seen, if none is held
                kv_cache.reset()
            self._check_cache(kv_cache, shapes, steps)
            cache = cache_state(self.cfg, kv_cache, ids.shape[0], steps, source)
            shapes.sizes["S"] = kv_cache.length + ids.shape[1], "cached and new tokens"
        mask = shapes.mask("tgt_mask" if source else "mask", mask, "B S" if cache is not None else "B T")
        given = self._depth(steps)
        if source is not None:
            given |= {"context": source.context, "context_mask": source.mask}
        with nullcontext() if cache is None else no_grad():
            hidden = self.decoder.hidden(ids, state=cache, mask=mask, **given)
            return self.decoder.logits(hidden[:, -1:] if last_only else hidden)

    def _translated(self, ids: Any, tgt_ids: Any, mask: Any, tgt_mask: Any, kv_cache: KVCache | None,
                    is_decode: bool, *, last_only: bool, steps: int | None) -> Tensor:
        """Logits of a target; its source is encoded once per cache"""
        if kv_cache is None:
            source = self.read_source(ids, mask, steps)
        elif is_decode and isinstance(kv_cache.source, Source):
            source = kv_cache.source
            source.check_same(ids, mask)
        else:
            kv_cache.reset()
            with no_grad():
                kv_cache.source = source = self.read_source(ids, mask, steps)
        return self._decoded("tgt_ids", tgt_ids, tgt_mask, kv_cache, is_decode, last_only=last_only,
                             steps=steps, source=source)

    def read_source(self, ids: Any, mask: Any = None, recurrence_steps: int | None = None) -> Source:
        """What a seq2seq decoder needs of its source: ids [B,S], mask [B,S]."""
        if ids is None:
            raise InputError("ids: None, but the cache holds no source yet; give the source's ids")
        context = self.encode(ids, mask, recurrence_steps)
        shapes = Shapes(B=context.shape[0], S=context.shape[1])
        kept = ids if on_device(ids) else np.array(ids)
        return Source.of(self.cfg, kept, shapes.mask("mask", mask, "B S"), context)

    def _depth(self, steps: int | None) -> dict[str, Any]:
        if steps is not None and not self.cfg.recursive:
            raise InputError(f"recurrence_steps: {steps}, but the model is not recursive; set cfg.recursive "
                             "and build it again")
        return {} if steps is None else {"n_steps": steps}

    def _check_cache(self, cache: KVCache, shapes: Shapes, steps: int | None) -> None:
        wanted = self.cfg.cache_layers(steps)
        if len(cache.layers) != wanted:
            each = ", one for each step of each repeated block" if self.cfg.recursive else ""
            raise InputError(f"kv_cache: has {len(cache.layers)} layers, the model needs {wanted}{each}; use "
                             f"KVCache(num_layers={wanted})")
        held, dtype = cache.layers[0].k, self.main.embed_tokens.weight.dtype
        if held is None:
            return
        if held.dtype != dtype:
            raise InputError(f"kv_cache: holds {held.dtype}, the model computes in {dtype}; a cache serves "
                             "one model")
        attn = self.cfg.block.attn
        shapes.sizes |= {"G": (attn.n_kv_heads or attn.n_heads, "n_kv_heads"),
                         "Dh": (self.cfg.head_dim, "head_dim")}
        shapes.check("kv_cache", held, "B G held Dh")

    def _aux(self, emitted: auxiliary.Auxiliary) -> dict[str, Tensor]:
        """{name: scalar}"""
        found = {RENAMED.get(name, name): loss for name, loss in emitted.totals().items()}
        if self.cfg.block.ffn_type == "moe" and self.cfg.block.moe.aux_loss:
            found = {name: found.pop(name, Tensor(np.float32(0.0))) for name in MOE_LOSSES} | found
        for name, value in emitted.figures:
            if name == "recurrence/exit_frac":
                found[name] = Tensor(value)
        return found

    # ---- losses ----

    def loss(self, inputs: Any, targets: Any, **options: Any) -> tuple[Tensor, dict[str, Any]]:
        """(total, figures), total: mean cross-entropy of the targets that count + auxiliary losses, in nats.

        decoder: targets [B,T] are the tokens behind each of the inputs.  encoder (masked language model):
        targets are the tokens at the masked places, -100 elsewhere (nn.data.objectives.masked_lm).  seq2seq:
        inputs are the source, targets its answer, which the decoder is given shifted right.
        options: mask (of the inputs), recurrence_steps, and those of nn.models.decoder.Decoder.loss."""
        total, figures = self.loss_terms(inputs, targets, **options)
        return total, {name: _on_host(value) for name, value in figures.items()}

    def loss_terms(self, inputs: Any, targets: Any, *, mask: Any = None, recurrence_steps: int | None = None,
                   aux_scale: float = 1.0, ignore_index: int = -100,
                   **options: Any) -> tuple[Tensor, dict[str, Array]]:
        """loss() with figures left as arrays."""
        options |= {"aux_scale": aux_scale, "ignore_index": ignore_index, **self._depth(recurrence_steps)}
        shapes = Shapes()
        inputs = shapes.ids("inputs", inputs, "B S", self.cfg.vocab_size)
        keep = shapes.mask("mask", mask, "B S")
        if self.cfg.mode != "seq2seq":
            return self.main.loss_terms(inputs, targets, mask=keep, **options)
        labels = targets if on_device(targets) else np.asarray(targets)
        shapes.check("targets", labels, "B T")
        with auxiliary.collect() as emitted:
            context = self.encode(inputs, keep, recurrence_steps)
        decoder = self.main
        own, decoder.constraints = decoder.constraints, [Emitted(emitted.totals()), *decoder.constraints]
        try:
            return decoder.loss_terms(
                shift_right(labels, self.cfg.start_id, self.cfg.pad_id, ignore_index), labels,
                context=context, context_mask=keep, mask=_up_to_last(labels != ignore_index), **options)
        finally:
            decoder.constraints = own

    # ---- generating ----

    def init_state(self, batch_size: int) -> KVCache:
        """An empty cache for `model(ids, cache=...)`."""
        return KVCache(self.cfg.cache_layers())

    def generate(self, src_ids: Any, config: SamplingConfig | None = None, *,
                 mask: Any = None) -> list[list[int]]:
        """Of a seq2seq model: the targets of sources [B,S], without their start token, up to an id of
        config.eos_ids.  A decoder's texts are nn.generate's."""
        source = Continuation(self, src_ids, mask)
        return generate_batch(source, [[self.cfg.start_id]] * source.batch, config or SamplingConfig())

    # ---- as any other model ----

    @property
    def config(self) -> TransformerConfig:
        """cfg."""
        return self.cfg

    vocab_size = _of_main("vocab_size", "Tokens in the vocabulary.")
    context = _of_main("context", "Tokens that can be held at once.")
    rereads = _of_main("rereads", "Whether positions end with the context.")
    embed_tokens = _of_main("embed_tokens", "The embedding; all parts have the same.")
    hooks = _of_main("hooks", "Of the part that predicts (nn/models/hooks.py).")
    constraints = _of_main("constraints", "Of the part that predicts.")

    @property
    def static_problem(self) -> str:
        """Why no cache of fixed size serves this model; empty if one does."""
        return self.main.static_problem if self.cfg.mode == "decoder" else f"mode: {self.cfg.mode}"

    @property
    def gradient_checkpointing(self) -> bool:
        """Whether layers are run again in backward: memory for time."""
        return self.main.gradient_checkpointing

    @gradient_checkpointing.setter
    def gradient_checkpointing(self, on: bool) -> None:
        for part in (self.encoder, self.decoder):
            if part:
                part.gradient_checkpointing = on

    def set_noise(self, seed: int, step: int, micro: int = 0) -> None:
        """Which random numbers the layers draw: the same triple draws the same."""
        self.main.step = step
        for module, place in noise_counters(self, seed, step, micro):
            module.noise = place

    def num_parameters(self, active: bool = False) -> int:
        """Of the whole model, or only those that one token meets (`active`)."""
        if not active:
            return super().num_parameters()
        parts = [part.config.parameters(True) for part in (self.decoder, self.encoder) if part]
        shared = parts[1]["embedding"] if len(parts) > 1 else 0
        return sum(total(counts) for counts in parts) - shared


def _up_to_last(counts: Array) -> Array | None:
    """[B,T] True up to each row's last True; None if that is everywhere, or unread on a device"""
    if on_device(counts):
        return None
    keep = np.flip(np.maximum.accumulate(np.flip(counts, 1), axis=1), 1)
    return None if keep.all() else keep


def _on_host(value: Array) -> Any:
    """A number, or a NumPy array"""
    host = value.numpy() if on_device(value) else np.asarray(value)
    return float(host) if host.ndim == 0 else host
