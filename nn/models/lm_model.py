"""LMModel: GPT, Mamba, and whatever can be put together from them, by one pattern of blocks (LinearNexus).

    model = create_model("jamba-small", seed=0, n_layers=8)
    logits, state = model(ids)                              # [B,T,V], and what continues the text
    logits, state = model(ids[:, :1], state=state)

    config = ModelConfig(vocab_size=50, hidden_size=64, n_layers=4, n_heads=4, block_pattern="MMMA")
    model = LMModel(config);  total, figures = model.loss(inputs, targets)

A LanguageModel with LinearNexus's names: it trains and generates as any other.  Weights start as in
nn/models/language_config.py: Normal(0, init_std), projections into the stream / √(2 n_layers), norms 1."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from nn.errors import InputError
from nn.layers import auxiliary
from nn.layers.attention import AttentionBlock, MLABlock
from nn.layers.layer_block import LayerBlock
from nn.layers.ssm import MambaBlock
from nn.layers.stack import Layer
from nn.models import language_model
from nn.models.language_model import LanguageModel
from nn.models.lm_config import (
    DELTA_HYBRID_SMALL,
    GPT_SMALL,
    GPT_TINY,
    JAMBA_SMALL,
    MAMBA2_SMALL,
    MAMBA_SMALL,
    MLA_SMALL,
    PRESETS,
    ModelConfig,
)
from nn.names import by_name
from nn.tape import no_grad
from nn.tape import state as tape
from nn.tensor import Array, Tensor

__all__ = ["DELTA_HYBRID_SMALL", "GPT_SMALL", "GPT_TINY", "JAMBA_SMALL", "MAMBA2_SMALL", "MAMBA_SMALL",
           "MLA_SMALL", "PRESETS", "LMModel", "ModelConfig", "ModelState", "create_model"]

# Classes of the blocks by mixer; LayerBlock for all others.
BLOCKS: dict[str, type[LayerBlock]] = {"full_attention": AttentionBlock, "mla": MLABlock, "mamba": MambaBlock}


@dataclass
class ModelState(language_model.ModelState):
    """One state per block, of the kind the block needs; and which of the tokens were padding."""

    mask: Array | None = None          # booleans [B, length]; None: there was no padding

    @property
    def block_states(self) -> list[Any]:
        """KVCache, MLACache, MambaState, ..., or None: of each block."""
        return [layer.mixer for layer in self.body.layers]

    @property
    def position(self) -> int:
        """Tokens seen."""
        return self.offset

    def trim(self, keep: int) -> None:
        super().trim(keep)
        if self.mask is not None:
            self.mask = self.mask[:, max(0, self.mask.shape[1] - keep) :]


class LMModel(LanguageModel):
    """ids [B,T] -> (logits [B,T,V], the state behind them)"""

    def __init__(self, config: ModelConfig, seed: int = 0, dtype: Any = "float32") -> None:
        super().__init__(config.core, seed, dtype)
        self.model_config = config

    @property
    def blocks(self) -> list[LayerBlock]:
        """The layers, each as a block with its norms and residual connections inside."""
        return [BLOCKS.get(kind, LayerBlock).around(layer)
                for kind, layer in zip(self.model_config.block_types, self.body.layers, strict=True)]

    def init_state(self, batch_size: int, **options: Any) -> ModelState:
        """Of no tokens: one state per block."""
        return ModelState(**vars(super().init_state(batch_size, **options)))

    def forward(self, ids: Any, *, state: ModelState | None = None, mask: Any = None, mode: str | None = None,
                donate: bool = False, **given: Any) -> Any:
        """(logits[B,T,V], state) of integers ids[B,T].

        state: what earlier tokens left; None: none.  It stays as it is, unless `donate` gives it up: then its
        memory is written into, which saves a copy.  The tokens behind a state have no gradients.  While
        gradients are recorded the state of a first call takes a second pass; loss() keeps none.
        mask: keep-mask [B,T] of these tokens, or [B,S] of all that are held; 0 or False is padding, which
        stands left of a row's first token.
        mode: "chunk", "recurrent"; None: recurrent for one token behind a state, else chunk.
        given: further inputs; packed rows (segment_ids) give no state.  With cache=, last_only= or
        return_aux= it is called as any decoder, and gives logits alone."""
        if {"cache", "last_only", "return_aux"} & given.keys():
            return super().forward(ids, mask=mask, mode=mode, **given)
        ids = self._checked(ids, state)
        if given.get("segment_ids") is not None:
            return self.logits(self.hidden(ids, state=state, mask=mask, mode=mode or "chunk", **given)), None
        if state is None:
            return self._begun(ids, mask, mode or "chunk", given)
        state = state if donate else state.copy()
        with no_grad():
            usual = "recurrent" if ids.shape[1] == 1 else "chunk"
            logits = self.logits(self._read(ids, state, mask, mode or usual, given))
        return logits, state

    def _begun(self, ids: Array, mask: Any, mode: str, given: dict[str, Any]) -> tuple[Tensor, ModelState]:
        state = self.init_state(ids.shape[0])
        if not tape.recording:
            return self.logits(self._read(ids, state, mask, mode, given)), state
        logits = self.logits(self.hidden(ids, mask=mask, mode=mode, **given))
        with no_grad(), auxiliary.collect():             # what the layers report is told once
            self._read(ids, state, mask, mode, given)
        return logits, state

    def _read(self, ids: Array, state: ModelState, mask: Any, mode: str, given: dict[str, Any]) -> Tensor:
        """hidden[B,T,D], and the state has seen the tokens and their mask."""
        state.mask = _joined(state, mask, tuple(ids.shape))
        return self.hidden(ids, state=state, mask=state.mask, mode=mode, **given)


def _joined(state: ModelState, mask: Any, shape: tuple[int, int]) -> Array | None:
    """The mask of everything held and of the new tokens, [B,S]"""
    if mask is None and state.mask is None:
        return None
    held = state.length
    new = np.ones(shape, bool) if mask is None else np.asarray(mask)
    if new.ndim != 2 or new.shape[0] != shape[0] or new.shape[1] not in (shape[1], held + shape[1]):
        raise InputError(f"mask: shape {list(new.shape)}; expected {list(shape)}, of the new tokens, or "
                         f"[{shape[0]}, {held + shape[1]}], of all that are held")
    if new.shape[1] == held + shape[1]:
        return new
    before = np.ones((shape[0], held), bool) if state.mask is None else state.mask
    return np.concatenate([before, new.astype(before.dtype)], axis=1)


def _create_block(block_type: str, config: ModelConfig, layer: int = 0, dtype: Any = "float32") -> LayerBlock:
    """A block of a name that block_pattern may hold, by itself, as LMModel has it at that layer."""
    alone = config.replace(block_pattern=(block_type,))
    kind = alone.block_types[layer]
    return BLOCKS.get(kind, LayerBlock).around(Layer(alone.core.stack.layers()[layer], dtype))


def create_model(model_type: str | ModelConfig, *, rng: int | np.random.Generator | None = None,
                 seed: int | None = None, dtype: Any = "float32", **changes: Any) -> Any:
    """An LMModel, if rng or seed says where its weights are drawn; else (config, LMModel).

    model_type: the name of a preset (InputError lists them) or a configuration; changes: fields of it that
    are to be different."""
    config = by_name("model_type", model_type, PRESETS) if isinstance(model_type, str) else model_type
    if not isinstance(config, ModelConfig):
        raise InputError(f"model_type: {type(config).__name__}; give the name of a preset or a ModelConfig")
    config = config.replace(**changes) if changes else config
    if rng is not None and seed is not None:
        raise InputError("rng, seed: give one of them")
    given = rng if seed is None else seed
    if given is None:
        return config, LMModel
    drawn = int(given.integers(2**63)) if isinstance(given, np.random.Generator) else given
    return LMModel(config, seed=drawn, dtype=dtype)
