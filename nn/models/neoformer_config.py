"""The configuration of a NeoFormerX (nn/models/neoformer_x.py) and its presets, whose names are labels: what
they really count is in `sizes()`.

    preset("350M", vocab_size=50257).num_parameters()       # nothing is built

Try: python -c "from nn.models.neoformer_config import sizes; print(sizes())" """

from dataclasses import dataclass, field
from typing import Any

from nn.errors import InputError
from nn.layers.formulas import total
from nn.layers.memory.rmc import WRITES
from nn.layers.rotary import RopeScaling
from nn.models.language_config import LanguageModelConfig
from nn.models.settable import replaced
from nn.names import by_name, check_name

FFNS = {"silu": "mlp", "gelu": "mlp", "swiglu": "swiglu"}      # the block behind the name
POOLS = {"causal": "causal", "global": "mean"}                 # what RMC calls it


@dataclass(frozen=True)
class NeoFormerXConfig:
    """What a NeoFormerX is built from, in its document's names."""

    vocab_size: int = 100277           # tokens in the vocabulary; tiktoken's cl100k_base has 100,277
    d_model: int = 768                 # width of the residual stream
    nhead: int = 12                    # query heads
    kv_heads: int = 3                  # key/value heads; 1 = multi-query, nhead = multi-head attention
    layers: int = 12                   # Transformer blocks
    max_seq_len: int = 2048            # context: positions a token can look back over, itself included

    # Memory and rules
    mem_size: int = 32                 # slots of the RMC
    rules: int = 32                    # rules of the NSB
    rdim: int = 32                     # width of a rule
    rmc: bool = True                   # whether there is an RMC
    nsb: bool = True                   # whether there is an NSB
    rmc_pool: str = "causal"           # what the RMC reads by: causal, the mean of the tokens so far; global,
                                       # the mean of all, which shows every token the future: for study
    rmc_write: str = "ema"             # M ← M + lr (Δ − w̄ M), or add: M ← M + lr Δ, which may drift
    rmc_anneal: float = 0.0            # the rate of write s is divided by 1 + anneal s
    rmc_residual: bool = False         # add what the RMC gives, instead of going on with it alone

    # Blocks
    norm: str = "layernorm"            # layernorm or rmsnorm
    ffn: str = "silu"                  # silu or gelu (two matrices), or swiglu (three)
    ffn_size: int = 0                  # width of the feed-forwards; 0 = 4 d_model
    rope_base: float = 10000.0         # base of the rotary frequencies
    rope_scaling: RopeScaling = field(default_factory=RopeScaling)   # stretching to longer contexts
    tie_embeddings: bool = True        # the output head is the embedding matrix
    init_std: float = 0.02             # weights start as Normal(0, init_std)
    options: dict[str, dict[str, Any]] = field(default_factory=dict)   # {block: more of its settings}

    core: LanguageModelConfig = field(init=False, repr=False, compare=False)     # in this library's names

    def __post_init__(self) -> None:
        for name in ("d_model", "nhead", "kv_heads", "layers", "mem_size", "rules", "rdim"):
            if getattr(self, name) < 1:
                raise InputError(f"{name}: {getattr(self, name)} is not positive")
        if self.d_model % (2 * self.nhead):
            raise InputError(f"d_model: {self.d_model} does not give {self.nhead} heads an even number of "
                             "channels; change d_model or nhead")
        if self.nhead % self.kv_heads:
            raise InputError(f"kv_heads: {self.kv_heads} does not divide nhead = {self.nhead}")
        for name, usual in (("ffn_size", "4 d_model"), ("rope_base", "no positions")):
            if getattr(self, name) < 0:
                raise InputError(f"{name}: {getattr(self, name)} is negative; 0 means {usual}")
        for name, known in (("ffn", FFNS), ("rmc_pool", POOLS), ("rmc_write", WRITES)):
            check_name(name, getattr(self, name), known)
        object.__setattr__(self, "core", self._core())

    def _core(self) -> LanguageModelConfig:
        causal, memories = self.rmc_pool == "causal" or not self.rmc, {"rmc": self.rmc, "nsb": self.nsb}
        derived = self._blocks(causal)
        options = {name: own | dict(self.options.get(name, {})) for name, own in derived.items()}
        return LanguageModelConfig(
            vocab_size=self.vocab_size, hidden_size=self.d_model, num_layers=self.layers,
            max_seq_len=self.max_seq_len, feed_forward=FFNS[self.ffn], norm=self.norm, causal=causal,
            prelude=tuple(name for name, there in memories.items() if there),
            prelude_residual=self.rmc_residual, tie_embeddings=self.tie_embeddings, init_std=self.init_std,
            options={**self.options, **options})

    def _blocks(self, causal: bool) -> dict[str, dict[str, Any]]:
        """{block: its settings}"""
        made: dict[str, dict[str, Any]] = {
            "full_attention": {"num_heads": self.nhead, "num_kv_heads": self.kv_heads, "causal": True,
                               "rope_theta": self.rope_base, "rope_scaling": self.rope_scaling},
            FFNS[self.ffn]: {"intermediate_size": self.ffn_size or 4 * self.d_model, "activation": self.ffn}}
        if self.rmc:
            made["rmc"] = {"mem_size": self.mem_size, "summary": POOLS[self.rmc_pool],
                           "allow_noncausal": not causal, "write": self.rmc_write, "anneal": self.rmc_anneal}
        if self.nsb:
            made["nsb"] = {"rules": self.rules, "rdim": self.rdim}
        return made

    def counts(self) -> dict[str, int]:
        """Parameters of blocks (final norm included), memory (RMC and NSB), and embedding (and head)."""
        groups = {"blocks": 0, "memory": 0, "embedding": 0}
        for name, count in self.core.parameters().items():
            part = {"prelude": "memory", "body": "blocks", "final_norm": "blocks"}
            groups[part.get(name.partition(".")[0], "embedding")] += count
        return groups

    def num_parameters(self) -> int:
        """Of the whole model; nothing is built."""
        return total(self.core.parameters())

    def replace(self, **changes: Any) -> "NeoFormerXConfig":
        """A copy with some fields changed; InputError for one that is none."""
        return replaced(self, changes)


_125M = NeoFormerXConfig()
_350M = _125M.replace(d_model=1024, nhead=16, kv_heads=4, layers=24)
_760M = _125M.replace(d_model=1536, nhead=16, kv_heads=4, layers=32)
PRESETS = {"125M": _125M, "350M": _350M, "760M": _760M}
PRESETS |= {f"{name}-plus": config.replace(norm="rmsnorm", ffn="swiglu") for name, config in PRESETS.items()}


def preset(name: str, **changes: Any) -> NeoFormerXConfig:
    """The configuration called "125M", "350M" or "760M", with "-plus": RMSNorm and SwiGLU of inner width
    4 d_model; ffn_size = 8/3 d_model makes a SwiGLU as large as the plain feed-forward."""
    config = by_name("preset", name, PRESETS)
    return config.replace(**changes) if changes else config


def sizes() -> str:
    """What the presets count, in a table: all parameters; blocks, memory and embedding; and all with GPT-2's
    vocabulary."""
    lines = [f"{'preset':<10}{'parameters':>15}{'blocks':>15}{'RMC + NSB':>12}{'embedding':>14}"
             f"{'with 50,257 ids':>17}"]
    for name, config in PRESETS.items():
        part, smaller = config.counts(), config.replace(vocab_size=50257).num_parameters()
        lines.append(f"{name:<10}{config.num_parameters():>15,}{part['blocks']:>15,}{part['memory']:>12,}"
                     f"{part['embedding']:>14,}{smaller:>17,}")
    return "\n".join(lines)
