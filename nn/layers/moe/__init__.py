"""Mixture of experts: who computes what, and how the load is kept even."""

from nn.layers.moe.decision import Routing
from nn.layers.moe.experts import Experts
from nn.layers.moe.general import GeneralRouter, finish_step
from nn.layers.moe.layer import MoELayer
from nn.layers.moe.router import Router

__all__ = ["Experts", "GeneralRouter", "MoELayer", "Router", "Routing", "finish_step"]
