"""The pre-norm decoder block: h = x + attention(norm(x)),  y = h + feed_forward(norm(h))."""

from typing import Any

from nn.layers.module import Module
from nn.layers.residual import Residual
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

    def forward(self, x: Tensor | Residual, *, state: Any = None, mask: Array | None = None,
                mode: str | None = None) -> tuple[Any, Any]:
        """x[B,T,D] -> (y[B,T,D], state); given a Residual, y is one too: the block after it forms the sum."""
        n, h = self.input_layernorm(x if isinstance(x, Residual) else Residual(x))
        a, state = self.self_attn(n, state=state, mask=mask, mode=mode)
        n, h = self.post_attention_layernorm(Residual(h, a))
        y = Residual(h, self.mlp(n, mask))
        return (y if isinstance(x, Residual) else y.total()), state
