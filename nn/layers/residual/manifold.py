"""Manifold-constrained hyper-connections, mHC (arXiv 2512.24880): streams are mixed by doubly stochastic
matrices, so however many layers there are, the mean of the streams is kept and nothing is amplified.

    x̂ = vec(X) (mean(vec(X)²) + ε)^−½,    m = φ x̂,    [m_pre | m_post | m_res] of n, n and n² numbers
    a = σ(α_pre m_pre + c_pre),    b = 2 σ(α_post m_post + c_post),    M = Sinkhorn(α_res m_res + c_res)

M[o,i] goes from stream i to stream o (the paper's and Liger's order; DeepSeek-V4's logits are [i,o], and its
M is Sinkhorn's result transposed: say transposed=True for its weights).

Start: φ = 0, c_pre = logit(1/n), c_post = 0, c_res = c on the diagonal: a = 1/n, b = 1, the streams stay
equal and the network is a plain pre-norm one."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from nn import ops
from nn.backends.array_api import namespace
from nn.errors import InputError
from nn.layers.auxiliary import collecting, emit_figure
from nn.layers.module import Module, Parameter
from nn.layers.precision import widened
from nn.layers.residual.connection import ConnectionSettings
from nn.layers.residual.streams import (
    StreamConnection,
    StreamSettings,
    constant,
    mean_logit,
    normalized,
)
from nn.names import check_name
from nn.ops.sinkhorn import VARIANTS, sinkhorn
from nn.tensor import Array, Tensor


@dataclass(frozen=True)
class ManifoldSettings(StreamSettings):
    """Hyper-connections on the manifold of doubly stochastic matrices."""

    sinkhorn_iters: int = 20        # iterations; too few leave row sums off, layer by layer
    sinkhorn_variant: str = "A"     # A, B or C; see nn/ops/sinkhorn.py
    sinkhorn_eps: float = 1e-6      # added to sums in variant A
    map_eps: float = 1e-6           # added to the mean square of the streams
    map_std: float = 0.0            # φ starts as Normal(0, map_std)
    pre_eps: float = 0.0            # added to what is read
    dynamic_scale: float = 0.01     # α_pre, α_post and α_res at the start
    transposed: bool = False        # m_res holds (from, to): DeepSeek-V4's order
    res_diagonal: float = 6.0       # diagonal of c_res at the start: how little the streams mix

    def __post_init__(self) -> None:
        super().__post_init__()
        self._positive("sinkhorn_iters")
        check_name("sinkhorn_variant", self.sinkhorn_variant, VARIANTS)
        if self.sinkhorn_eps < 0:
            raise InputError(f"sinkhorn_eps: {self.sinkhorn_eps} is negative")

    @property
    def maps(self) -> int:
        """Numbers that a token's maps are made of."""
        return self.n_streams * (2 + self.n_streams)

    def map_parameters(self) -> int:
        return self.maps * (self.n_streams * self.hidden_size + 1) + 3

    def map_flops(self) -> int:
        return 2 * self.n_streams * self.hidden_size * self.maps

    @classmethod
    def examples(cls) -> dict[str, Any]:
        return super().examples() | {
            "one iteration of B": cls.create(hidden_size=8, n_streams=2, sinkhorn_iters=1, transposed=True,
                                             sinkhorn_variant="B", pre_eps=1e-3),
            "logarithms": cls.create(hidden_size=8, n_streams=2, sinkhorn_iters=4, sinkhorn_variant="C")}


class ManifoldMaps(Module):
    """fn [2n + n², nD], base [2n + n²], scale [3]: of what is read, written and mixed"""

    def __init__(self, settings: ManifoldSettings, dtype: Any = "float32") -> None:
        s = self.settings = settings
        n = s.n_streams
        base = np.concatenate([np.full(n, mean_logit(n)), np.zeros(n),
                               s.res_diagonal * np.eye(n).reshape(-1)])
        self.fn = Parameter((s.maps, n * s.hidden_size), std=s.map_std, dtype=dtype)
        self.base = constant(base, dtype=dtype)
        self.scale = Parameter((3,), fill=s.dynamic_scale, dtype=dtype, decay=False)

    def forward(self, stream: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """X[B,T,n,D] -> read [B,T,n], mix [B,T,n,n] (to, from), write [B,T,n]"""
        s, n = self.settings, self.settings.n_streams
        m = ops.linear(normalized(stream, s.map_eps), self.fn)                              # [B,T,2n+n²]
        base, scale = widened(self.base), widened(self.scale)
        pre, post, res = (scale[k : k + 1] * m[..., start:end] + base[start:end]
                          for k, (start, end) in enumerate(((0, n), (n, 2 * n), (2 * n, s.maps))))
        mix = sinkhorn(res.reshape(*res.shape[:-1], n, n), s.sinkhorn_iters, s.sinkhorn_eps,
                       s.sinkhorn_variant)
        mix = ops.transpose(mix) if s.transposed else mix
        if collecting():
            emit_figure("mhc/sum_error", sum_error(mix.data))
        read = ops.sigmoid(pre)
        return read + s.pre_eps if s.pre_eps else read, mix, 2.0 * ops.sigmoid(post)


def sum_error(mix: Array) -> Array:
    """How far a row or a column of any matrix [...,n,n] is from adding up to 1, at most: what iterations are
    missing, and what grows with depth"""
    xp = namespace(mix)
    sums = [xp.sum(mix, axis=axis, dtype=mix.dtype) for axis in (-1, -2)]
    return xp.max(xp.abs(xp.stack(sums) - 1.0))


class ManifoldConnection(StreamConnection):
    """A norm and maps for each branch."""

    Settings = ManifoldSettings

    def __init__(self, settings: ConnectionSettings, dtype: Any = "float32") -> None:
        super().__init__(settings, dtype)
        assert isinstance(settings, ManifoldSettings)
        self.maps = [ManifoldMaps(settings, dtype) for _ in settings.branches]
