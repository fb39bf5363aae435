"""The kernel protocol: every kernel a backend may serve, with its arguments, shapes and what it computes.

A backend is a module with functions of these names.  Shapes use one letter per axis: B batch, T queries,
S keys, H query heads, G key/value heads, N tokens, K experts per token, E experts, M = N·K, R rows,
C columns, D width, V vocabulary, I and O inputs and outputs of a linear map.  Results have the dtype of the
first argument unless `float` is written, which is float32 for half-precision inputs and the input's dtype
otherwise, or a type; statistics and weight gradients are `float`.  Floating-point arguments of one call have
one type, except where `float` is written or said."""

import re
from dataclasses import dataclass


@dataclass(frozen=True)
class Kernel:
    name: str
    arguments: str     # "x[R,D] weight[D] eps" (positional), then "; option=default" (keywords)
    results: str
    computes: str


# NAME(positional; keyword=default) -> results, then on a line of its own what the kernel computes
_TABLE = """
matmul(a[...,I,J], b[...,J,O]) -> y[...,I,O]
    y = a b; leading axes broadcast; half precision is multiplied in float32 and rounded once
linear(x[R,I], weight[O,I]; bias=None) -> y[R,O]
    y = x weightᵀ + bias
linear_backward(dy[R,O], x[R,I], weight[O,I]) -> dx[R,I], dweight[O,I]:float
    dx = dy weight, dweight = dyᵀ x

add(a[...], b[...]) -> y[...]
    y = a + b
mul(a[...], b[...]) -> y[...]
    y = a ⊙ b
add_row(x[...,D], row[D]) -> y[...,D]
    y = x + row, the same for every row of x
mul_row(x[...,D], row[D]) -> y[...,D]
    y = x ⊙ row
scale(x[...], factor) -> y[...]
    y = factor x
accumulate(total[...]:float, x[...])
    in place: total += x, in total's type
widen(x[...]) -> y[...]:float
    y = x in the type that sums are formed in
to_bfloat16(x[...]) -> y[...]:bfloat16
    y = x rounded to nearest, ties to even
contiguous(x[B,H,T,D]) -> y[B,H,T,D]
    y = x, laid out densely in memory, whatever strides x has
column_sum(x[R,D]) -> s[D]:float
    s = Σ_r x[r]

silu(x[...]) -> y[...]
    y = x σ(x)
silu_backward(dy[...], x[...]) -> dx[...]
    dx = dy σ(1 + x(1−σ))

gelu(x[...]) -> y[...]
    y = x Φ(x)
gelu_backward(dy[...], x[...]) -> dx[...]
    dx = dy (Φ + x φ)

gelu_tanh(x[...]) -> y[...]
    y = ½x(1 + tanh(√(2/π)(x + 0.044715x³)))
gelu_tanh_backward(dy[...], x[...]) -> dx[...]
    dx = dy · d(gelu_tanh)/dx

swiglu(gate[...], up[...]) -> y[...]
    y = SiLU(gate) ⊙ up
swiglu_backward(dy[...], gate[...], up[...]) -> dgate[...], dup[...]
    dgate = dy up SiLU', dup = dy SiLU
swiglu_packed(x[R,C]) -> y[R,F]
    swiglu of the two halves of each row, C = 2F: gate, then up
swiglu_packed_backward(dy[R,F], x[R,C]) -> dx[R,C]
    dgate, then dup

softmax(x[...,C]) -> y[...,C]
    y = exp(x − max)/Σ; a row of −inf gives 0
softmax_backward(dy[...,C], y[...,C]) -> dx[...,C]
    dx = y (dy − Σ dy y)

log_softmax(x[...,C]) -> y[...,C]
    y = x − log Σ exp x
log_softmax_backward(dy[...,C], y[...,C]) -> dx[...,C]
    dx = dy − exp(y) Σ dy

rms_norm(x[R,D], weight[D], eps) -> y[R,D], rstd[R,1]:float
    y = weight x (mean x² + eps)^−½
rms_norm_residual(x[R,D], residual[R,D], weight[D], eps) -> y[R,D], sum[R,D], rstd[R,1]:float
    sum = x + residual, rounded; y = rms_norm(sum)
rms_norm_backward(dy[R,D], x[R,D], weight[D], rstd[R,1]; dresidual=None) -> dx[R,D], dweight[D]:float
    section RMSNorm of norm.py; dresidual[R,D], what reached x past the norm, is added to dx

layer_norm(x[R,D], weight[D], bias[D], eps) -> y[R,D], mean[R,1]:float, rstd[R,1]:float
    y = weight (x − mean) rstd + bias
layer_norm_backward(dy[R,D], x[R,D], weight[D], mean[R,1], rstd[R,1])
        -> dx[R,D], dweight[D]:float, dbias[D]:float
    section LayerNorm of norm.py

causal_conv(x[B,S,C], weight[C,K], steps; dilation=1) -> y[B,T,C]
    y_t = Σ_j w_j ⊙ x_{t+jδ}, δ = dilation, T = steps, S = T + (K−1)δ
causal_conv_backward(dy[B,T,C], x[B,S,C], weight[C,K]; dilation=1) -> dx[B,S,C], dweight[C,K]:float
    dx_s = Σ_j w_j ⊙ dy_{s−jδ}, dw_j = Σ dy_t ⊙ x_{t+jδ}

selective_scan(x[B,T,C], delta[B,T,C]:float, a[C,N]:float, b[B,T,N], c[B,T,N], d[C]:float, h[B,C,N]:float,
               parts; keep=True) -> y[B,T,C], last[B,C,N]:float, starts[B,P,N,C]:float
    h_t = e^{δ_t a} ⊙ h_{t−1} + δ_t x_t b_tᵀ, y_t = h_t c_t + d ⊙ x_t; starts: h before each part of ⌈T/P⌉
selective_scan_backward(dy[B,T,C], dlast[B,C,N]:float, x[B,T,C], delta[B,T,C]:float, a[C,N]:float, b[B,T,N],
                        c[B,T,N], d[C]:float, starts[B,P,N,C]:float)
        -> dx[B,T,C], ddelta[B,T,C]:float, da[C,N]:float, db[B,T,N], dc[B,T,N], dd[C]:float, dh[B,C,N]:float
    from the states before the parts

rope(x[B,H,T,D], cos[...,T,r], sin[...,T,r]; interleaved=False, inverse=False) -> y[B,H,T,D]
    pairs turned by the angle; inverse = backward
rope_at(x[B,H,T,D], cos[P,r], sin[P,r], positions[B]; interleaved=False) -> y[B,H,T,D]
    rope with rows positions[b] + t of the tables

attention(q[B,H,T,D], k[B,G,S,D], v[B,G,S,Dv]; scale, causal=True, window=0, mask=None)
        -> o[B,H,T,Dv], lse[B,H,T]:float
    o = softmax(scale q kᵀ) v
attention_backward(do[B,H,T,Dv], q[B,H,T,D], k[B,G,S,D], v[B,G,S,Dv], o[B,H,T,Dv], lse[B,H,T];
                   scale, causal=True, window=0, mask=None)
        -> dq[B,H,T,D], dk[B,G,S,D], dv[B,G,S,Dv]
    from the saved log-sum-exp
decode_attention(q[B,H,T,D], k[B,G,S,D], v[B,G,S,Dv], lengths[B]; scale, window=0) -> o[B,H,T,Dv]
    causal attention of the last T of lengths[b] positions; what lies beyond them in k and v is never read
cache_append(k_cache[B,G,S,D], v_cache[B,G,S,Dv], k[B,G,T,D], v[B,G,T,Dv], lengths[B])
    in place: cache[b, :, lengths[b] + t] = new[b, :, t], as far as there is room

cross_entropy(logits[R,V], targets[R]; ignore_index=-100, label_smoothing=0, z_loss=0, softcap=0)
        -> loss[R]:float, lse[R]:float
    loss = lse − logit of the target
cross_entropy_backward(dloss[R], logits[R,V], targets[R], lse[R];
                       ignore_index=-100, label_smoothing=0, z_loss=0, softcap=0)
        -> dlogits[R,V]:logits
    softmax − one-hot, times dloss
linear_cross_entropy(x[R,D], weight[V,D], targets[R]; gradient=True, ignore_index=-100, label_smoothing=0,
                     z_loss=0, softcap=0, scale=1)
        -> loss[R]:float, dx[R,D], dweight[V,D]:float
    cross_entropy(x weightᵀ) and gradients of scale · Σ loss, never all logits

router_topk(logits[N,E], k; renormalize=True) -> weights[N,K]:float, experts[N,K]:int, probs[N,E]:float
    softmax at the k largest logits (ties: lowest index), renormalised
router_topk_backward(dweights[N,K], weights[N,K], experts[N,K], probs[N,E]; renormalize=True) -> dlogits[N,E]
    through renormalisation and softmax
jitter(x[N,D], counter[4]; epsilon) -> y[N,D]
    y = x (1 − epsilon + 2 epsilon u), u the uniform numbers that nn.random draws at an int64 counter()
moe_balance_loss(probs[N,E], experts[N,K], coefficient) -> loss[1]:float, load[E]:float
    load = share of the pairs that chose e; loss = coefficient E Σ_e load · mean of probs over the tokens
moe_balance_loss_backward(dloss[1], load[E], tokens, coefficient) -> dprobs[N,E]:float
    dprobs = dloss coefficient E load / N: the load is a constant
moe_z_loss(logits[N,E], coefficient) -> loss[1]:float, lse[N]:float
    loss = coefficient · mean of lse², lse = log Σ exp logits
moe_z_loss_backward(dloss[1], logits[N,E], lse[N], coefficient) -> dlogits[N,E]:float
    dlogits = dloss 2 coefficient / N lse exp(logits − lse)

expert_order(experts[N,K], num_experts) -> order[M]:int, inverse[M]:int, offsets[E+1]:int
    stable sort of the pairs by expert: the pair in each row, the row of each pair, where each expert begins
moe_dispatch(x[N,D], order[M], choices) -> xs[M,D]
    xs[r] = x[order[r] // choices]
moe_dispatch_backward(dxs[M,D], inverse[M], choices) -> dx[N,D]
    dx[n] = Σ_k dxs[inverse[n,k]], in the order of the choices
moe_combine(ys[M,D], weights[N,K]:float, inverse[M]) -> y[N,D]
    y[n] = Σ_k weights[n,k] ys[inverse[n,k]], in the order of the choices
moe_combine_backward(dy[N,D], ys[M,D], weights[N,K]:float, order[M], inverse[M])
        -> dys[M,D], dweights[N,K]:float
    dys[r] = weight of r's pair · dy of r's token, dweights[n,k] = Σ dy[n] ys[inverse[n,k]]
grouped_linear(x[M,I], weight[E,O,I], offsets[E+1]; batch_invariant=True) -> y[M,O]
    y = x weight[expert]ᵀ by ranges of rows, zero in rows of no range
grouped_linear_backward(dy[M,O], x[M,I], weight[E,O,I], offsets[E+1]) -> dx[M,I], dweight[E,O,I]:float
    dx = dy weight (zero in rows of no range), dweight = dyᵀ x
gathered_swiglu(x[N,I], weight[E,C,I], offsets[E+1], order[M], choices; batch_invariant=True, keep=True)
        -> y[M,F], hidden[M,C]
    hidden = grouped_linear of moe_dispatch, y = swiglu_packed of it; without keep, hidden is None
gathered_swiglu_backward(dy[M,F], hidden[M,C], x[N,I], weight[E,C,I], offsets[E+1], order[M], inverse[M],
                         choices) -> dx[N,I], dweight[E,C,I]:float
    through swiglu_packed, grouped_linear and moe_dispatch

packed_linear(x[R,I], weight[W], format, outputs; bias=None, residual=None) -> y[R,O]
    y = x weightᵀ + bias + residual[R,O]; weight: the bytes of a packed [O,I] (nn/packed), as format says
packed_swiglu(x[R,I], weight[W], format, features) -> y[R,F]
    swiglu_packed of x weightᵀ; weight: the bytes of a packed and gated [2F,I]
packed_experts(x[N,D], gate_up[U], down[W], weights[N,K]:float, experts[N,K], num_experts, features, format)
        -> y[N,D]
    y[n] = Σ_k weights[n,k] down packed_swiglu(x[n]) of expert experts[n,k]; nothing for num_experts

embedding(weight[V,D], ids[N]) -> y[N,D]
    y[n] = weight[ids[n]]
top_k(z[B,V], k) -> ids[B,K]:int
    the k largest of each row, ties to the lowest id: ascending ids
next_token(z[B,V], counters[B,3]; temperature=1, top_k=0, top_p=1, min_p=0) -> ids[B]:int
    drawn as reference/drawing.py says at (key, row, step) of nn.random; 0: the largest; no finite largest: -1

scatter_add(source[N,D], index[N], rows) -> out[rows,D]:float
    out[index[n]] += source[n], in order
adamw(param[...], grad[...], m[...], v[...];
      lr, beta1, beta2, eps, weight_decay, step, grad_scale=1, stored=None)
    in place: decoupled decay, then m̂/(√v̂ + eps); stored[...] in half precision becomes param, rounded
sum_of_squares(x[...]) -> total:number
    Σ x² in float64
"""
_ENTRY = re.compile(r"^(\w+)\(([^)]*)\)(?:\s+-> (.+))?\n +(.+)$", re.MULTILINE)


def _spaced(listing: str) -> str:
    """The entries of a listing on one line, separated by single spaces."""
    return re.sub(r",?\s+", " ", listing)


KERNELS: dict[str, Kernel] = {
    name: Kernel(name, _spaced(arguments), _spaced(results), computes)
    for name, arguments, results, computes in _ENTRY.findall(_TABLE)
}
