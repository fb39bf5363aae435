"""Elementwise functions, softmax, norms, matrix products, rotary embedding, router, sampling."""

from ctypes import sizeof
from typing import Any

import numpy as np

from cuda.nn.products import which
from cuda.nn.prototypes.gemm import Gemm
from cuda.nn.prototypes.rope import Rope, RopeArray
from cuda.nn.prototypes.sampling import Sample
from tests.device.accuracy import WIDE
from tests.device.calls.made import Arguments, Arrays, exported, pointer

EPS = 1e-6
HALF = {"dtype": "bfloat16"}


# ---- elementwise ----


@exported(*(f"{name}_forward" for name in ("silu", "gelu", "gelu_tanh", "sigmoid", "relu")), half=HALF)
def one(a: Arrays, n: int = 2061) -> Arguments:
    return a.out(n), a(n), n, a.code


@exported(*(f"{name}_backward" for name in ("silu", "gelu", "gelu_tanh", "sigmoid", "relu")),
          "add_forward", "mul_forward", "swiglu_forward", half=HALF)
def two(a: Arrays, n: int = 2061) -> Arguments:
    return a.out(n), a(n), a(n), n, a.code


@exported(half=HALF)
def swiglu_backward(a: Arrays, n: int = 2061) -> Arguments:
    return a.out(n), a.out(n), a(n), a(n), a(n), n, a.code


@exported(half=HALF)
def swiglu_packed_forward(a: Arrays, rows: int = 5, cols: int = 521) -> Arguments:
    return a.out(rows, cols), a(rows, 2 * cols), rows, cols, a.code


@exported(half=HALF)
def swiglu_packed_backward(a: Arrays, rows: int = 5, cols: int = 521) -> Arguments:
    return a.out(rows, 2 * cols), a(rows, cols), a(rows, 2 * cols), rows, cols, a.code


@exported()
def scale_forward(a: Arrays, n: int = 2061) -> Arguments:
    return a.out(n), a(n), n, 0.5, 2.0, a.code


@exported(half=HALF)
def cast_forward(a: Arrays, n: int = 2061) -> Arguments:
    return a.out(n), a(n, dtype=WIDE), n, a.code, 0


@exported()
def fill_forward(a: Arrays, n: int = 2061) -> Arguments:
    return a.out(n), n, 0.5, a.code


# ---- rows: softmax, norms ----

WIDE_ROWS = {"rows": 3, "cols": 16_400}


def softmax_workspace(a: Arrays, rows: int, cols: int) -> tuple[Any, int]:
    return a.scratch("softmax", rows, cols, a.code)


@exported("softmax_forward", "log_softmax_forward", half=HALF, wide=WIDE_ROWS)
def softmax(a: Arrays, rows: int = 70, cols: int = 65) -> Arguments:
    return a.out(rows, cols), a(rows, cols), rows, cols, a.code, *softmax_workspace(a, rows, cols)


@exported("softmax_backward", "log_softmax_backward", half=HALF, wide=WIDE_ROWS)
def softmax_gradient(a: Arrays, rows: int = 70, cols: int = 65) -> Arguments:
    return (a.out(rows, cols), a(rows, cols), a(rows, cols), rows, cols, a.code,
            *softmax_workspace(a, rows, cols))


@exported(wide=WIDE_ROWS)
def softmax_causal_forward(a: Arrays, rows: int = 70, cols: int = 65, offset: int = 3) -> Arguments:
    """Row i sees columns 0 ... i + offset + 5"""
    return (a.out(rows, cols), a(rows, cols), rows, cols, rows, offset, a.given(np.array([5])), a.code,
            *softmax_workspace(a, rows, cols))


WIDE_NORM = {"rows": 3, "cols": 2056}


@exported(half=HALF, wide=WIDE_NORM)
def rms_norm_forward(a: Arrays, rows: int = 70, cols: int = 40) -> Arguments:
    return a.out(rows, cols), a.floats(rows), a(rows, cols), a(cols), rows, cols, EPS, a.code


@exported(half=HALF, wide=WIDE_NORM)
def rms_norm_residual_forward(a: Arrays, rows: int = 70, cols: int = 40) -> Arguments:
    return (a.out(rows, cols), a.out(rows, cols), a.floats(rows), a(rows, cols), a(rows, cols), a(cols), rows,
            cols, EPS, a.code)


@exported(half=HALF, wide=WIDE_NORM)
def rms_norm_backward(a: Arrays, rows: int = 70, cols: int = 40, residual: bool = True) -> Arguments:
    return (a.out(rows, cols), a.floats(cols), a(rows, cols), a(rows, cols), a(cols), a(rows, dtype=WIDE),
            a(rows, cols) if residual else None, rows, cols, a.code, *a.scratch("rms_norm", rows, cols))


@exported(half=HALF, wide=WIDE_NORM)
def layer_norm_forward(a: Arrays, rows: int = 70, cols: int = 40) -> Arguments:
    return (a.out(rows, cols), a.floats(rows), a.floats(rows), a(rows, cols), a(cols), a(cols), rows, cols,
            EPS, a.code)


@exported(half=HALF, wide=WIDE_NORM)
def layer_norm_backward(a: Arrays, rows: int = 70, cols: int = 40) -> Arguments:
    return (a.out(rows, cols), a.floats(cols), a.floats(cols), a(rows, cols), a(rows, cols), a(cols),
            a(rows, dtype=WIDE), a(rows, dtype=WIDE), rows, cols, a.code,
            *a.scratch("layer_norm", rows, cols))


# ---- matrix products ----


@exported(half=HALF, tensor={"dtype": "bfloat16", "n": 72, "k": 136}, skinny={"m": 3},
          deep={"m": 8, "n": 8, "k": 4096}, split={"splits": 3}, reference={"path": 1}, ffma={"path": 2})
def gemm_forward(a: Arrays, m: int = 70, n: int = 45, k: int = 133, path: int = 0,
                 splits: int = 0) -> Arguments:
    c, x, weight, bias = a.out(m, n), a(m, k), a(n, k), a(n)
    call = Gemm(size=sizeof(Gemm), c=c.pointer, a=x.pointer, b=weight.pointer, bias=bias.pointer, m=m, n=n,
                k=k, batch=1, lda=k, ldb=k, ldc=n, alpha=1, beta=0, trans_b=1, dtype=a.code, c_dtype=a.code,
                bias_dtype=a.code, stride_c=m * n, activation=1, path=path, splits=splits)
    size = which(a.device, call).workspace_bytes                         # of exactly this call
    return call, (a.keep(a.device.workspace(size)) if size else None), size


# ---- rotary embedding ----


@exported()
def rope_frequencies(a: Arrays, dim: int = 600) -> Arguments:
    return a.out(dim // 2, dtype=np.float64), dim, 10_000.0, 8.0, 2


@exported()
def rope_table(a: Arrays, positions: int = 70, half: int = 33) -> Arguments:
    inverse = a.given(10_000.0 ** (-a.random.random(half)))
    return a.floats(positions, half), a.floats(positions, half), inverse, 5, positions, half, 1.0


@exported(half=HALF, interleaved={"interleaved": 1}, placed={"positions": True})
def rope_forward(a: Arrays, heads: int = 3, groups: int = 2, length: int = 70, width: int = 24,
                 interleaved: int = 0, positions: bool = False) -> Arguments:
    batch, half, rows = 2, width // 2, length + 30
    parts = [RopeArray(a.out(batch, n, length, width).pointer, a(batch, n, length, width).pointer, n,
                       *(n * length * width, length * width, width) * 2) for n in (heads, groups)]
    cos, sin = a(rows, half, dtype=WIDE), a(rows, half, dtype=WIDE)
    places = a.integers(30, batch) if positions else None
    return Rope(size=sizeof(Rope), q=parts[0], k=parts[1], cos=cos.pointer, sin=sin.pointer, batch=batch,
                length=length, width=width, half=half, table_rows=rows, position_stride=int(positions),
                positions=pointer(places), position_dtype=3, interleaved=interleaved, dtype=a.code),


# ---- router and sampling ----


@exported(half=HALF, many={"num_experts": 300})
def router_topk_forward(a: Arrays, tokens: int = 70, num_experts: int = 24) -> Arguments:
    return (a.floats(tokens, 5), a.out(tokens, 5, dtype=np.int64), a.floats(tokens, num_experts),
            a(tokens, num_experts), tokens, num_experts, 5, 1, 3, a.code)


@exported(many={"num_experts": 300})
def router_topk_backward(a: Arrays, tokens: int = 70, num_experts: int = 24) -> Arguments:
    experts = np.argsort(a.random.random((tokens, num_experts)))[:, :5]
    return (a.floats(tokens, num_experts), a(tokens, 5), a(tokens, 5), a.given(experts),
            a(tokens, num_experts), tokens, num_experts, 5, 0, 3)


@exported(half=HALF)
def router_jitter_forward(a: Arrays, count: int = 2061) -> Arguments:
    return a.out(count), a(count), a.integers(2**32 - 1, 4), count, 0.3, a.code


@exported(greedy={"temperature": 0.0})
def sample_forward(a: Arrays, batch: int = 3, vocabulary: int = 1100, temperature: float = 0.8) -> Arguments:
    tokens, flags = a.out(batch, dtype=np.int64), a.out(batch, dtype=np.int32)
    logits, history = a(batch, vocabulary, scale=3.0), a.integers(vocabulary, batch, 7)
    lengths, keys, steps, rows = (a.integers(8, n) for n in (batch, 1, 1, batch))
    return Sample(size=sizeof(Sample), tokens=tokens.pointer, flags=flags.pointer, logits=logits.pointer,
                  history=history.pointer, lengths=lengths.pointer, keys=keys.pointer, steps=steps.pointer,
                  rows=rows.pointer, batch=batch, vocabulary=vocabulary, stride=vocabulary, history_stride=7,
                  temperature=temperature, top_k=40, top_p=0.9, min_p=0.01, repetition_penalty=1.1,
                  dtype=a.code), *a.scratch("sample", batch, vocabulary, temperature)


@exported()
def random_bits(a: Arrays, count: int = 2061) -> Arguments:
    return a.out(count, dtype=np.uint32), a.integers(1 << 40, 1), a.integers(1 << 40, 3), count
