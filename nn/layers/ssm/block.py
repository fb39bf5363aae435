"""Mamba with its norm and residual connection inside: a whole layer of a Mamba model."""

from typing import Any

from nn.layers.module import Module
from nn.layers.norm import RMSNorm
from nn.layers.ssm.mamba import Mamba, MambaSettings
from nn.layers.ssm.state import MambaState
from nn.tensor import Array, Tensor


class MambaBlock(Module):
    """x + Mamba(RMSNorm(x)): called as a block is (nn/layers/protocol.py), but y is the stream itself, not
    what is added to it.  In a stack, the connection does this: mixer="mamba"."""

    def __init__(self, settings: MambaSettings, norm_eps: float = 1e-5, dtype: Any = "float32") -> None:
        self.norm = RMSNorm(settings.hidden_size, norm_eps, dtype=dtype)
        self.mixer = Mamba(settings, dtype=dtype)

    def init_state(self, batch_size: int) -> MambaState:
        return self.mixer.init_state(batch_size)

    def forward(self, x: Tensor, *, state: MambaState | None = None, mask: Array | None = None,
                mode: str | None = None) -> tuple[Tensor, MambaState | None]:
        """x[B,T,D] -> y[B,T,D]"""
        y, state = self.mixer(self.norm(x), state=state, mask=mask, mode=mode)
        return x + y, state
