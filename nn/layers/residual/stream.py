"""The residual stream between layers, its newest sum left to the norm that reads it next.

What a layer adds and the norm behind it are one pass over memory then, forward and backward:

    n, h = norm(Residual(h, delta))          # norm(h + delta), h + delta"""

from typing import NamedTuple

from nn.tensor import Tensor


class Residual(NamedTuple):
    """h + delta, not yet formed; without delta, h."""

    h: Tensor                          # [B,T,D]
    delta: Tensor | None = None        # [B,T,D]

    def total(self) -> Tensor:
        """The sum, formed: [B,T,D]"""
        return self.h if self.delta is None else self.h + self.delta
