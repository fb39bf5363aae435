"""A residual path n streams wide: X [B,T,n,D] runs through all layers (Zhu et al. 2024, arXiv 2409.19606).

    u = Σ_i a_i X_i,    y = f(u),    X'_o = Σ_i M_oi X_i + b_o y

What the maps a, M and b are is a connection's business: hyper.py, manifold.py.  Before the first layer the
input is copied to all streams; behind the last one they are one vector again: their mean, their sum, or
Σ_i (σ(s ⟨x̂, φ_i⟩ + c_i) + ε) X_i with x̂ the normalised streams side by side ("gated": DeepSeek-V4)."""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from nn import ops
from nn.backends.array_api import namespace
from nn.dtypes import Shape
from nn.layers.module import Parameter
from nn.layers.precision import widened
from nn.layers.protocol import BlockSettings
from nn.layers.residual.connection import Branch, Connection, ConnectionSettings, Ends
from nn.names import check_name
from nn.ops.streams import read_streams, write_streams
from nn.tensor import Tensor

COLLAPSES = ("mean", "sum", "gated")


@dataclass(frozen=True)
class StreamSettings(ConnectionSettings):
    """What connections of several streams have in common."""

    n_streams: int = 4               # residual streams
    collapse: str = "mean"           # how they end as one: mean, sum or gated
    stream_embedding: bool = False   # learned vectors by which the streams differ from the start
    gate_eps: float = 1e-6           # added to the gates of a gated collapse, and to the mean square in them

    def __post_init__(self) -> None:
        super().__post_init__()
        self._positive("n_streams")
        check_name("collapse", self.collapse, COLLAPSES)

    def map_parameters(self) -> int:
        """Of the maps of one branch."""
        raise TypeError(f"{type(self).__name__} does not say how many parameters its maps have")

    def map_flops(self) -> int:
        """Operations by which one branch's maps are found for one token."""
        raise TypeError(f"{type(self).__name__} does not say how many operations its maps take")

    def parameters(self, active: bool = False) -> dict[str, int]:
        return super().parameters() | {"maps": len(self.branches) * self.map_parameters()}

    def flops(self, batch: int, length: int, past: int = 0, mode: str | None = None) -> dict[str, int]:
        times, n = batch * length * len(self.branches), self.n_streams
        return {"maps": times * self.map_flops(),
                "streams": times * 2 * n * self.hidden_size * (n + 2)}          # read, mix, write

    @classmethod
    def examples(cls) -> dict[str, Any]:
        return {"": cls.create(hidden_size=8, n_streams=3),
                "gated": cls.create(hidden_size=8, n_streams=2, collapse="gated", stream_embedding=True,
                                    norm="layernorm")}


@dataclass(frozen=True)
class StreamEndsSettings(BlockSettings):
    """Of the ends of the streams."""

    n_streams: int = 4
    collapse: str = "mean"
    stream_embedding: bool = False

    def parameters(self, active: bool = False) -> dict[str, int]:
        n, width = self.n_streams, self.hidden_size
        return {"stream_embedding": n * width * self.stream_embedding,
                "collapse": (n * (n * width + 1) + 1) * (self.collapse == "gated")}

    def flops(self, batch: int, length: int, past: int = 0, mode: str | None = None) -> dict[str, int]:
        width = self.n_streams * self.hidden_size
        gated = batch * length * 2 * width * (self.n_streams + 1)
        return {"collapse": gated * (self.collapse == "gated")}


class StreamEnds(Ends):
    """embedding [n,D]; of a gated collapse fn [n,nD], base [n], scale [1]"""

    def __init__(self, settings: StreamSettings, dtype: Any = "float32") -> None:
        s = self.settings = settings
        n, width = s.n_streams, s.hidden_size
        self.embedding = Parameter((n, width), dtype=dtype, decay=False) if s.stream_embedding else None
        if s.collapse == "gated":
            self.fn = Parameter((n, n * width), dtype=dtype)
            self.base = constant(np.full(n, mean_logit(n)), dtype=dtype)
            self.scale = Parameter((1,), fill=0.01, dtype=dtype, decay=False)

    def open(self, x: Tensor) -> Tensor:
        """[B,T,D] -> [B,T,n,D]"""
        batch, length, width = x.shape
        streams = ops.broadcast_to(x.reshape(batch, length, 1, width),
                                   (batch, length, self.settings.n_streams, width))
        return streams if self.embedding is None else streams + self.embedding

    def close(self, stream: Tensor) -> Tensor:
        """[B,T,n,D] -> [B,T,D]"""
        s = self.settings
        if s.collapse == "sum":
            return stream.sum(axis=2)
        if s.collapse == "mean":
            return stream.mean(axis=2)
        gate = ops.linear(normalized(stream, s.gate_eps), self.fn)
        gate = ops.sigmoid(gate * widened(self.scale) + widened(self.base)) + s.gate_eps
        return read_streams(stream, gate)


class StreamConnection(Connection):
    """Base: the branches read from the streams and write to them by maps of their own."""

    settings: StreamSettings
    maps: list[Any]

    def apply(self, i: int, stream: Tensor, branch: Branch) -> Tensor:
        """[B,T,n,D] -> [B,T,n,D]"""
        read, mix, write = self.maps[i](stream)
        u = read_streams(stream, read)
        y = branch.function(self.norms[i](u) if branch.prenorm else u)
        return write_streams(stream, mix, write, y)

    @classmethod
    def ends(cls, settings: ConnectionSettings, dtype: Any = "float32") -> Ends:
        assert isinstance(settings, StreamSettings)
        return StreamEnds(settings, dtype)

    @classmethod
    def ends_settings(cls, settings: ConnectionSettings) -> BlockSettings | None:
        assert isinstance(settings, StreamSettings)
        return StreamEndsSettings(settings.hidden_size, n_streams=settings.n_streams,
                                  collapse=settings.collapse, stream_embedding=settings.stream_embedding)


# ---- shared by the maps ----


def normalized(stream: Tensor, eps: float) -> Tensor:
    """x̂ = x (mean(x²) + ε)^−½ over all n·D entries of a token: [B,T,n,D] -> [B,T,nD], wide"""
    batch, length, n, width = stream.shape
    flat = widened(stream).reshape(batch, length, n * width)
    ones = Tensor(namespace(flat.data).ones((n * width,), dtype=flat.dtype))
    return ops.rms_norm(flat, ones, eps)


def mean_logit(n: int) -> float:
    """b with σ(b) = 1/n; of a single stream, so large that σ(b) = 1 in every type"""
    return -math.log(n - 1) if n > 1 else 40.0


def constant(values: np.ndarray, *, dtype: Any, decay: bool = False) -> Parameter:
    """A parameter that starts at these values"""

    def draw(random: np.random.Generator, shape: Shape) -> np.ndarray:
        return values

    return Parameter(values.shape, dtype=dtype, decay=decay, draw=draw)


