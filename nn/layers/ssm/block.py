"""Mamba with its norm and residual connection inside: a whole layer of a Mamba model."""

from typing import Any

from nn.layers.layer_block import LayerBlock, layer_of
from nn.layers.ssm.mamba import MambaSettings


class MambaBlock(LayerBlock):
    """x + Mamba(RMSNorm(x))"""

    def __init__(self, settings: MambaSettings, norm_eps: float = 1e-5, dtype: Any = "float32") -> None:
        super().__init__(layer_of("mamba", settings, norm_eps=norm_eps), dtype)

    @property
    def norm(self) -> Any:
        return self.layer.connection.norms[0]

    @property
    def mixer(self) -> Any:
        return self.layer.blocks()["mixer"]
