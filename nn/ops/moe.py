"""Mixture of experts: routing, grouping tokens by expert, and the linear maps of all experts at once."""

from dataclasses import dataclass
from typing import Any

from nn.backends import kernels
from nn.tensor import Array, Op, Tensor


class RouterTopK(Op):
    """p = softmax(z); the k largest, ties to the lowest expert; w = p_sel / Σ p_sel (or p_sel).

    renormalised:  dz_e = w_e (dw_e − Σ_sel w dw) for the selected e
    else:          dz_j = p_j (1[j selected] dw_j − Σ_sel p dw) for every j
    plus softmax's backward for what reaches p itself (balance losses).  The selection carries no gradient."""

    def forward(self, logits: Array, *, k: int, renormalize: bool) -> Any:
        self.renormalize = renormalize
        self.weights, self.experts, self.probs = kernels.router_topk(logits, k, renormalize=renormalize)
        return self.weights, self.probs, self.experts

    def backward(self, dweights: Array | None, dprobs: Array | None, dexperts: None) -> Array:
        dlogits = kernels.softmax_backward(dprobs, self.probs) if dprobs is not None else None
        if dweights is None:
            return dlogits
        routed = kernels.router_topk_backward(dweights, self.weights, self.experts, self.probs,
                                              renormalize=self.renormalize)
        return routed if dlogits is None else routed + dlogits


@dataclass(frozen=True)
class Plan:
    """Which (token, choice) pair stands in which row of the arrays grouped by expert."""

    offsets: Array     # [E+1] rows offsets[e] ... offsets[e+1] are expert e's; rows beyond the last nobody's
    order: Array       # [M] the pair in each row: pair = token · K + choice
    inverse: Array     # [M] the row of each pair
    choices: int       # K


def plan(experts: Array, num_experts: int) -> Plan:
    """The plan for experts[N,K]; a pair whose expert is E is dropped."""
    order, inverse, offsets = kernels.expert_order(experts, num_experts)
    return Plan(offsets, order, inverse, experts.shape[1])


class Dispatch(Op):
    """xs[r] = x[token of row r]:  dx[n] = Σ_k dxs[row of (n,k)], in the order of the choices"""

    def forward(self, x: Array, *, plan: Plan) -> Array:
        self.plan = plan
        return kernels.moe_dispatch(x, plan.order, plan.choices)

    def backward(self, dxs: Array) -> Array:
        return kernels.moe_dispatch_backward(dxs, self.plan.inverse, self.plan.choices)


class Combine(Op):
    """y[n] = Σ_k w[n,k] ys[row of (n,k)]

    dys[r] = w[pair of r] dy[token of r],  dw[n,k] = Σ_D dy[n] ys[row of (n,k)]"""

    def forward(self, ys: Array, weights: Array, *, plan: Plan) -> Array:
        self.ys, self.weights, self.plan = ys, weights, plan
        return kernels.moe_combine(ys, weights, plan.inverse)

    def backward(self, dy: Array) -> Any:
        return kernels.moe_combine_backward(dy, self.ys, self.weights, self.plan.order, self.plan.inverse)


class GroupedLinear(Op):
    """y[r] = x[r] W_eᵀ for the rows r of expert e:  dx[r] = dy[r] W_e,  dW_e = Σ_r dy[r]ᵀ x[r]"""

    def forward(self, x: Array, weight: Array, *, offsets: Array, batch_invariant: bool) -> Array:
        self.x, self.weight, self.offsets = x, weight, offsets
        return kernels.grouped_linear(x, weight, offsets, batch_invariant=batch_invariant)

    def backward(self, dy: Array) -> Any:
        return kernels.grouped_linear_backward(dy, self.x, self.weight, self.offsets)


def router_topk(logits: Tensor, k: int, renormalize: bool = True) -> tuple[Tensor, Array, Tensor]:
    """(weights[N,k], experts[N,k], probs[N,E]) from logits[N,E]; `experts` is a plain integer array."""
    weights, probs, experts = RouterTopK.apply(logits, k=k, renormalize=renormalize)
    return weights, experts.data, probs


def dispatch(x: Tensor, plan: Plan) -> Tensor:
    """x[N,D] -> [M,D], grouped by expert"""
    return Dispatch.apply(x, plan=plan)


def combine(ys: Tensor, weights: Tensor, plan: Plan) -> Tensor:
    """ys[M,D] grouped by expert, weights[N,K] -> [N,D]"""
    return Combine.apply(ys, weights, plan=plan)


def grouped_linear(x: Tensor, weight: Tensor, offsets: Array, batch_invariant: bool = True) -> Tensor:
    """x[M,I] grouped by expert, weight[E,O,I] -> [M,O]"""
    return GroupedLinear.apply(x, weight, offsets=offsets, batch_invariant=batch_invariant)
