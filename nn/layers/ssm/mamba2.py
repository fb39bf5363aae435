"""Mamba-2 (Dao & Gu 2024): one decay per head, which makes the state space model a masked linear attention.

    z, x, B, C, dt = W_in u,   (x, B, C) ← SiLU(conv(x, B, C)),   dt ← softplus(dt + b_dt),   A = −e^{A_log}
    S_t = e^{dt_t A} S_{t−1} + dt_t x_t B_tᵀ,   y_t = S_t C_t + D x_t      per head, x of P channels, S [P,N]
    out = W_out RMSNorm(y ⊙ SiLU(z))

The core is decayed_attention with queries C, keys B, values dt x and decays dt A."""

import math
from dataclasses import dataclass
from typing import Any

from nn import ops
from nn.backends.array_api import namespace
from nn.errors import InputError
from nn.layers.attention.linear.decayed import decayed_attention, decayed_flops
from nn.layers.conv import ShortConv, conv_flops, conv_parameters
from nn.layers.formulas import projection
from nn.layers.gated_norm import GatedRMSNorm
from nn.layers.initial import check_steps, log_uniform, step_bias, wide
from nn.layers.linear import Linear
from nn.layers.masks import masked
from nn.layers.module import Parameter
from nn.layers.protocol import Block, BlockSettings
from nn.layers.ssm.state import ConvState, MambaState, RecurrentState
from nn.tensor import Array, Tensor


@dataclass(frozen=True)
class Mamba2Settings(BlockSettings):
    """State space duality: a selective state space model with one decay per head."""

    expand: int = 2                    # channels / hidden_size
    state_size: int = 128              # states of each channel
    head_dim: int = 64                 # channels of a head
    num_groups: int = 1                # heads / num_groups heads share one input and one output map
    norm_groups: int = 0               # groups of channels normed together; 0 = num_groups
    conv_kernel: int = 4               # taps of the convolution
    use_bias: bool = False             # biases of the projections in and out
    use_conv_bias: bool = True         # bias of the convolution
    norm_eps: float = 1e-5             # of the norm on the gated result
    time_step_min: float = 0.001       # step sizes start log-uniform between this
    time_step_max: float = 0.1         # and this,
    time_step_floor: float = 1e-4      # and not below this
    time_step_limit: tuple[float, float] = (0.0, math.inf)      # step sizes are kept within
    decay_range: tuple[float, float] = (1.0, 16.0)              # -A starts uniform within
    learn_start: bool = False          # the state before the first token is a parameter, not zero
    chunk_size: int = 256              # tokens handled together in chunk mode

    def __post_init__(self) -> None:
        self._positive("hidden_size", "expand", "state_size", "head_dim", "num_groups", "conv_kernel",
                       "chunk_size")
        check_steps(self.time_step_min, self.time_step_max, self.time_step_floor)
        if not (0.0 <= self.time_step_limit[0] < self.time_step_limit[1]
                and 0.0 < self.decay_range[0] <= self.decay_range[1]):
            raise InputError(f"time_step_limit {self.time_step_limit}, decay_range {self.decay_range}: the "
                             "lower bound first, steps not negative, decays positive")
        if self.intermediate_size % self.head_dim or self.num_heads % self.num_groups:
            raise InputError(f"head_dim {self.head_dim}, num_groups {self.num_groups}: heads divide the "
                             f"{self.intermediate_size} channels, groups divide the heads")
        if self.norm_groups < 0 or self.intermediate_size % (self.norm_groups or self.num_groups):
            raise InputError(f"norm_groups: {self.norm_groups} do not divide {self.intermediate_size} "
                             "channels")

    @property
    def intermediate_size(self) -> int:
        """Channels of all heads"""
        return self.expand * self.hidden_size

    @property
    def num_heads(self) -> int:
        return self.intermediate_size // self.head_dim

    @property
    def conv_size(self) -> int:
        """Channels that are convolved: x, B and C"""
        return self.intermediate_size + 2 * self.num_groups * self.state_size

    def _projections(self) -> list[tuple[int, int]]:
        """(in, out) features"""
        return [(self.hidden_size, self.intermediate_size + self.conv_size + self.num_heads),
                (self.intermediate_size, self.hidden_size)]

    def parameters(self, active: bool = False) -> dict[str, int]:
        biases = self.use_bias * sum(columns for _, columns in self._projections())
        return {"projections": sum(rows * columns for rows, columns in self._projections()) + biases,
                "convolution": conv_parameters(self.conv_size, self.conv_kernel, self.use_conv_bias),
                "decays": 3 * self.num_heads, "norms": self.intermediate_size,
                "start": self.learn_start * self.intermediate_size * self.state_size}

    def flops(self, batch: int, length: int, past: int = 0, mode: str | None = None) -> dict[str, int]:
        return {"projections": projection(batch * length, *self._projections()),
                "convolution": conv_flops(batch * length, self.conv_size, self.conv_kernel),
                "core": decayed_flops(batch, self.num_heads, length, self.state_size, self.head_dim, mode,
                                      self.chunk_size)}

    @classmethod
    def examples(cls) -> dict[str, Any]:
        tiny = {"hidden_size": 8, "state_size": 4, "head_dim": 4, "chunk_size": 4}
        return {"": cls.create(**tiny),
                "groups": cls.create(**tiny, num_groups=2, use_bias=True, use_conv_bias=False, conv_kernel=3),
                "one norm": cls.create(**tiny, num_groups=2, norm_groups=1, time_step_limit=(0.0, 0.5)),
                "learned start": cls.create(**tiny, learn_start=True)}


class Mamba2(Block):
    """in_proj [C + (C+2GN) + H, D] (z, then x, B and C, then dt), conv1d [C+2GN,K], dt_bias, A_log, D [H],
    norm [C], out_proj [D,C], init_states [H,P,N] if they are learned, with C = H·P channels, N states and G
    groups; dt_bias, A_log, D and init_states never in half precision"""

    Settings = Mamba2Settings

    def __init__(self, settings: Mamba2Settings, dtype: Any = "float32") -> None:
        s = self.settings = settings
        (_, entering), _ = s._projections()
        options: dict[str, Any] = {"bias": s.use_bias, "dtype": dtype}
        heads: dict[str, Any] = {"dtype": wide(dtype), "decay": False}
        steps = step_bias(s.time_step_min, s.time_step_max, s.time_step_floor)
        self.in_proj = Linear(s.hidden_size, entering, std=s.init_std, **options)
        self.conv1d = ShortConv(s.conv_size, s.conv_kernel, bias=s.use_conv_bias, dtype=dtype)
        self.dt_bias = Parameter((s.num_heads,), draw=steps, **heads)
        self.A_log = Parameter((s.num_heads,), draw=log_uniform(*s.decay_range), **heads)
        self.D = Parameter((s.num_heads,), fill=1.0, **heads)
        start = s.num_heads, s.head_dim, s.state_size
        self.init_states = Parameter(start, **heads) if s.learn_start else None
        self.norm = GatedRMSNorm(s.intermediate_size, s.norm_eps, norm_before_gate=False,
                                 groups=s.norm_groups or s.num_groups, dtype=dtype)
        self.out_proj = Linear(s.intermediate_size, s.hidden_size, std=s.down_std, **options)

    def init_state(self, batch_size: int) -> MambaState:
        s, like = self.settings, self.in_proj.weight.data
        tail = namespace(like).zeros((batch_size, self.conv1d.reach, s.conv_size), dtype=like.dtype)
        return MambaState(ConvState(tail), RecurrentState(self._start(batch_size).data))

    def _start(self, batch: int) -> Tensor:
        """The state before the first token [B,H,P,N]"""
        s = self.settings
        zeros = Tensor(self.zeros(batch, s.num_heads, s.head_dim, s.state_size))
        return zeros if self.init_states is None else zeros + self.init_states

    def forward(self, x: Tensor, *, state: MambaState | None = None, mask: Array | None = None,
                mode: str | None = None) -> tuple[Tensor, MambaState | None]:
        """x[B,T,D] -> y[B,T,D]; see nn/layers/protocol.py.  Padding leaves the state as it was."""
        s, (batch, length, _) = self.settings, x.shape
        tail = None if state is None else state.conv_state.value
        z, mixed, dt = ops.split(self.in_proj(x), s.intermediate_size, s.conv_size, s.num_heads)
        mixed, tail = self.conv1d(masked(mixed, mask), tail, mask)
        s0 = self._start(batch) if state is None else Tensor(state.ssm_state.value)
        y, last = self._core(masked(mixed, mask), masked(self._steps(dt), mask), s0, mode)
        y = self.out_proj(self.norm(y, z))
        if state is None:
            return y, None
        return y, MambaState(ConvState(tail), RecurrentState(last), state.position + length)

    def _steps(self, dt: Tensor) -> Tensor:
        """Step sizes [B,T,H]"""
        steps = ops.softplus(ops.cast(dt, self.dt_bias.dtype) + self.dt_bias)
        low, high = self.settings.time_step_limit
        return steps if (low, high) == (0.0, math.inf) else ops.clip(steps, low, high)

    def _core(self, mixed: Tensor, dt: Tensor, s: Tensor, mode: str | None) -> tuple[Tensor, Array]:
        """y[B,T,C] and the state from the convolved x, B, C [B,T,C+2GN] and the step sizes dt[B,T,H]"""
        o, width = self.settings, self.settings.num_groups * self.settings.state_size
        x, b, c = ops.split(ops.cast(mixed, dt.dtype), o.intermediate_size, width, width)
        x = x.reshape(*x.shape[:2], o.num_heads, o.head_dim).permute(0, 2, 1, 3)              # [B,H,T,P]
        dt = dt.permute(0, 2, 1)                                                              # [B,H,T]
        decays = dt * ops.neg(ops.exp(self.A_log))[:, None]
        y, last = decayed_attention(self._of_heads(c), self._of_heads(b), x * dt[..., None], decays,
                                    ops.transpose(s), mode=mode, size=o.chunk_size)
        y = y + self.D[:, None, None] * x
        y = y.permute(0, 2, 1, 3).reshape(y.shape[0], y.shape[2], o.intermediate_size)
        return y, namespace(last.data).matrix_transpose(last.data)

    def _of_heads(self, x: Tensor) -> Tensor:
        """[B,T,G·N] -> [B,H,T,N], a group's map for each of its heads"""
        s, (batch, length, _) = self.settings, x.shape
        x = x.reshape(batch, length, s.num_groups, 1, s.state_size).permute(0, 2, 3, 1, 4)    # [B,G,1,T,N]
        each = s.num_heads // s.num_groups
        x = ops.broadcast_to(x, (batch, s.num_groups, each, length, s.state_size))
        return x.reshape(batch, s.num_heads, length, s.state_size)
