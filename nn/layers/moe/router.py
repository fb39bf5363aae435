"""The router: which k of E experts each token visits, and with what weight.

z = x W_rᵀ, p = softmax(z), the k largest (ties to the lowest expert), w = p_sel / Σ p_sel;
all in float32 or wider.

    balance loss   α E Σ_e f_e P_e, which is α at balance                         (Fedus et al. 2021)
                   f_e = share of assignments to e (a constant), P_e = mean probability of e
    z-loss         β mean (log Σ exp z)²                                          (Zoph et al. 2022)
    jitter         while training, router inputs times U(1 − ε, 1 + ε)

This one runs in few fused operations and is MoETransformer's; nn/layers/moe/general.py has all the others."""

from typing import Any

import numpy as np

from nn import ops
from nn.backends.array_api import namespace, on_device
from nn.errors import InputError
from nn.layers.auxiliary import collecting, emit_figure, emit_formed, emit_loss
from nn.layers.module import Module, Parameter
from nn.layers.moe.capacity import MIN_CAPACITY, keep_within_capacity
from nn.layers.moe.decision import Decision, Routing, Rows
from nn.layers.moe.losses import LOSSES, TINY, name_of
from nn.random import counter
from nn.tape import no_grad
from nn.tensor import Array, Tensor


class Router(Module):
    """weight [E, D], no bias (Mixtral's `gate`)"""

    noise_name = "router_jitter"
    jitter_affects_experts = False

    def __init__(self, hidden_size: int, num_experts: int, top_k: int, *, renormalize: bool = True,
                 jitter: float = 0.0, balance_coef: float = 0.01, z_coef: float = 0.001,
                 capacity_factor: float = 0.0, drop_policy: str = "probs", std: float = 0.02,
                 dtype: Any = "float32") -> None:
        if not 1 <= top_k <= num_experts:
            raise InputError(f"top_k: {top_k} is not between 1 and num_experts = {num_experts}")
        self.weight = Parameter((num_experts, hidden_size), std=std, dtype=dtype)
        self.num_experts, self.top_k, self.renormalize = num_experts, top_k, renormalize
        self.jitter, self.balance_coef, self.z_coef = jitter, balance_coef, z_coef
        self.capacity_factor, self.drop_policy, self.min_capacity = capacity_factor, drop_policy, MIN_CAPACITY
        self.noise: Array = counter(0, "router_jitter")       # where it draws; see nn/layers/noise.py

    @property
    def draws(self) -> bool:
        """Whether it draws random numbers while training"""
        return bool(self.jitter)

    @property
    def minds_places(self) -> bool:
        """Whether a token's place among the others changes its result: jitter and dropping go by it"""
        return self.training and bool(self.draws or self.capacity_factor)

    @property
    def minds_padding(self) -> bool:
        """Whether it makes a difference which rows are padding: to losses, figures, capacity"""
        return collecting() or self.minds_places

    @property
    def losses(self) -> dict[str, float]:
        """{name of a balance loss: weight}"""
        return {"switch": self.balance_coef} if self.balance_coef else {}

    def forward(self, x: Tensor, rows: Rows | None = None) -> Routing:
        """x[N,D] -> Routing; without `rows`, one sequence without padding"""
        rows = rows or Rows(1, x.shape[0])
        x, weight = wide(x), wide(self.weight)
        if self.training and self.jitter:
            x = ops.jitter(x, self.noise, self.jitter)
        logits = ops.linear(x, weight)                                                   # [N,E]
        weights, experts, probs = ops.router_topk(logits, self.top_k, self.renormalize)
        if collecting():
            if rows.keep is None:
                self._emit_fused(logits, probs, experts)
            else:
                self._emit(Decision(rows, logits, logits, None, probs, weights, experts))
        if self.training and self.capacity_factor:      # to drop at inference would look ahead
            weights, experts = self._limited(weights, experts, self.capacity_factor, rows)
        return Routing(weights, experts)

    # ---- losses and figures ----

    def _emit_fused(self, logits: Tensor, probs: Tensor, experts: Array) -> None:
        """Without padding, in few operations"""
        balance, load = ops.balance_loss(probs, experts, self.balance_coef)                           # f [E]
        emit_figure("moe/load", load)
        emit_formed("moe/router_entropy", _entropy, probs.data)
        if not on_device(probs.data):                   # there, a step has no launches to spare
            emit_formed("moe/top1_probability", _top, probs.data)
        if self.balance_coef:
            emit_loss("moe/load_balance", balance)
        if self.z_coef:
            emit_loss("moe/router_z", ops.z_loss(logits, self.z_coef))

    def _emit(self, d: Decision) -> None:
        with no_grad():
            self._emit_figures(d)
        for name, weight in self.losses.items():
            emit_loss(name_of(name), LOSSES[name](d) * weight)
        if self.z_coef:
            emit_loss("moe/router_z", self._z_loss(d))

    def _emit_figures(self, d: Decision) -> None:
        xp = namespace(d.counts)
        emit_figure("moe/load", d.counts / xp.clip(xp.sum(d.counts), 1.0, None))
        emit_figure("moe/router_entropy", -d.mean((d.probs * ops.log(d.probs + TINY)).sum(axis=-1)).data)
        emit_figure("moe/top1_probability", d.mean(Tensor(xp.max(d.probs.data, axis=-1))).data)

    def _z_loss(self, d: Decision) -> Tensor:
        if d.kept is None:
            return ops.z_loss(d.logits, self.z_coef)
        lse = ops.logsumexp(d.logits)
        return d.mean(lse * lse) * self.z_coef

    # ---- capacity ----

    def _limited(self, weights: Tensor, experts: Array, factor: float, rows: Rows) -> tuple[Tensor, Array]:
        """Pairs beyond an expert's capacity get weight 0 and no expert: the residual carries the token."""
        keep = keep_within_capacity(experts, weights.data, self.num_experts, factor, self.drop_policy,
                                    self.min_capacity, rows.keep)
        xp = namespace(experts)
        kept = xp.astype(keep, weights.dtype)
        if collecting():
            pairs: Any = kept.size
            least: Any = max(1, pairs)
            if rows.keep is not None:
                pairs = self.top_k * xp.sum(xp.astype(rows.keep, kept.dtype))
                least = xp.clip(pairs, 1.0, None)
            emit_figure("moe/overflow", (pairs - xp.sum(kept)) / least)
        return weights * Tensor(kept), xp.where(keep, experts, self.num_experts)


def wide(x: Tensor) -> Tensor:
    """In the type that routers work in: float32, or float64"""
    dtype = np.float32 if x.dtype != np.float64 else np.float64
    return x if x.dtype == dtype else x.cast(dtype)


def _top(probs: Array) -> Array:
    """Mean over the tokens of the largest probability"""
    xp = namespace(probs)
    return xp.sum(xp.max(probs, axis=-1)) / max(1, probs.shape[0])


def _entropy(probs: Array) -> Array:
    """Mean over the tokens of −Σ p log p."""
    xp = namespace(probs)
    return -xp.sum(probs * xp.log(probs + 1e-30)) / max(1, probs.shape[0])
