"""Learned halting: how much each step's result counts.

ACT (Graves 2016): a token goes on until Σ p_s > 1 − ε; the last step gets what is left to 1.
PonderNet (Banino et al. 2021): λ_s is the probability to halt at step s if not before, so halting there has
p_s = λ_s Π_(r<s) (1 − λ_r); the expected loss is trained, with a geometric prior on p."""

import math

import numpy as np

from nn import ops
from nn.backends.array_api import beside, namespace
from nn.errors import InputError
from nn.tensor import Array, Tensor


class Act:
    """Weights ω_s step by step; Σ_s ω_s = 1.

    Gradient: N is constant; with the token's last step n, ω_n = 1 − Σ_(s<n) p_s, which the tape knows."""

    def __init__(self, eps: float = 0.01) -> None:
        self.eps = eps
        self.total: Tensor | None = None          # Σ p of the steps so far [B,T]
        self.running: Array | None = None         # tokens that have not halted [B,T]
        self.steps: Array | float = 0.0           # N [B,T]
        self.remainder: Tensor | None = None      # R [B,T]

    def step(self, p: Tensor | None, like: Tensor, last: bool = False) -> Tensor:
        """ω_s[B,T] from p_s[B,T], which the last step does without; like: h[B,T,D]"""
        xp = namespace(like.data)
        if self.running is None or self.total is None:
            self.running = xp.ones(like.shape[:2], dtype="bool")
            self.total = Tensor(xp.zeros(like.shape[:2], dtype=like.dtype))
            self.remainder = self.total
        run, left = self.running, 1.0 - self.total
        if last or p is None:
            new, going = run, run & ~run
            weight = ops.where(new, left, 0.0)
        else:
            new = run & (self.total.data + p.data > 1.0 - self.eps)
            going = run & ~new
            weight = ops.where(going, p, ops.where(new, left, 0.0))
        self.steps = self.steps + xp.astype(run, like.dtype)
        self.remainder = self.remainder + ops.where(new, left, 0.0)
        self.total, self.running = self.total + ops.where(going, weight, 0.0), going
        return weight

    def cost(self) -> Tensor:
        """N + R [B,T]; ∂R/∂p_s = −1 before the halting step"""
        assert self.remainder is not None
        return self.remainder + self.steps


class Ponder:
    """Weights p_s step by step; Σ_s p_s = 1, as the last step halts whatever is left."""

    def __init__(self) -> None:
        self.left: Tensor | None = None       # Π (1 − λ) [B,T]
        self.weights: list[Tensor] = []       # p_s [B,T]

    def step(self, halt: Tensor | None, like: Tensor) -> Tensor:
        """p_s[B,T] from λ_s[B,T]; None: the last step; like: h[B,T,D]"""
        left = self.left
        if left is None:
            left = Tensor(namespace(like.data).ones(like.shape[:2], dtype=like.dtype))
        p = left if halt is None else left * halt
        self.left = left - p
        self.weights.append(p)
        return p

    def all(self) -> Tensor:
        """p[B,T,N]"""
        return ops.stack(self.weights, axis=-1)


def geometric_prior(rate: float, steps: int) -> np.ndarray:
    """π[N]: rate (1 − rate)^s, made to add up to 1; 0 < rate < 1"""
    _check_rate(rate)
    p = rate * (1.0 - rate) ** np.arange(steps)
    return np.asarray(p / p.sum())


def ponder_steps(rate: float, tail: float = 0.05) -> int:
    """The fewest steps by which the prior has halted with probability 1 − tail"""
    _check_rate(rate)
    return max(1, math.ceil(math.log(tail) / math.log(1.0 - rate) - 1e-9))


def _check_rate(rate: float) -> None:
    if not 0.0 < rate < 1.0:
        raise InputError(f"rate: {rate}; a probability to halt is between 0 and 1")


def ponder_kl(p: Tensor, rate: float = 0.2) -> Tensor:
    """KL(p ‖ prior) [B,T] of p[B,T,N]: Σ p (ln p − ln π); a step of probability 0 adds 0"""
    prior = beside(np.log(geometric_prior(rate, p.shape[-1])).astype(p.dtype), p.data)
    safe = ops.where(p.data > 0.0, p, 1.0)
    return (p * (ops.log(safe) - Tensor(prior))).sum(axis=-1)


def ponder_loss(p: Tensor, losses: Tensor, beta: float = 0.01, rate: float = 0.2) -> Tensor:
    """Σ_s p_s ℓ_s + β KL(p ‖ prior), the mean over tokens; p[B,T,N], ℓ[B,T,N] that of each step's reading"""
    return ((p * losses).sum(axis=-1) + ponder_kl(p, rate) * beta).mean()
