"""Mamba (Gu & Dao 2023): a state per channel whose step size, input and output depend on the token.

    x, z = W_in u,   x ← SiLU(conv(x)),   (δ, B, C) = W_x x,   Δ = softplus(W_dt δ + b_dt),   A = −e^{A_log}
    h_t = e^{Δ_t A} ⊙ h_{t−1} + (Δ_t x_t) B_tᵀ,   y_t = h_t C_t + D ⊙ x_t,   out = W_out (y ⊙ SiLU(z))"""

from dataclasses import dataclass
from typing import Any

from nn import ops
from nn.backends.array_api import namespace
from nn.layers.chunks import CHUNK
from nn.layers.conv import ShortConv, conv_flops, conv_parameters
from nn.layers.formulas import projection
from nn.layers.initial import check_steps, counting, step_bias, uniform, wide
from nn.layers.linear import Linear
from nn.layers.masks import masked
from nn.layers.mode import KernelMode, select_mode
from nn.layers.module import Parameter
from nn.layers.protocol import Block, BlockSettings
from nn.layers.ssm.state import ConvState, MambaState, RecurrentState
from nn.ops.scan import STEP
from nn.tensor import Array, Tensor

selective_scan_ref = ops.selective_scan      # the name LinearNexus's users know


@dataclass(frozen=True)
class MambaSettings(BlockSettings):
    """A selective state space model: states per channel, kept and written to as each token asks."""

    expand: int = 2                    # channels / hidden_size
    state_size: int = 16               # states of each channel
    conv_kernel: int = 4               # taps of the convolution
    time_step_rank: int = 0            # rank of the step sizes' projection; 0 = hidden_size / 16, rounded up
    use_bias: bool = False             # biases of the projections in and out
    use_conv_bias: bool = True         # bias of the convolution
    time_step_min: float = 0.001       # step sizes start log-uniform between this
    time_step_max: float = 0.1         # and this,
    time_step_floor: float = 1e-4      # and not below this
    chunk_size: int = CHUNK            # tokens handled together in chunk mode

    def __post_init__(self) -> None:
        self._positive("hidden_size", "expand", "state_size", "conv_kernel", "chunk_size", "rank")
        check_steps(self.time_step_min, self.time_step_max, self.time_step_floor)

    @property
    def intermediate_size(self) -> int:
        """Channels"""
        return self.expand * self.hidden_size

    @property
    def rank(self) -> int:
        """Of the step sizes' projection"""
        return self.time_step_rank or -(-self.hidden_size // 16)

    def _projections(self) -> list[tuple[int, int]]:
        """(in, out) features"""
        inner, selected = self.intermediate_size, self.rank + 2 * self.state_size
        return [(self.hidden_size, 2 * inner), (inner, selected), (self.rank, inner),
                (inner, self.hidden_size)]

    def parameters(self, active: bool = False) -> dict[str, int]:
        inner = self.intermediate_size
        biases = inner + self.use_bias * (2 * inner + self.hidden_size)
        return {"projections": sum(rows * columns for rows, columns in self._projections()) + biases,
                "convolution": conv_parameters(inner, self.conv_kernel, self.use_conv_bias),
                "decays": inner * (self.state_size + 1)}

    def flops(self, batch: int, length: int, past: int = 0, mode: str | None = None) -> dict[str, int]:
        tokens, inner = batch * length, self.intermediate_size
        return {"projections": projection(tokens, *self._projections()),
                "convolution": conv_flops(tokens, inner, self.conv_kernel),
                "scan": STEP * tokens * inner * self.state_size}

    @classmethod
    def examples(cls) -> dict[str, Any]:
        return {"": cls.create(hidden_size=8, state_size=4, chunk_size=4),
                "biases": cls.create(hidden_size=8, state_size=3, expand=1, conv_kernel=2, time_step_rank=3,
                                     use_bias=True, use_conv_bias=False, chunk_size=3),
                "one tap": cls.create(hidden_size=4, state_size=1, conv_kernel=1)}


class Mamba(Block):
    """in_proj [2C,D] (x, then z), conv1d [C,K], x_proj [R+2N,C] (δ, B, C), dt_proj [C,R] and bias,
    A_log [C,N], D [C], out_proj [D,C], with C channels, N states and rank R; A_log, D and the steps' bias
    never in half precision"""

    Settings = MambaSettings

    def __init__(self, settings: MambaSettings, dtype: Any = "float32") -> None:
        s = self.settings = settings
        inner, options = s.intermediate_size, {"std": s.init_std, "dtype": dtype}
        self.in_proj = Linear(s.hidden_size, 2 * inner, bias=s.use_bias, **options)
        self.conv1d = ShortConv(inner, s.conv_kernel, bias=s.use_conv_bias, dtype=dtype)
        self.x_proj = Linear(inner, s.rank + 2 * s.state_size, **options)
        self.dt_proj = Linear(s.rank, inner, dtype=dtype)
        self.dt_proj.weight = Parameter((inner, s.rank), dtype=dtype, draw=uniform(s.rank**-0.5))
        self.dt_proj.bias = Parameter((inner,), dtype=wide(dtype), decay=False,
                                      draw=step_bias(s.time_step_min, s.time_step_max, s.time_step_floor))
        self.A_log = Parameter((inner, s.state_size), dtype=wide(dtype), decay=False, draw=counting)
        self.D = Parameter((inner,), dtype=wide(dtype), decay=False, fill=1.0)
        self.out_proj = Linear(inner, s.hidden_size, bias=s.use_bias, **options | {"std": s.down_std})

    def init_state(self, batch_size: int) -> MambaState:
        s, like = self.settings, self.in_proj.weight.data
        tail = namespace(like).zeros((batch_size, self.conv1d.reach, s.intermediate_size), dtype=like.dtype)
        h = self.zeros(batch_size, s.intermediate_size, s.state_size)
        return MambaState(ConvState(tail), RecurrentState(h))

    def forward(self, x: Tensor, *, state: MambaState | None = None, mask: Array | None = None,
                mode: str | None = None) -> tuple[Tensor, MambaState | None]:
        """x[B,T,D] -> y[B,T,D]; see nn/layers/protocol.py.  Padding leaves the state as it was."""
        s, (batch, length, _) = self.settings, x.shape
        before = state or self.init_state(batch)
        inner, gate = ops.split(self.in_proj(x), s.intermediate_size, s.intermediate_size)
        inner, tail = self.conv1d(masked(inner, mask), before.conv_state.value, mask)
        inner = masked(inner, mask)                             # silu(bias) is not zero
        delta, b, c = self.select(inner)
        recurrent = select_mode(length, mode=mode) == KernelMode.RECURRENT
        y, h = ops.selective_scan(inner, masked(delta, mask), ops.neg(ops.exp(self.A_log)), b, c, self.D,
                                  Tensor(before.ssm_state.value), chunk_size=1 if recurrent else s.chunk_size)
        y = self.out_proj(y * ops.silu(gate))
        if state is None:
            return y, None
        return y, MambaState(ConvState(tail), RecurrentState(h.data), before.position + length)

    def select(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Δ [B,T,C], B and C [B,T,N] from the convolved x[B,T,C]; the step sizes never in half precision"""
        s = self.settings
        low, b, c = ops.split(self.x_proj(x), s.rank, s.state_size, s.state_size)
        steps = ops.linear(low, self.dt_proj.weight)
        assert self.dt_proj.bias is not None
        return ops.softplus(ops.cast(steps, self.dt_proj.bias.dtype) + self.dt_proj.bias), b, c
