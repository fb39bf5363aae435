"""Configurations, presets, and the models that assemble layers."""

from nn.models.config import MoETransformerConfig
from nn.models.moe_transformer import MoETransformer
from nn.models.presets import PRESETS, preset

__all__ = ["MoETransformer", "MoETransformerConfig", "PRESETS", "preset"]
