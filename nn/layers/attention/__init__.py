"""Attention layers."""

from nn.layers.attention.block import AttentionBlock, MLABlock
from nn.layers.attention.causal import AttentionSettings, CausalSelfAttention
from nn.layers.attention.grouped import GroupedAttention
from nn.layers.attention.kv_cache import KVCache
from nn.layers.attention.mla import MLA, MLACache, MLASettings, MultiHeadLatentAttention

__all__ = ["MLA", "AttentionBlock", "AttentionSettings", "CausalSelfAttention", "GroupedAttention", "KVCache",
           "MLABlock", "MLACache", "MLASettings", "MultiHeadLatentAttention"]
