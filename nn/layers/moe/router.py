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
from nn.layers.auxiliary import collecting, emit_figure, emit_loss
from nn.layers.module import Module, Parameter
from nn.layers.moe.capacity import keep_within_capacity
from nn.layers.moe.decision import Routing, Rows
from nn.random import counter
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
        self.capacity_factor, self.drop_policy = capacity_factor, drop_policy
        self.noise: Array = counter(0, "router_jitter")       # where it draws; see nn/layers/noise.py

    @property
    def draws(self) -> bool:
        """Whether it draws random numbers while training"""
        return bool(self.jitter)

    @property
    def minds_places(self) -> bool:
        """Whether a token's place among the others changes its result: jitter and dropping go by it"""
        return self.training and bool(self.draws or self.capacity_factor)

    def forward(self, x: Tensor, rows: Rows | None = None) -> Routing:
        """x[N,D] -> Routing.  rows: where they stand; here, nothing depends on it."""
        x, weight = wide(x), wide(self.weight)
        if self.training and self.jitter:
            x = ops.jitter(x, self.noise, self.jitter)
        logits = ops.linear(x, weight)                                                   # [N,E]
        weights, experts, probs = ops.router_topk(logits, self.top_k, self.renormalize)
        if collecting():
            self._emit(logits, probs, experts)
        if self.training and self.capacity_factor:      # to drop at inference would look ahead
            weights, experts = self._drop(weights, experts)
        return Routing(weights, experts)

    def _emit(self, logits: Tensor, probs: Tensor, experts: Array) -> None:
        balance, load = ops.balance_loss(probs, experts, self.balance_coef)                           # f [E]
        emit_figure("moe/load", load)
        emit_figure("moe/router_entropy", _entropy(probs.data))
        if not on_device(probs.data):                   # there, a step has no launches to spare
            emit_figure("moe/top1_probability", _top(probs.data))
        if self.balance_coef:
            emit_loss("moe/load_balance", balance)
        if self.z_coef:
            emit_loss("moe/router_z", ops.z_loss(logits, self.z_coef))

    def _drop(self, weights: Tensor, experts: Array) -> tuple[Tensor, Array]:
        """Pairs beyond an expert's capacity get weight 0 and no expert: the residual carries the token."""
        keep = keep_within_capacity(experts, weights.data, self.num_experts,
                                    self.capacity_factor, self.drop_policy)
        xp = namespace(experts)
        emit_figure("moe/overflow", 1.0 - xp.mean(xp.astype(keep, weights.dtype)))
        return weights * xp.astype(keep, weights.dtype), xp.where(keep, experts, self.num_experts)


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
