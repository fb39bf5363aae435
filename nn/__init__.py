"""cuda-nn: a language-model stack you can read and verify, to the last line, without owning a GPU.

    from nn import MoETransformer
    model = MoETransformer.tiny()
    logits = model.forward_ids([1, 2, 3, 4], batch=1, seq_len=4)      # [1, 4, vocab_size]
"""

from typing import TYPE_CHECKING, Any

from nn import ops
from nn.errors import InputError, NonFiniteError
from nn.tensor import Tensor, no_grad

if TYPE_CHECKING:
    from nn.cache import KVCache
    from nn.models import LanguageModel, LanguageModelConfig, MoETransformer, MoETransformerConfig

__version__ = "0.1.0"
__all__ = ["InputError", "KVCache", "LanguageModel", "LanguageModelConfig", "MoETransformer",
           "MoETransformerConfig", "NonFiniteError", "Tensor", "no_grad", "ops"]

_ON_FIRST_USE = {"KVCache": "nn.cache"} | dict.fromkeys(
    ("LanguageModel", "LanguageModelConfig", "MoETransformer", "MoETransformerConfig"), "nn.models")


def __getattr__(name: str) -> Any:
    """The models are imported when first asked for: `import nn` stays quick."""
    if name not in _ON_FIRST_USE:
        raise AttributeError(f"module 'nn' has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(_ON_FIRST_USE[name]), name)
