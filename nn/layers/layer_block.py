"""One layer of a stack by itself, norms and residual connection inside: a whole block of a model.

    block = LayerBlock(layer_of("mamba", MambaSettings(hidden_size=64)))
    y, state = block(x, state=block.init_state(2))          # x, y [2,T,64]

Called as a block is (nn/layers/protocol.py), but y is the stream itself, not what is added to it."""

from typing import TYPE_CHECKING, Any

from nn.layers.feed_forward import SwiGLUSettings
from nn.layers.module import Module
from nn.layers.protocol import BlockSettings
from nn.layers.residual import Residual
from nn.layers.residual.connection import ConnectionSettings
from nn.layers.stack import Layer, LayerSettings, LayerState
from nn.tensor import Array, Tensor

if TYPE_CHECKING:
    from typing import Self


def layer_of(mixer: str, settings: BlockSettings, intermediate_size: int = 0, *, norm: str = "rmsnorm",
             norm_eps: float = 1e-6) -> LayerSettings:
    """x + mixer(norm(x)), and behind it, unless intermediate_size is 0, x + swiglu(norm(x))"""
    width = settings.hidden_size
    names, blocks = {"mixer": mixer}, {"mixer": settings}
    if intermediate_size:
        names["feed_forward"] = "swiglu"
        blocks["feed_forward"] = SwiGLUSettings(width, settings.init_std, settings.out_std, intermediate_size)
    connection = ConnectionSettings(width, norm=norm, norm_eps=norm_eps, branches=(True,) * len(blocks))
    return LayerSettings(names, blocks, connection, "pre_norm", "pre_attn")


class LayerBlock(Module):
    """layer: a pre-norm layer without a memory.  Its state is that of its mixer."""

    layer: Layer

    def __init__(self, settings: LayerSettings, dtype: Any = "float32") -> None:
        self.layer = Layer(settings, dtype)

    @classmethod
    def around(cls, layer: Layer) -> "Self":
        """A layer that is part of a model already, as a block; the model's names of it stay."""
        block = cls.__new__(cls)
        vars(block)["layer"] = layer
        return block

    def init_state(self, batch_size: int) -> Any:
        return self.layer.init_state(batch_size).mixer

    def forward(self, x: Tensor, *, state: Any = None, mask: Array | None = None,
                mode: str | None = None) -> tuple[Tensor, Any]:
        """x[B,T,D] -> y[B,T,D]"""
        held = None if state is None else LayerState(mixer=state)
        stream, _ = self.layer(Residual(x), state=held, mask=mask, mode=mode)
        return stream.total(), None if held is None else held.mixer
