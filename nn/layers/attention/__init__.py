"""Attention layers."""

from nn.layers.attention.grouped import GroupedAttention

__all__ = ["GroupedAttention"]
