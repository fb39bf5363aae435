"""What every kernel of nn.backends.protocol computes,
written once more as a reader of the formula would write it.

Nothing here imports nn.  In float64 these functions are the exact answer; called on arrays of another type,
they are the plain implementation in that type whose error FlashAttention's rule doubles: every intermediate
result is rounded to the type, only sums are formed wider (float32 for half precision)."""

import math
from collections.abc import Iterator
from functools import cache
from typing import Any

import numpy as np

Array = np.ndarray


def accumulator(dtype: Any) -> Any:
    return np.float64 if dtype == np.float64 else np.float32


def total(x: Array, axis: int = -1, keepdims: bool = True) -> Array:
    return np.sum(x.astype(accumulator(x.dtype)), axis=axis, keepdims=keepdims).astype(x.dtype)


def product(a: Array, b: Array) -> Array:
    wide = accumulator(a.dtype)
    return np.matmul(a.astype(wide), b.astype(wide)).astype(a.dtype)


def erf(x: Array) -> Array:
    return np.array([math.erf(float(value)) for value in x.flat]).reshape(x.shape).astype(x.dtype)


def logistic(x: Array) -> Array:
    one = x.dtype.type(1)
    with np.errstate(over="ignore"):
        return one / (one + np.exp(-x))


# sums, products, casts

def add(a: Array, b: Array) -> Array:
    return a + b


def mul(a: Array, b: Array) -> Array:
    return a * b


def add_row(x: Array, row: Array) -> Array:
    return x + row


def mul_row(x: Array, row: Array) -> Array:
    return x * row


def scale(x: Array, factor: float) -> Array:
    return (x * x.dtype.type(factor)).astype(x.dtype)


def accumulate(sum_: Array, x: Array) -> Array:
    return sum_ + x


def widen(x: Array) -> Array:
    return x.copy()


def to_bfloat16(x: Array) -> Array:
    """By bits: half of what is cut off is added, or one less than half where the rest is even."""
    bits = x.astype(np.float32).view(np.uint32).astype(np.uint64)
    bits = (bits + 0x7fff + (bits >> 16 & 1)) & 0xffff0000
    return np.where(np.isfinite(x), bits.astype(np.uint32).view(np.float32), x).astype(x.dtype)


def contiguous(x: Array) -> Array:
    return np.array([[[list(row) for row in head] for head in text] for text in x], x.dtype).reshape(x.shape)


def column_sum(x: Array) -> Array:
    return total(x, axis=0, keepdims=False)


# convolution

def causal_conv(x: Array, weight: Array, steps: int, *, dilation: int = 1) -> Array:
    wide = accumulator(x.dtype)
    y = np.zeros((x.shape[0], steps, x.shape[2]), wide)
    for t in range(steps):
        for j in range(weight.shape[1]):
            y[:, t] += x[:, t + j * dilation].astype(wide) * weight[:, j].astype(wide)
    return y.astype(x.dtype)


def causal_conv_backward(dy: Array, x: Array, weight: Array, *, dilation: int = 1) -> tuple[Array, Array]:
    wide = accumulator(x.dtype)
    dx, dweight = np.zeros(x.shape, wide), np.zeros(weight.shape, wide)
    for t in range(dy.shape[1]):
        for j in range(weight.shape[1]):
            dx[:, t + j * dilation] += dy[:, t].astype(wide) * weight[:, j].astype(wide)
            dweight[:, j] += np.sum(dy[:, t].astype(wide) * x[:, t + j * dilation].astype(wide), axis=0)
    return dx.astype(x.dtype), dweight.astype(x.dtype)


# selective scan

def selective_scan(x: Array, delta: Array, a: Array, b: Array, c: Array, d: Array, h: Array, parts: int, *,
                   keep: bool = True) -> tuple[Array, Array, Array | None]:
    y, h, starts, size = np.zeros(x.shape, x.dtype), h.copy(), [], -(-x.shape[1] // parts)
    for t in range(parts * size):
        if t % size == 0:
            starts.append(h.copy())
        if t < x.shape[1]:
            now = delta[:, t, :, None]
            h = np.exp(now * a) * h + now * x[:, t, :, None] * b[:, t, None, :]
            y[:, t] = total(h * c[:, t, None, :], keepdims=False) + d * x[:, t]
    before = np.stack(starts or [h] * parts, axis=1).swapaxes(2, 3)
    return y, h, before if keep else None


def selective_scan_backward(dy: Array, dlast: Array, x: Array, delta: Array, a: Array, b: Array, c: Array,
                            d: Array, starts: Array) -> tuple[Array, ...]:
    dx, ddelta, da, db, dc, dd = (np.zeros(z.shape, z.dtype) for z in (x, delta, a, b, c, d))
    dh, length = dlast.copy(), x.shape[1]
    size = -(-length // starts.shape[1])
    for t in reversed(range(length)):
        first = t // size * size
        h = before = starts[:, t // size].swapaxes(1, 2)
        for i in range(first, t + 1):
            now, before = delta[:, i, :, None], h
            decay, written = np.exp(now * a), now * x[:, i, :, None]
            h = decay * before + written * b[:, i, None, :]
        dh = dh + dy[:, t, :, None] * c[:, t, None, :]
        dc[:, t] = total(h * dy[:, t, :, None], axis=1, keepdims=False)
        db[:, t] = total(dh * written, axis=1, keepdims=False)
        read, m = total(dh * b[:, t, None, :], keepdims=False), dh * decay * before
        dx[:, t] = d * dy[:, t] + delta[:, t] * read
        ddelta[:, t] = total(m * a, keepdims=False) + x[:, t] * read
        da += total(now * m, axis=0, keepdims=False)
        dd += total(dy[:, t] * x[:, t], axis=0, keepdims=False)
        dh = dh * decay
    return dx, ddelta, da, db, dc, dd, dh


# sampling

def top_k(z: Array, k: int) -> Array:
    rows = (sorted(sorted(range(z.shape[1]), key=lambda i: (-float(row[i]), i))[:k]) for row in z)
    return np.array(list(rows), np.int64).reshape(len(z), k)


def next_token(z: Array, counters: Array, *, temperature: float = 1.0, top_k: int = 0, top_p: float = 1.0,
               min_p: float = 0.0) -> Array:
    return np.array([_token([np.float32(v) for v in row], counter, temperature, top_k, top_p, min_p)
                     for row, counter in zip(z, counters, strict=True)], np.int64)


def _token(z: list[Any], counter: Array, t: float, k: int, p: float, least: float) -> int:
    most = max(z)
    if any(v != v for v in z) or most in (np.inf, -np.inf):
        return -1
    if t == 0.0:
        return z.index(most)
    with np.errstate(over="ignore"):
        cold = [(v - most) / np.float32(max(t, 2.0**-126)) for v in z]
    ids = sorted(sorted(range(len(z)), key=lambda i: (-cold[i], i))[: k or len(z)])
    weights = {i: round(math.exp(float(cold[i])) * 2**32) for i in ids}
    need, held, kept = math.ceil(p * sum(weights.values())), 0, []
    for i in sorted(ids, key=lambda i: (-weights[i], i)):
        kept += [i] if p == 1.0 or held < need else []
        held += weights[i]
    left = [i for i in sorted(kept) if weights[i] >= round(least * 2**32)]
    word = philox_word(np.array([*counter, 0]), 0)
    target, running = word * sum(weights[i] for i in left) // 2**32, 0
    for i in left:
        running += weights[i]
        if running > target:
            return i
    raise AssertionError("nothing was drawn")


# matrix products

def matmul(a: Array, b: Array) -> Array:
    return product(a, b)


def linear(x: Array, weight: Array, *, bias: Array | None = None) -> Array:
    y = np.matmul(x.astype(accumulator(x.dtype)), weight.T.astype(accumulator(x.dtype)))
    return (y if bias is None else y + bias).astype(x.dtype)


def linear_backward(dy: Array, x: Array, weight: Array) -> tuple[Array, Array]:
    return product(dy, weight), product(dy.T, x)


# packed weights: nn/packed/layout.py, read one output at a time

PACKED = {0: "f32", 2: "q4_0", 8: "q8_0", 30: "bf16"}


def unpacked(data: Array, format: int, outputs: int, inputs: int) -> Array:
    """float64 [O,I] of a packed weight's bytes"""
    weight = np.zeros((outputs, inputs))
    for o, row in enumerate(weight):
        panel = data.reshape(-(-outputs // 16), -1)[o // 16]
        row[:] = _READ[PACKED[format]](panel, o % 16, inputs)
    return weight


def _bf16_row(panel: Array, lane: int, inputs: int) -> Array:
    halves = panel[: -(-inputs // 32) * 1024].view(np.uint16).reshape(-1, 16, 2)[:, lane].reshape(-1)
    return (halves[:inputs].astype(np.uint32) << 16).view(np.float32)


def _q8_0_row(panel: Array, lane: int, inputs: int) -> Array:
    row = [q.view(np.int8).reshape(8, 16, 4)[:, lane].reshape(-1) * scale
           for q, scale in _blocks(panel, 512, lane, inputs)]
    return np.concatenate([np.zeros(0), *row])


def _q4_0_row(panel: Array, lane: int, inputs: int) -> Array:
    row = []
    for q, scale in _blocks(panel, 256, lane, inputs):
        both = q.reshape(4, 16, 4)[:, lane].reshape(-1)
        row.append((np.concatenate([both % 16, both // 16]) - 8.0) * scale)
    return np.concatenate([np.zeros(0), *row])


def _blocks(panel: Array, size: int, lane: int, inputs: int) -> Iterator[tuple[Array, float]]:
    """Bytes of the quants of each block of 32, of all 16 outputs, and its scale of this one"""
    count, at = inputs // 32, 0
    for first in range(0, count, 2):
        together = min(2, count - first)
        scales = at + together * size
        for i in range(together):
            own = panel[scales + 32 * i : scales + 32 * i + 32].view(np.float16)
            yield panel[at + i * size : at + (i + 1) * size], float(own[lane])
        at = scales + together * 32


_READ = {"f32": lambda panel, lane, inputs: panel[: inputs * 64].view(np.float32).reshape(-1, 16)[:, lane],
         "bf16": _bf16_row, "q8_0": _q8_0_row, "q4_0": _q4_0_row}


def met_by_quants(x: Array, format: int) -> Array:
    """x as quantized weights meet it: exact in float64, else rounded to int8 in blocks of 32."""
    if PACKED[format] in ("f32", "bf16") or x.dtype == np.float64 or not x.size:
        return x.astype(accumulator(x.dtype))
    blocks = x.astype(np.float32).reshape(-1, 32)
    scale = np.abs(blocks).max(axis=1, keepdims=True) / np.float32(127.0)
    q = np.round(blocks / np.where(scale == 0, np.float32(1.0), scale))
    return (q * scale).reshape(x.shape)


def packed_linear(x: Array, weight: Array, format: int, outputs: int, *, bias: Array | None = None,
                  residual: Array | None = None) -> Array:
    met = met_by_quants(x, format)
    y = met @ unpacked(weight, format, outputs, x.shape[1]).astype(met.dtype).T
    y = y if bias is None else y + bias
    return (y if residual is None else y + residual).astype(x.dtype)


def ungated(weight: Array, format: int, features: int, inputs: int) -> tuple[Array, Array]:
    """(gate[F,I], up[F,I]): their panels alternate"""
    if not features:
        return np.zeros((0, inputs)), np.zeros((0, inputs))
    panels = weight.reshape(-(-features // 16), 2, -1)
    gate, up = (unpacked(panels[:, half].reshape(-1), format, features, inputs) for half in range(2))
    return gate, up


def packed_swiglu(x: Array, weight: Array, format: int, features: int) -> Array:
    met = met_by_quants(x, format)
    gate, up = (met @ part.astype(met.dtype).T for part in ungated(weight, format, features, x.shape[1]))
    return swiglu(gate, up).astype(x.dtype)


def packed_experts(x: Array, gate_up: Array, down: Array, weights: Array, experts: Array, num_experts: int,
                   features: int, format: int) -> Array:
    y, width = np.zeros(x.shape, accumulator(x.dtype)), x.shape[1]
    for n, chosen in enumerate(experts):
        for k, e in enumerate(chosen):
            if e < num_experts:
                one = np.split(gate_up, num_experts)[e], np.split(down, num_experts)[e]
                hidden = packed_swiglu(x[n : n + 1], one[0], format, features)
                y[n] += weights[n, k] * packed_linear(hidden, one[1], format, width)[0]
    return y.astype(x.dtype)


# activations

def silu(x: Array) -> Array:
    return x * logistic(x)


def silu_backward(dy: Array, x: Array) -> Array:
    s = logistic(x)
    return dy * (s + x * s * (x.dtype.type(1) - s))


def gelu(x: Array) -> Array:
    c = x.dtype.type
    return c(0.5) * x * (c(1) + erf(x * c(math.sqrt(0.5))))


def gelu_backward(dy: Array, x: Array) -> Array:
    c = x.dtype.type
    density = np.exp(-c(0.5) * x * x) * c(1 / math.sqrt(2 * math.pi))
    return dy * (c(0.5) * (c(1) + erf(x * c(math.sqrt(0.5)))) + x * density)


def gelu_tanh(x: Array) -> Array:
    c = x.dtype.type
    return c(0.5) * x * (c(1) + np.tanh(c(math.sqrt(2 / math.pi)) * (x + c(0.044715) * x * x * x)))


def gelu_tanh_backward(dy: Array, x: Array) -> Array:
    c, kappa = x.dtype.type, x.dtype.type(math.sqrt(2 / math.pi))
    t = np.tanh(kappa * (x + c(0.044715) * x * x * x))
    inner = kappa * (c(1) + c(3 * 0.044715) * x * x)
    return dy * (c(0.5) * (c(1) + t) + c(0.5) * x * (c(1) - t * t) * inner)


def swiglu(gate: Array, up: Array) -> Array:
    return silu(gate) * up


def swiglu_backward(dy: Array, gate: Array, up: Array) -> tuple[Array, Array]:
    return silu_backward(dy * up, gate), dy * silu(gate)


# softmax

def swiglu_packed(x: Array) -> Array:
    half = x.shape[1] // 2
    return swiglu(x[:, :half], x[:, half:])


def swiglu_packed_backward(dy: Array, x: Array) -> Array:
    half = x.shape[1] // 2
    return np.concatenate(swiglu_backward(dy, x[:, :half], x[:, half:]), axis=1)


def _shifted(x: Array) -> Array:
    largest = np.max(x, axis=-1, keepdims=True, initial=-np.inf).astype(x.dtype)
    return x - np.where(np.isneginf(largest), np.zeros_like(largest), largest)


def softmax(x: Array) -> Array:
    e = np.exp(_shifted(x))
    s = total(e)
    return e / np.where(s == 0, np.ones_like(s), s)


def softmax_backward(dy: Array, y: Array) -> Array:
    return y * (dy - total(y * dy))


def log_softmax(x: Array) -> Array:
    z = _shifted(x)
    s = total(np.exp(z))
    return z - np.log(np.where(s == 0, np.ones_like(s), s))


def log_softmax_backward(dy: Array, y: Array) -> Array:
    return dy - np.exp(y) * total(dy)


# norms

def _mean(x: Array) -> Array:
    return total(x) / x.dtype.type(max(1, x.shape[-1]))


def rms_norm(x: Array, weight: Array, eps: float) -> tuple[Array, Array]:
    rstd = x.dtype.type(1) / np.sqrt(_mean(x * x) + x.dtype.type(eps))
    return x * rstd * weight, rstd


def rms_norm_residual(x: Array, residual: Array, weight: Array, eps: float) -> tuple[Array, Array, Array]:
    y, rstd = rms_norm(x + residual, weight, eps)
    return y, x + residual, rstd


def rms_norm_backward(dy: Array, x: Array, weight: Array, rstd: Array, *,
                      dresidual: Array | None = None) -> tuple[Array, Array]:
    rstd = rstd.astype(x.dtype)
    a, x_hat = dy * weight, x * rstd
    dx = rstd * (a - x_hat * _mean(a * x_hat))
    return dx if dresidual is None else dx + dresidual, total(dy * x_hat, axis=0, keepdims=False)


def layer_norm(x: Array, weight: Array, bias: Array, eps: float) -> tuple[Array, Array, Array]:
    mean = _mean(x)
    centred = x - mean
    rstd = x.dtype.type(1) / np.sqrt(_mean(centred * centred) + x.dtype.type(eps))
    return centred * rstd * weight + bias, mean, rstd


def layer_norm_backward(dy: Array, x: Array, weight: Array, mean: Array,
                        rstd: Array) -> tuple[Array, Array, Array]:
    rstd = rstd.astype(x.dtype)
    a, x_hat = dy * weight, (x - mean.astype(x.dtype)) * rstd
    dx = rstd * (a - _mean(a) - x_hat * _mean(a * x_hat))
    return dx, total(dy * x_hat, axis=0, keepdims=False), total(dy, axis=0, keepdims=False)


# attention

def rope(x: Array, cos: Array, sin: Array, *, interleaved: bool = False, inverse: bool = False) -> Array:
    y, half = x.copy(), cos.shape[-1]
    cos = np.broadcast_to(cos, (*x.shape[:3], half)).astype(x.dtype)
    sin = np.broadcast_to(-sin if inverse else sin, (*x.shape[:3], half)).astype(x.dtype)
    for i in range(half):
        a, b = (2 * i, 2 * i + 1) if interleaved else (i, i + half)
        y[..., a] = x[..., a] * cos[..., i] - x[..., b] * sin[..., i]
        y[..., b] = x[..., a] * sin[..., i] + x[..., b] * cos[..., i]
    return y


@cache
def reach(length: int, keys: int, causal: bool, window: int) -> Array:
    """[T,S], key by key: query i stands at position S − T + i"""
    see = np.ones((length, keys), bool)
    for i in range(length):
        position = keys - length + i
        for j in range(keys):
            after = causal and j > position
            outside = window > 0 and (position - j >= window or (not causal and j - position >= window))
            see[i, j] = not (after or outside)
    return see


def visible(q: Array, k: Array, causal: bool, window: int, mask: Array | None) -> Array:
    see = np.broadcast_to(reach(q.shape[2], k.shape[2], causal, window), (*q.shape[:3], k.shape[2]))
    return see if mask is None else see & np.broadcast_to(mask, see.shape)


def _probabilities(q: Array, k: Array, see: Array, scale: float) -> tuple[Array, Array]:
    """(P[T,S], lse[T]) of one head"""
    s = np.where(see, product(q, k.T) * q.dtype.type(scale), q.dtype.type(-np.inf))
    largest = np.max(s, axis=-1, keepdims=True, initial=-np.inf).astype(s.dtype)
    largest = np.where(np.isneginf(largest), np.zeros_like(largest), largest)
    e = np.exp(s - largest)
    denominator = total(e)
    empty = denominator == 0
    safe = np.where(empty, np.ones_like(denominator), denominator)
    lse = np.where(empty, q.dtype.type(-np.inf), largest + np.log(safe))
    return e / safe, lse[:, 0]


def attention(q: Array, k: Array, v: Array, *, scale: float, causal: bool = True, window: int = 0,
              mask: Array | None = None) -> tuple[Array, Array]:
    see, repeat = visible(q, k, causal, window, mask), q.shape[1] // k.shape[1]
    o, lse = np.zeros((*q.shape[:3], v.shape[-1]), q.dtype), np.zeros(q.shape[:3], q.dtype)
    for b in range(q.shape[0]):
        for h in range(q.shape[1]):
            p, lse[b, h] = _probabilities(q[b, h], k[b, h // repeat], see[b, h], scale)
            o[b, h] = product(p, v[b, h // repeat])
    return o, lse


def attention_backward(do: Array, q: Array, k: Array, v: Array, o: Array, lse: Array, *, scale: float,
                       causal: bool = True, window: int = 0,
                       mask: Array | None = None) -> tuple[Array, Array, Array]:
    see, repeat = visible(q, k, causal, window, mask), q.shape[1] // k.shape[1]
    wide = accumulator(q.dtype)
    dq, dk, dv = np.zeros_like(q), np.zeros(k.shape, wide), np.zeros(v.shape, wide)
    for b in range(q.shape[0]):
        for h in range(q.shape[1]):
            g = h // repeat
            p, _ = _probabilities(q[b, h], k[b, g], see[b, h], scale)
            dp = product(do[b, h], v[b, g].T)
            ds = p * (dp - total(p * dp)) * q.dtype.type(scale)
            dq[b, h] = product(ds, k[b, g])
            dk[b, g] += product(ds.T, q[b, h])
            dv[b, g] += product(p.T, do[b, h])
    return dq, dk.astype(k.dtype), dv.astype(v.dtype)


def decode_attention(q: Array, k: Array, v: Array, lengths: Array, *, scale: float, window: int = 0) -> Array:
    rows = [attention(q[b : b + 1], k[b : b + 1, :, :n], v[b : b + 1, :, :n], scale=scale, window=window)[0]
            for b, n in enumerate(lengths)]
    return np.concatenate(rows) if rows else np.zeros((*q.shape[:3], v.shape[3]), q.dtype)


def cache_append(k_cache: Array, v_cache: Array, k: Array, v: Array, lengths: Array) -> tuple[Array, Array]:
    k_cache, v_cache = k_cache.copy(), v_cache.copy()
    for b, n in enumerate(lengths):
        for t in range(k.shape[2]):
            if n + t < k_cache.shape[2]:
                k_cache[b, :, n + t], v_cache[b, :, n + t] = k[b, :, t], v[b, :, t]
    return k_cache, v_cache


def rope_at(x: Array, cos: Array, sin: Array, positions: Array, *, interleaved: bool = False) -> Array:
    y = np.zeros_like(x)
    for b, start in enumerate(positions):
        near = slice(start, start + x.shape[2])
        y[b : b + 1] = rope(x[b : b + 1], cos[near], sin[near], interleaved=interleaved)
    return y


# losses

def _row_loss(z: Array, target: int, smoothing: float, z_loss: float, cap: float) -> tuple[Any, Any, Array]:
    """(loss, lse, dlogits) of one row"""
    c = z.dtype.type
    capped = c(cap) * np.tanh(z / c(cap)) if cap else z
    largest = np.max(capped)
    e = np.exp(capped - largest)
    lse = largest + np.log(total(e)[0])
    loss = (lse - c(1 - smoothing) * capped[target] - c(smoothing / len(z)) * total(capped)[0]
            + c(z_loss) * lse * lse)
    grad = e / total(e) * (c(1) + c(2 * z_loss) * lse) - c(smoothing / len(z))
    grad[target] -= c(1 - smoothing)
    return loss, lse, grad * (c(1) - (capped / c(cap)) ** 2).astype(z.dtype) if cap else grad


def cross_entropy(logits: Array, targets: Array, *, ignore_index: int = -100, label_smoothing: float = 0.0,
                  z_loss: float = 0.0, softcap: float = 0.0) -> tuple[Array, Array]:
    loss, lse = np.zeros(len(targets), logits.dtype), np.zeros(len(targets), logits.dtype)
    for r, target in enumerate(targets):
        counts = target != ignore_index
        row_loss, lse[r], _ = _row_loss(logits[r], target if counts else 0, label_smoothing, z_loss, softcap)
        loss[r] = row_loss if counts else 0
    return loss, lse


def cross_entropy_backward(dloss: Array, logits: Array, targets: Array, lse: Array, *,
                           ignore_index: int = -100,
                           label_smoothing: float = 0.0, z_loss: float = 0.0, softcap: float = 0.0) -> Array:
    dlogits = np.zeros_like(logits)
    for r, target in enumerate(targets):
        if target != ignore_index:
            gradient = _row_loss(logits[r], target, label_smoothing, z_loss, softcap)[2]
            dlogits[r] = gradient * dloss[r].astype(logits.dtype)
    return dlogits


def linear_cross_entropy(x: Array, weight: Array, targets: Array, *, gradient: bool = True,
                         scale: float = 1.0, **options: Any) -> Any:
    logits = product(x, weight.T)
    loss, lse = cross_entropy(logits, targets, **options)
    if not gradient:
        return loss, None, None
    dlogits = cross_entropy_backward(np.full_like(loss, scale), logits, targets, lse, **options)
    return loss, product(dlogits, weight), product(dlogits.T, x)


# mixture of experts

def router_topk(logits: Array, k: int, *, renormalize: bool = True) -> tuple[Array, Array, Array]:
    probs = softmax(logits)
    experts = np.array([sorted(range(len(row)), key=lambda e: (-float(row[e]), e))[:k] for row in logits],
                       np.int64)
    experts = experts.reshape(len(logits), k)
    weights = np.array([row[chosen] for row, chosen in zip(probs, experts, strict=True)], logits.dtype)
    weights = weights.reshape(experts.shape)
    return weights / total(weights) if renormalize else weights, experts, probs


def router_topk_backward(dweights: Array, weights: Array, experts: Array, probs: Array, *,
                         renormalize: bool = True) -> Array:
    """Through ∂w_a/∂z_b, written out: w_a (1[a=b] − w_b) over the chosen, or p_a (1[a=b] − p_b) over all."""
    dlogits = np.zeros_like(probs)
    for n, chosen in enumerate(experts):
        for a, e in enumerate(chosen):
            for j in range(probs.shape[1]):
                share = weights[n, a] if renormalize else probs[n, e]
                if renormalize:
                    other = sum((weights[n, b] for b, f in enumerate(chosen) if f == j), probs.dtype.type(0))
                else:
                    other = probs[n, j]
                dlogits[n, j] += dweights[n, a] * share * (probs.dtype.type(e == j) - other)
    return dlogits


def philox_word(place: Array, index: int) -> int:
    """Word `index` of Philox 4x32-10 (Salmon et al. 2011) under a counter's key and its three stream words"""
    key, c = int(place[0]) % 2**64, [index // 4, *(int(word) for word in place[1:])]
    k = [key % 2**32, key // 2**32]
    for _ in range(10):
        a, b = 0xD2511F53 * c[0], 0xCD9E8D57 * c[2]
        c = [b // 2**32 ^ c[1] ^ k[0], b % 2**32, a // 2**32 ^ c[3] ^ k[1], a % 2**32]
        k = [(k[0] + 0x9E3779B9) % 2**32, (k[1] + 0xBB67AE85) % 2**32]
    return c[index % 4]


def jitter(x: Array, counter: Array, *, epsilon: float) -> Array:
    u = np.array([philox_word(counter, i) // 256 * 2.0**-24 for i in range(x.size)], np.float64)
    return x * (1.0 - epsilon + 2.0 * epsilon * u.reshape(x.shape)).astype(x.dtype)


def moe_balance_loss(probs: Array, experts: Array, coefficient: float) -> tuple[Array, Array]:
    c, (tokens, count) = probs.dtype.type, probs.shape
    load = np.array([c((experts == e).sum()) / c(max(1, experts.size)) for e in range(count)], probs.dtype)
    mean = total(probs, axis=0, keepdims=False) / c(max(1, tokens))
    return total(load * mean) * c(coefficient * count), load


def moe_balance_loss_backward(dloss: Array, load: Array, tokens: int, coefficient: float) -> Array:
    c = load.dtype.type
    row = dloss * c(coefficient * len(load)) * load / c(max(1, tokens))
    return np.array([row for _ in range(tokens)], load.dtype).reshape(tokens, len(load))


def moe_z_loss(logits: Array, coefficient: float) -> tuple[Array, Array]:
    lse = np.array([np.log(np.sum(np.exp(row.astype(np.float64)))) for row in logits]).astype(logits.dtype)
    return total(lse * lse) * logits.dtype.type(coefficient / max(1, len(lse))), lse


def moe_z_loss_backward(dloss: Array, logits: Array, lse: Array, coefficient: float) -> Array:
    slope = dloss * logits.dtype.type(2 * coefficient / max(1, len(lse))) * lse
    return softmax(logits) * slope[:, None]


def expert_order(experts: Array, num_experts: int) -> tuple[Array, Array, Array]:
    flat = [int(e) for row in experts for e in row]
    order = sorted(range(len(flat)), key=lambda pair: (flat[pair], pair))
    offsets = [sum(f < e for f in flat) for e in range(num_experts + 1)]
    inverse = [order.index(pair) for pair in range(len(flat))]
    return tuple(np.array(found, np.int64) for found in (order, inverse, offsets))


def moe_dispatch(x: Array, order: Array, choices: int) -> Array:
    return np.array([x[pair // choices] for pair in order], x.dtype).reshape(len(order), x.shape[1])


def moe_dispatch_backward(dxs: Array, inverse: Array, choices: int) -> Array:
    dx = np.zeros((len(inverse) // choices, dxs.shape[1]), accumulator(dxs.dtype))
    for pair, row in enumerate(inverse):
        dx[pair // choices] += dxs[row]
    return dx.astype(dxs.dtype)


def moe_combine(ys: Array, weights: Array, inverse: Array) -> Array:
    y = np.zeros((len(weights), ys.shape[1]), accumulator(ys.dtype))
    for pair, row in enumerate(inverse):
        y[pair // weights.shape[1]] += weights.reshape(-1)[pair] * ys[row].astype(y.dtype)
    return y.astype(ys.dtype)


def moe_combine_backward(dy: Array, ys: Array, weights: Array, order: Array,
                         inverse: Array) -> tuple[Array, Array]:
    dys, dweights = np.zeros_like(ys), np.zeros_like(weights)
    for row, pair in enumerate(order):
        n, k = divmod(int(pair), weights.shape[1])
        dys[row] = weights[n, k] * dy[n]
        dweights[n, k] = np.sum(dy[n].astype(accumulator(dy.dtype)) * ys[row])
    return dys, dweights


def _expert_of_row(offsets: Array, rows: int) -> list[int | None]:
    """None beyond the last range"""
    owner: list[int | None] = [None] * rows
    for e in range(len(offsets) - 1):
        owner[offsets[e] : offsets[e + 1]] = [e] * int(offsets[e + 1] - offsets[e])
    return owner


def grouped_linear(x: Array, weight: Array, offsets: Array, *, batch_invariant: bool = True) -> Array:
    y = np.zeros((len(x), weight.shape[1]), x.dtype)
    for r, e in enumerate(_expert_of_row(offsets, len(x))):
        if e is not None:
            y[r] = product(weight[e], x[r])
    return y


def grouped_linear_backward(dy: Array, x: Array, weight: Array, offsets: Array) -> tuple[Array, Array]:
    dx, dweight = np.zeros_like(x), np.zeros(weight.shape, accumulator(x.dtype))
    for r, e in enumerate(_expert_of_row(offsets, len(x))):
        if e is not None:
            dx[r] = product(weight[e].T, dy[r])
            dweight[e] += np.outer(dy[r], x[r])
    return dx, dweight


def gathered_swiglu(x: Array, weight: Array, offsets: Array, order: Array, choices: int, *,
                    batch_invariant: bool = True, keep: bool = True) -> tuple[Array, Array | None]:
    hidden = grouped_linear(moe_dispatch(x, order, choices), weight, offsets)
    return swiglu_packed(hidden), hidden if keep else None


def gathered_swiglu_backward(dy: Array, hidden: Array, x: Array, weight: Array, offsets: Array, order: Array,
                             inverse: Array, choices: int) -> tuple[Array, Array]:
    rows = moe_dispatch(x, order, choices)
    dxs, dweight = grouped_linear_backward(swiglu_packed_backward(dy, hidden), rows, weight, offsets)
    return moe_dispatch_backward(dxs, inverse, choices), dweight


# optimizer

def embedding(weight: Array, ids: Array) -> Array:
    return np.stack([weight[i] for i in ids]) if ids.size else weight[:0]


def scatter_add(source: Array, index: Array, rows: int) -> Array:
    out = np.zeros((rows, *source.shape[1:]), accumulator(source.dtype))
    for n, row in enumerate(index):
        out[row] += source[n]
    return out


def adamw(param: Array, grad: Array, m: Array, v: Array, *, lr: float, beta1: float, beta2: float, eps: float,
          weight_decay: float, step: int, grad_scale: float = 1.0) -> tuple[Array, Array, Array]:
    """The new (param, m, v)"""
    c = param.dtype.type
    g = grad.astype(param.dtype) * c(grad_scale)
    m = c(beta1) * m + c(1 - beta1) * g
    v = c(beta2) * v + c(1 - beta2) * g * g
    m_hat, v_hat = m / c(1 - beta1**step), v / c(1 - beta2**step)
    return param * c(1 - lr * weight_decay) - c(lr) * m_hat / (np.sqrt(v_hat) + c(eps)), m, v


def sum_of_squares(x: Array) -> float:
    return math.fsum(float(value) ** 2 for value in x.flat)
