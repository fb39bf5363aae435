"""Configurations, presets, and the models that assemble layers."""

from nn.models.architectures import ModelConfig, from_config
from nn.models.config import MoETransformerConfig
from nn.models.hooks import Hook
from nn.models.language_model import LanguageModel, LanguageModelConfig, ModelState
from nn.models.lm_model import LMModel, create_model
from nn.models.moe_transformer import MoETransformer
from nn.models.neoformer_x import NeoFormerX, NeoFormerXConfig
from nn.models.presets import PRESETS, preset
from nn.models.transformer import Transformer
from nn.models.transformer_config import AttentionConfig, BlockConfig, MoEConfig, TransformerConfig

__all__ = ["AttentionConfig", "BlockConfig", "Hook", "LMModel", "LanguageModel", "LanguageModelConfig",
           "MoEConfig", "MoETransformer", "MoETransformerConfig", "ModelConfig", "ModelState", "NeoFormerX",
           "NeoFormerXConfig", "PRESETS", "Transformer", "TransformerConfig", "create_model", "from_config",
           "preset"]
