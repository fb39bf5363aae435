"""Expert choice (Zhou et al. 2022, arXiv 2202.09368): each expert picks its tokens.

    p = softmax(x W_rᵀ) over the experts;  each expert takes, of each sequence, the C tokens with the largest
    p, ties to the earliest;  y_t = Σ_{e that took t} p_te expert_e(x_t),   C = ⌈factor · T / E⌉, at most T

The load is even by construction, so there is no balance loss; a token is taken by 0 to E experts.  Whether it
is taken depends on the tokens behind it: for encoders.  Sequences are computed each by itself."""

import math
from dataclasses import dataclass
from typing import Any

from nn import ops
from nn.backends.array_api import beside, namespace
from nn.errors import InputError
from nn.layers.auxiliary import collecting, emit_figure, emit_loss
from nn.layers.formulas import projection
from nn.layers.masks import newest
from nn.layers.module import Parameter
from nn.layers.moe.block import ExpertBlock
from nn.layers.moe.capacity import rounded_up
from nn.layers.moe.router import wide
from nn.layers.moe.settings import ExpertSettings
from nn.layers.precision import cast_to
from nn.tensor import Array, Tensor


@dataclass(frozen=True)
class ExpertChoiceSettings(ExpertSettings):
    """Experts that pick their tokens: for encoders."""

    capacity_factor: float = 2.0      # experts that a token meets on average
    router_z_coef: float = 0.0        # weight of the router's z-loss
    allow_lookahead: bool = False     # causal models refuse it, as what a token gets depends on later ones;
                                      # true: take it all the same (decoding then differs from training)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0.0 < self.capacity_factor <= self.num_experts:
            raise InputError(f"capacity_factor: {self.capacity_factor} is not between 0 and num_experts = "
                             f"{self.num_experts}")

    @property
    def is_causal(self) -> bool:
        """It is not, but may be taken for it."""
        return self.allow_lookahead

    def capacity(self, length: int) -> int:
        """C: tokens that each expert takes of a sequence."""
        return min(length, rounded_up(self.capacity_factor * length / self.num_experts))

    def parameters(self, active: bool = False) -> dict[str, int]:
        """active: a token meets capacity_factor experts on average, here counted whole."""
        met = min(self.num_experts, math.ceil(self.capacity_factor)) if active else self.num_experts
        return {"router": self.num_experts * self.hidden_size} | self._expert_parameters(met)

    def flops(self, batch: int, length: int, past: int = 0, mode: str | None = None) -> dict[str, int]:
        tokens, pairs = batch * length, batch * self.num_experts * self.capacity(length)
        return ({"router": projection(tokens, (self.hidden_size, self.num_experts))}
                | self._expert_flops(tokens, pairs))

    @classmethod
    def examples(cls) -> dict[str, Any]:
        return {"": cls.create(hidden_size=8, intermediate_size=6, num_experts=3),
                "one each": cls.create(hidden_size=6, intermediate_size=5, num_experts=4, capacity_factor=1.0,
                                       activation="silu", num_shared_experts=1),
                "all": cls.create(hidden_size=6, intermediate_size=5, num_experts=2, shared_gate=True,
                                  num_shared_experts=1)}


class ExpertChoice(ExpertBlock):
    """weight [E,D] of the router, and the experts; no state: a sequence is looked at as a whole."""

    Settings = ExpertChoiceSettings
    settings: ExpertChoiceSettings

    def __init__(self, settings: ExpertChoiceSettings, dtype: Any = "float32") -> None:
        s = self.settings = settings
        self.weight = Parameter((s.num_experts, s.hidden_size), std=s.init_std, dtype=dtype)
        self.experts = self._experts(dtype)
        self._create_shared(dtype)

    def forward(self, x: Tensor, *, state: None = None, mask: Array | None = None,
                mode: str | None = None) -> tuple[Tensor, None]:
        """[B,T,D] -> [B,T,D]"""
        batch, length, width = x.shape
        experts, room = self.settings.num_experts, self.settings.capacity(length)
        logits = ops.linear(wide(x), wide(self.weight))                                           # [B,T,E]
        probs = ops.softmax(logits).permute(0, 2, 1)                                              # [B,E,T]
        keep = newest(mask, length)
        taken, within = self._pick(probs.data, None if keep is None else beside(keep, x.data), room)
        self._emit(logits, taken, within, keep)
        gates = ops.take_along_axis(probs, taken)
        gates = gates if within is None else ops.where(within, gates, 0.0)                        # [B,E,C]
        xp = namespace(taken)
        rows = taken + (xp.arange(batch) * length)[:, None, None]                  # of the tokens, flat
        rows = xp.reshape(xp.permute_dims(rows, (1, 0, 2)), (-1,))                                # [E·B·C]
        offsets = xp.arange(experts + 1) * (batch * room)
        ys = self.experts.grouped(ops.take(x.reshape(batch * length, width), rows), offsets)
        weighted = wide(ys) * gates.permute(1, 0, 2).reshape(-1, 1)
        y = ops.scatter_add(weighted, rows, batch * length)
        return self._with_shared(cast_to(y, x.dtype).reshape(batch, length, width), x), None

    def _pick(self, probs: Array, keep: Array | None, room: int) -> tuple[Array, Array | None]:
        """(tokens [B,E,C] that each expert takes, the likeliest first; which of these it has room for in a
        sequence that is shorter than the array)"""
        xp = namespace(probs)
        if keep is None:
            return xp.argsort(-probs, axis=-1, stable=True)[:, :, :room], None
        order = xp.argsort(xp.where(keep[:, None, :], -probs, xp.ones_like(probs)), axis=-1, stable=True)
        s, lengths = self.settings, xp.sum(xp.astype(keep, xp.float32), axis=1)                    # [B]
        rooms = xp.minimum(rounded_up(lengths * (s.capacity_factor / s.num_experts)), lengths)
        return order[:, :, :room], xp.broadcast_to(
            (xp.arange(room)[None, :] < rooms[:, None])[:, None, :], (keep.shape[0], s.num_experts, room))

    def _emit(self, logits: Tensor, taken: Array, within: Array | None, keep: Array | None) -> None:
        """The share of tokens that no expert took; the z-loss"""
        if not collecting():
            return
        xp, length = namespace(taken), logits.shape[1]
        hits = taken[..., None] == xp.arange(length)                                            # [B,E,C,T]
        met = xp.any(hits if within is None else hits & within[..., None], axis=(1, 2))           # [B,T]
        weight = xp.ones(met.shape, dtype=logits.dtype)
        if keep is not None:
            weight = weight * xp.astype(beside(keep, met), logits.dtype)
        tokens = xp.clip(xp.sum(weight), 1.0, None)
        emit_figure("moe/unrouted", 1.0 - xp.sum(xp.astype(met, weight.dtype) * weight) / tokens)
        if self.settings.router_z_coef:
            lse, coefficient = ops.logsumexp(logits), self.settings.router_z_coef
            emit_loss("moe/router_z", (lse * lse * Tensor(weight)).sum() / tokens * coefficient)
