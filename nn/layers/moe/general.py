"""The router with every choice: scores, groups, a bias that evens the load, noise, capacity, balance losses.

    z = x W_rᵀ,  while training z + n ⊙ (softplus(x W_nᵀ) + 0.01), n ~ Normal(0, 1)        (noisy top-k)
    scores s = softmax(z), σ(z) or √softplus(z)
    the K largest of s (+ bias), in the best groups;   w = γ s_sel / Σ s_sel, or γ s_sel

All in float32 or wider, formed by differentiable operations; of a softmax without groups and bias, by the
fused one.  Sources: Shazeer et al. 2017 (noise), Lepikhin et al. 2020 (capacity), DeepSeek-V2 and V3 (groups,
sigmoid), Wang et al. 2024, arXiv 2408.15664 (bias)."""

from typing import Any

import numpy as np

from nn import ops
from nn.backends.array_api import namespace
from nn.layers.auxiliary import collecting, emit_figure
from nn.layers.module import Module, Parameter
from nn.layers.moe.decision import Decision, Routing, Rows
from nn.layers.moe.noise import standard_normal
from nn.layers.moe.router import Router, wide
from nn.layers.moe.selection import choose
from nn.layers.moe.settings import RouterSettings
from nn.tape import state as tape
from nn.tensor import Array, Tensor

FLOOR = 1e-20            # added to the sum that weights are divided by (DeepSeek-V3)
LEAST_SPREAD = 1e-2      # of the noise


class GeneralRouter(Router):
    """weight [E,D], noise_weight [E,D] of noisy top-k, e_score_correction_bias [E], which no gradient reaches
    and finish_step moves"""

    detached = ("noise_weight", "e_score_correction_bias")       # (noise_weight while evaluating)

    def __init__(self, settings: RouterSettings, dtype: Any = "float32") -> None:
        s = self.settings = settings
        super().__init__(s.hidden_size, s.num_experts, s.top_k, renormalize=s.renormalize,
                         jitter=s.router_jitter, z_coef=s.router_z_coef, capacity_factor=s.capacity_factor,
                         drop_policy=s.drop_policy, std=s.init_std, dtype=dtype)
        self.jitter_affects_experts, self.min_capacity = s.jitter_affects_experts, s.min_capacity
        if s.noisy_topk:
            self.noise_weight = Parameter((s.num_experts, s.hidden_size), dtype=dtype)
        if s.has_bias:
            stored = "float64" if self.weight.dtype == np.float64 else "float32"
            self.e_score_correction_bias = Parameter((s.num_experts,), dtype=stored, decay=False)
            self.e_score_correction_bias.requires_grad = False
        self.counts: Array = None      # pairs per expert of the step's micro-batches so far, if anyone asks

    @property
    def draws(self) -> bool:
        return bool(self.jitter or self.settings.noisy_topk)

    @property
    def counting(self) -> bool:
        """Whether it counts the pairs of a step"""
        return self.settings.bias_update_rate > 0.0 or "switch_global" in self.settings.losses

    @property
    def minds_places(self) -> bool:
        return super().minds_places or bool(self.settings.eval_capacity_factor)

    @property
    def minds_padding(self) -> bool:
        return super().minds_padding or self.counting

    @property
    def losses(self) -> dict[str, float]:
        return self.settings.losses

    def forward(self, x: Tensor, rows: Rows | None = None) -> Routing:
        """x[N,D] -> Routing; without `rows`, one sequence without padding"""
        rows = rows or Rows(1, x.shape[0])
        x = wide(x)
        if self.training and self.jitter and not self.jitter_affects_experts:
            x = ops.jitter(x, self.noise, self.jitter)
        logits = ops.linear(x, wide(self.weight))                                                  # [N,E]
        noisy, spread = self._noisy(logits, x)
        weights, experts, scores = self._route(noisy)
        counted = self.counting and self.training and (tape.recording or tape.deferred)
        if collecting() or counted:
            decision = Decision(rows, logits, noisy, spread, self._distribution(scores), weights, experts,
                                self.counts)
            if collecting():
                self._emit(decision)
            if counted:
                self._count(decision.counts)
        s = self.settings
        if factor := s.capacity_factor if self.training else s.eval_capacity_factor:
            weights, experts = self._limited(weights, experts, factor, rows)
        return Routing(weights if s.routed_scale == 1.0 else weights * s.routed_scale, experts)

    def _noisy(self, logits: Tensor, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """(logits with noise, its standard deviation)"""
        if not (self.training and self.settings.noisy_topk):
            return logits, None
        spread = ops.softplus(ops.linear(x, wide(self.noise_weight))) + LEAST_SPREAD
        return logits + Tensor(standard_normal(self.noise, logits.data)) * spread, spread

    def _route(self, logits: Tensor) -> tuple[Tensor, Array, Tensor]:
        """(weights[N,K], experts[N,K], scores[N,E])"""
        s = self.settings
        of_selected = s.renormalize or s.score == "softmax_post"
        if s.of_softmax and not s.has_bias and s.topk_group == s.n_group:
            return ops.router_topk(logits, s.top_k, of_selected)
        scores = _SCORES[s.score](logits)
        ranked = scores.data + self.e_score_correction_bias.data if s.has_bias else scores.data
        experts = choose(ranked, s.top_k, **s.grouping)
        if s.of_softmax and of_selected:
            return ops.softmax(ops.take_along_axis(logits, experts)), experts, scores
        weights = ops.take_along_axis(scores, experts)
        if s.renormalize:
            weights = weights / (weights.sum(axis=-1, keepdims=True) + FLOOR)
        return weights, experts, scores

    def _distribution(self, scores: Tensor) -> Tensor:
        """Scores that add up to 1 over the experts"""
        return scores if self.settings.of_softmax else scores / (scores.sum(axis=-1, keepdims=True) + FLOOR)

    def _limited(self, weights: Tensor, experts: Array, factor: float, rows: Rows) -> tuple[Tensor, Array]:
        weights, experts = super()._limited(weights, experts, factor, rows)
        if self.settings.renormalize_after_drop:
            total = weights.sum(axis=-1, keepdims=True)
            weights = weights / ops.where(total.data > 0.0, total, 1.0)
        return weights, experts

    def _emit_figures(self, d: Decision) -> None:
        super()._emit_figures(d)
        if self.settings.has_bias:
            bias = self.e_score_correction_bias.data
            emit_figure("moe/bias_range", namespace(bias).max(bias) - namespace(bias).min(bias))

    # ---- what lasts beyond a pass ----

    def _count(self, counts: Array) -> None:
        """Added in place: a recorded step adds at every replay."""
        if self.counts is None or namespace(self.counts) is not namespace(counts):
            self.counts = counts * 0.0
        self.counts += counts

    def finish_step(self, taken: bool) -> None:
        """Behind an optimizer step: the bias of an expert that got less than the mean rises, of one that got
        more falls.  taken: whether the step was made; if not, its counts are forgotten."""
        if self.counts is None:
            return
        xp = namespace(self.counts)
        if taken and self.settings.bias_update_rate:
            bias = self.e_score_correction_bias.data
            bias += self.settings.bias_update_rate * xp.sign(xp.mean(self.counts) - self.counts)
        self.counts *= 0.0


def finish_step(model: Module, taken: bool = True) -> None:
    """Tell every router of a model that an optimizer step is over."""
    for module in model.modules():
        if isinstance(module, GeneralRouter):
            module.finish_step(taken)


_SCORES: dict[str, Any] = {"softmax_pre": ops.softmax, "softmax_post": ops.softmax, "sigmoid": ops.sigmoid,
                           "sqrtsoftplus": ops.sqrt_softplus}
