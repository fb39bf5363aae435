"""Results do not depend on the number of threads, to the bit; NN_THREADS and set_threads choose it."""

import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from nn.backends import kernels, native, use_backend
from nn.errors import InputError
from nn.packed import Format, PackedWeight

pytestmark = pytest.mark.skipif(native.missing() is not None, reason=str(native.missing()))
Work = Callable[[], Any]
RANDOM = np.random.default_rng(0)


@pytest.fixture(autouse=True)
def same_threads_after() -> Iterator[None]:
    before = native.threads()
    yield
    native.set_threads(before)


def draw(*shape: int, dtype: Any = np.float32) -> np.ndarray:
    return RANDOM.standard_normal(shape).astype(dtype)


# large enough that several threads share the work
def work(dtype: Any) -> dict[str, Work]:
    families = (elementwise_work, activation_work, softmax_work, norm_work, product_work, sequence_work,
                sampling_work, loss_work, router_work, expert_work, attention_work, packed_work,
                written_in_place)
    return {name: run for family in families for name, run in family(dtype).items()}


def elementwise_work(dtype: Any) -> dict[str, Work]:
    x, dy, row = draw(701, 530, dtype=dtype), draw(701, 530, dtype=dtype), draw(530, dtype=dtype)
    heads = draw(1, 2, 701, 62, dtype=dtype)
    wide, ids = draw(600, 530, dtype=dtype), RANDOM.integers(0, 600, 701)
    return {
        "add": lambda: kernels.add(x, dy),
        "add_row": lambda: kernels.add_row(x, row),
        "mul": lambda: kernels.mul(x, dy),
        "mul_row": lambda: kernels.mul_row(x, row),
        "scale": lambda: kernels.scale(x, 0.3),
        "widen": lambda: kernels.widen(x),
        "to_bfloat16": lambda: kernels.to_bfloat16(x.astype(np.float32)),
        "contiguous": lambda: kernels.contiguous(heads.transpose(0, 2, 1, 3)),
        "column_sum": lambda: kernels.column_sum(x),
        "sum_of_squares": lambda: kernels.sum_of_squares(x),
        "embedding": lambda: kernels.embedding(wide, ids),
        "scatter_add": lambda: kernels.scatter_add(x, ids, 600),
    }


def activation_work(dtype: Any) -> dict[str, Work]:
    x, dy, z = (draw(701, 530, dtype=dtype) for _ in range(3))
    half = draw(701, 265, dtype=dtype)
    return {
        "silu": lambda: kernels.silu(x),
        "silu_backward": lambda: kernels.silu_backward(dy, x),
        "gelu": lambda: kernels.gelu(x),
        "gelu_backward": lambda: kernels.gelu_backward(dy, x),
        "gelu_tanh": lambda: kernels.gelu_tanh(x),
        "gelu_tanh_backward": lambda: kernels.gelu_tanh_backward(dy, x),
        "swiglu": lambda: kernels.swiglu(x, dy),
        "swiglu_backward": lambda: kernels.swiglu_backward(dy, x, z),
        "swiglu_packed": lambda: kernels.swiglu_packed(x),
        "swiglu_packed_backward": lambda: kernels.swiglu_packed_backward(half, x),
    }


def softmax_work(dtype: Any) -> dict[str, Work]:
    x, dy = draw(701, 530, dtype=dtype), draw(701, 530, dtype=dtype)
    return {
        "softmax": lambda: kernels.softmax(x),
        "softmax_backward": lambda: kernels.softmax_backward(dy, x),
        "log_softmax": lambda: kernels.log_softmax(x),
        "log_softmax_backward": lambda: kernels.log_softmax_backward(dy, x),
    }


def norm_work(dtype: Any) -> dict[str, Work]:
    x, dy, weight = draw(701, 530, dtype=dtype), draw(701, 530, dtype=dtype), draw(530, dtype=dtype)
    rstd = np.abs(draw(701, 1)) + 0.1
    return {
        "rms_norm": lambda: kernels.rms_norm(x, weight, 1e-6),
        "rms_norm_residual": lambda: kernels.rms_norm_residual(x, dy, weight, 1e-6),
        "rms_norm_backward": lambda: kernels.rms_norm_backward(dy, x, weight, rstd),
        "layer_norm": lambda: kernels.layer_norm(x, weight, weight, 1e-6),
        "layer_norm_backward": lambda: kernels.layer_norm_backward(dy, x, weight, rstd - 0.5, rstd),
    }


def product_work(dtype: Any) -> dict[str, Work]:
    x, weight, dy = draw(701, 530, dtype=dtype), draw(600, 530, dtype=dtype), draw(701, 600, dtype=dtype)
    return {
        "linear": lambda: kernels.linear(x, weight),
        "linear_backward": lambda: kernels.linear_backward(dy, x, weight),
        "matmul": lambda: kernels.matmul(x, weight.T.copy()),
    }


def sequence_work(dtype: Any) -> dict[str, Work]:
    """Convolutions and scans"""
    x, dy, taps = (draw(*shape, dtype=dtype) for shape in ((701, 530), (701, 530), (530, 4)))
    scanned, bc = draw(2, 90, 530, dtype=dtype), draw(2, 90, 16, dtype=dtype)
    steps, rates, skip = np.abs(draw(2, 90, 530)), -np.abs(draw(530, 16)), draw(530)
    state, starts = draw(2, 530, 16), draw(2, 4, 16, 530)
    return {
        "causal_conv": lambda: kernels.causal_conv(x[None], taps, 698),
        "causal_conv_backward": lambda: kernels.causal_conv_backward(dy[None, :698], x[None], taps),
        "selective_scan": lambda: kernels.selective_scan(scanned, steps, rates, bc, bc, skip, state, 4),
        "selective_scan, one token": lambda: kernels.selective_scan(
            scanned[:, :1], steps[:, :1], rates, bc[:, :1], bc[:, :1], skip, state, 1, keep=False),
        "selective_scan_backward": lambda: kernels.selective_scan_backward(
            scanned, state, scanned, steps, rates, bc, bc, skip, starts),
    }


def sampling_work(dtype: Any) -> dict[str, Work]:
    z, place = draw(701, 530, dtype=dtype), np.array([1, 2, 3])[None]
    return {
        "top_k": lambda: kernels.top_k(z, 20),
        "next_token": lambda: kernels.next_token(z.reshape(1, -1), place, top_p=0.95),
        "next_token, the largest": lambda: kernels.next_token(z.reshape(1, -1), place, temperature=0.0),
    }


def loss_work(dtype: Any) -> dict[str, Work]:
    x, wide = draw(701, 530, dtype=dtype), draw(600, 530, dtype=dtype)
    targets, ids, dloss = RANDOM.integers(0, 530, 701), RANDOM.integers(0, 600, 701), np.abs(draw(701)) + 0.1
    return {
        "cross_entropy": lambda: kernels.cross_entropy(x, targets),
        "cross_entropy_backward": lambda: kernels.cross_entropy_backward(dloss, x, targets, dloss),
        "linear_cross_entropy": lambda: kernels.linear_cross_entropy(x, wide, ids),
    }


def router_work(dtype: Any) -> dict[str, Work]:
    """The router, its losses, and the noise on what it reads"""
    logits, load, one = draw(9001, 16, dtype=dtype), np.abs(draw(16)), np.ones(1, np.float32)
    weights, experts, probs = kernels.router_topk(logits, 2)
    x, place = draw(701, 530, dtype=dtype), np.array([7, 1, 2, 3])
    return {
        "router_topk": lambda: kernels.router_topk(logits, 2),
        "router_topk_backward": lambda: kernels.router_topk_backward(weights, weights, experts, probs),
        "moe_balance_loss": lambda: kernels.moe_balance_loss(logits, experts, 0.1),
        "moe_balance_loss_backward": lambda: kernels.moe_balance_loss_backward(one, load, 9001, 0.1),
        "moe_z_loss": lambda: kernels.moe_z_loss(logits, 0.1),
        "moe_z_loss_backward": lambda: kernels.moe_z_loss_backward(one, logits, probs[:, 0].copy(), 0.1),
        "expert_order": lambda: kernels.expert_order(experts, 16),
        "jitter": lambda: kernels.jitter(x, place, epsilon=0.1),
    }


def expert_work(dtype: Any) -> dict[str, Work]:
    """Tokens to their experts, through them and back"""
    order, inverse, offsets = kernels.expert_order(RANDOM.integers(0, 5, (701, 2)), 4)
    x, xs, gates = draw(701, 530, dtype=dtype), draw(1402, 530, dtype=dtype), np.abs(draw(701, 2))
    up, hidden = draw(4, 62, 530, dtype=dtype), draw(1402, 62, dtype=dtype)
    return {
        "moe_dispatch": lambda: kernels.moe_dispatch(x, order, 2),
        "moe_dispatch_backward": lambda: kernels.moe_dispatch_backward(xs, inverse, 2),
        "moe_combine": lambda: kernels.moe_combine(xs, gates, inverse),
        "moe_combine_backward": lambda: kernels.moe_combine_backward(x, xs, gates, order, inverse),
        "grouped_linear": lambda: kernels.grouped_linear(xs, up, offsets),
        "grouped_linear_backward": lambda: kernels.grouped_linear_backward(hidden, xs, up, offsets),
        "gathered_swiglu": lambda: kernels.gathered_swiglu(x, up, offsets, order, 2),
        "gathered_swiglu_backward": lambda: kernels.gathered_swiglu_backward(
            hidden[:, :31], hidden, x, up, offsets, order, inverse, 2),
    }


def attention_work(dtype: Any) -> dict[str, Work]:
    heads, angles, long = draw(2, 6, 160, 64, dtype=dtype), draw(160, 32), draw(200, 32)
    cache, new = draw(2, 2, 600, 64, dtype=dtype), draw(2, 6, 1, 64, dtype=dtype)
    held, lse = np.array([600, 333], np.int32), np.ones((2, 6, 160), np.float32)
    return {
        "rope": lambda: kernels.rope(heads, np.cos(angles), np.sin(angles)),
        "rope_at": lambda: kernels.rope_at(heads, np.cos(long), np.sin(long), np.array([0, 30])),
        "attention": lambda: kernels.attention(heads, heads[:, :2], heads[:, :2], scale=0.1),
        "attention_backward": lambda: kernels.attention_backward(
            heads, heads, heads[:, :2], heads[:, :2], heads, lse, scale=0.1),
        "decode_attention": lambda: kernels.decode_attention(new, cache, cache, held, scale=0.1),
    }


def written_in_place(dtype: Any) -> dict[str, Work]:
    """On copies, which are the result"""
    param, grad, total = draw(701, 530), draw(701, 530, dtype=dtype), draw(701, 530)
    cache, new = draw(3, 4, 300, 64, dtype=dtype), draw(3, 4, 150, 64, dtype=dtype)

    def accumulate() -> Any:
        kernels.accumulate(found := total.copy(), grad)
        return found

    def adamw() -> Any:
        p, m, v, stored = param.copy(), total.copy(), np.abs(total), grad.astype(ml_dtypes.bfloat16)
        kernels.adamw(p, param, m, v, lr=0.1, beta1=0.9, beta2=0.95, eps=1e-8, weight_decay=0.1, step=3,
                      stored=stored)
        return p, m, v, stored

    def cache_append() -> Any:
        k, v = cache.copy(), cache[:, ::-1].copy()
        kernels.cache_append(k, v, new, new, np.array([0, 150, 77]))
        return k, v

    return {"accumulate": accumulate, "adamw": adamw, "cache_append": cache_append}


def packed_work(dtype: Any) -> dict[str, Work]:
    """Of one row, of few and of many, with panels that do not share out evenly"""
    experts, gates = RANDOM.integers(0, 4, (70, 2)), np.abs(draw(70, 2))

    def both(form: Format, rows: int) -> dict[str, Work]:
        x, weight = draw(rows, 96, dtype=dtype), PackedWeight.pack(draw(1450, 96), form).data
        up = PackedWeight.pack(draw(4, 320, 96), form, gated=True).data
        down = PackedWeight.pack(draw(4, 96, 160), form).data
        kind = f"{form.name} {rows}"
        gated = PackedWeight.pack(draw(1450, 96), form, gated=True).data
        return {f"packed_swiglu {kind}": lambda: kernels.packed_swiglu(x, gated, int(form), 725),
                f"packed_linear {kind}": lambda: kernels.packed_linear(x, weight, int(form), 1450),
                f"packed_experts {kind}": lambda: kernels.packed_experts(
                    x, up, down, gates[:rows], experts[:rows], 4, 160, int(form))}

    return {name: run for form in Format for rows in (1, 3, 70) for name, run in both(form, rows).items()}


def test_every_kernel_has_work() -> None:
    names = {name.replace(",", "").split()[0] for name in work(np.float32)}
    assert names == set(native.extension().kernels())


@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16], ids=["float32", "bfloat16"])
def test_the_count_changes_no_bit(dtype: Any) -> None:
    before = native.fallbacks()
    for name, run in work(dtype).items():
        found = []
        for count in (1, 2, 3, 8):
            native.set_threads(count)
            with use_backend("native"):
                result = run()
            parts = result if isinstance(result, tuple) else (result,)
            found.append([np.asarray(part).tobytes() for part in parts])
        assert all(bits == found[0] for bits in found), name
    assert native.fallbacks() == before


def test_python_threads_may_call_at_once() -> None:
    x = draw(400, 600)
    expected, wrong = kernels.softmax(x).tobytes(), []

    def call() -> None:
        for _ in range(20):
            if kernels.softmax(x).tobytes() != expected:
                wrong.append(1)

    callers = [threading.Thread(target=call) for _ in range(3)]
    for one in callers:
        one.start()
    for one in callers:
        one.join()
    assert not wrong


def test_the_environment_says_how_many() -> None:
    done = subprocess.run([sys.executable, "-c", "from nn.backends import native; print(native.threads())"],
                          env=os.environ | {"NN_THREADS": "7"}, capture_output=True, text=True, check=True)
    assert done.stdout == "7\n"
    with pytest.raises(InputError, match="threads: 0; at least 1"):
        native.set_threads(0)


def test_nothing_starts_before_it_is_needed() -> None:
    """Neither an import nor a small kernel starts a thread; a large one does."""
    code = ("import os, numpy as np; from nn.backends import kernels\n"
            "def count(): return len(os.listdir('/proc/self/task'))\n"
            "before = count(); kernels.silu(np.ones(10, np.float32)); small = count() - before\n"
            "kernels.silu(np.ones(1 << 20, np.float32)); print(small, count() - before)")
    done = subprocess.run([sys.executable, "-c", code], env=os.environ | {"NN_THREADS": "3"},
                          capture_output=True, text=True, check=True)
    assert done.stdout == "0 2\n"
