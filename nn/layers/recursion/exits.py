"""Tokens that stop being updated: exit_router(h, step, cache) -> booleans [B,T], True = stop.

h is the state before the step's update, so a token that exits at step s keeps h_s.  Other tokens still see
it.  Whether to exit is a hard choice without gradient; a learned router is trained by a loss of its own.

    max_prob   largest probability ≥ τ            entropy   |H_s − H_(s−1)| < τ
    margin     its lead over the second ≥ τ       kl        KL(p_(s−1) ‖ p_s) < τ
    latent     ‖h_s − h_(s−1)‖ / ‖h_s‖ < τ        cosine    1 − cos(h_s, h_(s−1)) < τ
    argmax     the same best token τ times in a row          learned   σ(w · h + b) > τ

All but latent, cosine and learned look at what the model would predict: read_out(head) says how."""

from collections.abc import Callable
from typing import Any

from nn import ops
from nn.backends.array_api import namespace
from nn.cache import StepCache
from nn.dtypes import widen
from nn.errors import InputError
from nn.layers.module import Module, Parameter
from nn.layers.precision import widened
from nn.names import check_name
from nn.tensor import Array, Tensor, no_grad

THRESHOLDS = {"never": 0.0, "max_prob": 0.9, "margin": 0.5, "entropy": 1e-3, "kl": 1e-3, "latent": 0.03,
              "cosine": 1e-3, "argmax": 5.0, "learned": 0.5}


class ExitRouter(Module):
    """exit_weight [D], exit_bias [1] of a learned one; else no parameters"""

    detached = ("exit_weight", "exit_bias")

    def __init__(self, criterion: str, hidden_size: int, threshold: float | None = None, *,
                 std: float = 0.02, dtype: Any = "float32") -> None:
        check_name("exit", criterion, THRESHOLDS)
        self.criterion = criterion
        self.threshold = THRESHOLDS[criterion] if threshold is None else threshold
        self.head: Callable[[Tensor], Tensor] | None = None
        if criterion == "learned":
            self.exit_weight = Parameter((1, hidden_size), std=std, dtype=dtype)
            self.exit_bias = Parameter((1,), dtype=dtype, decay=False)

    def read_out(self, head: Callable[[Tensor], Tensor]) -> None:
        """head: h[B,T,D] -> logits [B,T,V]; it stays the model's, also if it is a module."""
        self.head = lambda h: head(h)

    def logit(self, h: Tensor) -> Tensor:
        """Of a learned router: h[B,T,D] -> [B,T]"""
        return ops.linear(h, self.exit_weight, self.exit_bias).reshape(*h.shape[:-1])

    def forward(self, h: Tensor, step: int, cache: StepCache) -> Array:
        """booleans [B,T]"""
        with no_grad():
            if self.criterion == "learned":
                return ops.sigmoid(self.logit(h)).data > self.threshold
            if self.criterion in ("latent", "cosine"):
                now = widen(h.data)
                return self._changed(_DISTANCES[self.criterion], now, cache)
            if self.criterion == "never":
                return namespace(h.data).zeros(h.shape[:-1], dtype="bool")
            return self._predicted(h, cache)

    def _changed(self, distance: Callable[[Array, Array], Array], now: Array, cache: StepCache) -> Array:
        """Whether now is near to what it was a step before"""
        before, xp = cache.exchange("exit", now), namespace(now)
        if before is None:
            return xp.zeros(now.shape[:-1], dtype="bool")
        return distance(now, before) < self.threshold

    def _predicted(self, h: Tensor, cache: StepCache) -> Array:
        if self.head is None:
            raise InputError(f"exit: {self.criterion!r} needs the model's head; call read_out(head)")
        logits = widened(self.head(h))
        if self.criterion in ("entropy", "kl"):
            return self._changed(_DISTANCES[self.criterion], ops.log_softmax(logits).data, cache)
        xp, p = namespace(h.data), ops.softmax(logits).data
        best = xp.argmax(p, axis=-1)
        if self.criterion == "argmax":
            before = cache.exchange("exit", (best, xp.ones(best.shape, dtype="int64")))
            if before is not None:
                same = xp.astype(before[0] == best, before[1].dtype)
                cache["exit"] = (best, before[1] * same + 1)
            return cache["exit"][1] >= self.threshold
        top = xp.max(p, axis=-1)
        if self.criterion == "max_prob":
            return top >= self.threshold
        others = xp.where(best[..., None] == xp.arange(p.shape[-1]), xp.zeros_like(p), p)
        return top - xp.max(others, axis=-1) >= self.threshold


def _latent(now: Array, before: Array) -> Array:
    return _norm(now - before) / _floored(_norm(now))


def _cosine(now: Array, before: Array) -> Array:
    xp = namespace(now)
    along = xp.sum(now * before, axis=-1)
    return 1.0 - along / _floored(_norm(now) * _norm(before))


def _entropy(now: Array, before: Array) -> Array:
    xp = namespace(now)
    return xp.abs(xp.sum(xp.exp(now) * now, axis=-1) - xp.sum(xp.exp(before) * before, axis=-1))


def _kl(now: Array, before: Array) -> Array:
    return namespace(now).sum(namespace(now).exp(before) * (before - now), axis=-1)


def _norm(x: Array) -> Array:
    xp = namespace(x)
    return xp.sqrt(xp.sum(x * x, axis=-1))


def _floored(x: Array) -> Array:
    return namespace(x).clip(x, 1e-12, None)


_DISTANCES = {"latent": _latent, "cosine": _cosine, "entropy": _entropy, "kl": _kl}


def exit_loss(logits: Tensor, losses: Array, next_losses: Array, delta: float = 1e-2) -> Tensor:
    """What trains a learned router: cross-entropy of its logits[B,T] with whether another step improves the
    token's loss[B,T] by less than delta.  −ln σ(z) where it should exit, −ln σ(−z) elsewhere; the mean."""
    stop = losses - next_losses < delta
    return -ops.log_sigmoid(ops.where(stop, logits, -logits)).mean()
