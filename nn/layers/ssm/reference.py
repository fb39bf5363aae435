"""The selective scan by its definition, in differentiable operations: ops.selective_scan is held against it.

    kernel = MambaReferenceKernel()
    y, state = kernel.forward_recurrent(params, inputs, None)             # token by token
    y, state = kernel.forward_chunk(params, inputs, None, chunk_size=8)   # all pairs of tokens of a chunk

Slow, and in chunks large (channels × chunk² × states): for tests and small models."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from nn import ops
from nn.backends.array_api import namespace
from nn.dtypes import DType, is_half
from nn.layers.mode import KernelMode
from nn.tensor import Tensor


@dataclass
class MambaKernelParams:
    """What all tokens have in common."""

    a_log: Tensor        # [C,N]; A = −e^a_log
    d: Tensor            # [C], what of x goes straight to y


@dataclass
class MambaKernelInputs:
    """The tokens, channels first."""

    hidden: Tensor       # x [B,C,T]
    delta: Tensor        # step sizes [B,C,T]
    B: Tensor            # [B,T,N]
    C: Tensor            # [B,T,N]
    gate: Tensor         # [B,C,T], what the result is multiplied by: already activated


@dataclass
class MambaKernelState:
    """What is left of the tokens seen."""

    ssm: Tensor          # [B,C,N]

    @classmethod
    def zeros(cls, batch_size: int, intermediate: int, ssm_state: int,
              dtype: Any = "float32") -> "MambaKernelState":
        """Before the first token"""
        return cls(Tensor(np.zeros((batch_size, intermediate, ssm_state), DType.of(dtype).numpy)))


class MambaReferenceKernel:
    """h_t = e^{Δ_t A} ⊙ h_{t−1} + (Δ_t x_t) B_tᵀ,   y_t = (h_t C_t + D ⊙ x_t) ⊙ gate_t   (Gu & Dao 2023)"""

    def __init__(self, *, mode: KernelMode | str = KernelMode.CHUNK, chunk_size: int = 16) -> None:
        self.mode, self.chunk_size = KernelMode(mode), chunk_size

    def __call__(self, params: MambaKernelParams, inputs: MambaKernelInputs,
                 state: MambaKernelState | None = None) -> tuple[Tensor, MambaKernelState]:
        """In the mode given at the start"""
        if self.mode == KernelMode.RECURRENT:
            return self.forward_recurrent(params, inputs, state)
        return self.forward_chunk(params, inputs, state, chunk_size=self.chunk_size)

    def forward_recurrent(self, params: MambaKernelParams, inputs: MambaKernelInputs,
                          state: MambaKernelState | None = None) -> tuple[Tensor, MambaKernelState]:
        """(y[B,C,T], state), token by token"""
        return self.forward_chunk(params, inputs, state, chunk_size=1)

    def forward_chunk(self, params: MambaKernelParams, inputs: MambaKernelInputs,
                      state: MambaKernelState | None = None, *,
                      chunk_size: int) -> tuple[Tensor, MambaKernelState]:
        """(y[B,C,T], state), chunk_size tokens together"""
        if chunk_size < 1:
            raise ValueError(f"chunk_size: {chunk_size} is not positive")
        given = inputs.hidden, inputs.delta, inputs.B, inputs.C, inputs.gate
        x, delta, b, c, gate = (_wide(z) for z in given)
        a, d = ops.neg(ops.exp(_wide(params.a_log))), _wide(params.d)
        (batch, channels, length), states = x.shape, a.shape[1]
        zeros = namespace(x.data).zeros((batch, channels, states), dtype=x.dtype)
        h = _wide(state.ssm) if state else Tensor(zeros)
        outputs = [x[:, :, :0]]
        for start in range(0, length, chunk_size):
            part = slice(start, start + chunk_size)
            after = _states(x[:, :, part], delta[:, :, part], a, b[:, part], h)
            outputs.append(ops.sum(after * c[:, None, part], axis=3))
            h = after[:, :, -1]
        y = (ops.concat(outputs, axis=2) + d[:, None] * x) * gate
        return ops.cast(y, inputs.hidden.dtype), MambaKernelState(h)


def _states(x: Tensor, delta: Tensor, a: Tensor, b: Tensor, h: Tensor) -> Tensor:
    """h after each token of a chunk [B,C,L,N]:  h_i = e^{G_i} h + Σ_{j≤i} e^{G_i − G_j} Δ_j x_j B_j,  G the
    sums of Δ A within the chunk, in float64 as only their differences count"""
    steps = ops.cast(delta[..., None] * a[:, None], np.float64)
    sums = ops.cumsum(steps, axis=2)                                                          # G [B,C,L,N]
    written = (delta * x)[..., None] * b[:, None]                                             # [B,C,L,N]
    place = namespace(x.data).arange(x.shape[2])
    past = (place[None, :] <= place[:, None])[:, :, None]                                     # [L,L,1]
    between = ops.where(past, sums[:, :, :, None] - sums[:, :, None], -float("inf"))          # [B,C,L,L,N]
    begun, decays = (ops.exp(ops.cast(z, x.dtype)) for z in (sums, between))
    return begun * h[:, :, None] + ops.sum(decays * written[:, :, None], axis=3)


def _wide(x: Any) -> Tensor:
    """As a tensor, float32 for half precision"""
    x = x if isinstance(x, Tensor) else Tensor(x)
    return ops.cast(x, np.float32) if is_half(x.dtype) else x
