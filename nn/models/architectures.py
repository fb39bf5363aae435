"""Which model a configuration describes."""

from typing import Any

from nn.errors import InputError
from nn.models.config import MoETransformerConfig
from nn.models.decoder import Decoder
from nn.models.language_config import LanguageModelConfig
from nn.models.language_model import LanguageModel
from nn.models.moe_transformer import MoETransformer

ModelConfig = MoETransformerConfig | LanguageModelConfig

ARCHITECTURES: dict[type, Any] = {MoETransformerConfig: MoETransformer, LanguageModelConfig: LanguageModel}


def from_config(config: Any, seed: int = 0, dtype: Any = "float32") -> Decoder:
    """The untrained model that a configuration describes."""
    if type(config) not in ARCHITECTURES:
        known = ", ".join(kind.__name__ for kind in ARCHITECTURES)
        raise InputError(f"config: {type(config).__name__} describes no model; give one of {known}")
    return ARCHITECTURES[type(config)](config, seed=seed, dtype=dtype)
