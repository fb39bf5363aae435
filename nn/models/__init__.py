"""Configurations, presets, and the models that assemble layers.

Each is imported when first asked for: who decodes with one architecture does not wait for the others."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
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

_MODULES = {
    "architectures": ("ModelConfig", "from_config"),
    "config": ("MoETransformerConfig",),
    "hooks": ("Hook",),
    "language_model": ("LanguageModel", "LanguageModelConfig", "ModelState"),
    "lm_model": ("LMModel", "create_model"),
    "moe_transformer": ("MoETransformer",),
    "neoformer_x": ("NeoFormerX", "NeoFormerXConfig"),
    "presets": ("PRESETS", "preset"),
    "transformer": ("Transformer",),
    "transformer_config": ("AttentionConfig", "BlockConfig", "MoEConfig", "TransformerConfig"),
}
_HOME = {name: f"nn.models.{module}" for module, names in _MODULES.items() for name in names}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'nn.models' has no attribute {name!r}")
    import importlib

    found = getattr(importlib.import_module(_HOME[name]), name)
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
