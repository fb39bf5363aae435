"""Gated attention (Qiu et al. 2025, arXiv 2505.06708): what a head found is weighed by the token that asked.

    y = W_o concat_h(o_h ⊙ σ(g_h)),  g = W_g x

Gates on queries, keys and values likewise, q' = q ⊙ σ(W_gq x) behind the QK-norm and before the rotation, so
that caches hold gated keys and values; output and query gates depend on the newest token alone."""

from dataclasses import dataclass
from typing import Any

from nn import ops
from nn.layers.attention.causal import AttentionSettings, CausalSelfAttention
from nn.layers.formulas import projection
from nn.layers.module import Module, Parameter
from nn.layers.precision import cast_to, widened
from nn.names import check_name
from nn.tensor import Tensor

KINDS = ("none", "elementwise", "headwise")
OUTPUT_KINDS = (*KINDS, "projected")


@dataclass(frozen=True)
class GatedAttentionSettings(AttentionSettings):
    """Softmax attention with sigmoid gates."""

    output_gate: str = "elementwise"   # none, elementwise, headwise, projected: behind W_o
    q_gate: str = "none"               # of queries: none, elementwise or headwise
    k_gate: str = "none"               # of keys
    v_gate: str = "none"               # of values
    gate_start: float = 0.0            # where gates' biases start; 0 = none (4: near plain attention)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_name("output_gate", self.output_gate, OUTPUT_KINDS)
        for name in ("q_gate", "k_gate", "v_gate"):
            check_name(name, getattr(self, name), KINDS)

    def gate_widths(self) -> dict[str, int]:
        """{"output_gate": channels}, of the gates there are"""
        heads = {"output_gate": self.num_heads, "q_gate": self.num_heads, "k_gate": self.num_kv_heads,
                 "v_gate": self.num_kv_heads}
        widths = {"elementwise": self.head_dim, "headwise": 1}
        found = {name: count * widths[getattr(self, name)] for name, count in heads.items()
                 if getattr(self, name) in widths}
        return found | ({"output_gate": self.hidden_size} if self.output_gate == "projected" else {})

    def parameters(self, active: bool = False) -> dict[str, int]:
        width = sum(self.gate_widths().values())
        return super().parameters(active) | {"gates": width * (self.hidden_size + bool(self.gate_start))}

    def flops(self, batch: int, length: int, past: int = 0, mode: str | None = None) -> dict[str, int]:
        gates = projection(batch * length, (self.hidden_size, sum(self.gate_widths().values())))
        return super().flops(batch, length, past, mode) | {"gates": gates}

    @classmethod
    def examples(cls) -> dict[str, Any]:
        grouped = {"hidden_size": 8, "num_heads": 4, "num_kv_heads": 2, "head_dim": 4}
        return {"elementwise": cls.create(**grouped, qk_norm="head", partial_rotary_factor=0.5),
                "headwise": cls.create(**grouped, output_gate="headwise", k_gate="headwise", gate_start=1.0),
                "q, k, v": cls.create(**grouped, output_gate="none", q_gate="elementwise",
                                      k_gate="elementwise", v_gate="elementwise", qk_norm="head"),
                "projected": cls.create(**grouped, output_gate="projected", v_gate="headwise",
                                        q_gate="headwise")}


class Gate(Module):
    """σ(W x + b), weight [out,D]; its logits are formed and bent in float32 at least"""

    def __init__(self, hidden_size: int, width: int, start: float, std: float, dtype: Any) -> None:
        self.weight = Parameter((width, hidden_size), std=std, dtype=dtype)
        self.bias = Parameter((width,), fill=start, dtype=dtype, decay=False) if start else None

    def forward(self, x: Tensor) -> Tensor:
        """[...,D] -> [...,out], float32 for half precision"""
        bias = None if self.bias is None else widened(self.bias)
        return ops.sigmoid(ops.linear(widened(x), widened(self.weight), bias))


class GatedAttention(CausalSelfAttention):
    """GroupedAttention with any of output_gate, q_gate, k_gate, v_gate [.., D]"""

    Settings = GatedAttentionSettings
    output_gate: Gate

    def __init__(self, settings: GatedAttentionSettings, dtype: Any = "float32") -> None:
        super().__init__(settings, dtype)
        for name, width in settings.gate_widths().items():
            gate = Gate(settings.hidden_size, width, settings.gate_start, settings.init_std, dtype)
            setattr(self, name, gate)

    def projected(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        q, k, v = super().projected(x)
        return self._gated("q_gate", q, x), self._gated("k_gate", k, x), self._gated("v_gate", v, x)

    def output(self, o: Tensor, x: Tensor) -> Tensor:
        """[B,H,T,Dh] -> [B,T,D]"""
        if self.settings.output_gate == "projected":
            return _weighed(super().output(o, x), self.output_gate(x))
        return super().output(self._gated("output_gate", o, x), x)

    def _gated(self, name: str, z: Tensor, x: Tensor) -> Tensor:
        """z[B,n,T,Dh] ⊙ its gate, if it has one"""
        gate = getattr(self, name, None)
        if gate is None:
            return z
        batch, heads, length, _ = z.shape
        values = gate(x).reshape(batch, length, heads, gate.weight.shape[0] // heads)
        return _weighed(z, values.permute(0, 2, 1, 3))


def _weighed(z: Tensor, gate: Tensor) -> Tensor:
    """z ⊙ gate, in z's type"""
    return cast_to(cast_to(z, gate.dtype) * gate, z.dtype)
