"""What a Transformer is told: TransformerConfig, its BlockConfig, that one's AttentionConfig and MoEConfig.

    cfg = TransformerConfig(vocab_size=256, d_model=128, n_layers=4, block=BlockConfig(norm="layernorm"))
    cfg.block.ffn_type = "moe";  cfg.block.moe = MoEConfig(num_experts=4)
    nn.config.save(cfg, "cfg.yaml");  cfg == nn.config.load("cfg.yaml", TransformerConfig)

They may be changed until a model is built: it takes a copy, and checks that everything fits together."""

import math
from dataclasses import dataclass, field
from typing import Any, ClassVar

from nn.errors import InputError
from nn.layers.attention.grouped import BACKENDS, QK_NORMS
from nn.layers.feed_forward import KINDS
from nn.layers.norm import NORMS
from nn.layers.recursion.engine import EMBEDDINGS
from nn.layers.recursion.exits import THRESHOLDS
from nn.layers.recursion.rules import RULES
from nn.models.settable import Settable
from nn.names import check_name

MODES = ("decoder", "encoder", "seq2seq")
POSITIONAL = ("rope", "none", "learned", "sinusoidal")
FFN_TYPES = ("mlp", "swiglu", "moe")
NORM_POSITIONS = {"pre": "pre_norm", "post": "post_norm", "sandwich": "sandwich", "parallel": "parallel"}
EPS = {"rmsnorm": 1e-6, "layernorm": 1e-5}
MLP_KINDS = tuple(kind for kind in KINDS if kind != "swiglu")


@dataclass
class AttentionConfig(Settable):
    """Multi-head attention; grouped or multi-query with fewer key/value heads."""

    other_names: ClassVar = {"num_heads": "n_heads", "num_kv_heads": "n_kv_heads"}

    n_heads: int = 8                   # query heads
    n_kv_heads: int = 0                # key/value heads; 0 = n_heads, 1 = multi-query attention
    head_dim: int = 0                  # channels per head; 0 = d_model / n_heads
    bias: bool = False                 # biases on the projections
    qk_norm: str = "none"              # of queries and keys: none, head (Qwen3), full (OLMoE) or l2
    window: int = 0                    # keys a query sees, itself included; 0 = all
    rope_theta: float = 10000.0        # base of the rotary frequencies
    dropout: float = 0.0               # share of the probabilities that are dropped while training

    def __post_init__(self) -> None:
        self.check()

    def check(self, where: str = "") -> None:
        """InputError for the first setting that is out of its range; where: what stands before its name."""
        _at_least(self, where, 1, "n_heads")
        _at_least(self, where, 0, "n_kv_heads", "head_dim", "window")
        if self.n_kv_heads and self.n_heads % self.n_kv_heads:
            raise InputError(f"{where}n_kv_heads: {self.n_kv_heads} does not divide n_heads = {self.n_heads}")
        check_name(f"{where}qk_norm", self.qk_norm, QK_NORMS)
        _positive(self, where, "rope_theta")
        _share(self, where, "dropout")


@dataclass
class MoEConfig(Settable):
    """The mixture of experts that takes the feed-forward's place if ffn_type is moe."""

    num_experts: int = 8               # experts
    top_k: int = 2                     # experts each token visits; their weights add up to 1, but of one
                                       # expert it is the probability (Switch), else nothing would train it
    expert_hidden: int = 0             # width of one expert; 0 = that of the feed-forward
    activation: str = ""               # of the experts, swiglu among them; "" = the feed-forward's
    aux_loss: bool = True              # whether it adds to the loss; the weights of what it adds:
    load_balance_coef: float = 0.01    # of the load-balance loss
    router_z_coef: float = 0.001       # of the router's z-loss
    router_entropy_coef: float = 0.0   # of the mean entropy of a token's choice, which counts as a bonus
    jitter: float = 0.0                # while training, router inputs times U(1 - e, 1 + e)
    capacity_factor: float = 0.0       # in training, most assignments per expert over the mean; 0 = no limit

    def __post_init__(self) -> None:
        self.check()

    def check(self, where: str = "") -> None:
        """InputError for the first setting that is out of its range."""
        _at_least(self, where, 1, "num_experts")
        _at_least(self, where, 0, "expert_hidden", "capacity_factor")
        if not 1 <= self.top_k <= self.num_experts:
            raise InputError(f"{where}top_k: {self.top_k} is not between 1 and num_experts = "
                             f"{self.num_experts}")
        check_name(f"{where}activation", self.activation, ("", *KINDS))
        _share(self, where, "jitter")


@dataclass
class BlockConfig(Settable):
    """What every layer is made of."""

    attn: AttentionConfig = field(default_factory=AttentionConfig)   # attention
    norm: str = "rmsnorm"              # rmsnorm or layernorm
    norm_eps: float = 0.0              # added to the mean square (or variance); 0 = 1e-6 (or 1e-5)
    norm_position: str = "pre"         # pre, post, sandwich or parallel
    positional: str = "rope"           # positions: rope, none, learned or sinusoidal
    attn_backend: str = "auto"         # manual: from single operations; sdpa: fused; auto: what there is
    ffn_type: str = "mlp"              # feed-forward: mlp, swiglu or moe
    d_ff: int = 0                      # its width; 0 = 4 d_model
    activation: str = "gelu"           # of an mlp and of experts: gelu, gelu_tanh, silu or relu
    bias: bool = False                 # biases on the mlp's projections
    moe: MoEConfig = field(default_factory=MoEConfig)   # experts, where ffn_type is moe
    dropout: float = 0.0               # share of what layers add to the stream that is dropped in training

    def __post_init__(self) -> None:
        self.check()

    def check(self, where: str = "") -> None:
        """InputError for the first setting that is out of its range, here or in what it holds."""
        for name, known in (("norm", NORMS), ("norm_position", NORM_POSITIONS), ("positional", POSITIONAL),
                            ("attn_backend", BACKENDS), ("ffn_type", FFN_TYPES), ("activation", MLP_KINDS)):
            check_name(f"{where}{name}", getattr(self, name), known)
        _at_least(self, where, 0, "norm_eps", "d_ff")
        _share(self, where, "dropout")
        self.attn.check(f"{where}attn.")
        self.moe.check(f"{where}moe.")

    @property
    def eps(self) -> float:
        """Of the norms."""
        return self.norm_eps or EPS[self.norm]


@dataclass
class TransformerConfig(Settable):
    """A decoder, an encoder, or both.  vocab_size, d_model and n_layers must be given."""

    other_names: ClassVar = {"num_decoder_layers": "n_layers", "num_encoder_layers": "n_encoder_layers",
                             "num_layers": "n_layers"}

    vocab_size: int                    # tokens in the vocabulary
    d_model: int                       # width of the residual stream
    n_layers: int                      # layers (of the decoder, if there is an encoder too)
    max_seq_len: int = 2048            # context: tokens of a source, and of a target
    mode: str = "decoder"              # decoder (logits), encoder (hidden states) or seq2seq
    n_encoder_layers: int = 0          # layers of a seq2seq encoder; 0 = n_layers
    block: BlockConfig = field(default_factory=BlockConfig)   # what every layer is made of
    tie_embeddings: bool = True        # the output head is the embedding matrix
    init_std: float = 0.02             # weights start as Normal(0, init_std);
                                       # those into the residual stream / sqrt(2 layers)
    # Recurrence: shared layers instead of n_layers of their own
    recursive: bool = False            # apply the same layers several times
    recurrence_steps: int = 1          # how many times, unless a call says otherwise
    recursive_blocks: int = 1          # layers that are repeated together
    update_rule: str = "replace"       # what a step's result does: replace, residual, gated, ema or norm
    inject_input: bool = False         # give the input to every step
    step_embedding: str = "none"       # tell the steps apart: none, learned or sinusoidal
    bptt_steps: int = 0                # newest steps that gradients go through; 0 = all
    exit_router: str = "never"         # when a token is updated no further: never, latent, max_prob, ...
    exit_threshold: float | None = None   # of that criterion; none = its own
    # Sequences
    start_id: int = 0                  # what a seq2seq target starts from
    pad_id: int = 0                    # stands where a target has no token

    def __post_init__(self) -> None:
        self.check()

    def check(self) -> None:
        """InputError for the first setting that is out of its range or does not fit the others."""
        _at_least(self, "", 1, "vocab_size", "d_model", "n_layers", "max_seq_len", "recursive_blocks")
        _at_least(self, "", 0, "n_encoder_layers", "recurrence_steps", "bptt_steps")
        _positive(self, "", "init_std")
        for name, known in (("mode", MODES), ("update_rule", RULES), ("step_embedding", EMBEDDINGS),
                            ("exit_router", THRESHOLDS)):
            check_name(name, getattr(self, name), known)
        for name in ("start_id", "pad_id"):
            if not 0 <= getattr(self, name) < self.vocab_size:
                raise InputError(f"{name}: {getattr(self, name)} is not an id below vocab_size = "
                                 f"{self.vocab_size}")
        self.block.check("block.")
        self._check_heads()

    def _check_heads(self) -> None:
        attn = self.block.attn
        if not attn.head_dim and self.d_model % attn.n_heads:
            raise InputError(f"d_model: {self.d_model} is not a multiple of block.attn.n_heads = "
                             f"{attn.n_heads}; change one of them or set block.attn.head_dim")
        if self.block.positional == "rope" and self.head_dim % 2:
            raise InputError(f"block.attn.head_dim: {self.head_dim} is odd; rotary positions turn pairs of "
                             "channels; change it, or block.positional")

    @property
    def head_dim(self) -> int:
        """Channels per head."""
        return self.block.attn.head_dim or self.d_model // self.block.attn.n_heads

    @property
    def d_ff(self) -> int:
        """Width of the feed-forward."""
        return self.block.d_ff or 4 * self.d_model

    def cache_layers(self, recurrence_steps: int | None = None) -> int:
        """What KVCache(num_layers=...) has to be: one slot for every layer, of every step."""
        steps = self.recurrence_steps if recurrence_steps is None else recurrence_steps
        return steps * self.recursive_blocks if self.recursive else self.n_layers


# ---- ranges ----

def _at_least(config: Any, where: str, least: int, *names: str) -> None:
    for name in names:
        if not least <= getattr(config, name) < math.inf:
            raise InputError(f"{where}{name}: {getattr(config, name)} is not {least} or more")


def _positive(config: Any, where: str, *names: str) -> None:
    for name in names:
        if not 0.0 < getattr(config, name) < math.inf:
            raise InputError(f"{where}{name}: {getattr(config, name)} is not a positive number")


def _share(config: Any, where: str, name: str) -> None:
    if not 0.0 <= getattr(config, name) < 1.0:
        raise InputError(f"{where}{name}: {getattr(config, name)} is not in [0, 1)")
