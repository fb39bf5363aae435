"""Hyper-connections (Zhu et al. 2024, arXiv 2409.19606): maps without constraint, static or by token.

    [a | Mᵀ] = A + s_α tanh(x̂ W_α),    b = β + s_β tanh(x̂ w_β),    x̂_i = norm(X_i)

Row i of the first is stream i's: how much of it is read, and how much of it goes to each stream.

Start: W_α = w_β = 0, A = [e_(l mod n) | I], β = 1 with l the place among all branches: each branch reads one
stream and writes to all, so the streams stay equal and the network is a plain pre-norm one."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from nn import ops
from nn.layers.module import Module, Parameter
from nn.layers.norm import create_norm
from nn.layers.precision import widened
from nn.layers.residual.connection import ConnectionSettings
from nn.layers.residual.streams import StreamConnection, StreamSettings, constant
from nn.tensor import Tensor


@dataclass(frozen=True)
class HyperSettings(StreamSettings):
    """Hyper-connections."""

    dynamic: bool = True         # maps depend on the token; False: learned numbers alone
    tanh: bool = True            # whether what the token adds to the maps is bounded
    dynamic_scale: float = 0.01  # s_α and s_β at the start

    def map_parameters(self) -> int:
        n, width = self.n_streams, self.hidden_size
        norm = width * (2 if self.norm == "layernorm" else 1)
        return n * (n + 2) + self.dynamic * (width * (n + 2) + 2 + norm)

    def map_flops(self) -> int:
        return self.dynamic * 2 * self.n_streams * self.hidden_size * (self.n_streams + 2)

    @classmethod
    def examples(cls) -> dict[str, Any]:
        return super().examples() | {"static": cls.create(hidden_size=8, n_streams=2, dynamic=False,
                                                          collapse="sum"),
                                     "linear": cls.create(hidden_size=8, n_streams=1, tanh=False)}


class HyperMaps(Module):
    """static_alpha [n,1+n], static_beta [n]; dynamic: norm [D], dynamic_alpha_fn [D,1+n],
    dynamic_beta_fn [D,1], dynamic_alpha_scale [1], dynamic_beta_scale [1]"""

    def __init__(self, settings: HyperSettings, place: int, dtype: Any = "float32") -> None:
        s = self.settings = settings
        n, width = s.n_streams, s.hidden_size
        alpha = np.concatenate([np.eye(n)[:, place % n, None], np.eye(n)], axis=1)
        self.static_alpha = constant(alpha, dtype=dtype)
        self.static_beta = Parameter((n,), fill=1.0, dtype=dtype, decay=False)
        if s.dynamic:
            self.norm = create_norm(s.norm, width, s.norm_eps, dtype)
            self.dynamic_alpha_fn = Parameter((width, 1 + n), dtype=dtype)
            self.dynamic_beta_fn = Parameter((width, 1), dtype=dtype)
            self.dynamic_alpha_scale = Parameter((1,), fill=s.dynamic_scale, dtype=dtype, decay=False)
            self.dynamic_beta_scale = Parameter((1,), fill=s.dynamic_scale, dtype=dtype, decay=False)

    def forward(self, stream: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """X[B,T,n,D] -> read [B,T,n], mix [B,T,n,n] (to, from), write [B,T,n]; static ones without B and T"""
        alpha, beta = widened(self.static_alpha), widened(self.static_beta)
        if self.settings.dynamic:
            fn = ops.concat([widened(self.dynamic_alpha_fn), widened(self.dynamic_beta_fn)], axis=1)
            added = widened(self.norm(stream)) @ fn                                         # [B,T,n,n+2]
            added = ops.tanh(added) if self.settings.tanh else added
            alpha = alpha + widened(self.dynamic_alpha_scale) * added[..., :-1]
            beta = beta + widened(self.dynamic_beta_scale) * added[..., -1]
        return alpha[..., 0], ops.transpose(alpha[..., 1:]), beta


class HyperConnection(StreamConnection):
    """A norm and maps for each branch."""

    Settings = HyperSettings

    def __init__(self, settings: ConnectionSettings, dtype: Any = "float32") -> None:
        super().__init__(settings, dtype)
        assert isinstance(settings, HyperSettings)
        count = len(settings.branches)
        self.maps = [HyperMaps(settings, settings.layer * count + i, dtype) for i in range(count)]
