"""The pre-norm decoder block: h = x + attention(norm(x)),  y = h + feed_forward(norm(h))."""

from typing import Any

from nn.layers.module import Module
from nn.tensor import Array, Tensor


class DecoderBlock(Module):
    """Any attention and any feed-forward layer, each behind its own norm, around one residual stream."""

    def __init__(self, input_layernorm: Module, self_attn: Any, post_attention_layernorm: Module,
                 mlp: Module) -> None:
        self.input_layernorm = input_layernorm
        self.self_attn = self_attn
        self.post_attention_layernorm = post_attention_layernorm
        self.mlp = mlp

    def init_state(self, batch_size: int) -> Any:
        return self.self_attn.init_state(batch_size)

    def forward(self, x: Tensor, *, state: Any = None, mask: Array | None = None,
                mode: str | None = None) -> tuple[Tensor, Any]:
        """x[B,T,D] -> (y[B,T,D], state)"""
        a, state = self.self_attn(self.input_layernorm(x), state=state, mask=mask, mode=mode)
        h = x + a
        return h + self.mlp(self.post_attention_layernorm(h)), state
