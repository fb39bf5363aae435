"""Attention layers with their feed-forward, norms and residual connections inside: whole layers of a model.

    block = AttentionBlock(AttentionSettings(hidden_size=64, num_heads=4, num_kv_heads=2))
    y, cache = block(x, state=block.init_state(2))"""

from typing import Any

from nn.layers.attention.causal import AttentionSettings
from nn.layers.attention.mla import MLASettings
from nn.layers.layer_block import LayerBlock, layer_of


class AttentionBlock(LayerBlock):
    """h = x + attention(norm(x)),  y = h + swiglu(norm(h));  intermediate_size: 0 = 4 hidden_size"""

    mixer = "full_attention"

    def __init__(self, settings: AttentionSettings | MLASettings, intermediate_size: int = 0, *,
                 norm: str = "rmsnorm", norm_eps: float = 1e-6, dtype: Any = "float32") -> None:
        width = intermediate_size or 4 * settings.hidden_size
        super().__init__(layer_of(self.mixer, settings, width, norm=norm, norm_eps=norm_eps), dtype)


class MLABlock(AttentionBlock):
    """The same with multi-head latent attention."""

    mixer = "mla"
