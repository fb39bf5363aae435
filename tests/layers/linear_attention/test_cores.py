"""Gated linear attention and the gated delta rule against their definitions, token by token in NumPy."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from nn import ops
from nn.dtypes import DType
from nn.errors import InputError
from nn.layers.attention.linear.decayed import decayed_attention, decayed_flops
from nn.layers.attention.linear.delta import DeltaNetSettings
from nn.layers.attention.linear.delta_core import delta_flops, gated_delta_rule
from nn.layers.attention.linear.gla import GLA, GLASettings
from nn.layers.attention.linear.gla_core import gated_linear_attention, gla_flops
from nn.layers.attention.linear.retention import Retention, RetentionSettings
from nn.ops.count import count_flops
from nn.ops.triangular import inverse_flops, unit_lower_inverse
from nn.tensor import Tensor, no_grad
from tests.blocks.harness import close

Arrays = list[np.ndarray]
CORES: dict[str, Callable[..., Any]] = {"gla": gated_linear_attention, "delta": gated_delta_rule}
FORMS = [("recurrent", 1), ("chunk", 1), ("chunk", 2), ("chunk", 4), ("chunk", 16), ("chunk", 64)]


def drawn(core: str, length: int, scale: float = 1.0) -> tuple[Arrays, np.ndarray]:
    """(q, k, v, g and for delta β, [2,3,T,...]; a state)"""
    random, lead, keys, values = np.random.default_rng(length), (2, 3, length), 4, 5
    q, k, v = (random.standard_normal((*lead, width)) for width in (keys, keys, values))
    s = random.standard_normal((2, 3, keys, values))
    if core == "gla":
        return [q, k, v, -scale * np.exp(random.standard_normal((*lead, keys)))], s
    k /= np.linalg.norm(k, axis=-1, keepdims=True)
    return [q, k, v, -scale * np.exp(random.standard_normal(lead)), random.uniform(0.0, 2.0, lead)], s


def by_definition(core: str, inputs: Arrays, s: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    s, (q, k, v, g, *beta) = s.copy(), inputs
    o = np.zeros((*q.shape[:3], v.shape[3]))
    for b, h, t in np.ndindex(*q.shape[:3]):
        at, row = (b, h), (b, h, t)
        if core == "gla":
            s[at] = np.diag(np.exp(g[row])) @ s[at] + np.outer(k[row], v[row])
        else:
            decayed = np.exp(g[row]) * s[at]
            s[at] = decayed + beta[0][row] * np.outer(k[row], v[row] - decayed.T @ k[row])
        o[row] = s[at].T @ q[row]
    return o, s


def called(core: str, inputs: Arrays, s: np.ndarray, **options: Any) -> tuple[np.ndarray, np.ndarray]:
    with no_grad():
        o, last = CORES[core](*map(Tensor, inputs), s, **options)
    return o.data, last.data


@pytest.mark.parametrize("core", CORES)
@pytest.mark.parametrize(("mode", "size"), FORMS)
@pytest.mark.parametrize("length", [1, 4, 11, 37])
def test_definition(core: str, mode: str, size: int, length: int) -> None:
    inputs, s = drawn(core, length)
    for found, expected in zip(called(core, inputs, s.copy(), mode=mode, size=size),
                               by_definition(core, inputs, s), strict=True):
        close(found, expected, 1e-12)


@pytest.mark.parametrize("core", CORES)
@pytest.mark.parametrize("mode", ["chunk", "recurrent"])
def test_golden_values(core: str, mode: str) -> None:
    """Two tokens worked out by hand in the specification's table, in float64, 8 decimals"""
    k, v, q = [[1.0, 0.0], [0.6, 0.8]], [[1.0, 2.0], [3.0, -1.0]], [[1.0, 1.0], [0.5, -1.0]]
    gates: list[Any] = [[[-0.1, -0.3], [-0.2, -0.4]]] if core == "gla" else [[-0.1, -0.2], [0.5, 1.0]]
    inputs = [np.array(x)[None, None] for x in (q, k, v, *gates)]
    o, s = called(core, inputs, np.zeros((1, 1, 2, 2)), mode=mode)
    if core == "gla":
        expected = [[1.0, 2.0], [-1.09063462, 1.31873075]]
    else:
        expected = [[0.5, 1.0], [-1.1725077, 1.1549846]]
        last = [[2.06199384, -0.07601232], [2.20350462, -1.19299076]]
        np.testing.assert_allclose(s[0, 0], last, atol=5e-9)
    np.testing.assert_allclose(o[0, 0], expected, atol=5e-9)


@pytest.mark.parametrize("core", CORES)
@pytest.mark.parametrize("size", [1, 4, 16])
def test_gradients_of_chunks_are_those_of_the_recurrence(core: str, size: int) -> None:
    """The hand-derived backward against the tape's through every token; also by the last state alone"""
    inputs, s = drawn(core, 11)
    random = np.random.default_rng(3)
    c, d = random.standard_normal((2, 3, 11, 5)), random.standard_normal((2, 3, 4, 5))
    for used in ("o", "s", "os"):
        found = []
        for mode in ("chunk", "recurrent"):
            leaves = [Tensor(x, requires_grad=True) for x in inputs]
            o, last = CORES[core](*leaves, s, mode=mode, size=size)
            parts = {"o": ops.sum(o * c), "s": ops.sum(last * d), "os": ops.sum(o * c) + ops.sum(last * d)}
            parts[used].backward()
            found.append([np.zeros(x.shape) if x.grad is None else x.grad for x in leaves])
        for chunked, stepped in zip(*found, strict=True):
            close(chunked, stepped, 1e-11)


@pytest.mark.parametrize("core", CORES)
@pytest.mark.parametrize("strength", [30.0, 2000.0])
def test_strong_decay_neither_overflows_nor_leaves_nan(core: str, strength: float) -> None:
    """float32, 200 tokens: e^{−G} of a chunk would be far beyond its range"""
    inputs, s = drawn(core, 200, scale=strength)
    leaves = [Tensor(x.astype(np.float32), requires_grad=True) for x in inputs]
    o, last = CORES[core](*leaves, s.astype(np.float32), mode="chunk")
    expected, end = by_definition(core, inputs, s)
    close(o.data, expected, 1e-4)
    close(last.data, end, 1e-4)
    o.sum().backward()
    assert all(x.grad is not None and np.isfinite(x.grad).all() for x in leaves)


@pytest.mark.parametrize("core", [*CORES, "decayed"])
@pytest.mark.parametrize("least", [-500.0, -np.inf])
@pytest.mark.parametrize("mode", ["chunk", "recurrent"])
def test_tokens_that_forget_all_do_not_blur_the_next_ones(core: str, least: float, mode: str) -> None:
    """float32, some decays of e^−500 or 0 among slow ones: as exact as without them, gradients too"""
    inputs, s = drawn("gla" if core == "decayed" else core, 150, scale=0.02)
    inputs[3] = inputs[3][..., 0] if core == "decayed" else inputs[3]
    inputs[3][np.random.default_rng(1).random(inputs[3].shape) < 0.05] = least
    function = decayed_attention if core == "decayed" else CORES[core]
    c, found = np.random.default_rng(2).standard_normal((2, 3, 150, 5)), []
    for kind, form in (("float32", mode), ("float64", "recurrent")):
        leaves = [Tensor(x.astype(kind), requires_grad=True) for x in inputs]
        o, last = function(*leaves, s.astype(kind), mode=form)
        ops.sum(o * Tensor(c.astype(kind))).backward()
        found.append([o.data, last.data, *(x.grad for x in leaves)])
    for narrow, exact in zip(*found, strict=True):
        close(narrow, exact, 5e-6)


@pytest.mark.parametrize("core", [*CORES, "decayed"])
@pytest.mark.parametrize("mode", ["chunk", "recurrent"])
def test_gradient_of_strong_decays_is_no_rounding_of_others(core: str, mode: str) -> None:
    """float32, decays of e^−12 and less: dg is some 1e-5 where other gradients are 10, and as exact to its
    own size; an optimizer that divides by its size (Adam) would make steps of what is left of others"""
    inputs, s = drawn("gla" if core == "decayed" else core, 90)
    inputs[3] = inputs[3][..., 0] if core == "decayed" else inputs[3]
    inputs[3] = np.random.default_rng(1).uniform(-14.0, -12.0, inputs[3].shape)
    function = decayed_attention if core == "decayed" else CORES[core]
    c, found = np.random.default_rng(2).standard_normal((2, 3, 90, 5)), []
    for kind, form in (("float32", mode), ("float64", "recurrent")):
        leaves = [Tensor(x.astype(kind), requires_grad=True) for x in inputs]
        ops.sum(function(*leaves, s.astype(kind), mode=form)[0] * Tensor(c.astype(kind))).backward()
        found.append([x.grad for x in leaves])
    size = np.abs(found[1][3]).max()
    assert size < 1e-3 < 1.0 < np.abs(found[1][0]).max()
    np.testing.assert_allclose(found[0][3], found[1][3], rtol=0, atol=2e-5 * size)


@pytest.mark.parametrize("core", CORES)
def test_chunks_in_float32_are_as_good_as_the_recurrence(core: str) -> None:
    """Weak decay over 512 tokens, keys close to each other: the inverse does not blow rounding up"""
    inputs, s = drawn(core, 512, scale=1e-3)
    inputs[1] = inputs[1] + 3.0
    if core == "delta":
        inputs[1] /= np.linalg.norm(inputs[1], axis=-1, keepdims=True)
    expected, end = by_definition(core, inputs, s)
    o, last = called(core, [x.astype(np.float32) for x in inputs], s.astype(np.float32), mode="chunk")
    close(o, expected, 2e-5)
    close(last, end, 2e-5)


@pytest.mark.parametrize("core", CORES)
@pytest.mark.parametrize("mode", ["chunk", "recurrent"])
def test_no_tokens_leave_the_state_as_it_was(core: str, mode: str) -> None:
    inputs, s = drawn(core, 0)
    o, last = called(core, inputs, s, mode=mode)
    assert o.shape == (2, 3, 0, 5)
    assert np.array_equal(last, s)


@pytest.mark.parametrize("core", CORES)
def test_operations_are_those_of_the_products_executed(core: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """2 mnk of each product that NumPy is asked for; and the diagonal of GLA's scores, summed without one"""
    sizes, real = [], np.matmul

    def matmul(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        y = real(a, b)
        sizes.append(2 * y.size * a.shape[-1])
        return y

    for length, size in ((9, 4), (16, 16), (5, 1), (6, 2)):
        sizes.clear()
        inputs, s = drawn(core, length)
        with monkeypatch.context() as patch, count_flops() as count:
            patch.setattr(np, "matmul", matmul)
            called(core, inputs, s, mode="chunk", size=size)
        tokens = 2 * 3 * -(-length // size) * size
        assert count.flops == sum(sizes) + (2 * tokens * 4 if core == "gla" else 0)
        formula = gla_flops if core == "gla" else delta_flops
        assert count.flops == formula(2, 3, length, 4, 5, "chunk", size)


def test_operations_of_one_token() -> None:
    """4 Dk Dv for a state that is added to and read, 6 Dk Dv if what it holds is read first"""
    for length in (1, 7):
        assert gla_flops(2, 3, length, 4, 5, "recurrent") == 2 * 3 * length * 4 * 4 * 5
        assert decayed_flops(2, 3, length, 4, 5, "recurrent") == 2 * 3 * length * 4 * 4 * 5
        assert delta_flops(2, 3, length, 4, 5, "recurrent") == 2 * 3 * length * 6 * 4 * 5
    assert decayed_flops(1, 3, 128, 4, 5, "chunk", 64) == 128 * 2 * 3 * (64 * (4 + 5) + 2 * 4 * 5)


@pytest.mark.parametrize("core", [*CORES, "decayed"])
@pytest.mark.parametrize("mode", ["chunk", "recurrent"])
def test_a_state_of_other_rows_is_refused(core: str, mode: str) -> None:
    """One of a single row is not taken for all rows"""
    inputs, s = drawn("gla" if core == "decayed" else core, 5)
    inputs[3] = inputs[3][..., 0] if core == "decayed" else inputs[3]
    function = decayed_attention if core == "decayed" else CORES[core]
    for wrong in (s[:1], s[..., :1], s[:, :1]):
        with pytest.raises(InputError, match=r"state: shape .* expected \[B,H,Dk,Dv\] = \[2, 3, 4, 5\]"):
            function(*map(Tensor, inputs), wrong, mode=mode)


# ---- special cases ----


@pytest.mark.parametrize("mode", ["chunk", "recurrent"])
def test_gla_with_one_decay_for_all_channels_is_the_scalar_decay(mode: str) -> None:
    (q, k, v, _), s = drawn("gla", 21)
    for g in (-np.exp(np.random.default_rng(0).standard_normal((2, 3, 21))), np.zeros((2, 3, 21))):
        with no_grad():
            expected = decayed_attention(Tensor(q), Tensor(k), Tensor(v), Tensor(g), s, mode="chunk")
        found = called("gla", [q, k, v, np.repeat(g[..., None], 4, axis=3)], s, mode=mode)
        for x, y in zip(found, expected, strict=True):
            close(x, y.data, 1e-12)


@pytest.mark.parametrize("mode", ["chunk", "recurrent"])
def test_without_decay_gla_is_masked_bilinear_attention(mode: str) -> None:
    (q, k, v, g), _ = drawn("gla", 21)
    o, s = called("gla", [q, k, v, 0.0 * g], np.zeros((2, 3, 4, 5)), mode=mode)
    close(o, np.tril(q @ k.swapaxes(2, 3)) @ v, 1e-12)
    close(s, k.swapaxes(2, 3) @ v, 1e-12)


@pytest.mark.parametrize("mode", ["chunk", "recurrent"])
def test_delta_without_writing_only_decays(mode: str) -> None:
    (q, k, v, g, beta), s = drawn("delta", 21)
    o, last = called("delta", [q, k, v, 0.1 * g, 0.0 * beta], s, mode=mode)
    kept = np.exp(0.1 * np.cumsum(g, axis=2))[..., None]
    close(o, kept * (q @ s), 1e-12)
    close(last, kept[:, :, -1:] * s, 1e-12)


@pytest.mark.parametrize("mode", ["chunk", "recurrent"])
def test_delta_stores_what_it_is_told(mode: str) -> None:
    """β = 1 and ‖k‖ = 1: S_tᵀ k_t = v_t at once, whatever the decay; and orthonormal keys without decay are
    all remembered, where a key that comes again has its value replaced."""
    (_, k, v, g, beta), s = drawn("delta", 21)
    o, _ = called("delta", [k, k, v, g, np.ones_like(beta)], s, mode=mode)
    close(o, v, 1e-12)
    keys = np.linalg.qr(np.random.default_rng(0).standard_normal((8, 8)))[0]
    order = np.array([0, 1, 2, 3, 1, 4, 5, 0, 6, 7])
    values = np.random.default_rng(1).standard_normal((10, 5))
    inputs = [keys[order], keys[order], values, np.zeros(10), np.ones(10)]
    _, s = called("delta", [x[None, None] for x in inputs], np.zeros((1, 1, 8, 5)), mode=mode)
    last = dict(zip(order, values, strict=True))
    for key, value in last.items():
        close(keys[key] @ s[0, 0], value, 1e-12)


@pytest.mark.parametrize("mode", ["chunk", "recurrent"])
def test_delta_without_decay_is_the_product_of_reflections(mode: str) -> None:
    """S_T = Σ_t (Π_{s>t} (I − β_s k_s k_sᵀ)) β_t k_t v_tᵀ"""
    (q, k, v, g, beta), _ = drawn("delta", 9)
    _, s = called("delta", [q, k, v, 0.0 * g, beta], np.zeros((2, 3, 4, 5)), mode=mode)
    expected = np.zeros((2, 3, 4, 5))
    for t in range(9):
        part = beta[:, :, t, None, None] * k[:, :, t, :, None] * v[:, :, t, None, :]
        for later in range(t + 1, 9):
            outer = k[:, :, later, :, None] * k[:, :, later, None, :]
            part = (np.eye(4) - beta[:, :, later, None, None] * outer) @ part
        expected += part
    close(s, expected, 1e-12)


# ---- their parts ----


@pytest.mark.parametrize("size", [1, 2, 4, 32])
def test_inverse_of_a_unit_triangle(size: int) -> None:
    a = np.tril(np.random.default_rng(size).uniform(-1.0, 1.0, (3, 2, size, size)), -1)
    found = unit_lower_inverse(a)
    close(found @ (np.eye(size) + a), np.broadcast_to(np.eye(size), a.shape), 1e-12)
    assert np.array_equal(np.triu(found), np.broadcast_to(np.eye(size), a.shape))
    halves, expected = size, 0
    while halves > 2:                                   # two products of [s,s] per pair of halves
        half = halves // 2
        expected += (size // halves) * 2 * 2 * half**3
        halves = half
    assert inverse_flops(size) == expected


def test_chunks_are_powers_of_two() -> None:
    for settings in (GLASettings, DeltaNetSettings):
        with pytest.raises(InputError, match=r"chunk_size: 12 is not a power of two"):
            settings(chunk_size=12)
        with pytest.raises(InputError, match=r"conv_size: -1 taps; 0 leaves the convolution out"):
            settings(conv_size=-1)
    for core in CORES:
        inputs, s = drawn(core, 6)
        with pytest.raises(ValueError, match="C a power of two"):
            called(core, inputs, s, mode="chunk", size=3)


@pytest.mark.parametrize("core", ["decayed", "gla"])
def test_states_are_formed_of_unrounded_products(core: str) -> None:
    """k vᵀ of bfloat16 is not rounded again before it is added, in either form."""
    random, kind = np.random.default_rng(0), DType.of("bfloat16").numpy
    q, k, v = (Tensor(random.standard_normal((1, 2, 9, 4)).astype(kind)) for _ in range(3))
    g = -np.exp(random.standard_normal((1, 2, 9) if core == "decayed" else (1, 2, 9, 4))).astype(np.float32)
    function = decayed_attention if core == "decayed" else gated_linear_attention
    (_, chunked), (_, stepped) = (function(q, k, v, Tensor(g), np.zeros((1, 2, 4, 4), np.float32), mode=mode,
                                           size=4) for mode in ("chunk", "recurrent"))
    assert chunked.dtype == stepped.dtype == np.float32
    close(stepped.data, chunked.data, 1e-6)


@pytest.mark.parametrize("mode", ["chunk", "recurrent"])
@pytest.mark.parametrize("name", ["retention", "gla"])
def test_sums_beyond_half_precision_are_normed_before_they_are_narrowed(name: str, mode: str) -> None:
    """300 equal tokens of 32: 300 · 32³ is above the largest float16, the norm of such sums is not"""
    results = []
    for dtype in ("float16", "float32"):
        layer: Any = (Retention(RetentionSettings(hidden_size=8, num_heads=2, expand_v=1.0), dtype)
                      if name == "retention" else
                      GLA(GLASettings(hidden_size=8, num_heads=2, expand_k=1.0), dtype))
        layer.initialize(0)
        for part, size in (("q", 1.0), ("k", 1.0), ("v", 1.0), ("g", 0.1), ("o", 1.0)):
            weight = getattr(layer, f"{part}_proj").weight
            weight.data = (size * np.eye(8)).astype(weight.dtype)
        if name == "gla":
            layer.gk_proj[1].bias.data = np.full(8, 8.0).astype(dtype)
        with no_grad():
            results.append(layer(Tensor(np.full((1, 300, 8), 32.0, dtype)), mode=mode)[0].data)
    assert results[0].dtype == np.float16
    close(results[0].astype(np.float32), results[1], 5e-3)
