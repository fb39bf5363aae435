"""Gated DeltaNet (Yang, Kautz & Hatamizadeh 2024), the recurrent mixer of Qwen3-Next: the delta rule on a
state that is also forgotten, as fast as the token says.

    q, k = q / ‖q‖, k / ‖k‖ and v: SiLU of a short convolution
    β_t = σ(b_t),   g_t = −e^{A_log} softplus(a_t + dt_bias),   per value head
    S̄ = e^{g_t} S_{t−1},   S_t = S̄ + β_t k_t (v_t − S̄ᵀ k_t)ᵀ
    y = W_o (RMSNorm_head(S_tᵀ q_t / √Dk) ⊙ SiLU(z))

Several value heads may share one head of queries and keys."""

from dataclasses import dataclass
from typing import Any

from nn import ops
from nn.errors import InputError
from nn.layers.attention.linear.delta_core import delta_flops, gated_delta_rule
from nn.layers.attention.linear.heads import (
    LinearState,
    check_sizes,
    empty_tail,
    per_head,
    split_heads,
    tokens_first,
)
from nn.layers.chunks import CHUNK
from nn.layers.conv import ShortConv, conv_flops, conv_parameters
from nn.layers.formulas import projection
from nn.layers.gated_norm import GatedRMSNorm
from nn.layers.initial import log_uniform, step_bias, wide
from nn.layers.linear import Linear
from nn.layers.masks import masked
from nn.layers.module import Parameter
from nn.layers.precision import cast_to, widened
from nn.layers.protocol import Block, BlockSettings
from nn.names import check_name
from nn.tensor import Array, Tensor

DT_INITS = ("log_uniform", "ones")


@dataclass(frozen=True)
class GatedDeltaNetSettings(BlockSettings):
    """Linear attention that forgets and overwrites."""

    num_heads: int = 6                   # heads of queries and keys
    num_v_heads: int = 0                 # heads of values, a multiple of num_heads; 0: as many
    head_dim: int = 256                  # width of a query or key
    expand_v: float = 2.0                # width of a value / head_dim
    conv_size: int = 4                   # taps of the short convolution over q, k, v; 0: SiLU alone
    allow_neg_eigval: bool = False       # β up to 2: a value may be turned round, not only replaced
    dt_init: str = "log_uniform"         # dt_bias: softplus of it between 0.001 and 0.1, or ones (Qwen3-Next)
    norm_eps: float = 1e-5               # of the norm on each head's result
    chunk_size: int = CHUNK              # tokens handled together in chunk mode

    def __post_init__(self) -> None:
        self._positive("hidden_size", "num_heads", "head_dim")
        check_sizes(self)
        check_name("dt_init", self.dt_init, DT_INITS)
        if self.value_heads % self.num_heads or self.value_heads < 1:
            raise InputError(f"GatedDeltaNetSettings.num_v_heads: {self.num_v_heads} is not a multiple of "
                             f"num_heads = {self.num_heads}")
        if self.value_dim < 1 or self.value_dim != self.head_dim * self.expand_v:
            raise InputError(f"GatedDeltaNetSettings.expand_v: {self.expand_v} x head_dim = {self.head_dim} "
                             "is no whole number")

    @property
    def value_heads(self) -> int:
        return self.num_v_heads or self.num_heads

    @property
    def value_dim(self) -> int:
        """Of one head"""
        return round(self.head_dim * self.expand_v)

    @property
    def value_width(self) -> int:
        """Of all heads together."""
        return self.value_heads * self.value_dim

    @property
    def channels(self) -> int:
        """Queries, keys and values of all heads: what goes through the convolution"""
        return 2 * self.num_heads * self.head_dim + self.value_width

    def parameters(self, active: bool = False) -> dict[str, int]:
        return {"projections": self.hidden_size * (self.channels + 2 * self.value_width),
                "gates": 2 * self.value_heads * (self.hidden_size + 1),
                "conv": conv_parameters(self.channels, self.conv_size), "norms": self.value_dim}

    def flops(self, batch: int, length: int, past: int = 0, mode: str | None = None) -> dict[str, int]:
        tokens = batch * length
        return {"projections": projection(tokens, (self.hidden_size, self.channels + 2 * self.value_width)),
                "gates": projection(tokens, (self.hidden_size, 2 * self.value_heads)),
                "conv": conv_flops(tokens, self.channels, self.conv_size),
                "core": delta_flops(batch, self.value_heads, length, self.head_dim, self.value_dim, mode,
                                    self.chunk_size)}

    @classmethod
    def examples(cls) -> dict[str, Any]:
        small: dict[str, Any] = {"hidden_size": 8, "num_heads": 2, "head_dim": 4, "chunk_size": 4}
        return {"": cls.create(**small),
                "grouped": cls.create(**small, num_v_heads=4, expand_v=0.5, dt_init="ones", norm_eps=1e-6),
                "no-conv": cls.create(**small, conv_size=0, expand_v=1.0, allow_neg_eigval=True)}


class GatedDeltaNet(Block):
    """The layout of Qwen3-Next, with R value heads per key head: in_proj_qkvz [H (2 Dk + 2 R Dv), D], of each
    key head q, k, v, z; in_proj_ba [2 H R, D], of each key head b, a; conv1d [2 H Dk + H R Dv, K] over all q,
    all k, all v; A_log, dt_bias [H R]; norm [Dv]; out_proj [D, H R Dv]; no other biases.
    A_log and dt_bias are never in half precision."""

    Settings = GatedDeltaNetSettings

    def __init__(self, settings: GatedDeltaNetSettings, dtype: Any = "float32") -> None:
        s = self.settings = settings
        options: dict[str, Any] = {"std": s.init_std, "dtype": dtype}
        self.in_proj_qkvz = Linear(s.hidden_size, s.channels + s.value_width, **options)
        self.in_proj_ba = Linear(s.hidden_size, 2 * s.value_heads, **options)
        self.conv1d = ShortConv(s.channels, s.conv_size, dtype=dtype) if s.conv_size else None
        decays: dict[str, Any] = {"dtype": wide(dtype), "decay": False}
        self.A_log = Parameter((s.value_heads,), draw=log_uniform(0.0, 16.0, floor=1e-4), **decays)
        steps: dict[str, Any] = ({"fill": 1.0} if s.dt_init == "ones"
                                 else {"draw": step_bias(low=1e-3, high=1e-1, floor=1e-4)})
        self.dt_bias = Parameter((s.value_heads,), **steps, **decays)
        self.norm = GatedRMSNorm(s.value_dim, s.norm_eps, dtype=dtype)
        self.out_proj = Linear(s.value_width, s.hidden_size, **options | {"std": s.down_std})

    def init_state(self, batch_size: int) -> LinearState:
        s = self.settings
        return LinearState(self.zeros(batch_size, s.value_heads, s.head_dim, s.value_dim),
                           empty_tail(self, self.conv1d, batch_size))

    def forward(self, x: Tensor, *, state: LinearState | None = None, mask: Array | None = None,
                mode: str | None = None) -> tuple[Tensor, LinearState | None]:
        """x[B,T,D] -> y[B,T,D]; see nn/layers/protocol.py"""
        batch, length, _ = x.shape
        settings, before = self.settings, state or self.init_state(batch)
        x = masked(x, mask)
        q, k, v, z, tail = self._queries_keys_values(x, before.tail)
        g, beta = self._gates(x, mask)
        o, s = gated_delta_rule(q, k, v, g, beta, before.s, mode=mode, size=settings.chunk_size)
        o = self.norm(tokens_first(o, x.dtype), z)                                    # [B,T,H,Dv]
        y = self.out_proj(o.reshape(batch, length, settings.value_width))
        return y, None if state is None else LinearState(s.data, tail)

    def _queries_keys_values(self, x: Tensor, tail: Array | None) -> tuple[Any, ...]:
        """q, k [B,Hv,T,Dk], v[B,Hv,T,Dv], z[B,T,Hv,Dv] and the convolution's new tail"""
        s, (batch, length, _) = self.settings, x.shape
        keys, values = s.head_dim, s.value_width // s.num_heads                   # of one key head
        each = self.in_proj_qkvz(x).reshape(batch, length, s.num_heads, 2 * (keys + values))
        *parts, z = ops.split(each, keys, keys, values, values)
        mixed = ops.concat([part.reshape(batch, length, s.num_heads * part.shape[3]) for part in parts],
                           axis=-1)
        mixed, tail = (ops.silu(mixed), None) if self.conv1d is None else self.conv1d(mixed, tail)
        q, k, v = ops.split(mixed, s.num_heads * keys, s.num_heads * keys, s.value_width)
        q, k = (ops.l2_norm(split_heads(part, s.num_heads)) for part in (q, widened(k)))
        q, k = self._shared(q * keys**-0.5), self._shared(k)
        return (q, k, split_heads(v, s.value_heads), z.reshape(batch, length, s.value_heads, s.value_dim),
                tail)

    def _shared(self, x: Tensor) -> Tensor:
        """[B,H,T,Dk] -> [B,Hv,T,Dk]: each head for all its value heads"""
        batch, heads, length, width = x.shape
        shared = self.settings.value_heads // heads
        if shared == 1:
            return x
        return ops.broadcast_to(x[:, :, None], (batch, heads, shared, length, width)).reshape(
            batch, heads * shared, length, width)

    def _gates(self, x: Tensor, mask: Array | None) -> tuple[Tensor, Tensor]:
        """g and β [B,Hv,T], 0 at padding"""
        s, (batch, length, _) = self.settings, x.shape
        shared = s.value_heads // s.num_heads
        each = self.in_proj_ba(x).reshape(batch, length, s.num_heads, 2 * shared)
        b, a = (part.reshape(batch, length, s.value_heads) for part in ops.split(each, shared, shared))
        beta = ops.sigmoid(b) * (1.0 + s.allow_neg_eigval)
        rate = ops.softplus(cast_to(a, self.dt_bias.dtype) + self.dt_bias)
        return per_head(-ops.exp(self.A_log) * rate, mask), per_head(beta, mask)
