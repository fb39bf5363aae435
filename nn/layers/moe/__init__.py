"""Mixture of experts: who computes what, and how the load is kept even."""

from nn.layers.moe.experts import Experts
from nn.layers.moe.layer import MoELayer
from nn.layers.moe.router import Router, Routing, noise_counters

__all__ = ["Experts", "MoELayer", "Router", "Routing", "noise_counters"]
