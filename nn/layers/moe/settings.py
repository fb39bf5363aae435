"""Settings that blocks of experts share: the experts themselves, shared experts, the router."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from nn.errors import InputError
from nn.layers.feed_forward import KINDS
from nn.layers.formulas import projection
from nn.layers.moe.capacity import MIN_CAPACITY, POLICIES
from nn.layers.moe.losses import LOSSES
from nn.layers.moe.selection import GROUP_RULES
from nn.layers.protocol import BlockSettings
from nn.names import check_name

SCORES = ("softmax_pre", "softmax_post", "sigmoid", "sqrtsoftplus")


@dataclass(frozen=True)
class ExpertSettings(BlockSettings):
    """Experts, and those that every token visits besides."""

    intermediate_size: int = 256         # width of one expert
    num_experts: int = 8                 # routed experts
    activation: str = "swiglu"           # swiglu (three matrices); silu, gelu, gelu_tanh or relu (two)
    num_shared_experts: int = 0          # experts that every token visits, as one of their width together
    shared_intermediate_size: int = 0    # that width; 0 = num_shared_experts * intermediate_size
    shared_gate: bool = False            # their result is multiplied by a sigmoid gate (Qwen2-MoE)

    def __post_init__(self) -> None:
        self._positive("hidden_size", "intermediate_size", "num_experts")
        check_name("activation", self.activation, KINDS)
        if min(self.num_shared_experts, self.shared_intermediate_size) < 0:
            raise InputError(f"num_shared_experts: {self.num_shared_experts}, shared_intermediate_size: "
                             f"{self.shared_intermediate_size}; 0 or more are expected")
        if self.shared_gate and not self.shared_width:
            raise InputError("shared_gate: there are no shared experts; set num_shared_experts")

    @property
    def shared_width(self) -> int:
        """Of the shared experts together; 0 without."""
        return self.shared_intermediate_size or self.num_shared_experts * self.intermediate_size

    @property
    def matrices(self) -> int:
        return 3 if self.activation == "swiglu" else 2

    def _expert_parameters(self, experts: int) -> dict[str, int]:
        """Of `experts` experts and the shared ones"""
        counts = {"experts": experts * self.matrices * self.hidden_size * self.intermediate_size}
        if self.shared_width:
            width = self.matrices * self.shared_width + int(self.shared_gate)
            counts["shared_experts"] = self.hidden_size * width
        return counts

    def _expert_flops(self, tokens: int, pairs: int) -> dict[str, int]:
        """Of `pairs` visits to experts, and of the shared ones for all tokens"""
        width = self.hidden_size
        counts = {"experts": projection(pairs, *[(width, self.intermediate_size)] * self.matrices)}
        if self.shared_width:
            shapes = [*[(width, self.shared_width)] * self.matrices, *[(width, 1)] * self.shared_gate]
            counts["shared_experts"] = projection(tokens, *shapes)
        return counts


@dataclass(frozen=True)
class RouterSettings(ExpertSettings):
    """A router by which each token visits top_k experts."""

    top_k: int = 2                         # experts each token visits
    score: str = "softmax_pre"             # softmax_pre, softmax_post (of the selected), sigmoid or
                                           # sqrtsoftplus
    renormalize: bool = True               # weights of the selected experts are divided by their sum
    routed_scale: float = 1.0              # and multiplied by this (DeepSeek-V3: 2.5)
    n_group: int = 1                       # groups that the experts are divided into
    topk_group: int = 1                    # groups that a token's experts are from
    group_rule: str = ""                   # what a group is worth: max, top2 or share; "" = top2 for sigmoid
                                           # and sqrtsoftplus, max for softmax
    selection_bias: bool = False           # a bias per expert is added to the scores that decide who is
                                           # selected, not to the weights
    bias_update_rate: float = 0.0          # it moves by this after every step, against the load
    router_jitter: float = 0.0             # while training, router inputs times U(1 - e, 1 + e)
    jitter_affects_experts: bool = False   # experts see those inputs, too
    noisy_topk: bool = False               # while training, logits plus noise of a learned size
    balance: str | Mapping[str, float] = "switch"    # balance loss, by its name; several: {name: weight}
    balance_coef: float = 0.01             # weight of the balance loss that is given by its name alone
    router_z_coef: float = 0.001           # weight of the router's z-loss
    capacity_factor: float = 0.0           # in training, most assignments per expert over the mean;
                                           # 0 = no limit
    eval_capacity_factor: float = 0.0      # the same while evaluating: tokens then depend on later ones
    drop_policy: str = "probs"             # who stays when capacity is short: probs, position or slot
    min_capacity: int = MIN_CAPACITY       # assignments that an expert always takes
    renormalize_after_drop: bool = False   # weights of a token's remaining experts are divided by their sum

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 1 <= self.top_k <= self.num_experts:
            raise InputError(f"top_k: {self.top_k} is not between 1 and num_experts = {self.num_experts}")
        check_name("score", self.score, SCORES)
        check_name("drop_policy", self.drop_policy, POLICIES)
        self._check_groups()
        self._check_numbers()
        if not isinstance(self.balance, str | Mapping):
            raise InputError(f"balance: {self.balance!r}; give a name, or several with their weights, "
                             "{name: weight}")
        for name, weight in self.losses.items():
            check_name("balance", name, LOSSES)
            if not math.isfinite(weight):
                raise InputError(f"balance: {name} has the weight {weight}, which is not a number")
        if "load" in self.losses and not self.noisy_topk:
            raise InputError("balance: the load loss has no gradient without noise; set noisy_topk, "
                             "or take importance")

    def _check_groups(self) -> None:
        if self.group_rule:
            check_name("group_rule", self.group_rule, GROUP_RULES)
        if self.n_group < 1 or self.num_experts % self.n_group:
            raise InputError(f"n_group: {self.n_group} does not divide num_experts = {self.num_experts}")
        eligible = self.topk_group * self.num_experts // self.n_group
        if not 1 <= self.topk_group <= self.n_group or eligible < self.top_k:
            raise InputError(f"topk_group: {self.topk_group} of {self.n_group} groups have {eligible} "
                             f"experts; at least top_k = {self.top_k} are needed")

    def _check_numbers(self) -> None:
        for name in ("bias_update_rate", "capacity_factor", "eval_capacity_factor", "min_capacity",
                     "router_z_coef"):
            if not 0 <= getattr(self, name) < math.inf:
                raise InputError(f"{name}: {getattr(self, name)} is negative or not a number; 0 turns it off")
        if not 0.0 < self.routed_scale < math.inf:
            raise InputError(f"routed_scale: {self.routed_scale} is not a positive number; 1 changes nothing")
        if not 0.0 <= self.router_jitter <= 1.0:
            raise InputError(f"router_jitter: {self.router_jitter} is not in [0, 1]")

    @property
    def is_causal(self) -> bool:
        """Who is dropped while evaluating depends on all tokens."""
        return not self.eval_capacity_factor

    @property
    def losses(self) -> dict[str, float]:
        """{name of a balance loss: weight}"""
        if not isinstance(self.balance, str):
            return {name: weight for name, weight in self.balance.items() if weight}
        return {} if self.balance == "none" or not self.balance_coef else {self.balance: self.balance_coef}

    @property
    def has_bias(self) -> bool:
        return self.selection_bias or self.bias_update_rate > 0.0

    @property
    def of_softmax(self) -> bool:
        return self.score in ("softmax_pre", "softmax_post")

    @property
    def grouping(self) -> dict[str, Any]:
        """Arguments of selection.choose"""
        return {"groups": self.n_group, "best_groups": self.topk_group,
                "rule": self.group_rule or ("max" if self.of_softmax else "top2")}

    def parameters(self, active: bool = False) -> dict[str, int]:
        experts, width = self.num_experts, self.hidden_size
        counts = {"router": experts * width * (2 if self.noisy_topk else 1)}
        if self.has_bias:
            counts["router_bias"] = experts
        return counts | self._expert_parameters(self.top_k if active else experts)

    def flops(self, batch: int, length: int, past: int = 0, mode: str | None = None) -> dict[str, int]:
        """Without what only training does (the size of the noise), and with no pair dropped."""
        tokens = batch * length
        return ({"router": projection(tokens, (self.hidden_size, self.num_experts))}
                | self._expert_flops(tokens, tokens * self.top_k))
