"""What a Transformer is put together from: the language model of each part, the states behind a KVCache, and
what a decoder reads of its source."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from nn import ops
from nn.backends.array_api import on_device
from nn.cache import KVCache
from nn.errors import InputError
from nn.layers.attention.cross import ContextState
from nn.layers.recursion.engine import RecursionState
from nn.layers.stack import LayerState, StackState
from nn.models.language_config import LanguageModelConfig
from nn.models.language_model import ModelState
from nn.models.transformer_config import NORM_POSITIONS, TransformerConfig
from nn.state import State
from nn.tensor import Array, Tensor

if TYPE_CHECKING:
    from nn.models.transformer import Transformer


# ---- configurations ----

def part_config(cfg: TransformerConfig, encoder: bool) -> LanguageModelConfig:
    """Of the encoder or of the decoder."""
    b, reads = cfg.block, cfg.mode == "seq2seq" and not encoder
    layers = cfg.n_encoder_layers or cfg.n_layers if encoder and cfg.mode == "seq2seq" else cfg.n_layers
    options = {"full_attention": _attention(cfg), b.ffn_type: _feed_forward(cfg)}
    if reads:
        options["cross_attention"] = _cross_attention(cfg)
    body: dict[str, Any] = {}
    if cfg.recursive:
        body = {"body": "recursion", "recursion": _recursion(cfg, encoder)}
    return LanguageModelConfig(
        vocab_size=cfg.vocab_size, hidden_size=cfg.d_model, max_seq_len=cfg.max_seq_len,
        num_layers=cfg.recursive_blocks if cfg.recursive else layers, feed_forward=b.ffn_type,
        memory="cross_attention" if reads else "none", memory_at="post_attn", options=options,
        residual=NORM_POSITIONS[b.norm_position], final_norm=b.norm_position != "post", causal=not encoder,
        norm=b.norm, norm_eps=b.eps, tie_embeddings=cfg.tie_embeddings or (encoder and cfg.mode == "seq2seq"),
        positions="none" if b.positional == "rope" else b.positional, init_std=cfg.init_std,
        resid_dropout=b.dropout, **body)


def _heads(cfg: TransformerConfig) -> dict[str, Any]:
    """Of attention of either kind"""
    a = cfg.block.attn
    return {"num_heads": a.n_heads, "num_kv_heads": a.n_kv_heads, "head_dim": a.head_dim, "attn_bias": a.bias,
            "out_bias": a.bias, "qk_norm": a.qk_norm, "attn_dropout": a.dropout,
            "backend": cfg.block.attn_backend}


def _attention(cfg: TransformerConfig) -> dict[str, Any]:
    theta = cfg.block.attn.rope_theta if cfg.block.positional == "rope" else 0.0
    return _heads(cfg) | {"window": cfg.block.attn.window, "rope_theta": theta}


def _cross_attention(cfg: TransformerConfig) -> dict[str, Any]:
    """Without positions: the source's states have them."""
    return _heads(cfg) | {"context_length": cfg.max_seq_len}


def _feed_forward(cfg: TransformerConfig) -> dict[str, Any]:
    b, m = cfg.block, cfg.block.moe
    if b.ffn_type == "swiglu":
        return {"intermediate_size": cfg.d_ff, "bias": b.bias}
    if b.ffn_type == "mlp":
        return {"intermediate_size": cfg.d_ff, "activation": b.activation, "bias": b.bias}
    weights = {"switch": m.load_balance_coef, "token_entropy": m.router_entropy_coef}
    return {"intermediate_size": m.expert_hidden or cfg.d_ff, "activation": m.activation or b.activation,
            "num_experts": m.num_experts, "top_k": m.top_k, "renormalize": m.top_k > 1,
            "router_jitter": m.jitter, "capacity_factor": m.capacity_factor,
            "balance": weights if m.aux_loss else "none", "router_z_coef": m.router_z_coef * m.aux_loss}


def _recursion(cfg: TransformerConfig, encoder: bool) -> dict[str, Any]:
    """The blocks hold their own residual connections, so that what they add is added once: residual is
    replace here.  A seq2seq encoder predicts nothing that tokens could leave by."""
    exit_router = "never" if encoder and cfg.mode == "seq2seq" else cfg.exit_router
    return {"recurrence_steps": cfg.recurrence_steps, "inject_input": cfg.inject_input,
            "rule": "replace" if cfg.update_rule == "residual" else cfg.update_rule,
            "step_embedding": cfg.step_embedding, "max_steps": max(16, cfg.recurrence_steps),
            "bptt_steps": cfg.bptt_steps, "exit": exit_router, "exit_threshold": cfg.exit_threshold}


# ---- states ----

@dataclass
class Source(State):
    """What a decoder reads: the source's ids, its encoding, and the keys and values that layers made of it,
    once they have."""

    ids: Array                      # [B,S]
    context: Tensor                 # [B,S,D]
    layers: list[ContextState]
    mask: np.ndarray | None = None  # [B,S]

    @classmethod
    def of(cls, cfg: TransformerConfig, ids: Array, mask: np.ndarray | None, context: Tensor) -> "Source":
        count = cfg.recursive_blocks if cfg.recursive else cfg.n_layers
        return cls(ids, context, [ContextState() for _ in range(count)], mask)

    def reorder(self, rows: Array) -> None:
        super().reorder(rows)
        self.context = ops.take(self.context, rows)

    def check_same(self, ids: Any, mask: Any) -> None:
        """InputError if these are ids, or a mask, of another source."""
        before = np.ones(self.ids.shape, bool) if self.mask is None else self.mask
        if mask is not None and not np.array_equal(mask, before):
            raise InputError("mask: another one than the source's that the cache was begun with; give None, "
                             "or begin with is_decode=False")
        if ids is None or on_device(ids) or np.array_equal(ids, self.ids):
            return
        raise InputError(f"ids: another source (shape {list(np.shape(ids))}) than the one that the cache was "
                         f"begun with ({list(self.ids.shape)}); give None, or begin with is_decode=False")


def cache_state(cfg: TransformerConfig, cache: KVCache, batch: int, steps: int | None,
                source: Source | None = None) -> ModelState:
    """The decoder's state whose keys and values are the cache's: slot layer · steps + step.  The keys of a
    source are the same in every step."""
    count = cfg.recurrence_steps if steps is None else steps

    def stack(step: int, stride: int) -> StackState:
        reads = source.layers if source else [None] * len(cache.layers)
        return StackState([LayerState(mixer=layer, memory=read)
                           for layer, read in zip(cache.layers[step::stride], reads, strict=False)])

    body: Any = RecursionState([stack(s, count) for s in range(count)]) if cfg.recursive else stack(0, 1)
    padding = np.zeros(batch, np.int64) + (cache.layers[0].padding if cache.layers else 0)
    return ModelState([], body, padding, cache.length, cache.offset)


# ---- losses ----

class Emitted:
    """What the encoder's layers add to the loss, as a constraint of the decoder (nn/models/hooks.py): hooks
    see it among the terms."""

    def __init__(self, losses: dict[str, Tensor]) -> None:
        self.losses = {f"encoder/{name}": loss for name, loss in losses.items()}

    def terms(self, model: Any, batch: Any, outputs: dict[str, Tensor], step: int) -> dict[str, Tensor]:
        return self.losses


# ---- generating ----

class Continuation:
    """A seq2seq model and its sources, as nn.generate takes a model that continues texts: it writes their
    targets."""

    device = None                   # tokens are drawn on the host

    def __init__(self, model: "Transformer", src_ids: Any, mask: Any = None) -> None:
        self.model, self.src_ids, self.mask, self.config = model, src_ids, mask, model.cfg
        self.batch = len(src_ids)

    @property
    def rereads(self) -> bool:
        """Whether positions end with the context."""
        return self.model.main.rereads

    @property
    def training(self) -> bool:
        """The model's mode."""
        return self.model.training

    @training.setter
    def training(self, on: bool) -> None:
        self.model.train(on)

    def train(self, on: bool = True) -> Any:
        return self.model.train(on)

    def init_state(self, batch_size: int) -> KVCache:
        cache = self.model.init_state(batch_size)
        cache.source = self.model.read_source(self.src_ids, self.mask)
        return cache

    def __call__(self, ids: Any, *, cache: Any = None, last_only: bool = False) -> Tensor:
        source = self.src_ids if cache is None else None
        mask = self.mask if cache is None else None
        logits: Tensor = self.model(source, ids, mask=mask, cache=cache, last_only=last_only)
        return logits
