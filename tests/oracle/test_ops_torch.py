"""Every operation of nn.ops against PyTorch: result and every input's gradient, in float64 and float32."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from transformers.models.mixtral.modeling_mixtral import apply_rotary_pos_emb

from nn import Tensor, ops
from nn.ops.merged import KeySet
from nn.ops.tiled import Tile
from nn.random import counter, drawn_from
from tests.oracle.compare import error

LIMIT = {"float64": 1e-12, "float32": 1e-5}
RNG = np.random.default_rng(0)
ROWS = RNG.integers(0, 7, (4, 5))                                       # indices, most of them more than once
COLUMNS = RNG.integers(0, 6, (3, 4))
KEEP = RNG.random((2, 1, 5, 8)) < 0.7
KEEP[..., 0] = True                                                     # PyTorch's rows without a key are NaN
LABELS = np.array([0, 3, -100, 5, 3, 1])
EXPERTS = np.array([[2, 0], [0, 3], [2, 3], [3, 0], [0, 2]])            # none visits expert 1
ANGLES = RNG.normal(size=(5, 4))
TABLES = np.cos(ANGLES), np.sin(ANGLES)


@dataclass(frozen=True)
class Case:
    """ours(*tensors) and theirs(*tensors) for inputs of these shapes, each value passed through `domain`."""

    ours: Callable[..., Any]
    theirs: Callable[..., Any]
    shapes: tuple[tuple[int, ...], ...]
    domain: Callable[[np.ndarray], np.ndarray] = lambda x: x


def positive(x: np.ndarray) -> np.ndarray:
    return np.abs(x) + 0.2


def coarse(x: np.ndarray) -> np.ndarray:
    return np.round(x)            # many equal values


def visible(queries: int, keys: int, window: int = 0) -> torch.Tensor:
    """[T,S] query i stands at position S − T + i"""
    ago = torch.arange(keys - queries, keys)[:, None] - torch.arange(keys)
    return (ago >= 0) & (ago < (window or keys))


def attend(mask: torch.Tensor | None, scale: float | None = None) -> Callable[..., torch.Tensor]:
    return partial(F.scaled_dot_product_attention, attn_mask=mask, scale=scale, enable_gqa=True)


def their_experts(x: torch.Tensor, weight: torch.Tensor, choice: torch.Tensor) -> torch.Tensor:
    """Σ_k choice[n,k] W_e x[n], written as one sum over everything."""
    return torch.einsum("nk,nkoi,ni->no", choice, weight[torch.tensor(EXPERTS)], x)


def our_experts(x: Tensor, weight: Tensor, choice: Tensor) -> Tensor:
    plan = ops.plan(EXPERTS, len(weight))
    return ops.combine(ops.grouped_linear(ops.dispatch(x, plan), weight, plan.offsets), choice, plan)


def their_router(renormalize: bool) -> Callable[[torch.Tensor], Any]:
    def route(logits: torch.Tensor) -> Any:
        probs = logits.softmax(-1)
        weights = probs.topk(2).values
        return weights / weights.sum(-1, keepdim=True) if renormalize else weights, probs
    return route


def interleaved(x: torch.Tensor) -> torch.Tensor:
    """Channels (2i, 2i+1) are a complex number."""
    angles = torch.tensor(ANGLES, dtype=x.dtype)
    turned = torch.view_as_complex(x.unflatten(-1, (-1, 2))) * torch.polar(torch.ones_like(angles), angles)
    return torch.view_as_real(turned).flatten(-2)


def their_rope(x: torch.Tensor) -> torch.Tensor:
    cos, sin = (torch.tensor(t, dtype=x.dtype)[None].repeat(1, 1, 2) for t in TABLES)
    return apply_rotary_pos_emb(x, x, cos, sin)[0]


def rope(x: Tensor, **options: bool) -> Tensor:
    return ops.rope(x, *(t.astype(x.dtype) for t in TABLES), **options)


def their_loss(z: torch.Tensor, smoothing: float = 0.0, z_loss: float = 0.0, softcap: float = 0.0) -> Any:
    z, labels = softcap * torch.tanh(z / softcap) if softcap else z, torch.tensor(LABELS)
    loss = F.cross_entropy(z, labels, reduction="none", label_smoothing=smoothing)
    return loss + torch.where(labels >= 0, z_loss * z.logsumexp(-1) ** 2, 0.0)


NOISE = counter(3, "oracle", 1, 2, 3)


def their_noise(x: torch.Tensor) -> torch.Tensor:
    """x times U(0.75, 1.25)"""
    dtype = np.float64 if x.dtype == torch.float64 else np.float32
    return x * (0.75 + 0.5 * torch.tensor(drawn_from(NOISE, tuple(x.shape), dtype)))


def their_residual_norm(x: torch.Tensor, delta: torch.Tensor, w: torch.Tensor) -> Any:
    return F.rms_norm(x + delta, (8,), w, 1e-3), x + delta


def their_gathered_swiglu(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    pairs = sorted((int(e), token) for token, row in enumerate(EXPERTS) for e in row)     # by expert, stable
    hidden = torch.stack([weight[e] @ x[token] for e, token in pairs])
    gate, up = hidden.chunk(2, -1)
    return F.silu(gate) * up


def their_balance(probs: torch.Tensor) -> torch.Tensor:
    load = torch.bincount(torch.tensor(EXPERTS).flatten(), minlength=4).to(probs) / EXPERTS.size
    return 0.7 * 4 * (load * probs.mean(0)).sum()


def their_sinkhorn(logits: torch.Tensor) -> torch.Tensor:
    x = logits.softmax(-1) + 1e-6
    x = x / (x.sum(-2, keepdim=True) + 1e-6)
    for _ in range(4):
        x = x / (x.sum(-1, keepdim=True) + 1e-6)
        x = x / (x.sum(-2, keepdim=True) + 1e-6)
    return x


def their_gla(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, g: torch.Tensor, s: torch.Tensor) -> Any:
    """Token by token: S = diag(exp g) S + k v^T, o = q S"""
    rows = []
    for q_t, k_t, v_t, g_t in zip(*(x.flatten(2, 3).unbind(2) for x in (q, k, v, g)), strict=True):
        s = (-g_t.abs()).exp()[..., None] * s + k_t[..., :, None] * v_t[..., None, :]
        rows.append(torch.einsum("bhk,bhkv->bhv", q_t, s))
    return torch.stack(rows, 2).reshape(v.shape), s


def our_gla(q: Tensor, k: Tensor, v: Tensor, g: Tensor, s: Tensor) -> Any:
    return ops.gla_chunks(q, k, v, -ops.absolute(g), s)


def with_sinks(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, sinks: torch.Tensor) -> torch.Tensor:
    """One more key per head, whose value is zero"""
    k, v = (x.repeat_interleave(2, 1) for x in (k, v))
    scores = (q @ k.mT) * q.shape[-1] ** -0.5
    scores = scores.masked_fill(~visible(5, 8), -torch.inf)
    extra = sinks[None, :, None, None].expand(*scores.shape[:3], 1)
    return torch.cat([scores, extra], -1).softmax(-1)[..., :-1] @ v


def our_sets(q: Tensor, k: Tensor, v: Tensor, sinks: Tensor) -> Tensor:
    old = KeySet(k[:, :, :2], v[:, :, :2], causal=False)
    return ops.merged_attention(q, [old, KeySet(k[:, :, 2:], v[:, :, 2:])], sinks=sinks)


def capped(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, sinks: torch.Tensor) -> torch.Tensor:
    """Gemma 2's scores behind a mask of what is dropped, one more key per head of value zero"""
    k, v = (x.repeat_interleave(2, 1) for x in (k, v))
    scores = 0.7 * torch.tanh((q @ k.mT) * 0.9 / 0.7)
    scores = scores.masked_fill(~visible(5, 8), -torch.inf)
    extra = sinks[None, :, None, None].expand(*scores.shape[:3], 1)
    kept = torch.tensor(drawn_from(DROPPED, (2, 4, 5, 8)) >= 0.25).to(v)
    return (torch.cat([scores, extra], -1).softmax(-1)[..., :-1] * kept / 0.75) @ v


def our_capped(q: Tensor, k: Tensor, v: Tensor, sinks: Tensor) -> Tensor:
    old = KeySet(k[:, :, :2], v[:, :, :2], causal=False)
    return ops.dense_attention(q, [old, KeySet(k[:, :, 2:], v[:, :, 2:])], sinks=sinks, scale=0.9,
                               softcap=0.7, dropout=0.25, noise=DROPPED)


DROPPED = counter(3, "attn_dropout", 1)
TILES = [Tile(0, 2, ((0, 5),)), Tile(2, 5, ((0, 8),))]
KEYS = ((1, 2, 2, 4, 3),) * 2                       # [B,H,n,C,Dk]
QKV = (2, 4, 5, 8), (2, 2, 8, 8), (2, 2, 8, 6)      # 4 query heads share 2 key/value heads; 5 queries, 8 keys
CASES = {
    "add": Case(ops.add, torch.add, ((3, 1, 5), (4, 1))),
    "sub": Case(ops.sub, torch.sub, ((3, 1, 5), (4, 1))),
    "mul": Case(ops.mul, torch.mul, ((3, 1, 5), (4, 1))),
    "div": Case(ops.div, torch.div, ((3, 1, 5), (4, 1)), positive),
    "neg": Case(ops.neg, torch.neg, ((3, 4),)),
    "power": Case(lambda x: ops.power(x, -1.5), lambda x: x.pow(-1.5), ((3, 4),), positive),
    "exp": Case(ops.exp, torch.exp, ((3, 4),)),
    "log": Case(ops.log, torch.log, ((3, 4),), positive),
    "sqrt": Case(ops.sqrt, torch.sqrt, ((3, 4),), positive),
    "tanh": Case(ops.tanh, torch.tanh, ((3, 4),)),
    "sigmoid": Case(ops.sigmoid, torch.sigmoid, ((3, 4),)),
    "absolute": Case(ops.absolute, torch.abs, ((3, 4),)),
    "maximum": Case(ops.maximum, torch.maximum, ((3, 1, 5), (4, 1)), coarse),
    "relu": Case(ops.relu, torch.relu, ((3, 4),)),
    "clip": Case(lambda x: ops.clip(x, -0.5, 0.7), lambda x: x.clamp(-0.5, 0.7), ((3, 4),)),
    "where": Case(lambda a, b: ops.where(KEEP[0, 0], a, b),
                  lambda a, b: torch.where(torch.tensor(KEEP[0, 0]), a, b), ((5, 8), (5, 1))),
    "cast": Case(lambda x: ops.cast(x, "float32"), lambda x: x.float(), ((3, 4),)),
    "silu": Case(ops.silu, F.silu, ((3, 4),)),
    "gelu": Case(ops.gelu, F.gelu, ((3, 4),)),
    "gelu tanh": Case(lambda x: ops.gelu(x, True), lambda x: F.gelu(x, approximate="tanh"), ((3, 4),)),
    "swiglu": Case(ops.swiglu, lambda a, b: F.silu(a) * b, ((3, 4), (3, 4))),
    "swiglu_packed": Case(ops.swiglu_packed, lambda x: F.silu(x[:, :4]) * x[:, 4:], ((3, 8),)),
    "sum": Case(lambda x: ops.sum(x, (0, 2)), lambda x: x.sum((0, 2)), ((3, 4, 5),)),
    "mean": Case(lambda x: ops.mean(x, 1, keepdims=True), lambda x: x.mean(1, keepdim=True), ((3, 4, 5),)),
    "max": Case(lambda x: ops.max(x, -1), lambda x: x.amax(-1), ((3, 4, 9),), coarse),
    "cumsum": Case(lambda x: ops.cumsum(x, 1), lambda x: x.cumsum(1), ((3, 4, 5),)),
    "logsumexp": Case(ops.logsumexp, lambda x: x.logsumexp(-1), ((3, 4, 5),)),
    "softmax": Case(ops.softmax, lambda x: x.softmax(-1), ((3, 4, 5),)),
    "log_softmax": Case(ops.log_softmax, lambda x: x.log_softmax(-1), ((3, 4, 5),)),
    "reshape": Case(lambda x: ops.reshape(x, 2, -1), lambda x: x.reshape(2, -1), ((4, 3),)),
    "permute": Case(lambda x: ops.permute(x, 2, 0, 1), lambda x: x.permute(2, 0, 1), ((2, 3, 4),)),
    "transpose": Case(ops.transpose, lambda x: x.transpose(-1, -2), ((2, 3, 4),)),
    "broadcast_to": Case(lambda x: ops.broadcast_to(x, (2, 3, 4)), lambda x: x.expand(2, 3, 4), ((3, 1),)),
    "getitem": Case(lambda x: x[:, None, 1::2, -1], lambda x: x[:, None, 1::2, -1], ((2, 5, 4),)),
    "concat": Case(lambda a, b: ops.concat([a, b], 1), lambda a, b: torch.cat([a, b], 1), ((2, 3), (2, 4))),
    "stack": Case(lambda a, b: ops.stack([a, b], 1), lambda a, b: torch.stack([a, b], 1), ((2, 3), (2, 3))),
    "split": Case(lambda x: ops.split(x, 3, 5), lambda x: x.split([3, 5], -1), ((2, 3, 8),)),
    "take": Case(lambda w: ops.take(w, ROWS), lambda w: F.embedding(torch.tensor(ROWS), w), ((7, 3),)),
    "scatter_add": Case(lambda x: ops.scatter_add(x, ROWS[0], 7),
                        lambda x: torch.zeros(7, 3).to(x).index_add(0, torch.tensor(ROWS[0]), x), ((5, 3),)),
    "take_along_axis": Case(lambda x: ops.take_along_axis(x, COLUMNS),
                            lambda x: x.gather(-1, torch.tensor(COLUMNS)), ((3, 6),)),
    "matmul": Case(ops.matmul, torch.matmul, ((2, 1, 3, 4), (5, 4, 2))),
    "linear": Case(ops.linear, F.linear, ((2, 3, 4), (5, 4), (5,))),
    "linear without bias": Case(ops.linear, F.linear, ((2, 3, 4), (5, 4))),
    "rms_norm": Case(lambda x, w: ops.rms_norm(x, w, 1e-3), lambda x, w: F.rms_norm(x, (8,), w, 1e-3),
                     ((3, 4, 8), (8,))),
    "layer_norm": Case(ops.layer_norm, lambda x, w, b: F.layer_norm(x, (8,), w, b), ((3, 4, 8), (8,), (8,))),
    "rope": Case(rope, their_rope, ((2, 3, 5, 8),)),
    "rope interleaved": Case(lambda x: rope(x, interleaved=True), interleaved, ((2, 3, 5, 8),)),
    "attention": Case(ops.attention, attend(visible(5, 8)), QKV),
    "attention, square": Case(ops.attention, partial(F.scaled_dot_product_attention, is_causal=True),
                              ((2, 4, 6, 8),) * 3),
    "attention, window": Case(lambda *x: ops.attention(*x, window=3), attend(visible(5, 8, window=3)), QKV),
    "attention, mask": Case(lambda *x: ops.attention(*x, mask=KEEP),
                            attend(visible(5, 8) & torch.tensor(KEEP)), QKV),
    "attention, both ways": Case(partial(ops.attention, causal=False, scale=0.1), attend(None, 0.1), QKV),
    "cross_entropy": Case(lambda z: ops.cross_entropy(z, LABELS), their_loss, ((6, 7),)),
    "cross_entropy, options": Case(
        lambda z: ops.cross_entropy(z, LABELS, label_smoothing=0.1, z_loss=0.3, softcap=2.0),
        lambda z: their_loss(z, 0.1, 0.3, 2.0), ((6, 7),)),
    "linear_cross_entropy": Case(lambda x, w: ops.linear_cross_entropy(x, w, LABELS, scale=0.25),
                                 lambda x, w: 0.25 * their_loss(x.flatten(0, 1) @ w.T).sum(),
                                 ((2, 3, 4), (7, 4))),
    "router_topk": Case(lambda z: ops.router_topk(z, 2)[::2], their_router(True), ((5, 6),)),
    "router_topk, raw": Case(lambda z: ops.router_topk(z, 2, False)[::2], their_router(False), ((5, 6),)),
    "dispatch, grouped_linear, combine": Case(our_experts, their_experts, ((5, 3), (4, 2, 3), (5, 2))),
    "softplus": Case(ops.softplus, F.softplus, ((3, 4),)),
    "log_sigmoid": Case(ops.log_sigmoid, F.logsigmoid, ((3, 4),)),
    "sqrt_softplus": Case(ops.sqrt_softplus, lambda x: F.softplus(x).sqrt(), ((3, 4),)),
    "normal_cdf": Case(ops.normal_cdf, torch.special.ndtr, ((3, 4),)),
    "elu_plus_one": Case(ops.elu_plus_one, lambda x: F.elu(x) + 1, ((3, 4),)),
    "signed_sqrt": Case(ops.signed_sqrt, lambda x: x.sign() * x.abs().sqrt(), ((3, 4),), positive),
    "l2_norm": Case(lambda x: ops.l2_norm(x, 0.1), lambda x: x * (x.square().sum(-1, True) + 0.1).rsqrt(),
                    ((3, 4),)),
    "causal_conv": Case(lambda x, w: ops.causal_conv(x, w, 2),
                        lambda x, w: F.conv1d(x.mT, w[:, None], groups=3, dilation=2).mT,
                        ((2, 9, 3), (3, 4))),
    "jitter": Case(lambda x: ops.jitter(x, NOISE, 0.25), their_noise, ((5, 3),)),
    "rms_norm_residual": Case(lambda x, d, w: ops.rms_norm_residual(x, d, w, 1e-3), their_residual_norm,
                              ((3, 4, 8), (3, 4, 8), (8,))),
    "gathered_swiglu": Case(lambda x, w: ops.gathered_swiglu(x, w, ops.plan(EXPERTS, 4)),
                            their_gathered_swiglu, ((5, 3), (4, 6, 3))),
    "balance_loss": Case(lambda p: ops.balance_loss(p, EXPERTS, 0.7)[0], their_balance, ((5, 4),), positive),
    "z_loss": Case(lambda z: ops.z_loss(z, 0.3), lambda z: 0.3 * z.logsumexp(-1).square().mean(), ((5, 4),)),
    "sinkhorn": Case(lambda x: ops.sinkhorn(x, 5), their_sinkhorn, ((2, 3, 4, 4),)),
    "read_streams": Case(ops.read_streams, lambda x, a: torch.einsum("btn,btnd->btd", a, x),
                         ((2, 3, 4, 5), (2, 3, 4))),
    "write_streams": Case(ops.write_streams,
                          lambda x, m, w, y: m @ x + w[..., None] * y[..., None, :],
                          ((2, 3, 4, 5), (2, 3, 4, 4), (2, 3, 4), (2, 3, 5))),
    "gla_chunks": Case(our_gla, their_gla, (*KEYS, (1, 2, 2, 4, 5), KEYS[0], (1, 2, 3, 5))),
    "merged_attention": Case(our_sets, with_sinks, (*QKV, (4,))),
    "dense_attention": Case(our_capped, capped, (*QKV, (4,))),
    "dropout": Case(lambda x: ops.dropout(x, 0.25, DROPPED),
                    lambda x: x * torch.tensor(drawn_from(DROPPED, (3, 4)) >= 0.25) / 0.75, ((3, 4),)),
    "tiled_attention": Case(lambda *x: ops.tiled_attention(*x, TILES),
                            attend(visible(5, 8)), QKV),
    "checkpoint": Case(lambda x: ops.checkpoint(lambda z: ops.tanh(z * z), x), lambda x: (x * x).tanh(),
                       ((3, 4),)),
}
INTEGERS_ONLY = {"plan"}
# compared in test_decayed.py, test_gated_delta.py and test_mamba.py
WITH_THEIR_LAYERS = {"decayed_chunks", "delta_chunks", "selective_scan"}


@pytest.mark.parametrize("dtype", LIMIT)
@pytest.mark.parametrize("name", CASES)
def test_equals_pytorch(name: str, dtype: str) -> None:
    case, rng = CASES[name], np.random.default_rng(1)
    inputs = [case.domain(rng.normal(size=shape)).astype(dtype) for shape in case.shapes]
    ours = [Tensor(x, requires_grad=True) for x in inputs]
    theirs = [torch.tensor(x, requires_grad=True) for x in inputs]
    found, expected = case.ours(*ours), case.theirs(*theirs)
    pairs = list(zip(found, expected, strict=True)) if isinstance(expected, tuple) else [(found, expected)]
    total = 0.0
    for y, reference in pairs:
        assert str(y.dtype) == str(reference.dtype).removeprefix("torch.")
        assert error(y.numpy(), reference.detach()) < LIMIT[dtype]
        upstream = rng.normal(size=y.shape).astype(y.dtype)
        total = total + (y * upstream).sum()
        torch.autograd.backward(reference, torch.tensor(upstream), retain_graph=True)
    total.backward()
    for x, reference in zip(ours, theirs, strict=True):
        assert error(x.grad, reference.grad) < LIMIT[dtype]


def test_every_operation_is_compared() -> None:
    compared = {word.rstrip(",") for name in CASES for word in name.split()}
    assert set(ops.__all__) - compared == INTEGERS_ONLY | WITH_THEIR_LAYERS
