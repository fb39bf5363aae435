"""The router: which k of E experts each token visits, and with what weight.

z = x W_rᵀ, p = softmax(z), the k largest (ties to the lowest expert), w = p_sel / Σ p_sel;
all in float32 or wider.

    balance loss   α E Σ_e f_e P_e, which is α at balance                         (Fedus et al. 2021)
                   f_e = share of assignments to e (a constant), P_e = mean probability of e
    z-loss         β mean (log Σ exp z)²                                          (Zoph et al. 2022)
    jitter         while training, router inputs times U(1 − ε, 1 + ε)
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

from nn import ops
from nn.backends.array_api import beside, namespace
from nn.errors import InputError
from nn.layers.auxiliary import collecting, emit_figure, emit_loss
from nn.layers.module import Module, Parameter
from nn.layers.moe.capacity import keep_within_capacity
from nn.random import derive, uniform
from nn.tensor import Array, Tensor


@dataclass(frozen=True)
class Routing:
    """N tokens' choices: weights[N,K] (differentiable) and experts[N,K]; expert E means dropped."""

    weights: Tensor
    experts: Array


class Router(Module):
    """weight [E, D], no bias (Mixtral's `gate`)"""

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
        self.noise = (0, 0, 0, 0)        # (seed, step, micro-batch, layer) of the jitter; see model.set_noise

    def forward(self, x: Tensor) -> Routing:
        """x[N,D] -> Routing"""
        wide = np.float32 if x.dtype != np.float64 else np.float64
        x, weight = (z if z.dtype == wide else z.cast(wide) for z in (x, self.weight))
        if self.training and self.jitter:
            x = x * self._noise(x)
        logits = ops.linear(x, weight)                                                   # [N,E]
        weights, experts, probs = ops.router_topk(logits, self.top_k, self.renormalize)
        if collecting():
            self._emit(logits, probs, experts)
        if self.training and self.capacity_factor:      # to drop at inference would look ahead
            weights, experts = self._drop(weights, experts)
        return Routing(weights, experts)

    def _noise(self, x: Tensor) -> Array:
        """U(1 − ε, 1 + ε), counter-based: a recomputation in backward draws the same numbers"""
        seed, *stream = self.noise
        u = uniform(derive(seed, "router_jitter"), *stream, shape=x.shape, dtype=x.dtype)
        return beside(1.0 - self.jitter + 2.0 * self.jitter * u, x.data)

    def _emit(self, logits: Tensor, probs: Tensor, experts: Array) -> None:
        xp, tokens = namespace(experts), max(1, logits.shape[0])
        chosen = experts[:, :, None] == xp.arange(self.num_experts)
        load = xp.sum(xp.astype(chosen, probs.dtype), axis=(0, 1)) / (tokens * self.top_k)            # f [E]
        emit_figure("moe/load", load)
        emit_figure("moe/router_entropy", _entropy(probs.data))
        if self.balance_coef:
            mean_probs = probs.sum(axis=0) * (1.0 / tokens)                                           # P [E]
            emit_loss("moe/load_balance", (mean_probs * load).sum() * (self.balance_coef * self.num_experts))
        if self.z_coef:
            lse = ops.logsumexp(logits)
            emit_loss("moe/router_z", (lse * lse).sum() * (self.z_coef / tokens))

    def _drop(self, weights: Tensor, experts: Array) -> tuple[Tensor, Array]:
        """Pairs beyond an expert's capacity get weight 0 and no expert: the residual carries the token."""
        keep = keep_within_capacity(experts, weights.data, self.num_experts,
                                    self.capacity_factor, self.drop_policy)
        xp = namespace(experts)
        emit_figure("moe/overflow", 1.0 - xp.mean(xp.astype(keep, weights.dtype)))
        return weights * xp.astype(keep, weights.dtype), xp.where(keep, experts, self.num_experts)


def _entropy(probs: Array) -> Array:
    """Mean over the tokens of −Σ p log p."""
    xp = namespace(probs)
    return -xp.sum(probs * xp.log(probs + 1e-30)) / max(1, probs.shape[0])
