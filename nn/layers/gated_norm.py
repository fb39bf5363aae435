"""RMSNorm beside a gate: what ends recurrent mixers."""

from typing import Any

from nn import ops
from nn.backends.array_api import namespace
from nn.layers.module import Module, Parameter
from nn.layers.precision import cast_to
from nn.tensor import Tensor


class GatedRMSNorm(Module):
    """RMSNorm(x) ⊙ SiLU(z), weight [D]   (retention, GLA, gated DeltaNet); with norm_before_gate=False
    RMSNorm(x ⊙ SiLU(z))   (Mamba-2; Dao & Gu 2024)

    The mean of squares is that of D / groups channels; the weight is of all D."""

    def __init__(self, hidden_size: int, eps: float = 1e-5, *, norm_before_gate: bool = True, groups: int = 1,
                 dtype: Any = "float32") -> None:
        if groups < 1 or hidden_size % groups:
            raise ValueError(f"GatedRMSNorm: {groups} groups do not divide {hidden_size} channels")
        self.weight = Parameter((hidden_size,), fill=1.0, dtype=dtype, decay=False)
        self.eps, self.norm_before_gate, self.groups = eps, norm_before_gate, groups

    def forward(self, x: Tensor, z: Tensor) -> Tensor:
        """x, z [...,D] -> [...,D] in the type of z; x may be wider: sums that half precision does not hold"""
        if self.norm_before_gate:
            return cast_to(self._norm(x), z.dtype) * ops.silu(z)
        return cast_to(self._norm(x * cast_to(ops.silu(z), x.dtype)), z.dtype)

    def _norm(self, x: Tensor) -> Tensor:
        if self.groups == 1:
            return ops.rms_norm(x, cast_to(self.weight, x.dtype), self.eps)
        width = x.shape[-1] // self.groups
        ones = Tensor(namespace(x.data).ones((width,), dtype=x.dtype))
        parts = ops.rms_norm(x.reshape(*x.shape[:-1], self.groups, width), ones, self.eps)
        return parts.reshape(*x.shape) * cast_to(self.weight, x.dtype)
