"""The residual stream: what runs between layers, and how their branches read from it and write to it."""

from nn.layers.residual.stream import Residual

__all__ = ["Residual"]
