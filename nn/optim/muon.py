"""Muon (Jordan et al. 2024; Liu et al. 2025, arXiv 2502.16982): momentum whose update of a matrix is replaced
by the nearest semi-orthogonal matrix, so that all its directions move equally far.

    M ← μM + g,   u = g + μM (Nesterov) or M,   θ ← θ(1 − lr·wd) − lr · scale · orthogonalized(u)

Hidden matrices only: embeddings, head, norms, biases and whatever else does not decay are AdamW's.  Weights
[..., out, in] with leading axes (experts) are matrices each by itself, and so are the parts of fused ones.
A matrix keeps one moment instead of two.

    optimizer = Muon(model.named_parameters(), lr=3e-4)               # Moonlight's scale: AdamW's rates
    optimizer = Muon(model.named_parameters(), lr=0.02, scale="original", adamw_lr_scale=0.015)"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

from nn.backends import kernels
from nn.backends.array_api import namespace
from nn.dtypes import narrow, widen
from nn.errors import InputError
from nn.names import by_name, check_name
from nn.optim.adamw import AdamW, Array, ParamGroup, Slot

# What an update is multiplied by, from the rows (outputs) and columns of its matrix.
SCALES: dict[str, Callable[[int, int], float]] = {
    "moonlight": lambda rows, columns: 0.2 * math.sqrt(max(rows, columns)),      # rms 0.2, as AdamW's
    "original": lambda rows, columns: math.sqrt(max(1.0, rows / columns)),
    "spectral": lambda rows, columns: math.sqrt(rows / columns),
}

# (a, b, c) of each step x ← ax + (bA + cA²)x, A = xxᵀ; the last one is repeated.
COEFFICIENTS: dict[str, tuple[tuple[float, float, float], ...]] = {
    "quintic": ((3.4445, -4.7750, 2.0315),),
    "polar_express": ((8.15655, -22.48329, 15.87877), (4.04293, -2.80892, 0.50002),     # Amsel et al. 2025
                      (3.89167, -2.77248, 0.50606), (3.28575, -2.36813, 0.46449),
                      (2.34654, -1.70978, 0.42324)),
}

FUSED = {"*gate_up_proj": 2}      # name pattern: matrices of equal size above each other in one parameter


def orthogonalized(u: Array, steps: int = 5, coefficients: str = "quintic") -> Array:
    """About U Vᵀ for u = U S Vᵀ [..., rows, columns], in u's type: Newton–Schulz steps take singular values
    to 0.6 ... 1.2, very small ones to less.  A matrix of zeros stays one."""
    table, xp = by_name("coefficients", coefficients, COEFFICIENTS), namespace(u)
    x = u / (xp.sqrt(xp.sum(u * u, axis=(-2, -1), keepdims=True)) + 1e-7)
    wide = x.shape[-2] <= x.shape[-1]
    x = x if wide else xp.matrix_transpose(x)                 # x xᵀ is the smaller of the two products
    for step in range(steps):
        a, b, c = table[min(step, len(table) - 1)]
        gram = kernels.matmul(x, xp.matrix_transpose(x))
        x = a * x + kernels.matmul(b * gram + c * kernels.matmul(gram, gram), x)
    return x if wide else xp.matrix_transpose(x)


@dataclass(frozen=True)
class MuonRule:
    """Which parameters are Muon's, and where they move."""

    momentum: float = 0.95
    nesterov: bool = True
    ns_steps: int = 5                      # iterations
    scale: str = "moonlight"               # see SCALES
    coefficients: str = "quintic"          # see COEFFICIENTS
    adamw: tuple[str, ...] = ()            # name patterns of further parameters that are AdamW's
    fused: Mapping[str, int] | None = None     # as FUSED, which None means

    def __post_init__(self) -> None:
        check_name("coefficients", self.coefficients, COEFFICIENTS)
        check_name("scale", self.scale, SCALES)
        if not 0.0 <= self.momentum < 1.0:
            raise InputError(f"momentum: {self.momentum} must be in [0, 1)")
        if self.ns_steps < 1:
            raise InputError(f"ns_steps: {self.ns_steps} must be 1 or more")

    def is_matrix(self, name: str, param: Any) -> bool:
        other = any(fnmatchcase(name, pattern) for pattern in self.adamw)
        return param.decay and len(param.shape) > 1 and not other

    def parts(self, name: str, param: Any) -> int:
        """How many matrices stand above each other in a parameter"""
        fused = FUSED if self.fused is None else self.fused
        parts = next((n for pattern, n in fused.items() if fnmatchcase(name, pattern)), 1)
        if parts < 1 or param.shape[-2] % parts:
            raise InputError(f"fused: {name} has {param.shape[-2]} rows, which are not {parts} equal parts")
        return parts

    def direction(self, gradient: Array, moment: Array, parts: int) -> Array:
        """What to take away, but for the learning rate: of a gradient and a moment that has seen it"""
        u, xp = (gradient + self.momentum * moment if self.nesterov else moment), namespace(moment)
        *lead, rows, columns = u.shape
        matrices = xp.reshape(u, (*lead, parts, rows // parts, columns))
        size = SCALES[self.scale](rows // parts, columns)
        return xp.reshape(size * orthogonalized(matrices, self.ns_steps, self.coefficients), u.shape)


class MatrixSlot(Slot):
    """A parameter whose last two axes are a matrix, or several above each other."""

    moments = ("m",)
    parts = 1


class Muon(AdamW):
    """Muon for matrices that decay, AdamW with `betas` and `eps` for all else, at lr · adamw_lr_scale.

    scale: "moonlight" (learning rate and decay as AdamW's), "original" (lr about 0.02, no decay) or
    "spectral".  coefficients: of the iteration, "quintic" or "polar_express".  adamw: name patterns of
    further parameters that are AdamW's.  fused: {name pattern: how many matrices of equal size stand above
    each other in such a parameter}.  The other settings are AdamW's."""

    def __init__(self, named_parameters: Mapping[str, Any], *, lr: float,
                 betas: tuple[float, float] = (0.9, 0.95), eps: float = 1e-8, weight_decay: float = 0.1,
                 momentum: float = 0.95, nesterov: bool = True, ns_steps: int = 5, scale: str = "moonlight",
                 coefficients: str = "quintic", adamw_lr_scale: float = 1.0, adamw: Sequence[str] = (),
                 fused: Mapping[str, int] | None = None, master_weights: bool = True,
                 groups: Sequence[ParamGroup] = ()) -> None:
        self.rule = MuonRule(momentum, nesterov, ns_steps, scale, coefficients, tuple(adamw), fused)
        self.adamw_lr_scale = checked_scale(adamw_lr_scale)
        super().__init__(named_parameters, lr=lr, betas=betas, eps=eps, weight_decay=weight_decay,
                         master_weights=master_weights, groups=groups)
        for name, slot in self._slots.items():
            if isinstance(slot, MatrixSlot):
                slot.parts = self.rule.parts(name, slot.param)

    @property
    def matrices(self) -> list[str]:
        """Names of the parameters that are Muon's."""
        return [name for name, slot in self._slots.items() if isinstance(slot, MatrixSlot)]

    def _slot(self, name: str, param: Any) -> type[Slot]:
        return MatrixSlot if self.rule.is_matrix(name, param) else Slot

    def rate(self, slot: Slot, lr: float) -> float:
        rate = super().rate(slot, lr)
        return rate if isinstance(slot, MatrixSlot) else rate * self.adamw_lr_scale

    def moves_together(self, slot: Slot) -> bool:
        return type(self)._move is Muon._move and not isinstance(slot, MatrixSlot)

    def _move(self, slot: Slot, wide: Array, stored: Array | None, lr: float, grad_scale: float) -> None:
        if not isinstance(slot, MatrixSlot):
            super()._move(slot, wide, stored, lr, grad_scale)
            return
        gradient = widen(slot.param.grad).astype(wide.dtype, copy=False) * wide.dtype.type(grad_scale)
        slot.m *= self.rule.momentum
        slot.m += gradient
        wide *= 1.0 - lr * slot.weight_decay
        wide -= lr * self.rule.direction(gradient, slot.m, slot.parts)
        if stored is not None:
            stored[...] = narrow(wide, stored.dtype)


def checked_scale(adamw_lr_scale: float) -> float:
    if adamw_lr_scale < 0.0:
        raise InputError(f"adamw_lr_scale: {adamw_lr_scale} must be 0 or more")
    return adamw_lr_scale
