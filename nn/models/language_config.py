"""The configuration of a LanguageModel: which block stands where, and what it costs."""

import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Any

from nn.errors import InputError
from nn.layers import norm, registry
from nn.layers.formulas import projection
from nn.layers.protocol import BlockSettings
from nn.layers.recursion.engine import RecursionSettings
from nn.layers.stack import BLOCK_ROLES, StackSettings, typed
from nn.models.mtp import MTPSettings
from nn.models.parts import Same, block_settings, blocks_of, bytes_held, named_stacks, plain
from nn.models.settable import replaced
from nn.names import check_name

POSITIONS = ("none", "learned", "sinusoidal")
BODIES = ("stack", "recursion")
SCHEMES = ("normal", "gpt2", "kaiming", "takase")
Pattern = str | tuple[str, ...]


@dataclass(frozen=True)
class LanguageModelConfig:
    """Embedding → prelude → body (layers of any blocks) → norm → head.

    Patterns: a name, letters (mixers only, "MMMA"), or a list of names, repeated to the number of layers; the
    names are those of nn/layers/registry.py, and `options` are the settings of the blocks by name."""

    vocab_size: int = 1000             # tokens in the vocabulary
    hidden_size: int = 64              # width of the residual stream
    num_layers: int = 2                # layers
    max_seq_len: int = 512             # context: positions that attention can look back over

    # Blocks
    mixer: str | tuple[str, ...] = "full_attention"    # pattern of attention and recurrent blocks, or none
    feed_forward: str | tuple[str, ...] = "swiglu"     # pattern of feed-forwards, or none
    memory: str | tuple[str, ...] = "none"             # pattern of memories, or none
    memory_at: str = "pre_attn"        # where a memory stands: pre_attn, post_attn, or ffn (beside it)
    residual: str = "pre_norm"         # how branches are added up: pre_norm, post_norm, sandwich, hc, ...
    options: dict[str, dict[str, Any]] = field(default_factory=dict)   # {block: its settings}
    prelude: tuple[str, ...] = ()      # memory blocks between embedding and layers, such as rmc, nsb
    prelude_residual: bool = False     # add what a block of the prelude gives, instead of going on with it
                                       # alone; nsb and engram, which give an increment, are always added
    body: str = "stack"                # stack, or recursion: the layers applied several times
    recursion: dict[str, Any] = field(default_factory=dict)   # its settings: recurrence_steps, rule, ...
    causal: bool = True                # false: an encoder, in which every token sees all others

    # Norms, embedding, head
    norm: str = "rmsnorm"              # rmsnorm or layernorm
    norm_eps: float = 1e-6             # added to the mean square (or variance), in blocks too
    final_norm: bool = True            # a norm in front of the head
    positions: str = "none"            # added to the embedding: none (blocks have their own), learned (GPT-2)
                                       # or sinusoidal
    tie_embeddings: bool = False       # the output head is the embedding matrix
    embedding_scale: float = 1.0       # embeddings times this (Gemma: sqrt(hidden_size))
    logit_softcap: float = 0.0         # logits are c tanh(logits / c) (Gemma 2: 30); 0 = not

    # Tokens further ahead
    mtp_depth: int = 0                 # modules that, in training, predict 1 ... n tokens further ahead
    mtp_weight: float = 0.3            # weight of the mean of their losses

    # Dropout, in training
    dropout: float = 0.0               # share of the embeddings
    resid_dropout: float = 0.0         # share of what each block gives
    attn_dropout: float = 0.0          # share of the attention's weights

    # Initial weights
    init_std: float = 0.02             # weights start as Normal(0, init_std)
    init_scheme: str = "gpt2"          # gpt2: projections into the stream / sqrt(2 num_layers); normal: all
                                       # alike; kaiming: sqrt(2 / fan-in); takase: sqrt(2 / 5 hidden_size),
                                       # into the stream / sqrt(2 layers passed), and wants embedding_scale:
                                       # sqrt(hidden_size)

    def __post_init__(self) -> None:
        for name in ("vocab_size", "hidden_size", "num_layers", "max_seq_len"):
            if getattr(self, name) < 1:
                raise InputError(f"{name}: {getattr(self, name)} is not positive")
        for name in ("norm_eps", "embedding_scale"):
            if not 0.0 < getattr(self, name) < math.inf:
                raise InputError(f"{name}: {getattr(self, name)} is not a positive number")
        for name in ("logit_softcap", "init_std", "mtp_depth", "mtp_weight"):
            if not 0.0 <= getattr(self, name) < math.inf:
                raise InputError(f"{name}: {getattr(self, name)} is not a number of 0 or more")
        for name in ("dropout", "resid_dropout", "attn_dropout"):
            if not 0.0 <= getattr(self, name) < 1.0:
                raise InputError(f"{name}: {getattr(self, name)} is not in [0, 1)")
        if self.mtp_depth and not self.causal:
            raise InputError("mtp_depth: an encoder sees the tokens that it would predict; set it to 0")
        for name, known in (("norm", norm.NORMS), ("positions", POSITIONS), ("body", BODIES),
                            ("init_scheme", SCHEMES)):
            check_name(name, getattr(self, name), known)
        for name in BLOCK_ROLES:
            object.__setattr__(self, name, _pattern(getattr(self, name)))
        object.__setattr__(self, "prelude", tuple(self.prelude))
        object.__setattr__(self, "options", {name: plain(own) for name, own in self.options.items()})
        object.__setattr__(self, "recursion", plain(self.recursion))
        if self.recursion and self.body != "recursion":
            raise InputError(f"recursion: {self.recursion} for body {self.body!r}; set body: recursion")
        self._check_blocks()

    def _check_blocks(self) -> None:
        """That every block is known, its settings fit, and each option is somebody's."""
        used = {name for part in self.parts().values() for name in blocks_of(part)} | set(self.prelude)
        for name in self.options:
            check_name("options", name, used)
        for part in self.parts().values():
            for settings in block_settings(part):
                if self.causal and not settings.is_causal:
                    raise InputError(f"causal: a block ({type(settings).__name__}) shows tokens the future; "
                                     "set causal: false, for an encoder, or change its options")
            if not self.causal:
                self._check_mixers(part)

    def _check_mixers(self, part: BlockSettings) -> None:
        """InputError for one through which an encoder's tokens do not see all others, unless its options ask
        for that"""
        for layer in (layer for stack in named_stacks(part).values() for layer in stack.layers()):
            name = layer.names.get("mixer", "")
            if name and layer.blocks["mixer"].is_causal and not self.options.get(name, {}).get("causal"):
                raise InputError(f"causal: {name} lets no token see a later one; an encoder takes a mixer "
                                 "that can, such as full_attention")

    def replace(self, **changes: Any) -> "LanguageModelConfig":
        """A copy with some fields changed.  InputError for a field that is none."""
        return replaced(self, changes)

    # ---- what the parts are built from ----

    @property
    def stack(self) -> StackSettings:
        """Of the layers."""
        return StackSettings.create(**self._stack())

    def _stack(self) -> dict[str, Any]:
        roles = {name: getattr(self, name) for name in (*BLOCK_ROLES, "memory_at", "residual")}
        own = self._common() | roles | {"num_layers": self.num_layers}
        return own | {"options": self._options_of(own)}

    def _common(self) -> dict[str, Any]:
        """Of every stack"""
        return {"hidden_size": self.hidden_size, "norm": self.norm, "norm_eps": self.norm_eps,
                "common": self.shared, "init_std": self.std, "out_std": self.out_std,
                "resid_dropout": self.resid_dropout}

    @property
    def shared(self) -> dict[str, Any]:
        """What each block is told that has a setting of this name."""
        more: dict[str, Any] = {} if self.causal else {"causal": False}
        more |= {"attn_dropout": self.attn_dropout} if self.attn_dropout else {}
        return {"max_seq_len": self.max_seq_len, "vocab_size": self.vocab_size, "norm_eps": self.norm_eps,
                **more}

    def _options_of(self, stack: Mapping[str, Any]) -> dict[str, Any]:
        """Those of the blocks that stand in a stack of such settings"""
        patterns = [stack.get(role, getattr(StackSettings, role)) for role in (*BLOCK_ROLES, "residual")]
        letters = registry.LETTERS
        parts = [part for each in patterns for part in ([each] if isinstance(each, str) else each)]
        names = {*parts, *(letters[letter] for part in parts for letter in part if letter in letters)}
        return {name: own for name, own in self.options.items() if name in names}

    def body_settings(self) -> StackSettings | RecursionSettings:
        """Of the body."""
        if self.body == "stack":
            return self.stack
        ends = {name: self._end(self.recursion[name]) for name in ("prelude", "coda")
                if self.recursion.get(name) is not None}
        return RecursionSettings.create(**typed(RecursionSettings, self.recursion | {
            "hidden_size": self.hidden_size, "init_std": self.std, "out_std": self.out_std,
            "norm_eps": self.recursion.get("norm_eps", self.norm_eps), "core": self._stack(), **ends}))

    def _end(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """Of a stack in front of or behind the recursion: what it says itself, else what all have"""
        return self._common() | {"options": self._options_of(given)} | dict(given)

    def prelude_settings(self) -> list[BlockSettings]:
        """Of the blocks between embedding and body."""
        made = []
        for name in self.prelude:
            settings = registry.find("memory", name).Settings
            known = {each.name for each in dataclasses.fields(settings)}
            own = {"hidden_size": self.hidden_size, "init_std": self.std}
            own |= {key: value for key, value in self.shared.items() if key in known}
            made.append(settings.create(**typed(settings, own | self.options.get(name, {}))))
        return made

    def parts(self) -> dict[str, BlockSettings]:
        """{component: settings} of all between embedding and final norm."""
        blocks = zip(self.prelude, self.prelude_settings(), strict=True)
        return {f"prelude.{i}.{name}": each for i, (name, each) in enumerate(blocks)} | {
            "body": self.body_settings()}

    @property
    def mtp(self) -> MTPSettings | None:
        """Of the modules that predict further ahead, if there are any."""
        return MTPSettings.behind(self.stack, self.mtp_depth, self.mtp_weight) if self.mtp_depth else None

    @property
    def std(self) -> float:
        """Of the weights at the start, as the scheme has it."""
        return math.sqrt(0.4 / self.hidden_size) if self.init_scheme == "takase" else self.init_std

    @property
    def out_std(self) -> float:
        """Of the projections into the residual stream."""
        depth = self.num_layers
        if self.init_scheme == "takase":              # the layers that a token passes
            ends = [end for end in map(self.recursion.get, ("prelude", "coda")) if end is not None]
            depth *= int(self.recursion.get("recurrence_steps", 1))
            depth += sum(int(each.get("num_layers", StackSettings.num_layers)) for each in ends)
        return self.std / math.sqrt(2 * depth) if self.init_scheme in ("gpt2", "takase") else self.std

    # ---- what it costs ----

    def parameters(self, active: bool = False) -> dict[str, int]:
        """Parameters by component; active: only those that one token meets."""
        width = self.hidden_size
        counts = {"embedding": self.vocab_size * width,
                  "positions": self.max_seq_len * width * (self.positions == "learned")}
        counts |= self._summed(lambda settings: settings.parameters(active))
        counts |= self.mtp.parameters(active) if self.mtp else {}
        return counts | {
            "final_norm": self.final_norm * width * (2 if self.norm == "layernorm" else 1),
            "head": 0 if self.tie_embeddings else self.vocab_size * width}

    def flops(self, batch: int = 1, length: int | None = None, past: int = 0,
              mode: str | None = None) -> dict[str, int]:
        """Forward operations by component for `batch` rows of `length` tokens (default: the context) behind
        `past` that a state holds; a multiply-add counts 2, elementwise work, norms and lookups 0.  Training
        costs nn.flops.TRAINING = 3 times as much."""
        length = self.max_seq_len if length is None else length
        if batch < 1 or length < 1 or past < 0:
            raise InputError(f"batch: {batch}, length: {length}, past: {past}; 1 or more rows and tokens, "
                             "behind 0 or more")
        head = projection(batch * length, (self.hidden_size, self.vocab_size))
        return self._summed(lambda settings: settings.flops(batch, length, past, mode)) | {"head": head}

    def state_bytes(self, tokens: int, dtype: Any = "float32") -> dict[str, int]:
        """Bytes by component that a row's state holds behind so many tokens, of a model in that type."""
        if not self.causal:
            raise InputError("causal: an encoder reads whole sequences; it has no state")
        counts: dict[str, int] = {}
        held = cache(lambda role, name, settings: bytes_held(role, name, settings, tokens, dtype))
        for part, role, name, settings in self._stateful():
            key = f"{part}.{name}"
            counts[key] = counts.get(key, 0) + held(role, name, Same(settings))
        return counts

    def _stateful(self) -> Iterator[tuple[str, str, str, BlockSettings]]:
        """(component, role, name, settings) of every block, as often as it has a state"""
        for i, (name, settings) in enumerate(zip(self.prelude, self.prelude_settings(), strict=True)):
            yield f"prelude.{i}", "memory", name, settings
        body = self.body_settings()
        for part, stack in named_stacks(body).items():
            times = body.recurrence_steps if isinstance(body, RecursionSettings) and part == "core" else 1
            for layer in stack.layers() * times:
                for role, settings in layer.blocks.items():
                    yield f"body.{part}" if part else "body", role, layer.names[role], settings

    def _summed(self, of: Callable[[BlockSettings], dict[str, int]]) -> dict[str, int]:
        return {f"{part}.{name}": count for part, settings in self.parts().items()
                for name, count in of(settings).items()}


def _pattern(given: Any) -> Pattern:
    """A list as a tuple, a list of one as what is in it"""
    names = (given,) if isinstance(given, str) else tuple(given)
    return names[0] if len(names) == 1 else names
