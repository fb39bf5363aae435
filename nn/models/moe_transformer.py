"""MoETransformer: a decoder whose feed-forward layers are mixtures of experts.

    model = MoETransformer.tiny();  model.forward_ids([1, 2, 3, 4]).shape        # (1, 4, 1000)
"""

import math
from pathlib import Path
from typing import Any

import numpy as np

from nn.cache import KVCache, StaticKVCache
from nn.errors import InputError
from nn.layers.attention import GroupedAttention
from nn.layers.block import DecoderBlock
from nn.layers.feed_forward import FeedForward
from nn.layers.linear import Embedding, Linear
from nn.layers.module import Module
from nn.layers.moe import Experts, MoELayer, Router
from nn.layers.norm import create_norm
from nn.layers.recompute import run_layers
from nn.layers.residual import Residual
from nn.layers.rotary import Rotary
from nn.models.config import MoETransformerConfig
from nn.models.decoder import Decoder
from nn.models.presets import MOE_6_9B, TINY
from nn.tensor import Array, Tensor


class MoETransformer(Decoder):
    """Parameters are allocated on first use: describing, counting and loading a model draws nothing.

    Initialisation: Normal(0, init_std), o_proj and down_proj divided by √(2·layers) (GPT-2), norms 1; each
    parameter from its own random stream, named by (seed, parameter name)."""

    layers: list[DecoderBlock]

    def __init__(self, config: MoETransformerConfig, seed: int = 0, dtype: Any = "float32") -> None:
        c = config
        rotary = Rotary(c.head_dim, c.rope_theta, c.rope_scaling, c.max_seq_len, c.rope_interleaved)
        super().__init__(
            Embedding(c.vocab_size, c.hidden_size, std=c.init_std, dtype=dtype),
            {"layers": [_block(c, rotary, dtype) for _ in range(c.num_layers)]},
            create_norm(c.norm, c.hidden_size, c.norm_eps, dtype),
            None if c.tie_embeddings else Linear(c.hidden_size, c.vocab_size, std=c.init_std, dtype=dtype),
            c.max_seq_len)
        if self.lm_head is not None:
            self.lm_head.weight.decay = False        # as the embedding, which it may be tied to
        self.config = config
        self.initialize(seed)

    @classmethod
    def tiny(cls, seed: int = 0, dtype: Any = "float32") -> "MoETransformer":
        """542,528 parameters: 2 layers of width 64, 4 experts, 2 per token."""
        return cls(TINY, seed, dtype)

    @classmethod
    def moe_6_9b(cls, seed: int = 0, dtype: Any = "bfloat16") -> "MoETransformer":
        """6,882,678,528 parameters, 1,786,599,168 active per token; nothing is allocated until it runs."""
        return cls(MOE_6_9B, seed, dtype)

    def init_state(self, batch_size: int) -> KVCache:
        """An empty cache for `model(ids, cache=...)`."""
        return KVCache(len(self.layers))

    def trunk(self, ids: Array, cache: KVCache | StaticKVCache | None, mask: Array | None,
              mode: str | None, **inputs: Any) -> Residual:
        return run_layers(self.layers, Residual(self.embed_tokens(ids)), cache.layers if cache else None,
                          recompute=self.gradient_checkpointing, mask=mask)

    def _check_cache(self, cache: Any) -> None:
        if not isinstance(cache, KVCache | StaticKVCache):
            raise InputError(f"cache: {type(cache).__name__}; use init_state()")
        if len(cache.layers) != len(self.layers):
            raise InputError(f"cache: made for {len(cache.layers)} layers, "
                             f"the model has {len(self.layers)}; use init_state()")

    def forward_ids(self, token_ids: Any, batch: int = 1, seq_len: int | None = None) -> Tensor:
        """Logits [batch, seq_len, vocab_size] of flat ids; seq_len defaults to len(token_ids) / batch."""
        ids = np.asarray(token_ids)
        length = len(ids.reshape(-1)) // max(1, batch) if seq_len is None else seq_len
        if ids.size != batch * length:
            raise InputError(f"token_ids: {ids.size} ids do not make batch {batch} x seq_len {length}")
        return self(ids.reshape(batch, length))

    def save_pretrained(self, folder: str | Path) -> None:
        """Write config.json and model.safetensors in Mixtral's Hugging Face layout."""
        from nn.interop import mixtral
        mixtral.save(self, Path(folder))

    @classmethod
    def from_pretrained(cls, folder: str | Path, dtype: Any = None) -> "MoETransformer":
        """Read a Hugging Face folder of Mixtral's layout; dtype defaults to that of the file."""
        from nn.interop import mixtral
        config, weights = mixtral.load(Path(folder))
        model = cls(config, dtype=dtype or weights["embed_tokens.weight"].dtype)
        model.load_state_dict(weights)
        return model


def _block(c: MoETransformerConfig, rotary: Rotary, dtype: Any) -> DecoderBlock:
    residual_std = c.init_std / math.sqrt(2 * c.num_layers)
    attention = GroupedAttention(c.hidden_size, c.num_heads, c.num_kv_heads, c.head_dim, rotary,
                                 qk_norm=c.qk_norm, eps=c.norm_eps, bias=c.attention_bias,
                                 window=c.sliding_window, std=c.init_std, out_std=residual_std, dtype=dtype)
    norms = [create_norm(c.norm, c.hidden_size, c.norm_eps, dtype) for _ in range(2)]
    return DecoderBlock(norms[0], attention, norms[1], _feed_forward(c, residual_std, dtype))


def _feed_forward(c: MoETransformerConfig, residual_std: float, dtype: Any) -> Module:
    if not c.num_experts:
        return FeedForward(c.hidden_size, c.intermediate_size, c.ffn,
                           std=c.init_std, down_std=residual_std, dtype=dtype)
    router = Router(c.hidden_size, c.num_experts, c.top_k, renormalize=c.renormalize, jitter=c.router_jitter,
                    balance_coef=c.balance_coef, z_coef=c.router_z_coef, capacity_factor=c.capacity_factor,
                    drop_policy=c.drop_policy, std=c.init_std, dtype=dtype)
    experts = Experts(c.num_experts, c.hidden_size, c.intermediate_size,
                      std=c.init_std, down_std=residual_std, dtype=dtype)
    return MoELayer(router, experts)
