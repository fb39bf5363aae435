"""Layers put together from names: a mixer, a feed-forward, a memory, and the connection that adds them up.

    stack = Stack(StackSettings(hidden_size=64, num_layers=4, mixer="RRRA", feed_forward=("swiglu", "moe"),
                                options={"retention": {"num_heads": 4}}))
    y, state = stack(x, state=stack.init_state(2))                      # x, y [2,T,64]

A stack is a block itself."""

import dataclasses
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Any, get_type_hints

from nn.config import build
from nn.errors import InputError
from nn.layers import pattern, registry
from nn.layers.dropout import Dropout
from nn.layers.module import Module
from nn.layers.protocol import INPUTS, Block, BlockSettings
from nn.layers.recompute import run_layers
from nn.layers.residual.connection import Branch, ConnectionSettings
from nn.names import check_name
from nn.state import State
from nn.tensor import Array, Tensor

PLACES = ("pre_attn", "post_attn", "ffn")
BLOCK_ROLES = ("mixer", "feed_forward", "memory")
ORDERS = {"pre_attn": ("memory", "mixer", "feed_forward"), "post_attn": ("mixer", "memory", "feed_forward"),
          "ffn": ("mixer", "feed_forward")}


@dataclass(frozen=True)
class LayerSettings:
    """What one layer is made of."""

    names: Mapping[str, str]                   # {role: name of the block}, of the roles that are filled
    blocks: Mapping[str, BlockSettings]        # {role: settings of the block}
    connection: ConnectionSettings
    residual: str                              # name of the connection
    memory_at: str                             # pre_attn, post_attn or ffn
    resid_dropout: float = 0.0                 # share of what every block gives that training drops

    def branches(self) -> list[tuple[str, ...]]:
        """The roles of each branch, in the order in which they are applied."""
        branches = [(role,) for role in ORDERS[self.memory_at] if role in self.names]
        return [("feed_forward", "memory") if role == ("feed_forward",) and self.memory_beside else role
                for role in branches]

    @property
    def memory_beside(self) -> bool:
        """Whether the memory reads and writes with the feed-forward, as one branch."""
        return self.memory_at == "ffn" and "memory" in self.names

    def counts(self, of: Callable[[BlockSettings], dict[str, int]]) -> dict[str, int]:
        """{"swiglu.projections": ...}: what `of` says of every part."""
        parts = [(self.names[role], settings) for role, settings in self.blocks.items()]
        return {f"{name}.{component}": count for name, settings in [*parts, (self.residual, self.connection)]
                for component, count in of(settings).items()}


@dataclass(frozen=True)
class StackSettings(BlockSettings):
    """A stack of layers.  Patterns: a name, letters (mixers only), or a list of names, repeated to the number
    of layers; see nn/layers/pattern.py."""

    num_layers: int = 2                                     # layers
    mixer: str | tuple[str, ...] = "full_attention"         # pattern of mixers, or none
    feed_forward: str | tuple[str, ...] = "swiglu"          # pattern of feed-forwards, or none
    memory: str | tuple[str, ...] = "none"                  # pattern of memories, or none
    memory_at: str = "pre_attn"                             # where: pre_attn, post_attn, or ffn (beside it)
    residual: str = "pre_norm"                              # how branches are added up
    norm: str = "rmsnorm"                                   # rmsnorm or layernorm
    norm_eps: float = 1e-6                                  # added to the mean square (or variance)
    resid_dropout: float = 0.0                              # share of what blocks give, dropped in training
    options: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)     # {block: its settings}
    common: Mapping[str, Any] = field(default_factory=dict)    # settings of every block that has such a field
    # out_std: 0 = init_std / sqrt(2 num_layers), GPT-2's

    def __post_init__(self) -> None:
        self._positive("hidden_size", "num_layers")
        check_name("memory_at", self.memory_at, PLACES)
        check_name("residual", self.residual, registry.RESIDUALS)
        patterns = [self.expanded(role) for role in BLOCK_ROLES]
        used = {name for names in patterns for name in names} | {self.residual}
        for name in self.options:
            check_name("options", name, used)
        for layer in self.layers():
            if not layer.branches() or (layer.memory_beside and "feed_forward" not in layer.names):
                raise InputError("a layer has no block, or a memory beside no feed-forward; "
                                 "set feed_forward, mixer or memory_at")

    def expanded(self, role: str) -> tuple[str, ...]:
        """The block of that role in each layer."""
        letters = registry.LETTERS if role == "mixer" else {}
        return pattern.expand(role, getattr(self, role), self.num_layers,
                              [pattern.NONE, *registry.names(role)], letters)

    def layers(self) -> list[LayerSettings]:
        """What each layer is made of."""
        names = {role: self.expanded(role) for role in BLOCK_ROLES}
        return [self._layer(i, {role: each[i] for role, each in names.items() if each[i] != pattern.NONE})
                for i in range(self.num_layers)]

    def _layer(self, i: int, names: dict[str, str]) -> LayerSettings:
        std = {"init_std": self.init_std,
               "out_std": self.out_std or self.init_std / math.sqrt(2 * self.num_layers)}
        blocks = {role: self._settings(role, name, layer=i, **std) for role, name in names.items()}
        connection = self._settings("residual", self.residual, layer=i, norm=self.norm,
                                    norm_eps=self.norm_eps, **std)
        layer = LayerSettings(names, blocks, connection, self.residual, self.memory_at, self.resid_dropout)
        wants = tuple(registry.find(role, names[role]).prenorm for role, *_ in layer.branches())
        return replace(layer, connection=replace(connection, branches=wants))

    def _settings(self, role: str, name: str, *, layer: int, **given: Any) -> Any:
        """Of a block: the stack's width, what is given, of the layer's index and what is common what the
        block has a field for, and over all that what `options` say."""
        settings = registry.find(role, name).Settings
        known = {field.name for field in dataclasses.fields(settings)}
        shared = {key: value for key, value in {**self.common, "layer": layer}.items() if key in known}
        own = {"hidden_size": self.hidden_size, **shared, **given, **self.options.get(name, {})}
        return settings.create(**typed(settings, own))

    @classmethod
    def examples(cls) -> dict[str, Any]:
        options = {"full_attention": {"num_heads": 2}, "sliding_attention": {"num_heads": 2, "window": 3},
                   "retention": {"num_heads": 2, "chunk_size": 4}, "swiglu": {"intermediate_size": 6},
                   "moe": {"intermediate_size": 4, "num_experts": 3}}

        def of(mixers: str, *feed_forwards: str, **more: Any) -> StackSettings:
            used = {*(registry.LETTERS[letter] for letter in mixers), *feed_forwards}
            own = {name: each for name, each in options.items() if name in used}
            return cls.create(hidden_size=8, num_layers=len(mixers), mixer=mixers,
                              feed_forward=feed_forwards or pattern.NONE, options=own, **more)

        return {"hybrid": of("RSA", "swiglu", "moe"), "without feed-forward": of("RA", norm="layernorm")}

    def parameters(self, active: bool = False) -> dict[str, int]:
        return self._summed(lambda settings: settings.parameters(active))

    def flops(self, batch: int, length: int, past: int = 0, mode: str | None = None) -> dict[str, int]:
        return self._summed(lambda settings: settings.flops(batch, length, past, mode))

    def _summed(self, of: Callable[[BlockSettings], dict[str, int]]) -> dict[str, int]:
        """Over the layers, and the ends of the stream"""
        sums: dict[str, int] = {}
        ends = registry.find("residual", self.residual).ends_settings(self.layers()[0].connection)
        extra = {f"ends.{name}": count for name, count in of(ends).items()} if ends else {}
        for counts in [*(layer.counts(of) for layer in self.layers()), extra]:
            for name, count in counts.items():
                sums[name] = sums.get(name, 0) + count
        return sums


_hints = lru_cache(maxsize=None)(get_type_hints)


def typed(settings: type, options: Mapping[str, Any]) -> dict[str, Any]:
    """Options as a file gives them, as the fields want them: a mapping becomes the dataclass it describes, a
    list a tuple."""
    hints = _hints(settings)

    def value_of(name: str, value: Any) -> Any:
        hint = hints.get(name)
        if isinstance(value, Mapping) and isinstance(hint, type) and dataclasses.is_dataclass(hint):
            return build(hint, typed(hint, value))
        return tuple(value) if isinstance(value, list) else value

    return {name: value_of(name, value) for name, value in options.items()}


@dataclass
class LayerState(State):
    """The states of a layer's blocks."""

    mixer: State | None = None
    feed_forward: State | None = None
    memory: State | None = None


@dataclass
class StackState(State):
    """The states of all layers."""

    layers: list[LayerState]


class Layer(Module):
    """One layer: x ← connection(x, branches), a branch being a block, or feed-forward and memory together."""

    def __init__(self, settings: LayerSettings, dtype: Any = "float32") -> None:
        self.settings = settings
        for role, name in settings.names.items():
            setattr(self, role, registry.find(role, name)(settings.blocks[role], dtype=dtype))
        self.connection = registry.find("residual", settings.residual)(settings.connection, dtype=dtype)
        if settings.resid_dropout:
            self.dropouts = [Dropout(settings.resid_dropout) for _ in settings.names]     # of each block

    def blocks(self) -> dict[str, Block]:
        """{role: block}"""
        return {role: getattr(self, role) for role in self.settings.names}

    def init_state(self, batch_size: int) -> LayerState:
        return LayerState(**{role: block.init_state(batch_size) for role, block in self.blocks().items()})

    def forward(self, stream: Any, *, state: LayerState | None = None, mask: Array | None = None,
                mode: str | None = None, **given: Any) -> tuple[Any, LayerState | None]:
        """(the stream behind the layer, the state that was given, which has seen the tokens now)"""

        def run(role: str, x: Tensor) -> Tensor:
            block = getattr(self, role)
            before = None if state is None else getattr(state, role)
            y, after = block(x, state=before, mask=mask, mode=mode, **_inputs(self, role, given, before))
            if state is not None:
                setattr(state, role, after)
            return self._dropped(role, y) if state is None else y

        def branch(roles: tuple[str, ...]) -> Callable[[Tensor], Tensor]:
            return lambda x: sum((run(role, x) for role in roles[1:]), start=run(roles[0], x))

        branches = [Branch(branch(roles), wants) for roles, wants in
                    zip(self.settings.branches(), self.settings.connection.branches, strict=True)]
        return self.connection(stream, branches), state

    def _dropped(self, role: str, y: Tensor) -> Tensor:
        """What a block gave, while training without a part of it"""
        if not self.settings.resid_dropout:
            return y
        return self.dropouts[list(self.settings.names).index(role)](y)


def _inputs(layer: Layer, role: str, given: dict[str, Any], state: State | None) -> dict[str, Any]:
    """What a block needs besides x.  A state may hold the context; the block complains if it does not."""
    block = getattr(layer, role)
    for name in block.needs:
        if given.get(name) is None and (state is None or name != "context"):
            raise InputError(f"{layer.settings.names[role]} needs {name}, {INPUTS[name]}; call with {name}=")
    return {name: given[name] for name in (*block.needs, *block.takes) if name in given}


class Stack(Block):
    """Layers one behind the other, between an opened and a closed residual stream; no norm at the end."""

    Settings = StackSettings
    packing = "handed on"

    def __init__(self, settings: StackSettings, dtype: Any = "float32") -> None:
        self.settings, layers = settings, settings.layers()
        self.layers = [Layer(layer, dtype) for layer in layers]
        self.ends = registry.find("residual", settings.residual).ends(layers[0].connection, dtype)
        self.recompute = False          # whether layers are run again in backward: memory for time

    @property
    def inputs(self) -> tuple[str, ...]:
        """What its blocks need besides x, each name once."""
        return tuple(dict.fromkeys(name for layer in self.layers for block in layer.blocks().values()
                                   for name in block.inputs))

    def init_state(self, batch_size: int) -> StackState:
        return StackState([layer.init_state(batch_size) for layer in self.layers])

    def forward(self, x: Tensor, *, state: StackState | None = None, mask: Array | None = None,
                mode: str | None = None, **given: Any) -> tuple[Tensor, StackState | None]:
        """x[B,T,D] -> y[B,T,D]: here the whole stream, not what is added to it"""
        for name in given:
            check_name("stack", name, INPUTS)
        stream = run_layers(self.layers, self.ends.open(x), None if state is None else state.layers,
                            recompute=self.recompute, mask=mask, mode=mode, **given)
        return self.ends.close(stream), state
