"""Mixture of experts: routing, grouping tokens by expert, and the linear maps of all experts at once."""

import math
from dataclasses import dataclass
from typing import Any

from nn.arithmetic import add
from nn.backends import kernels
from nn.backends.array_api import beside, erf, namespace, sigmoid
from nn.dtypes import narrow, widen
from nn.tensor import Array, Op, Tensor


class Jitter(Op):
    """y = x ⊙ f,  f = 1 − ε + 2ε u,  u uniform in [0, 1) by its place and a counter:  dx = dy ⊙ f

    f is a constant, drawn again in backward: nothing is kept."""

    def forward(self, x: Array, *, counter: Array, epsilon: float) -> Array:
        self.counter, self.epsilon = counter, epsilon
        return kernels.jitter(x, counter, epsilon=epsilon)

    def backward(self, dy: Array) -> Array:
        return kernels.jitter(dy, self.counter, epsilon=self.epsilon)


class BalanceLoss(Op):
    """L = α E Σ_e f_e P_e,  f_e = share of the pairs that chose e, P_e = mean of p_ne over the N tokens

    f counts and has no slope:  dp_ne = α E f_e dL / N.  f comes out as a second result."""

    def forward(self, probs: Array, *, experts: Array, coefficient: float) -> Any:
        self.tokens, self.coefficient = probs.shape[0], coefficient
        loss, self.load = kernels.moe_balance_loss(probs, experts, coefficient)
        return namespace(loss).reshape(loss, ()), self.load

    def backward(self, dloss: Array | None, dload: None) -> Array | None:
        if dloss is None:
            return None
        dloss = namespace(dloss).reshape(dloss, (1,))
        return kernels.moe_balance_loss_backward(dloss, self.load, self.tokens, self.coefficient)


class ZLoss(Op):
    """L = β mean_n l_n²,  l_n = log Σ_e exp z_ne

    dl_n = 2 β l_n dL / N,  ∂l_n/∂z_ne = exp(z_ne − l_n),  so  dz_ne = exp(z_ne − l_n) dl_n."""

    def forward(self, logits: Array, *, coefficient: float) -> Array:
        self.logits, self.coefficient = logits, coefficient
        loss, self.lse = kernels.moe_z_loss(logits, coefficient)
        return namespace(loss).reshape(loss, ())

    def backward(self, dloss: Array) -> Array:
        dloss = namespace(dloss).reshape(dloss, (1,))
        return kernels.moe_z_loss_backward(dloss, self.logits, self.lse, self.coefficient)


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
        return routed if dlogits is None else add(routed, dlogits)


class SqrtSoftplus(Op):
    """y = √ log(1 + eᶻ):  dz = dy σ(z) / (2 y), and 0 where y is: σ falls as fast as y²"""

    def forward(self, z: Array) -> Array:
        self.z, xp, wide = z, namespace(z), widen(z)
        y = xp.where(wide > 0.0, wide, xp.zeros_like(wide)) + xp.log1p(xp.exp(-xp.abs(wide)))
        self.y = xp.sqrt(y)
        return narrow(self.y, z.dtype)

    def backward(self, dy: Array) -> Array:
        xp, ones = namespace(dy), namespace(dy).ones_like(self.y)
        slope = sigmoid(widen(self.z)) / xp.where(self.y > 0.0, 2.0 * self.y, ones)
        return narrow(slope * widen(dy), dy.dtype)


class NormalCDF(Op):
    """y = Φ(x) = (1 + erf(x/√2)) / 2:  dx = dy φ(x),  φ(x) = exp(−x²/2) / √(2π)"""

    def forward(self, x: Array) -> Array:
        self.x = x
        return narrow(0.5 + 0.5 * erf(widen(x) * math.sqrt(0.5)), x.dtype)

    def backward(self, dy: Array) -> Array:
        x, xp = widen(self.x), namespace(self.x)
        return narrow(widen(dy) * xp.exp(-0.5 * x * x) * (1.0 / math.sqrt(2.0 * math.pi)), dy.dtype)


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


class GatheredSwiGLU(Op):
    """y[r] = SiLU(g) ⊙ u,  (g, u) the halves of z[r] = x[n] W_eᵀ,  n the token and e the expert of row r

    dz = (dy ⊙ u ⊙ SiLU'(g), dy ⊙ SiLU(g)),  dx[n] = Σ_k dz[r] W_e over the rows r of (n,k), in the order
    of the choices,  dW_e = Σ_r dz[r]ᵀ x[n].  Kept: x and z, but no rows of x: they are gathered again."""

    new_gradients = True

    def forward(self, x: Array, weight: Array, *, plan: Plan, batch_invariant: bool) -> Array:
        self.x, self.weight, self.plan = x, weight, plan
        y, self.hidden = kernels.gathered_swiglu(x, weight, plan.offsets, plan.order, plan.choices,
                                                 batch_invariant=batch_invariant, keep=any(self.needs))
        return y

    def flops(self, inputs: list[Array], results: tuple[Array, ...], options: dict[str, Any]) -> int:
        return 2 * int(options["plan"].offsets[-1]) * math.prod(inputs[1].shape[1:])

    def backward(self, dy: Array) -> Any:
        plan = self.plan
        return kernels.gathered_swiglu_backward(dy, self.hidden, self.x, self.weight, plan.offsets,
                                                plan.order, plan.inverse, plan.choices)


class GroupedLinear(Op):
    """y[r] = x[r] W_eᵀ for the rows r of expert e:  dx[r] = dy[r] W_e,  dW_e = Σ_r dy[r]ᵀ x[r]"""

    new_gradients = True

    def forward(self, x: Array, weight: Array, *, offsets: Array, batch_invariant: bool) -> Array:
        self.x, self.weight, self.offsets = x, weight, offsets
        return kernels.grouped_linear(x, weight, offsets, batch_invariant=batch_invariant)

    def flops(self, inputs: list[Array], results: tuple[Array, ...], options: dict[str, Any]) -> int:
        return 2 * int(options["offsets"][-1]) * math.prod(inputs[1].shape[1:])

    def backward(self, dy: Array) -> Any:
        return kernels.grouped_linear_backward(dy, self.x, self.weight, self.offsets)


def jitter(x: Tensor, counter: Array, epsilon: float) -> Tensor:
    """x[N,D] times U(1 − ε, 1 + ε) drawn at a nn.random.counter() int64[4], on x's device or the host's"""
    return Jitter.apply(x, counter=beside(counter, x.data), epsilon=epsilon)


def balance_loss(probs: Tensor, experts: Array, coefficient: float) -> tuple[Tensor, Array]:
    """(loss, load[E]) of probs[N,E] and experts[N,K]; the load, each expert's share of the pairs, is plain"""
    loss, load = BalanceLoss.apply(probs, experts=experts, coefficient=coefficient)
    return loss, load.data


def z_loss(logits: Tensor, coefficient: float) -> Tensor:
    """coefficient · mean of (log Σ exp)² over the rows of logits[N,E], a scalar"""
    return ZLoss.apply(logits, coefficient=coefficient)


def router_topk(logits: Tensor, k: int, renormalize: bool = True) -> tuple[Tensor, Array, Tensor]:
    """(weights[N,k], experts[N,k], probs[N,E]) from logits[N,E]; `experts` is a plain integer array."""
    weights, probs, experts = RouterTopK.apply(logits, k=k, renormalize=renormalize)
    return weights, experts.data, probs


def sqrt_softplus(z: Tensor) -> Tensor:
    """√ log(1 + eᶻ), elementwise: DeepSeek-V4's router score"""
    return SqrtSoftplus.apply(z)


def normal_cdf(x: Tensor) -> Tensor:
    """The standard normal distribution function, elementwise"""
    return NormalCDF.apply(x)


def dispatch(x: Tensor, plan: Plan) -> Tensor:
    """x[N,D] -> [M,D], grouped by expert"""
    return Dispatch.apply(x, plan=plan)


def combine(ys: Tensor, weights: Tensor, plan: Plan) -> Tensor:
    """ys[M,D] grouped by expert, weights[N,K] -> [N,D]"""
    return Combine.apply(ys, weights, plan=plan)


def gathered_swiglu(x: Tensor, weight: Tensor, plan: Plan, batch_invariant: bool = True) -> Tensor:
    """x[N,D], weight[E,2F,D] -> [M,F]: swiglu_packed(grouped_linear(dispatch(x, plan), weight)), gathered"""
    return GatheredSwiGLU.apply(x, weight, plan=plan, batch_invariant=batch_invariant)


def grouped_linear(x: Tensor, weight: Tensor, offsets: Array, batch_invariant: bool = True) -> Tensor:
    """x[M,I] grouped by expert, weight[E,O,I] -> [M,O]"""
    return GroupedLinear.apply(x, weight, offsets=offsets, batch_invariant=batch_invariant)
