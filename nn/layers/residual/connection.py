"""How the branches of a layer (attention, feed-forward, memory) read from the residual stream and write to
it.

    pre_norm     x ← x + f(norm(x))                              one branch after the other (GPT-2)
    post_norm    x ← norm(x + f(x))                              (Vaswani et al. 2017)
    sandwich     x ← x + norm'(f(norm(x)))                       (Ding et al. 2021; Gemma 2)
    parallel     x ← x + Σ f_i(norm(x))                          all branches beside each other (GPT-J)

The stream may be anything that `open` makes of [B,T,D] and `close` makes [B,T,D] again; it stays open from
the first layer to the last one."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

from nn.layers.module import Module
from nn.layers.norm import NORMS, create_norm
from nn.layers.protocol import BlockSettings
from nn.layers.residual.stream import Residual
from nn.names import check_name
from nn.tensor import Tensor


@dataclass(frozen=True)
class Branch:
    """What a block adds to the stream."""

    function: Callable[[Tensor], Tensor]     # [B,T,D] -> [B,T,D]
    prenorm: bool = True                     # whether it wants its input normalised


@dataclass(frozen=True)
class ConnectionSettings(BlockSettings):
    """Of the connection of one layer.  parameters() and flops() are those of the whole layer's connection."""

    norm: str = "rmsnorm"                        # rmsnorm or layernorm
    norm_eps: float = 1e-6                       # added to the mean square (or variance)
    branches: tuple[bool, ...] = (True, True)    # the layer's blocks; False: one that norms its input itself
    layer: int = 0                               # which layer of the model, counted from 0

    def __post_init__(self) -> None:
        self._positive("hidden_size")
        check_name("norm", self.norm, NORMS)

    @property
    def norms(self) -> tuple[bool, ...]:
        """Norm layers, False where one is left out."""
        return self.branches

    def parameters(self, active: bool = False) -> dict[str, int]:
        return {"norms": sum(self.norms) * self.hidden_size * (2 if self.norm == "layernorm" else 1)}

    def flops(self, batch: int, length: int, past: int = 0, mode: str | None = None) -> dict[str, int]:
        return {}

    @classmethod
    def examples(cls) -> dict[str, Any]:
        return {name: cls.create(hidden_size=8, norm=name) for name in NORMS}


class Connection(Module):
    """Base: a norm for each branch, in front of it."""

    Settings: ClassVar[type[ConnectionSettings]] = ConnectionSettings

    def __init__(self, settings: ConnectionSettings, dtype: Any = "float32") -> None:
        s = self.settings = settings
        self.norms: list[Any] = [create_norm(s.norm, s.hidden_size, s.norm_eps, dtype) if wanted else None
                      for wanted in s.norms]

    def forward(self, stream: Any, branches: list[Branch]) -> Any:
        """The stream behind the layer."""
        for i, branch in enumerate(branches):
            stream = self.apply(i, stream, branch)
        return stream

    def apply(self, i: int, stream: Any, branch: Branch) -> Any:
        """The stream behind branch i."""
        raise TypeError(f"{type(self).__name__} defines neither forward nor apply")

    @classmethod
    def ends(cls, settings: ConnectionSettings, dtype: Any = "float32") -> "Ends":
        """What opens the stream before the first layer and closes it behind the last one."""
        return Ends()

    @classmethod
    def ends_settings(cls, settings: ConnectionSettings) -> BlockSettings | None:
        """What has the formulas of the ends; None if they cost nothing."""
        return None


class Ends(Module):
    """The stream is one tensor, or one and what is still to be added to it (nn/layers/residual/stream.py)."""

    def open(self, x: Tensor) -> Any:
        """[B,T,D] -> the stream before the first layer"""
        return Residual(x)

    def close(self, stream: Any) -> Tensor:
        """The stream behind the last layer -> [B,T,D]"""
        return stream.total()


class PreNorm(Connection):
    """x ← x + f(norm(x)); the sum is formed by the next norm as it reads."""

    def apply(self, i: int, stream: Residual, branch: Branch) -> Residual:
        if not branch.prenorm:
            h = stream.total()
            return Residual(h, branch.function(h))
        n, h = self.norms[i](stream)
        return Residual(h, branch.function(n))


@dataclass(frozen=True)
class PostNormSettings(ConnectionSettings):
    """A norm behind every branch."""

    @property
    def norms(self) -> tuple[bool, ...]:
        return (True,) * len(self.branches)


class PostNorm(Connection):
    """x ← norm(x + f(x))"""

    Settings = PostNormSettings

    def apply(self, i: int, stream: Residual, branch: Branch) -> Residual:
        x = stream.total()
        return Residual(self.norms[i](Residual(x, branch.function(x)))[0])


@dataclass(frozen=True)
class SandwichSettings(ConnectionSettings):
    """A norm before and one behind every branch."""

    @property
    def norms(self) -> tuple[bool, ...]:
        return tuple(wanted for branch in self.branches for wanted in (branch, True))


class Sandwich(Connection):
    """x ← x + norm'(f(norm(x)))"""

    Settings = SandwichSettings

    def apply(self, i: int, stream: Residual, branch: Branch) -> Residual:
        before, behind = self.norms[2 * i : 2 * i + 2]
        n, h = before(stream) if branch.prenorm else [stream.total()] * 2
        return Residual(h, behind(branch.function(n)))


@dataclass(frozen=True)
class ParallelSettings(ConnectionSettings):
    """One norm for all branches."""

    @property
    def norms(self) -> tuple[bool, ...]:
        return (any(self.branches),)


class Parallel(Connection):
    """x ← x + Σ f_i(norm(x))"""

    Settings = ParallelSettings

    def forward(self, stream: Residual, branches: list[Branch]) -> Residual:
        n, x = self.norms[0](stream) if self.norms[0] else [stream.total()] * 2
        h = x
        for branch in branches:
            h = h + branch.function(n if branch.prenorm else x)
        return Residual(h)
