"""Feed-forward layers: SwiGLU (gated) and the two-matrix MLP with SiLU or GELU."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from nn import ops
from nn.errors import InputError
from nn.layers.formulas import projection
from nn.layers.linear import Linear
from nn.layers.module import Module
from nn.layers.protocol import Block, BlockSettings
from nn.names import check_name
from nn.tensor import Array, Tensor

KINDS = ("swiglu", "silu", "gelu", "gelu_tanh", "relu")


class FeedForward(Module):
    """swiglu: y = W_down(SiLU(W_gate x) ⊙ W_up x)   (Shazeer 2020);   else y = W_down act(W_up x)

    bias: a bias on every projection"""

    def __init__(self, hidden_size: int, intermediate_size: int, kind: str = "swiglu", *, bias: bool = False,
                 std: float = 0.02, down_std: float | None = None, dtype: Any = "float32") -> None:
        check_name("ffn", kind, KINDS)
        self.kind = kind
        if kind == "swiglu":
            self.gate_proj = Linear(hidden_size, intermediate_size, bias=bias, std=std, dtype=dtype)
        self.up_proj = Linear(hidden_size, intermediate_size, bias=bias, std=std, dtype=dtype)
        self.down_proj = Linear(intermediate_size, hidden_size, bias=bias, std=down_std or std, dtype=dtype)

    def forward(self, x: Tensor, mask: Array | None = None) -> Tensor:
        """[..., D] -> [..., D].  mask: what experts in this place go by; no token sees another here"""
        up = self.up_proj(x)
        hidden = ops.swiglu(self.gate_proj(x), up) if self.kind == "swiglu" else ACTIVATIONS[self.kind](up)
        return self.down_proj(hidden)

    def load_gate_up(self, weight: Array) -> None:
        """The weights of both gate and up, one above the other, [2F,D]: those of the other way to write it,
        Linear(D, 2F) → chunk → SiLU(first) · second → Linear(F, D).  InputError for another shape."""
        if self.kind != "swiglu" or list(weight.shape) != [2 * self.gate_proj.weight.shape[0],
                                                           self.gate_proj.weight.shape[1]]:
            raise InputError(f"weight: shape {list(weight.shape)} for {self.kind}; expected [2F,D] for "
                             f"swiglu, of up_proj [F,D] = {list(self.up_proj.weight.shape)}")
        gate, up = np.split(np.array(weight, dtype=self.up_proj.weight.dtype), 2)
        self.gate_proj.weight.load(gate)
        self.up_proj.weight.load(up)


ACTIVATIONS = {
    "silu": ops.silu, "gelu": ops.gelu, "relu": ops.relu,
    "gelu_tanh": lambda x: ops.gelu(x, approximate=True),
}


# ---- as blocks ----

@dataclass(frozen=True)
class SwiGLUSettings(BlockSettings):
    """The gated feed-forward, W_down(SiLU(W_gate x) ⊙ W_up x)."""

    intermediate_size: int = 256      # width between the projections
    activation: str = "swiglu"        # swiglu
    bias: bool = False                # a bias on every projection

    def __post_init__(self) -> None:
        self._positive("hidden_size", "intermediate_size")
        if self.activation != "swiglu":
            raise InputError(f"activation: {self.activation!r}; this block is swiglu, the mlp has the others")

    @property
    def matrices(self) -> int:
        return 3 if self.activation == "swiglu" else 2

    def parameters(self, active: bool = False) -> dict[str, int]:
        biases = (self.matrices - 1) * self.intermediate_size + self.hidden_size if self.bias else 0
        return {"projections": self.matrices * self.hidden_size * self.intermediate_size + biases}

    def flops(self, batch: int, length: int, past: int = 0, mode: str | None = None) -> dict[str, int]:
        shape = (self.hidden_size, self.intermediate_size)
        return {"projections": projection(batch * length, *[shape] * self.matrices)}

    @classmethod
    def examples(cls) -> dict[str, Any]:
        return {"": cls.create(hidden_size=8, intermediate_size=12),
                "biases": cls.create(hidden_size=8, intermediate_size=5, bias=True)}


@dataclass(frozen=True)
class MLPSettings(SwiGLUSettings):
    """The two-matrix feed-forward, W_down act(W_up x)."""

    activation: str = "gelu"          # silu, gelu, gelu_tanh or relu

    def __post_init__(self) -> None:
        self._positive("hidden_size", "intermediate_size")
        check_name("activation", self.activation, ACTIVATIONS)

    @classmethod
    def examples(cls) -> dict[str, Any]:
        return {name: cls.create(hidden_size=8, intermediate_size=9, activation=name, bias=name == "silu")
                for name in ("gelu_tanh", "silu")}


class SwiGLU(Block):
    """The gated feed-forward; no token sees another, so there is no state."""

    Settings = SwiGLUSettings
    packing = "tokens"

    def __init__(self, settings: SwiGLUSettings, dtype: Any = "float32") -> None:
        s = self.settings = settings
        self.ffn = FeedForward(s.hidden_size, s.intermediate_size, s.activation, bias=s.bias,
                               std=s.init_std, down_std=s.down_std, dtype=dtype)

    def forward(self, x: Tensor, *, state: None = None, mask: Array | None = None,
                mode: str | None = None) -> tuple[Tensor, None]:
        """[B,T,D] -> [B,T,D]"""
        return self.ffn(x), None


class MLP(SwiGLU):
    """The two-matrix feed-forward."""

    Settings = MLPSettings
