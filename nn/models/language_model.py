"""LanguageModel: any blocks in any order between an embedding and a head.

    config = LanguageModelConfig(vocab_size=1000, hidden_size=64, num_layers=4, mixer="RRRA",
                                 feed_forward=("swiglu", "moe"), options={"retention": {"num_heads": 4}})
    model = LanguageModel(config, seed=0)
    logits = model(ids)                                     # [B,T,V]
    state = model.init_state(batch_size=2)
    logits = model(prompt, cache=state, last_only=True)     # the state has seen the prompt
    total, figures = model.loss(inputs, targets)

Blocks, patterns and options are those of nn/layers/stack.py; nn.generate and nn.train take it as they take
any decoder."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from nn.backends.array_api import beside
from nn.cache import LayerCache, StaticKVCache
from nn.errors import InputError
from nn.layers import registry
from nn.layers.attention.positions import left_out, positions
from nn.layers.attention.window import SlidingWindowAttention
from nn.layers.dropout import Dropout
from nn.layers.linear import Embedding, Linear
from nn.layers.moe import Experts
from nn.layers.norm import create_norm
from nn.layers.packing import Documents
from nn.layers.pattern import NONE
from nn.layers.protocol import INPUTS, Block
from nn.layers.recursion.engine import RecursionState
from nn.layers.residual import Residual
from nn.layers.stack import LayerState, Stack, StackState
from nn.models.decoder import Decoder
from nn.models.language_config import LanguageModelConfig
from nn.models.mtp import MultiTokenPrediction
from nn.state import State
from nn.tensor import Array, Tensor

__all__ = ["LanguageModel", "LanguageModelConfig", "ModelState"]

INCREMENTS = ("nsb", "engram")      # blocks of a prelude whose result is always added


@dataclass
class ModelState(State):
    """What a model keeps of the tokens it has seen."""

    prelude: list[Any]              # one state, or None, per block
    body: Any                       # StackState or RecursionState
    padding: np.ndarray             # integers [B], on the host: how many of the tokens were padding
    length: int = 0                 # tokens held: what counts against the context
    offset: int = 0                 # tokens seen: the position of the next one

    @property
    def grows(self) -> bool:
        """Whether anything in it is kept for every token; else there is no limit to the tokens."""
        return any(_grows(part) for part in self.leaves())

    def leaves(self) -> Iterator[State]:
        """The blocks' own states."""
        for part in [*self.prelude, self.body]:
            yield from _leaves(part)

    def trim(self, keep: int) -> None:
        """Drop the oldest tokens until `keep` are left, where tokens are kept one by one; what summarises
        them stays.  Positions go on.  InputError if a block can not forget."""
        if keep < 0:
            raise InputError(f"keep: {keep} tokens cannot be left; give 0 or more")
        growing = [part for part in self.leaves() if _grows(part)]
        for part in growing:
            if not hasattr(part, "trim"):
                raise InputError(f"state: {type(part).__name__} cannot drop its oldest tokens; keep the text "
                                 "within max_seq_len, or raise that")
        for part in growing:
            part.trim(keep)         # type: ignore[attr-defined]
        self.length = min(self.length, keep)


def _leaves(part: Any) -> Iterator[State]:
    """States of blocks below one of several blocks"""
    if isinstance(part, State):
        inner = [value for _, value in part._fields()] if _holds_blocks(part) else None
        if inner is None:
            yield part
        else:
            for value in inner:
                yield from _leaves(value)
    elif isinstance(part, list):
        for value in part:
            yield from _leaves(value)


def _holds_blocks(part: State) -> bool:
    return isinstance(part, LayerState | StackState | RecursionState)


def _grows(part: State) -> bool:
    """Whether a block's state keeps every token: it is a growing cache, or has one"""
    if isinstance(part, LayerCache):
        return True
    return any(isinstance(value, LayerCache) for value in vars(part).values())


class LanguageModel(Decoder):
    """embed_tokens, (positions), prelude.0 ..., body, norm, (lm_head).

    Parameters are drawn when first used, each from its own random stream, named by (seed, name)."""

    prelude: list[Any]
    body: Any
    position_embedding: Embedding

    def __init__(self, config: LanguageModelConfig, seed: int = 0, dtype: Any = "float32") -> None:
        c = self.config = config
        super().__init__(
            Embedding(c.vocab_size, c.hidden_size, std=c.std, dtype=dtype),
            _parts(c, dtype),
            create_norm(c.norm, c.hidden_size, c.norm_eps, dtype) if c.final_norm else None,
            None if c.tie_embeddings else Linear(c.hidden_size, c.vocab_size, std=c.std, dtype=dtype),
            c.max_seq_len)
        if self.lm_head is not None:
            self.lm_head.weight.decay = False        # as the embedding, which it may be tied to
        self.dropout = Dropout(c.dropout) if c.dropout else None
        self.logit_softcap = c.logit_softcap
        if c.init_scheme == "kaiming":
            _kaiming(self)
        self._unlimited: bool | None = None
        self.initialize(seed)

    # ---- state ----

    def init_state(self, batch_size: int, **options: Any) -> ModelState:
        """Of no tokens, for `model(ids, cache=...)`; options as the body's init_state has them (n_steps)."""
        if not self.config.causal:
            raise InputError("causal: an encoder reads whole sequences; it has no state to continue")
        return ModelState([block.init_state(batch_size) for block in self.prelude],
                          self.body.init_state(batch_size, **options), np.zeros(batch_size, np.int64))

    @property
    def context(self) -> int | None:
        """Tokens that can be held at once; None for a model whose state does not grow."""
        if self._unlimited is None:
            learned = self.config.positions == "learned" or not self.config.causal
            self._unlimited = not learned and not self.init_state(1).grows
        return None if self._unlimited else self.max_seq_len

    @property
    def rereads(self) -> bool:
        """Whether positions end with the context: nn.generate then reads anew what it keeps of a text"""
        return self.config.positions == "learned"

    def _check_cache(self, cache: Any) -> None:
        if isinstance(cache, StaticKVCache):
            self._check_static(cache)
        elif not isinstance(cache, ModelState):
            raise InputError(f"cache: {type(cache).__name__}; use init_state()")
        elif not self._holds(cache):
            raise InputError("cache: of a model of other layers; use init_state() of this one")

    def _holds(self, state: ModelState) -> bool:
        """Whether a state has a place for every layer, and no more (or none for the body)"""
        body, recursive = state.body, self.config.body == "recursion"
        if body is not None and isinstance(body, RecursionState) != recursive:
            return False
        stacks = [] if body is None else body.steps if recursive else [body]
        return (len(state.prelude) == len(self.prelude)
                and all(len(stack.layers) == self.config.num_layers for stack in stacks))

    def _check_static(self, cache: StaticKVCache) -> None:
        if problem := self.static_problem:
            raise InputError(f"cache: {problem}; use init_state()")
        if len(cache.layers) != self.config.num_layers:
            raise InputError(f"cache: made for {len(cache.layers)} layers, "
                             f"the model has {self.config.num_layers}")

    @property
    def static_problem(self) -> str:
        """Why no cache of fixed size serves this model; empty if one does."""
        c = self.config
        if c.body != "stack" or c.prelude or c.positions != "none" or c.memory != NONE:
            return "a cache of fixed size serves a stack of attention and feed-forward layers alone"
        others = {name for name in c.stack.expanded("mixer")
                  if name != NONE and not registry.find("mixer", name).static_cache}
        return f"a cache of fixed size does not serve {', '.join(sorted(others))}" if others else ""

    @property
    def span(self) -> int:
        """Keys that a state of fixed size holds for a window, and so must a cache that drops its oldest"""
        return max((module.window + module.sink_tokens for module in self.modules()
                    if isinstance(module, SlidingWindowAttention)), default=0)

    # ---- computing ----

    @property
    def inputs(self) -> tuple[str, ...]:        # type: ignore[override]
        """What forward takes besides ids: the blocks' inputs, and the body's options"""
        more = ("n_steps",) if self.config.body == "recursion" else ()
        return (*(name for name in INPUTS if name != "ids"), *more)

    def trunk(self, ids: Array, cache: Any, mask: Array | None, mode: str | None,
              **inputs: Any) -> Residual:
        _check_rows(cache, ids.shape[0])
        given = {"ids": ids, **{name: value for name, value in inputs.items() if value is not None}}
        for part in (module for module in self.modules() if isinstance(module, Stack)):
            part.recompute = self.gradient_checkpointing
        documents = Documents(given["segment_ids"]) if "segment_ids" in given else None
        given |= {"segment_ids": documents} if documents else {}
        states, mask = _states(cache, len(self.prelude)), _whole(mask, cache)
        x = self._embedded(ids, cache, mask, documents)
        for i, block in enumerate(self.prelude):
            x, states.prelude[i] = self._before(i, block, x, states.prelude[i], mask, mode, given)
        x, states.body = self.body(x, state=states.body, mask=mask, mode=mode, **given)
        if isinstance(cache, ModelState):
            cache.padding = cache.padding + left_out(mask, ids.shape[1])
            cache.length, cache.offset = cache.length + ids.shape[1], cache.offset + ids.shape[1]
        return Residual(x)

    def _embedded(self, ids: Array, cache: Any, mask: Array | None,
                  documents: Documents | None = None) -> Tensor:
        x = self.embed_tokens(ids)
        if self.config.embedding_scale != 1.0:
            x = x * self.config.embedding_scale
        x = self._positioned(x, ids, cache, mask, documents)
        return self.dropout(x) if self.dropout and cache is None else x

    def _positioned(self, x: Tensor, ids: Array, cache: Any, mask: Array | None,
                    documents: Documents | None = None) -> Tensor:
        if self.config.positions == "none":
            return x
        first = cache.offset - cache.padding if cache is not None else 0
        at = (documents.positions(mask) if documents
              else positions(first, ids.shape[1], mask))                                  # [B,T] or [1,T]
        if self.config.positions == "sinusoidal":
            return x + Tensor(beside(sinusoids(at, x.shape[-1]).astype(x.dtype), x.data))
        if at.max(initial=0) >= self.max_seq_len:
            raise InputError(f"ids: position {at.max()} has no learned embedding; there are "
                             f"max_seq_len = {self.max_seq_len}")
        return x + self.position_embedding(at)

    def _before(self, i: int, block: Block, x: Tensor, state: Any, mask: Array | None, mode: str | None,
                given: dict[str, Any]) -> tuple[Tensor, Any]:
        """x behind block i of the prelude"""
        needed = {name: given[name] for name in (*block.needs, *block.takes) if name in given}
        y, state = block(x, state=state, mask=mask, mode=mode, **needed)
        added = self.config.prelude_residual or self.config.prelude[i] in INCREMENTS
        return (x + y if added else y), state


def _states(cache: Any, prelude: int) -> ModelState:
    """The states that the parts are called with: those of the cache itself, or none"""
    if isinstance(cache, ModelState):
        return cache
    body = StackState([LayerState(mixer=layer) for layer in cache.layers]) if cache else None
    return ModelState([None] * prelude, body, np.zeros(0, np.int64))


def _check_rows(cache: Any, rows: int) -> None:
    if isinstance(cache, ModelState) and len(cache.padding) != rows:
        raise InputError(f"cache: made for {len(cache.padding)} rows, ids have {rows}; use "
                         f"init_state({rows}), or reorder() the cache's rows")


def _whole(mask: Array | None, cache: Any) -> Array | None:
    """The mask with columns for what trim() has dropped in front: windows may hold it still"""
    dropped = cache.offset - cache.length if isinstance(cache, ModelState) else 0
    if mask is None or not dropped:
        return mask
    return np.concatenate([np.arange(dropped) >= cache.padding[:, None], mask], axis=1)


def _parts(c: LanguageModelConfig, dtype: Any) -> dict[str, Any]:
    """What stands between embedding and norm"""
    found: dict[str, Any] = {}
    if c.positions == "learned":
        found["position_embedding"] = Embedding(c.max_seq_len, c.hidden_size, std=c.std, dtype=dtype)
    blocks = zip(c.prelude, c.prelude_settings(), strict=True)
    found["prelude"] = [registry.find("memory", name)(settings, dtype=dtype) for name, settings in blocks]
    found["body"] = registry.find("stack", c.body)(c.body_settings(), dtype=dtype)
    if c.mtp:
        found["mtp"] = MultiTokenPrediction(c.mtp, dtype)
    return found


def _kaiming(model: LanguageModel) -> None:
    """std √(2 / fan-in), of embeddings √(2 / D)   (He et al. 2015)"""
    for module in model.modules():
        if isinstance(module, Linear | Embedding):
            module.weight.std = math.sqrt(2.0 / module.weight.shape[-1])
        elif isinstance(module, Experts):
            for parameter in module.parameters():
                parameter.std = math.sqrt(2.0 / parameter.shape[-1])


def sinusoids(at: np.ndarray, width: int) -> np.ndarray:
    """[..., D] of positions: sin and cos of p / 10000^(2i/D), side by side   (Vaswani et al. 2017)"""
    angles = at[..., None] * 10000.0 ** (-np.arange(0, width, 2) / width)
    return np.stack([np.sin(angles), np.cos(angles)], axis=-1).reshape(*at.shape, -1)[..., :width]
