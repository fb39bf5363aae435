"""Multi-head latent attention (DeepSeek-V2, arXiv 2405.04434; DeepSeek-V3's dimensions and names).

    q = W_qb RMS(W_qa x)  (or W_q x)         per head [q_n (dn) | q_r (dr)], q_r turned
    [c | k_r] = W_kva x,  c ← RMS(c)         one latent (rk) and one turned key (dr) for all heads
    [k_n | v] = W_kvb c                      per head (dn, dv)
    s_ij = scale (⟨q_n,i, k_n,j⟩ + ⟨q_r,i, k_r,j⟩),  scale = (dn + dr)^−½,   y = W_o softmax(s) v

Only c and k_r are kept: rk + dr numbers per token, whatever the heads.

Absorbed.  With W_kvb's rows of one head as [W_uk; W_uv], ⟨q_n, W_uk c⟩ = ⟨W_ukᵀ q_n, c⟩ and Σ P W_uv c =
W_uv Σ P c: attention of all heads over the one key [c | k_r] and the one value c.  No past token's keys and
values are formed; per pair it costs rk + dr + rk multiply-adds instead of dn + dr + dv.  Chunk mode computes
naively, recurrent mode absorbed; left open, up to 64 tokens behind a past are absorbed."""

from collections.abc import Callable
from dataclasses import dataclass, field
from math import log
from typing import Any

from nn import ops
from nn.cache import LayerCache
from nn.errors import InputError
from nn.layers.attention.causal import shared_rotary
from nn.layers.attention.core import attend
from nn.layers.attention.grouped import unrecorded
from nn.layers.attention.positions import angles, kept, left_out
from nn.layers.formulas import attention_core, projection, visible_pairs
from nn.layers.linear import Linear
from nn.layers.mode import KernelMode, select_mode
from nn.layers.norm import RMSNorm
from nn.layers.protocol import Block, BlockSettings
from nn.layers.rotary import RopeScaling
from nn.names import check_name
from nn.ops.merged import KeySet
from nn.random import counter
from nn.tensor import Array, Tensor

Core = Callable[[Tensor, Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class MLASettings(BlockSettings):
    """Multi-head latent attention; DeepSeek-V3: 128 heads, ranks 1536 and 512, widths 128, 64, 128."""

    num_heads: int = 4                 # heads
    q_lora_rank: int = 0               # width of the queries' latent; 0 = queries straight from x
    kv_lora_rank: int = 32             # width of the latent that is kept of keys and values
    qk_nope_head_dim: int = 16         # channels per head without positions
    qk_rope_head_dim: int = 8          # channels per head with positions; 0 = no positions
    v_head_dim: int = 16               # channels per head of the values
    latent_norm: bool = True           # RMSNorm of the latents
    norm_eps: float = 1e-6             # of these norms
    rope_theta: float = 10000.0        # base of the rotary frequencies
    rope_interleaved: bool = True      # rotary pairs (2i, 2i+1) instead of (i, i + dr/2)
    rope_scaling: RopeScaling = field(default_factory=RopeScaling)   # DeepSeek: attention_factor = 1 besides
    softcap: float = 0.0               # scores u become c tanh(u / c), c this; 0 = not
    attn_dropout: float = 0.0          # share of the probabilities that training leaves out
    decode_impl: str = "absorbed"      # how recurrent mode computes: absorbed or naive
    mscale_all_dim: float = 0.0        # under yarn the scores are scaled by (0.1 mscale ln factor + 1)²
    max_seq_len: int = 2048            # planned context, for rope_scaling

    def __post_init__(self) -> None:
        self._positive("hidden_size", "num_heads", "kv_lora_rank", "qk_nope_head_dim", "v_head_dim",
                       "max_seq_len")
        check_name("decode_impl", self.decode_impl, ("absorbed", "naive"))
        if not self.softcap >= 0 or not 0.0 <= self.attn_dropout < 1.0:
            raise InputError(f"softcap: {self.softcap} is 0 or more; attn_dropout: {self.attn_dropout} is in "
                             "[0, 1)")
        for name in ("q_lora_rank", "norm_eps", "rope_theta", "mscale_all_dim"):
            if not getattr(self, name) >= 0:
                raise InputError(f"{type(self).__name__}.{name}: {getattr(self, name)} is not 0 or more; "
                                 "0 means none")
        if self.qk_rope_head_dim < 0 or self.qk_rope_head_dim % 2:
            raise InputError(f"qk_rope_head_dim: {self.qk_rope_head_dim} is not an even number of channels")

    @property
    def qk_head_dim(self) -> int:
        """Of a head's queries and keys"""
        return self.qk_nope_head_dim + self.qk_rope_head_dim

    @property
    def kept(self) -> int:
        """Numbers that the cache holds per token"""
        return self.kv_lora_rank + self.qk_rope_head_dim

    @property
    def scale(self) -> float:
        """Of the scores"""
        stretched = self.rope_scaling.type == "yarn" and self.mscale_all_dim
        mscale = 0.1 * self.mscale_all_dim * log(self.rope_scaling.factor) + 1.0 if stretched else 1.0
        return self.qk_head_dim**-0.5 * mscale**2

    def maps(self) -> dict[str, tuple[int, int]]:
        """{name of a projection: (in, out)}"""
        queries, rank = self.num_heads * self.qk_head_dim, self.q_lora_rank
        first = ({"q_a_proj": (self.hidden_size, rank), "q_b_proj": (rank, queries)} if rank
                 else {"q_proj": (self.hidden_size, queries)})
        return first | {
            "kv_a_proj_with_mqa": (self.hidden_size, self.kept),
            "kv_b_proj": (self.kv_lora_rank, self.num_heads * (self.qk_nope_head_dim + self.v_head_dim)),
            "o_proj": (self.num_heads * self.v_head_dim, self.hidden_size)}

    def absorbs(self, length: int, past: int, mode: str | None) -> bool:
        """Whether a call is computed absorbed"""
        if self.decode_impl == "naive" or (mode is None and not past):
            return False
        return select_mode(length, mode=mode) == KernelMode.RECURRENT

    def parameters(self, active: bool = False) -> dict[str, int]:
        norms = self.q_lora_rank + self.kv_lora_rank if self.latent_norm else 0
        return {"projections": sum(rows * columns for rows, columns in self.maps().values()), "norms": norms}

    def cache_size(self, tokens: int) -> int | None:
        return self.kept * tokens

    def flops(self, batch: int, length: int, past: int = 0, mode: str | None = None) -> dict[str, int]:
        """projections, expansion (of latents to heads, or of queries into the latents' space), core"""
        rows, pairs, maps = batch * self.num_heads, visible_pairs(length, past + length), self.maps()
        expand = maps.pop("kv_b_proj")
        if self.absorbs(length, past, mode):
            expansion = projection(batch * length, expand)
            core = attention_core(rows, pairs, self.kept, self.kv_lora_rank)
        else:
            expansion = projection(batch * (past + length), expand)
            core = attention_core(rows, pairs, self.qk_head_dim, self.v_head_dim)
        others = projection(batch * length, *maps.values())
        return {"projections": others, "expansion": expansion, "core": core}

    @classmethod
    def examples(cls) -> dict[str, Any]:
        small = {"hidden_size": 8, "num_heads": 2, "kv_lora_rank": 5, "qk_nope_head_dim": 4,
                 "qk_rope_head_dim": 2, "v_head_dim": 3}
        yarn = RopeScaling("yarn", 4.0, original_max_position_embeddings=16, attention_factor=1.0)
        return {"": cls.create(**small, q_lora_rank=6),
                "direct queries": cls.create(**small, rope_interleaved=False),
                "softcap, naive": cls.create(**small, softcap=1.5, attn_dropout=0.2, decode_impl="naive"),
                "no positions": cls.create(**small | {"qk_rope_head_dim": 0}, q_lora_rank=6),
                "yarn, no norms": cls.create(**small | {"qk_rope_head_dim": 4}, latent_norm=False,
                                             rope_scaling=yarn, mscale_all_dim=1.0, max_seq_len=64)}


class MLACache(LayerCache):
    """[latent | turned key] of every token, [B,1,length,rk + dr]: nothing per head."""

    def extend(self, joined: Array) -> Array:
        """Add joined[B,1,T,rk + dr]; everything held"""
        return self.append(joined, joined[:, :, :, :0])[0]


class MLA(Block):
    """q_a_proj, q_a_layernorm, q_b_proj (or q_proj), kv_a_proj_with_mqa, kv_a_layernorm, kv_b_proj, o_proj"""

    Settings = MLASettings
    noise_name = "attn_dropout"
    q_a_proj: Linear
    q_b_proj: Linear
    q_proj: Linear
    kv_a_proj_with_mqa: Linear
    kv_b_proj: Linear
    o_proj: Linear

    def __init__(self, settings: MLASettings, dtype: Any = "float32") -> None:
        s = self.settings = settings
        if s.attn_dropout:
            self.noise: Array = counter(0, self.noise_name)      # where it is drawn
        for name, (inner, outer) in s.maps().items():
            std = s.down_std if name == "o_proj" else s.init_std
            setattr(self, name, Linear(inner, outer, std=std, dtype=dtype))
        q_norm, kv_norm = s.latent_norm and s.q_lora_rank, s.latent_norm
        self.q_a_layernorm = RMSNorm(s.q_lora_rank, s.norm_eps, dtype=dtype) if q_norm else None
        self.kv_a_layernorm = RMSNorm(s.kv_lora_rank, s.norm_eps, dtype=dtype) if kv_norm else None
        self.rotary = shared_rotary(s.qk_rope_head_dim, s.rope_theta if s.qk_rope_head_dim else 0.0,
                                    s.rope_scaling, s.max_seq_len, s.rope_interleaved)

    def init_state(self, batch_size: int) -> MLACache:
        return MLACache()

    def forward(self, x: Tensor, *, state: MLACache | None = None, mask: Array | None = None,
                mode: str | None = None) -> tuple[Tensor, MLACache | None]:
        """x[B,T,D] -> y[B,T,D]; see nn/layers/protocol.py"""
        batch, length, _ = x.shape
        past = state.length if state is not None else 0
        q, joined = self._turned(self._queries(x), self._latents(x), x, state, mask)
        if state is not None:
            unrecorded(joined)
            state.padding = state.padding + left_out(mask, length)
            joined = Tensor(state.extend(joined.data))                                     # [B,1,S,rk+dr]
        keep = kept(mask, joined.shape[2])
        form = self._absorbed if self.settings.absorbs(length, past, mode) else self._naive
        o = form(q, joined, self._core(keep, state)).permute(0, 2, 1, 3)                   # [B,T,H,dv]
        return self.o_proj(o.reshape(batch, length, o.shape[2] * o.shape[3])), state

    def _core(self, keep: Array | None, state: MLACache | None) -> Core:
        """(q, k, v) -> o; behind a cache nothing is dropped"""
        s = self.settings
        dropout = s.attn_dropout if self.training and state is None else 0.0
        return lambda q, k, v: attend(q, [KeySet(k, v, mask=keep)], scale=s.scale, softcap=s.softcap,
                                      dropout=dropout, noise=self.noise if dropout else None)

    def _queries(self, x: Tensor) -> Tensor:
        """[B,T,D] -> [B,H,T,dn+dr]"""
        s = self.settings
        if s.q_lora_rank:
            low = self.q_a_proj(x)
            q = self.q_b_proj(self.q_a_layernorm(low) if self.q_a_layernorm else low)
        else:
            q = self.q_proj(x)
        return q.reshape(*x.shape[:2], s.num_heads, s.qk_head_dim).permute(0, 2, 1, 3)

    def _latents(self, x: Tensor) -> Tensor:
        """[B,T,D] -> [B,1,T,rk+dr], the latents normalised; the keys not"""
        rank, joined = self.settings.kv_lora_rank, self.kv_a_proj_with_mqa(x)
        if self.kv_a_layernorm:
            joined = ops.concat([self.kv_a_layernorm(joined[:, :, :rank]), joined[:, :, rank:]], axis=2)
        return joined[:, None]

    def _turned(self, q: Tensor, joined: Tensor, x: Tensor, state: MLACache | None,
                mask: Array | None) -> tuple[Tensor, Tensor]:
        """The last dr channels of both, turned by the angles of their tokens"""
        if self.rotary is None:
            return q, joined
        first = 0 if state is None else state.offset - state.padding
        cos, sin = angles(self.rotary, x, first, x.shape[1], mask)

        def turn(z: Tensor, kept: int) -> Tensor:
            turned = ops.rope(z[:, :, :, kept:], cos, sin, self.settings.rope_interleaved)
            return ops.concat([z[:, :, :, :kept], turned], axis=3)

        return turn(q, self.settings.qk_nope_head_dim), turn(joined, self.settings.kv_lora_rank)

    def _naive(self, q: Tensor, joined: Tensor, core: Core) -> Tensor:
        """o[B,H,T,dv] by keys and values of every head"""
        s, (batch, _, keys, _) = self.settings, joined.shape
        wide = self.kv_b_proj(joined[:, 0, :, : s.kv_lora_rank])
        wide = wide.reshape(batch, keys, s.num_heads, s.qk_nope_head_dim + s.v_head_dim).permute(0, 2, 1, 3)
        k, v = wide[:, :, :, : s.qk_nope_head_dim], wide[:, :, :, s.qk_nope_head_dim :]
        if s.qk_rope_head_dim:
            shared = joined[:, :, :, s.kv_lora_rank :]
            k = ops.concat([k, ops.broadcast_to(shared, (batch, s.num_heads, *shared.shape[2:]))], axis=3)
        return core(q, k, v)

    def _absorbed(self, q: Tensor, joined: Tensor, core: Core) -> Tensor:
        """o[B,H,T,dv] by the latents themselves"""
        s = self.settings
        weight = self.kv_b_proj.weight.reshape(s.num_heads, s.qk_nope_head_dim + s.v_head_dim, s.kv_lora_rank)
        up_k, up_v = weight[:, : s.qk_nope_head_dim], weight[:, s.qk_nope_head_dim :]     # [H,dn|dv,rk]
        seen = q[:, :, :, : s.qk_nope_head_dim] @ up_k                                     # [B,H,T,rk]
        seen = ops.concat([seen, q[:, :, :, s.qk_nope_head_dim :]], axis=3)
        return core(seen, joined, joined[:, :, :, : s.kv_lora_rank]) @ ops.transpose(up_v)


MultiHeadLatentAttention = MLA      # the name LinearNexus's users know
