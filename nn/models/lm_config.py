"""The configuration of an LMModel (nn/models/lm_model.py), in LinearNexus's names, and its presets.

    ModelConfig(vocab_size=50, hidden_size=64, n_layers=4, n_heads=4, block_pattern="MMMA")
    JAMBA_SMALL.replace(n_layers=8).num_parameters()        # nothing is built"""

import dataclasses
from dataclasses import dataclass, field
from typing import Any

from nn.errors import InputError
from nn.layers import registry
from nn.layers.formulas import total
from nn.layers.pattern import expand, shortest
from nn.models.language_config import LanguageModelConfig
from nn.models.settable import replaced

# LinearNexus's names of mixers; those of nn/layers/registry.py stand beside them.
NAMES = {"attention": "full_attention", "attn": "full_attention", "sliding": "sliding_attention",
         "deltanet": "delta_net", "gated_deltanet": "gated_delta_net"}

ALONE = ("mamba", "mamba2")      # layers without a feed-forward: the mixer widens the channels itself


@dataclass(frozen=True)
class ModelConfig:
    """What an LMModel is built from."""

    vocab_size: int = 32000            # tokens in the vocabulary
    hidden_size: int = 768             # width of the residual stream
    n_layers: int = 12                 # blocks
    block_pattern: str | tuple[str, ...] = "attention"   # mixers by name, or letters ("MMMA"), repeated
    max_seq_len: int = 2048            # context: positions that attention can look back over

    # Attention
    n_heads: int = 12                  # query heads; heads of the other mixers, too
    n_kv_heads: int = 0                # key/value heads; 0 = n_heads, 1 = multi-query attention
    head_dim: int = 0                  # channels per head; 0 = hidden_size / n_heads
    rope_base: float = 10000.0         # base of the rotary frequencies
    q_lora_rank: int = 0               # mla: width of the queries' latent; 0 = none
    kv_lora_rank: int = 0              # mla: width of the latent that is kept; 0 = 4 head_dim (DeepSeek-V2)
    rope_head_dim: int = 0             # mla: channels of the key that all heads share; 0 = head_dim / 2

    # State space models
    state_size: int = 16               # mamba: states of each channel
    conv_kernel: int = 4               # mamba, mamba2: taps of the convolution
    time_step_rank: int = 0            # mamba: rank of the step sizes; 0 = hidden_size / 16, rounded up
                                       # (Gu & Dao 2023); LinearNexus's own default is hidden_size

    # Everything else
    intermediate_size: int = 0         # width of the feed-forwards; 0 = 4 hidden_size
    feed_forward: str = "swiglu"       # what stands behind a mixer, other than mamba and mamba2
    use_bias: bool = False             # biases on the projections of attention and mamba
    norm_type: str = "rmsnorm"         # rmsnorm or layernorm
    norm_eps: float = 1e-6             # added to the mean square (or variance)
    tie_embeddings: bool = True        # the output head is the embedding matrix
    init_std: float = 0.02             # weights start as Normal(0, init_std)
    options: dict[str, dict[str, Any]] = field(default_factory=dict)   # {block: more of its settings}

    core: LanguageModelConfig = field(init=False, repr=False, compare=False)     # in this library's names

    def __post_init__(self) -> None:
        for item in dataclasses.fields(self):
            derived = item.init and getattr(self, item.name) is None     # LinearNexus's way to say so
            if derived and item.default is not dataclasses.MISSING:
                object.__setattr__(self, item.name, item.default)
        for name in ("vocab_size", "hidden_size", "n_layers", "n_heads", "max_seq_len"):
            if getattr(self, name) < 1:
                raise InputError(f"{name}: {getattr(self, name)} is not positive")
        for name in ("n_kv_heads", "head_dim", "q_lora_rank", "kv_lora_rank", "rope_head_dim",
                     "intermediate_size", "time_step_rank", "rope_base"):
            if getattr(self, name) < 0:
                raise InputError(f"{name}: {getattr(self, name)} is negative; 0 takes what is usual")
        own = {NAMES.get(name, name): values for name, values in self.options.items()}
        object.__setattr__(self, "options", own)
        if not isinstance(self.block_pattern, str):
            names = tuple(self.block_pattern)
            object.__setattr__(self, "block_pattern", names[0] if len(names) == 1 else names)
        object.__setattr__(self, "core", self._core())

    @property
    def block_types(self) -> tuple[str, ...]:
        """The mixer of every layer, as nn/layers/registry.py calls it."""
        known = [*NAMES, *registry.names("mixer")]
        names = expand("block_pattern", self.block_pattern, self.n_layers, known, registry.LETTERS)
        return tuple(NAMES.get(name, name) for name in names)

    def _core(self) -> LanguageModelConfig:
        kinds = self.block_types
        behind = tuple("none" if kind in ALONE else self.feed_forward for kind in kinds)
        derived = {kind: self._settings(kind) for kind in dict.fromkeys(kinds)}
        if self.feed_forward in behind and self.feed_forward != "none":
            derived[self.feed_forward] = {"intermediate_size": self.intermediate_size or 4 * self.hidden_size}
        options = {name: own | dict(self.options.get(name, {})) for name, own in derived.items()}
        return LanguageModelConfig(
            vocab_size=self.vocab_size, hidden_size=self.hidden_size, num_layers=self.n_layers,
            max_seq_len=self.max_seq_len, mixer=shortest(kinds), feed_forward=shortest(behind),
            norm=self.norm_type,
            norm_eps=self.norm_eps, tie_embeddings=self.tie_embeddings, init_std=self.init_std,
            options={**self.options, **options})

    def _settings(self, kind: str) -> dict[str, Any]:
        """What the fields here say of a mixer: those of its settings that they have a value for"""
        known = {item.name for item in dataclasses.fields(registry.find("mixer", kind).Settings)}
        if kind == "mla":
            return self._latents()
        values: dict[str, Any] = {"num_heads": self.n_heads, "num_kv_heads": self.n_kv_heads,
                                  "head_dim": self.head_dim, "rope_theta": self.rope_base}
        values |= dict.fromkeys(("attn_bias", "out_bias", "use_bias"), self.use_bias)
        if kind in ALONE:
            values = {"conv_kernel": self.conv_kernel, "use_bias": self.use_bias}
        if kind == "mamba":
            values |= {"state_size": self.state_size, "time_step_rank": self.time_step_rank}
        return {name: value for name, value in values.items() if name in known and value}

    def _latents(self) -> dict[str, Any]:
        width = self.head_dim or self.hidden_size // self.n_heads
        return {"num_heads": self.n_heads, "q_lora_rank": self.q_lora_rank,
                "kv_lora_rank": self.kv_lora_rank or 4 * width, "qk_nope_head_dim": width,
                "qk_rope_head_dim": self.rope_head_dim or 2 * (width // 4), "v_head_dim": width,
                "rope_theta": self.rope_base}

    def num_parameters(self) -> int:
        """Of the whole model; nothing is built."""
        return total(self.core.parameters())

    def replace(self, **changes: Any) -> "ModelConfig":
        """A copy with some fields changed; InputError for one that is none."""
        return replaced(self, changes)


GPT_SMALL = ModelConfig(vocab_size=50257, intermediate_size=3072)              # 151,862,784 parameters
GPT_TINY = ModelConfig(vocab_size=256, hidden_size=64, n_layers=2, n_heads=4, max_seq_len=256)     # 147,776
MLA_SMALL = GPT_SMALL.replace(block_pattern="mla")                             # 148,621,824
MAMBA_SMALL = ModelConfig(vocab_size=50257, n_layers=24, block_pattern="mamba")      # 129,117,696; with
# time_step_rank=768, LinearNexus's default, 182,201,856; with vocab_size=50280, mamba-130m's, 129,135,360
MAMBA2_SMALL = MAMBA_SMALL.replace(block_pattern="mamba2")                     # 128,965,824
JAMBA_SMALL = MAMBA_SMALL.replace(block_pattern=("mamba",) * 7 + ("attention",))     # 146,118,912
DELTA_HYBRID_SMALL = GPT_SMALL.replace(block_pattern=("deltanet",) * 3 + ("attention",))       # 152,029,248

PRESETS = {"gpt-small": GPT_SMALL, "gpt-tiny": GPT_TINY, "mla-small": MLA_SMALL, "mamba-small": MAMBA_SMALL,
           "mamba2-small": MAMBA2_SMALL, "jamba-small": JAMBA_SMALL, "delta-hybrid-small": DELTA_HYBRID_SMALL}
