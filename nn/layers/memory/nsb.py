"""Neural-symbolic bridge: each token selects softly from a bank of learned rules, and a feed-forward layer
takes the selection in.

    q = W_q h + b,    p = softmax(R q / τ),    s = pᵀ R,    y = W_2 SiLU(W_1 [h; s])

R [n_r,d_r] is key and value.  hard: the likeliest rule alone, p_hard + p − sg[p], whose gradient is p's.

A curriculum for rules that start at random: with tau_steps the selection starts at temperature tau_start, all
rules mixed, and sharpens to tau over that many training steps; what is evaluated is at tau."""

import math
from dataclasses import dataclass
from typing import Any

from nn import ops
from nn.backends.array_api import beside, namespace
from nn.errors import InputError
from nn.layers.auxiliary import collecting, emit_figure, emit_loss
from nn.layers.formulas import projection
from nn.layers.linear import Linear
from nn.layers.masks import newest
from nn.layers.module import Parameter
from nn.layers.precision import cast_to, widened
from nn.layers.protocol import Block, BlockSettings
from nn.random import counter, drawn_from
from nn.tensor import Array, Tensor


@dataclass(frozen=True)
class NSBSettings(BlockSettings):
    """A bank of rules."""

    rules: int = 32              # rules in the bank
    rdim: int = 32               # width of a rule
    tau: float = 1.0             # temperature of the selection; 0 = sqrt(rdim)
    tau_start: float = 0.0       # temperature at the first training step
    tau_steps: int = 0           # training steps over which it goes to tau, linearly; 0 = always tau
    hard: bool = False           # select the likeliest rule alone
    entropy_coef: float = 0.0    # penalty on the mean entropy of the selection
    dropout: float = 0.0         # probability that a rule is left out of a training step

    def __post_init__(self) -> None:
        self._positive("hidden_size", "rules", "rdim")
        if self.tau < 0.0 or not 0.0 <= self.dropout < 1.0:
            raise InputError(f"tau: {self.tau}, dropout: {self.dropout}; a temperature is 0 or more, "
                             "a probability between 0 and 1")
        if self.tau_steps < 0 or (self.tau_steps > 0) != (self.tau_start > 0.0):
            raise InputError(f"tau_start: {self.tau_start}, tau_steps: {self.tau_steps}; give both, a "
                             "temperature above 0 and the steps until it is tau, or neither")

    @property
    def temperature(self) -> float:
        return self.tau or math.sqrt(self.rdim)

    def temperature_at(self, step: int) -> float:
        """While training"""
        done = min(1.0, step / self.tau_steps) if self.tau_steps else 1.0
        return self.tau_start + done * (self.temperature - self.tau_start) if done < 1.0 else self.temperature

    def parameters(self, active: bool = False) -> dict[str, int]:
        width = self.hidden_size
        return {"rules": self.rules * self.rdim, "query": self.rdim * (width + 1),
                "ffn": width * (width + self.rdim) + width * width}

    def flops(self, batch: int, length: int, past: int = 0, mode: str | None = None) -> dict[str, int]:
        tokens, width = batch * length, self.hidden_size
        bank = (self.rdim, self.rules)
        return {"query": projection(tokens, (width, self.rdim)),
                "rules": projection(tokens, bank, bank[::-1]),
                "ffn": projection(tokens, (width + self.rdim, width), (width, width))}

    @classmethod
    def examples(cls) -> dict[str, Any]:
        return {"": cls.create(hidden_size=8, rules=3, rdim=5),
                "sqrt": cls.create(hidden_size=6, rules=4, rdim=4, tau=0.0)}


class NSB(Block):
    """rules [n_r,d_r], query [d_r,D] + b, fc1 [D,D+d_r], fc2 [D,D]; no token sees another: no state"""

    Settings = NSBSettings
    packing = "tokens"
    noise_name = "rule_dropout"

    def __init__(self, settings: NSBSettings, dtype: Any = "float32") -> None:
        s = self.settings = settings
        width = s.hidden_size
        self.rules = Parameter((s.rules, s.rdim), std=s.init_std, dtype=dtype)
        self.query = Linear(width, s.rdim, bias=True, std=s.init_std, dtype=dtype)
        self.fc1 = Linear(width + s.rdim, width, std=s.init_std, dtype=dtype)
        self.fc2 = Linear(width, width, std=s.down_std, dtype=dtype)
        self.noise: Array = counter(0, "rule_dropout")      # where dropped rules are drawn

    def forward(self, x: Tensor, *, state: None = None, mask: Array | None = None,
                mode: str | None = None) -> tuple[Tensor, None]:
        """[B,T,D] -> [B,T,D]"""
        p = self.selection(x)
        if self.settings.entropy_coef or collecting():
            self._emit(p, mask)
        chosen = self._hardened(p) if self.settings.hard else p
        s = cast_to(chosen @ self.rules, x.dtype)                                             # [B,T,dr]
        return self.fc2(ops.silu(self.fc1(ops.concat([x, s], axis=-1)))), None

    def selection(self, x: Tensor) -> Tensor:
        """p[B,T,n_r] of x[B,T,D]"""
        s = self.settings
        tau = s.temperature_at(int(self.noise[1])) if self.training and s.tau_steps else s.temperature
        logits = ops.linear(widened(self.query(x)), self.rules) * (1.0 / tau)
        if self.training and s.dropout:
            drawn = drawn_from(self.noise, (s.rules,))
            kept = drawn >= self.settings.dropout
            kept[drawn.argmax()] = True                                                # one is always left
            logits = ops.where(beside(kept, x.data), logits, -float("inf"))
        return ops.softmax(logits)

    def _hardened(self, p: Tensor) -> Tensor:
        """The likeliest rule's indicator, with the gradient of p"""
        xp = namespace(p.data)
        rules = xp.arange(self.settings.rules)
        hard = xp.astype(xp.argmax(p.data, axis=-1)[..., None] == rules, p.dtype)
        return p + Tensor(hard - p.data)

    def _emit(self, p: Tensor, mask: Array | None) -> None:
        """The mean entropy H(p) of the tokens, as a figure and, weighted, as a loss"""
        xp, keep = namespace(p.data), newest(mask, p.shape[1])
        entropy = -(p * ops.log(p + 1e-9)).sum(axis=-1)                                        # [B,T]
        if keep is not None:
            weight = xp.astype(beside(keep, p.data), p.dtype)
            entropy = entropy * Tensor(weight / xp.clip(xp.sum(weight), 1.0, None))
        mean = entropy.mean() if keep is None else entropy.sum()
        emit_figure("nsb/entropy", mean.data)
        if self.settings.entropy_coef:
            emit_loss("nsb/entropy", mean * self.settings.entropy_coef)
