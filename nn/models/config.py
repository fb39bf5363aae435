"""The configuration of a decoder: everything that decides its shapes, its size and its arithmetic."""

import math
from dataclasses import dataclass, field
from typing import Any

from nn.errors import InputError
from nn.layers import feed_forward, norm
from nn.layers.moe import capacity
from nn.layers.rotary import RopeScaling
from nn.models.settable import replaced
from nn.names import check_name


@dataclass(frozen=True)
class MoETransformerConfig:
    """A decoder-only Transformer with a mixture of experts in every layer.

    With the defaults of the second and third group it is exactly Mixtral's architecture."""

    vocab_size: int = 1000             # tokens in the vocabulary
    hidden_size: int = 64              # width of the residual stream
    num_layers: int = 2                # decoder blocks
    num_heads: int = 4                 # query heads
    num_kv_heads: int = 1              # key/value heads; 1 = multi-query, num_heads = multi-head attention
    head_dim: int = 0                  # channels per head; 0 = hidden_size / num_heads
    intermediate_size: int = 256       # width of one expert (or of the dense feed-forward)
    num_experts: int = 4               # routed experts per layer; 0 = one dense feed-forward instead
    top_k: int = 2                     # experts each token visits
    max_seq_len: int = 512             # context: positions a token can look back over, itself included

    norm: str = "rmsnorm"              # rmsnorm or layernorm
    norm_eps: float = 1e-6             # added to the mean square (or variance)
    qk_norm: bool = False              # RMSNorm on each query and key head (Qwen3)
    attention_bias: bool = False       # biases on the attention projections
    sliding_window: int = 0            # keys a query sees, itself included; 0 = all
    ffn: str = "swiglu"                # dense feed-forward: swiglu, silu, gelu, gelu_tanh or relu;
                                       # experts are swiglu
    tie_embeddings: bool = False       # the output head is the embedding matrix

    rope_theta: float = 10000.0        # base of the rotary frequencies
    rope_interleaved: bool = False     # rotary pairs (2i, 2i+1) instead of (i, i + head_dim/2)
    rope_scaling: RopeScaling = field(default_factory=RopeScaling)   # stretching to longer contexts

    renormalize: bool = True           # weights of the selected experts are divided by their sum
    router_jitter: float = 0.0         # while training, router inputs times U(1 - e, 1 + e)
    balance_coef: float = 0.01         # weight of the load-balance loss
    router_z_coef: float = 0.001       # weight of the router's z-loss
    capacity_factor: float = 0.0       # in training, most assignments per expert over the mean; 0 = no limit
    drop_policy: str = "probs"         # who stays when capacity is short: probs, position or slot

    init_std: float = 0.02             # weights start as Normal(0, init_std);
                                       # residual projections / sqrt(2 num_layers)

    def __post_init__(self) -> None:
        for name in ("vocab_size", "hidden_size", "num_layers", "num_heads", "num_kv_heads",
                     "intermediate_size", "max_seq_len"):
            if getattr(self, name) < 1:
                raise InputError(f"{name}: {getattr(self, name)} is not positive")
        for name in ("norm_eps", "rope_theta"):
            if not 0.0 < getattr(self, name) < math.inf:
                raise InputError(f"{name}: {getattr(self, name)} is not a positive number")
        self._check_attention()
        self._check_experts()
        check_name("norm", self.norm, norm.NORMS)
        check_name("ffn", self.ffn, feed_forward.KINDS)

    def _check_attention(self) -> None:
        if self.head_dim == 0:
            if self.hidden_size % self.num_heads:
                raise InputError(f"hidden_size: {self.hidden_size} is not a multiple of "
                                 f"num_heads = {self.num_heads}; change one of them or set head_dim")
            object.__setattr__(self, "head_dim", self.hidden_size // self.num_heads)
        if self.num_heads % self.num_kv_heads:
            raise InputError(f"num_kv_heads: {self.num_kv_heads} does not divide "
                             f"num_heads = {self.num_heads}")
        if self.head_dim < 0 or self.head_dim % 2:
            raise InputError(f"head_dim: {self.head_dim} is odd; rotary positions turn pairs of channels")
        if self.sliding_window < 0:
            raise InputError(f"sliding_window: {self.sliding_window} is negative; 0 means no window")

    def _check_experts(self) -> None:
        if self.num_experts < 0 or (self.num_experts and not 1 <= self.top_k <= self.num_experts):
            raise InputError(f"top_k: {self.top_k} is not between 1 and num_experts = {self.num_experts}")
        if self.num_experts and self.ffn != "swiglu":
            raise InputError(f"ffn: experts are swiglu, not {self.ffn!r}; "
                             "set num_experts to 0 for a dense feed-forward")
        if self.capacity_factor < 0 or not 0.0 <= self.router_jitter < 1.0:
            raise InputError(f"capacity_factor: {self.capacity_factor}, router_jitter: {self.router_jitter}: "
                             "expected capacity_factor >= 0 and 0 <= router_jitter < 1")
        check_name("drop_policy", self.drop_policy, capacity.POLICIES)

    def replace(self, **changes: Any) -> "MoETransformerConfig":
        """A copy with some fields changed; head_dim follows hidden_size unless it is given."""
        derived = self.head_dim * self.num_heads == self.hidden_size
        if derived and {"hidden_size", "num_heads"} & changes.keys():
            changes.setdefault("head_dim", 0)
        return replaced(self, changes)
